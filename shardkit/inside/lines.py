"""Pieces of text files that end at line ends.

A piece is planned as a range of bytes. It begins after the first newline at or after the range's start, and ends with
the first newline at or after the range's end; that of the file's beginning begins there. So the pieces of a file are
found independently of one another, and together they are the file. A piece without such a newline in its range is
blank: its bytes are in the middle of a line that an earlier piece has.

Of a compressed file, the range is one of whole blocks or frames, and newlines are counted in what these stand for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.inside.blocks import SMALL_BYTES, read_small
from shardkit.inside.compressed import block_from, check_newlines, damage_named, stream
from shardkit.inside.csv_rows import header_bytes
from shardkit.inside.rule import codec_of
from shardkit.inside.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.inside.piece import Piece
    from shardkit.inside.source import Made

LEAST_LOOK, FIRST_LOOK, LONGEST_LOOK = 1 << 12, 1 << 16, 8 << 20
READ_BYTES = 1 << 20


def write_lines(source: Source, piece: Piece, file: Made) -> None:
    """Write the lines of a piece; of a blank piece nothing.

    Raises:
        ObjectDamaged: the object cannot be decompressed.
    """
    codec = codec_of(source.key)
    if codec is None:
        _write_plain(source, piece, file)
        return
    with damage_named(source, codec):
        if piece.is_whole:
            _write_stream(stream(source, codec), b"", file, is_first=True, rest=None)
            return
        start, end = piece.start, piece.end
        if codec == "gzip":  # of bgzip, whose blocks are found here; frames of zstd are in the plan
            start, end = block_from(source, start), block_from(source, end)
        if start < end:
            header = header_bytes(stream(source, codec).read, piece.rule) if piece.needs_header else b""
            rest = stream(source, codec, end)
            _write_stream(stream(source, codec, start, end), header, file, is_first=start == 0, rest=rest)


def _write_plain(source: Source, piece: Piece, file: Made) -> None:
    start, end = (0, source.size) if piece.is_whole else (piece.start, piece.end)
    look = LEAST_LOOK if end - start <= SMALL_BYTES else FIRST_LOOK
    if not piece.is_whole:
        check_newlines(source)
    if not piece.is_exact:
        begin = _after_newline(source, start, end, look=look) if start else 0
        if begin is None:
            return
        start, end = begin, _after_newline(source, end, source.size, look=look) or source.size
    if start >= end:
        return
    with file:
        if piece.needs_header:
            with damage_named(source, "CSV"):
                file.write(header_bytes(_reader(source), piece.rule))
        if end - start <= SMALL_BYTES:
            file.write(read_small(source, start, end))
        else:
            source.copy(start, end, file)


def _after_newline(source: Source, start: int, end: int, *, look: int) -> int | None:
    """Where the line begins that follows on the first newline in a range; None if there is none."""
    while start < end:
        read = read_small if look < FIRST_LOOK else Source.read
        at = read(source, start, min(start + look, end)).find(b"\n")
        if at >= 0:
            return start + at + 1
        start, look = min(start + look, end), min(look * 2, LONGEST_LOOK)
    return None


def _reader(source: Source) -> Callable[[int], bytes]:
    """The bytes of an object from its beginning on."""
    at = 0

    def read(size: int) -> bytes:
        nonlocal at
        data = source.read(at, at + size)
        at += len(data)
        return data

    return read


def _write_stream(text: Any, header: bytes, file: Made, *, is_first: bool, rest: Any) -> None:
    """Write what follows on the first newline of a stream, and then the rest of its last line."""
    skipping = not is_first
    while data := text.read(READ_BYTES):
        if skipping:
            at = data.find(b"\n")
            if at < 0:
                continue
            skipping, data = False, data[at + 1 :]
        _add(file, header, data)
    while rest is not None and not skipping and (data := rest.read(FIRST_LOOK)):
        at = data.find(b"\n")
        _add(file, header, data[: at + 1] if at >= 0 else data)
        if at >= 0:
            break
    file.close()


def _add(file: Made, header: bytes, data: bytes) -> None:
    if data:
        if not file.is_there and header:
            file.write(header)
        file.write(data)
