"""One object of the input, read by ranges as long as it is what it was when it was listed."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.storage.base import is_remote
from shardkit.storage.local import open_new, writing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.storage.base import Folder

COPIED_AT_ONCE = 4 << 20
COPY_THREADS = 4
HELD_BYTES = 1 << 18  # of a file in memory
LEAST_BLOCK, LARGEST_BLOCK = 1 << 14, 4 << 20


@dataclass(frozen=True)
class Source:
    """An object: its ``folder`` and ``key``, its ``etag``, and its size in bytes.

    Its methods raise FileNotFoundError if it is gone, ObjectChanged if it has another etag, and StorageError if the
    store cannot be reached.
    """

    folder: Folder
    key: str
    etag: str | None
    size: int

    def __str__(self) -> str:
        return f"{self.folder.uri}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of its key, for messages about a record, which has the whole key."""
        return self.key.rpartition("/")[2]

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``, or to the object's own end."""
        end = min(end, self.size)
        if start >= end:
            return b""
        return bytes(self.folder.read_unchanged(self.key, start, end, etag=self.etag))

    def windows(self, start: int, end: int, step: int) -> Iterator[tuple[int, bytes]]:
        """The same bytes a window at a time, each with its position; of a store, several are fetched at once."""
        begins = range(start, min(end, self.size), step)
        read = lambda begin: (begin, self.read(begin, min(begin + step, end)))  # noqa: E731
        if not is_remote(self.folder.uri) or len(begins) < 2:
            yield from map(read, begins)
            return
        with ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="shardkit-range") as pool:
            ahead = [pool.submit(read, begin) for begin in begins[:COPY_THREADS]]
            for number in range(len(begins)):
                yield ahead.pop(0).result()
                if number + COPY_THREADS < len(begins):
                    ahead.append(pool.submit(read, begins[number + COPY_THREADS]))

    def copy(self, start: int, end: int, file: Made) -> None:
        """Add the bytes from ``start`` up to ``end`` to a file of this machine."""
        for _, data in self.windows(start, end, COPIED_AT_ONCE):
            file.write(data)

    def opened(self, start: int = 0, end: int | None = None) -> io.BufferedReader:
        """The bytes from ``start`` up to ``end`` as a file, for libraries that read one."""
        return io.BufferedReader(_Ranged(self, start, self.size if end is None else end), LEAST_BLOCK)


class Made:
    """A file of this machine that is held in memory, and made when it has more than ``held_bytes``."""

    def __init__(self, path: str, *, held_bytes: int = HELD_BYTES) -> None:
        self._path = path
        self._most = held_bytes
        self._file: Any = None
        self._held: list[bytes] = []
        self._held_bytes = 0

    def __enter__(self) -> Made:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_there(self) -> bool:
        """Whether anything has been written."""
        return bool(self._held) or self._file is not None

    @property
    def content(self) -> bytes | None:
        """What has been written; None if that is in the file."""
        return None if self._file is not None else b"".join(self._held)

    def write(self, data: bytes) -> None:
        """Add to the file.

        Raises:
            StorageError: there is no room.
        """
        if self._file is None:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes <= self._most:
                return
            data = b"".join(self._held)
            self._held.clear()
        with writing(self._path):
            self._opened().write(data)

    def close(self) -> None:
        """Close the file, if it has been made."""
        if self._file is not None:
            with writing(self._path):
                self._file.close()

    def _opened(self) -> Any:
        if self._file is None:
            self._file = open_new(self._path)
        return self._file


class _Ranged(io.RawIOBase):
    """Some bytes of an object as a file. It reads in blocks, which grow where they follow closely on one another."""

    def __init__(self, source: Source, start: int, end: int) -> None:
        super().__init__()
        self._source = source
        self._start, self._end = start, end
        self._at = start
        self._block, self._block_at, self._block_bytes = b"", start, LEAST_BLOCK

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = max(base + offset, self._start)
        return self.tell()

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._end:
            return 0
        if not self._block_at <= self._at < self._block_at + len(self._block):
            self._fetch(len(buffer))
        begin = self._at - self._block_at
        data = self._block[begin : begin + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _fetch(self, wanted: int) -> None:
        near = 0 <= self._at - (self._block_at + len(self._block)) < self._block_bytes
        self._block_bytes = min(self._block_bytes * 2, LARGEST_BLOCK) if near else LEAST_BLOCK
        size = max(self._block_bytes, wanted)
        self._block, self._block_at = self._source.read(self._at, min(self._at + size, self._end)), self._at
