"""Checksums of files: computed stretch by stretch as a file is written, and compared when it is read.

The sums of a file are pairs: where a stretch of it ends, and its CRC32; a stretch begins where the one before it ends.
Each row group of a part is a stretch, and the footer is the last one. A small file is verified as a whole when it is
opened; of a large file the footer is verified then, and the rest as it is copied.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, Any

from shardkit.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

BUFFER_BYTES = 1 << 20
WHOLE_BYTES = 1 << 20  # a file that is not larger is read at once
Sums = tuple[tuple[int, int], ...]


class SummedFile(io.BufferedWriter):
    """A new file; ``sums`` has the sum of each stretch, which `cut` ends."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"), BUFFER_BYTES)
        self.sums: list[list[int]] = []
        self._end = self._sum = 0

    def write(self, data: Any) -> int:
        """Append some bytes."""
        written = super().write(data)
        self._sum = zlib.crc32(data, self._sum)
        self._end += written
        return written

    def cut(self) -> None:
        """End a stretch."""
        self.sums.append([self._end, self._sum])
        self._sum = 0


def as_sums(pairs: Sequence[Sequence[int]]) -> Sums:
    """Sums as they are read from JSON."""
    return tuple((int(end), int(crc)) for end, crc in pairs)


def verified(file: Any, sums: Sums, name: str) -> Any:
    """An open file, or the content of a small one in memory, after its sums have been compared.

    Raises:
        Damaged: it is not.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    if not sums:
        return file
    size = file.size()
    if size != sums[-1][0]:
        file.close()
        raise Damaged(f"{name} is damaged: it has {size:,} bytes, and was written with {sums[-1][0]:,}.")
    begin = 0 if size <= WHOLE_BYTES or len(sums) < 2 else sums[-2][0]
    file.seek(begin)
    data = file.read_buffer(size - begin)
    for end, crc in sums if begin == 0 else sums[-1:]:
        if zlib.crc32(data[begin_of(sums, end) - begin : end - begin]) != crc:
            file.close()
            raise Damaged(f"{name} is damaged: the checksum of its bytes up to {end:,} is another one.")
    file.seek(0)
    return pa.BufferReader(data) if begin == 0 else file


def begin_of(sums: Sums, end: int) -> int:
    """Where the stretch begins that ends at ``end``."""
    return max((before for before, _ in sums if before < end), default=0)
