"""A piece's files: in memory if they are small, else made on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.errors import ObjectChanged
from shardkit.inside.archives import index_of, read_members
from shardkit.inside.compressed import frame_starts
from shardkit.inside.csv_rows import row_ends
from shardkit.inside.lines import write_lines
from shardkit.inside.piece import NO_INDEX
from shardkit.inside.row_groups import footer_of, write_groups
from shardkit.inside.source import Made, Source

if TYPE_CHECKING:
    from shardkit.inside.piece import Piece
    from shardkit.storage.places import Places


def source_of(places: Places, piece: Piece, etag: str | None) -> Source:
    """The object that a piece is of, as long as it has that etag.

    Raises:
        FileNotFoundError: the input has no such place.
    """
    return Source(*places.at(piece.key), etag or None, piece.object_bytes)


def fetch_piece(places: Places, source: Source, piece: Piece, root: str) -> dict[str, bytes] | None:
    """Get the files of a piece: of the object only what they need is read.

    Returns the contents of those that are small by their names; the others are made under ``root``. A piece without a
    line has no file, and for that None is returned.

    Raises:
        FileNotFoundError: the object is gone.
        ObjectChanged: it is not what it was when it was listed.
        ObjectDamaged: it cannot be read as what it is said to be.
        StorageError: the store cannot be reached, or there is no room for the files.
    """
    if piece.is_as_it_is:
        places.get_file(piece.key, Path(root, piece.key), etag=source.etag, size=piece.object_bytes)
        return {}
    if piece.end == NO_INDEX:
        raise why_not_cut(source, piece)
    if piece.members:
        return read_members(source, piece.members, piece.rule.kind, root)
    (name,) = piece.files
    file = Made(f"{root}/{name}")
    if piece.rule.kind == "parquet":
        write_groups(source, piece, file)
    else:
        write_lines(source, piece, file)
        if not file.is_there:
            return None
    return {} if file.content is None else {name: file.content}


def why_not_cut(source: Source, piece: Piece) -> Exception:
    """The error for which the plan could not cut an object, found by trying again."""
    kind = piece.rule.kind
    if piece.rule.is_archive:
        index_of(source, kind)
    elif kind == "parquet":
        footer_of(source)
    elif piece.rule.is_scanned(piece.key):
        row_ends(source, [])
    else:
        frame_starts(source)
    return ObjectChanged(
        f"{source} could not be cut when it was listed, and now it could.",
        hint="Start a new run, which lists the input again.",
    )
