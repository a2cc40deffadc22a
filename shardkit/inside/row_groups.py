"""Row groups of Parquet files: some of them, cut out as a file of their own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from shardkit.inside.compressed import damage_named
from shardkit.tables.rowgroups import MAGIC, TAIL_BYTES, Footer

if TYPE_CHECKING:
    from shardkit.inside.piece import Piece
    from shardkit.inside.source import Made, Source

FOOTER_GUESS = 1 << 16


@functools.lru_cache(2)
def footer_of(source: Source) -> Footer:
    """The footer of a Parquet file.

    Raises:
        ObjectDamaged: it is none.
    """
    with damage_named(source, "Parquet"):
        tail = source.read(max(source.size - FOOTER_GUESS, 0), source.size)
        if len(tail) < TAIL_BYTES or tail[-4:] != MAGIC:
            raise ValueError("it does not end as a Parquet file does")
        length = int.from_bytes(tail[-TAIL_BYTES:-4], "little") + TAIL_BYTES
        if length > len(tail):
            tail = source.read(max(source.size - length, 0), source.size)
        return Footer.of(tail[-length:-TAIL_BYTES])


def cut_groups(source: Source, target_bytes: int) -> list[tuple[int, int, int]]:
    """The pieces of a Parquet file: the first row group of each, the one after its last, and their size in bytes."""
    pieces: list[tuple[int, int, int]] = []
    first = size = 0
    sizes = footer_of(source).group_bytes()
    for number, group in enumerate(sizes):
        if size and size + group > target_bytes:
            pieces.append((first, number, size))
            first, size = number, 0
        size += group
    return [*pieces, (first, len(sizes), size)] if sizes else []


def write_groups(source: Source, piece: Piece, file: Made) -> None:
    """Write the row groups of a piece as a Parquet file; their bytes are copied as they are.

    Raises:
        ObjectDamaged: there are no such row groups.
    """
    footer = footer_of(source)
    with damage_named(source, "Parquet"):
        begin, end = footer.extent(piece.start, piece.end)
        tail = footer.of_groups(piece.start, piece.end, moved_by=len(MAGIC) - begin)
    with file:
        file.write(MAGIC)
        source.copy(begin, end, file)
        file.write(tail)
