"""Compressed text: read as a stream, and cut where a stream may be begun in its midst.

A file of bgzip is a row of small gzip blocks, each with a field that says how long it is (the SAM/BAM specification,
section 4.1). A seekable file of zstd is a row of frames, with a table of their sizes at its end (the Zstandard
seekable format). Any other compressed file can only be read from its beginning.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import lzma
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import ObjectDamaged, ShardkitError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.inside.source import Source

BLOCK_HEAD = 18
BLOCK_MOST = 1 << 16
BLOCK_FOLLOWERS = 1 << 17  # a block counts as found if blocks follow on it for so many bytes, or up to the end
SEEK_TABLE, SEEKABLE = 0x184D2A5E, 0x8F92EAB1
SEEK_FOOTER = 9
WIDE = {b"\xff\xfe", b"\xfe\xff"}  # the byte order marks with which UTF-16 and UTF-32 begin
SEEK_HEAD = 8
WITH_CHECKSUMS = 1 << 7


@contextlib.contextmanager
def damage_named(source: Source, what: str) -> Iterator[None]:
    """A block in which whatever a library raises over the bytes of an object becomes an error that names it.

    Raises:
        ObjectDamaged: the bytes are not what they should be.
    """
    try:
        yield
    except (ShardkitError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        raise ObjectDamaged(f"{source.name} cannot be read as {what}: {error}.", hint="Mend or exclude it.") from error


@functools.lru_cache(64)
def check_newlines(source: Source) -> None:
    """See that a text has not begun as one in which newlines are no single bytes.

    Raises:
        ObjectDamaged: it has.
    """
    if source.read(0, 2) in WIDE:
        raise ObjectDamaged(
            f"{source.name} is UTF-16 or UTF-32 text, which cannot be cut at bytes.", hint="Convert it to UTF-8."
        )


def stream(source: Source, codec: str, start: int = 0, end: int | None = None) -> Any:
    """What the compressed bytes from ``start`` up to ``end`` stand for, as a file to read from once."""
    opened = source.opened(start, end)
    if codec == "gzip":
        return gzip.GzipFile(fileobj=opened)
    if codec == "bz2":
        return bz2.BZ2File(opened)
    if codec == "xz":
        return lzma.LZMAFile(opened)
    import pyarrow as pa

    return pa.CompressedInputStream(opened, codec) if source.size else io.BytesIO()


def block_bytes(head: bytes) -> int:
    """How long the block of bgzip is that begins with ``head``; 0 if none does."""
    if len(head) < BLOCK_HEAD or head[:4] != b"\x1f\x8b\x08\x04" or head[12:16] != b"BC\x02\x00":
        return 0
    if head[10:12] != b"\x06\x00":  # other extra fields: nobody writes them
        return 0
    return int(struct.unpack_from("<H", head, 16)[0]) + 1


def is_blocked(source: Source) -> bool:
    """Whether a gzip file is one of bgzip."""
    return block_bytes(source.read(0, BLOCK_HEAD)) > 0


def block_from(source: Source, start: int) -> int:
    """Where the first block of bgzip begins at ``start`` or after it; the end of the file if none does.

    The bytes of a block may look like the beginning of another. So a place counts only if blocks follow on it, one
    directly after the other, for longer than any block is long: the false blocks in a block end with it.
    """
    if start in {0, source.size}:
        return start
    data = source.read(start, start + BLOCK_MOST + BLOCK_FOLLOWERS + BLOCK_HEAD)
    begin = 0
    while (begin := data.find(b"\x1f\x8b\x08\x04", begin)) >= 0:
        if _leads_on(source, data, start, begin):
            return start + begin
        begin += 1
    return source.size


def _leads_on(source: Source, data: bytes, start: int, begin: int) -> bool:
    at = begin
    while at - begin < BLOCK_FOLLOWERS and start + at < source.size:
        head = data[at : at + BLOCK_HEAD]
        if len(head) < BLOCK_HEAD:
            head = source.read(start + at, start + at + BLOCK_HEAD)
        if not (length := block_bytes(head)):
            return False
        at += length
    return start + at <= source.size


def frame_starts(source: Source) -> np.ndarray | None:
    """Where each frame of a seekable file of zstd begins, and where the last ends; None if it has no such table.

    Raises:
        ObjectDamaged: the table contradicts the file.
    """
    footer = source.read(max(source.size - SEEK_FOOTER, 0), source.size)
    if len(footer) < SEEK_FOOTER or struct.unpack_from("<I", footer, 5)[0] != SEEKABLE:
        return None
    count, flags = struct.unpack_from("<IB", footer)
    width = 3 if flags & WITH_CHECKSUMS else 2
    length = SEEK_HEAD + count * width * 4 + SEEK_FOOTER
    table = source.read(max(source.size - length, 0), source.size)
    with damage_named(source, "seekable zstd"):
        magic, held = struct.unpack_from("<II", table)
        sizes = np.frombuffer(table, "<u4", count * width, SEEK_HEAD).reshape(count, width)[:, 0].astype(np.int64)
        starts = np.r_[0, np.cumsum(sizes)]
        if magic != SEEK_TABLE or held + SEEK_HEAD != length or starts[-1] + length != source.size:
            raise ValueError("its table of frames contradicts its size")
    return np.asarray(starts)
