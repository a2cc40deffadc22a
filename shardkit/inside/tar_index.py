"""The members of a tar archive, found from header to header.

Headers as nearly all are, of plain files with their name, its continuation by GNU or POSIX tar, and of folders, are
read here, because the standard library takes some 25 us for each. It reads the others.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shardkit.inside.source import LEAST_BLOCK
from shardkit.storage.base import is_remote

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.inside.source import Source

BLOCK = 512  # bytes; all headers and contents begin at a multiple of it
NUL = bytes(BLOCK)
WINDOW = 1 << 20
# The next header is read with all bytes before it, if there are no more than these: a request takes longer.
PASSED_REMOTE, PASSED_LOCAL = 4 << 20, 1 << 16
MOST_EXTENDED = 1 << 16
FILES = {ord("0"), 0, ord("7")}
FOLDER, POSIX_NAME, GNU_NAME = ord("5"), ord("x"), ord("L")
WITHOUT_EFFECT = {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment"}  # here


class Found(NamedTuple):
    """What a header is of: its ``name``, where its content begins, and its size; a ``link`` has another's content."""

    name: str
    start: int
    size: int
    link: str = ""


def found_in(source: Source) -> Iterator[Found]:
    """The files in a tar archive, in their order.

    Raises:
        ValueError: it is none, or has members that cannot be read by themselves.
    """
    heads, rest = _Heads(source), _Rest(source)
    at = 0
    while (head := heads.block(at)) is not None and head != NUL:
        kind = head[156]
        begun_at, name = at, b""
        if kind in {POSIX_NAME, GNU_NAME} and not rest.has_defaults:
            extended = _extended(heads, head, at)
            if extended is not None:
                name, at = extended
                head = heads.block(at) or NUL
                kind = head[156]
        name = name or _name(head)
        if rest.has_defaults or kind not in FILES or name.endswith(b"/"):
            if kind == FOLDER and not rest.has_defaults:
                heads.note(head, at)
                at += BLOCK
                continue
            found, at = rest.at(begun_at)
            if found is not None:
                yield found
            continue
        size = _number(head[124:136])
        heads.note(head, at)
        start = at + BLOCK
        text = name.decode("utf-8", "surrogateescape")
        if start + size > source.size:
            raise ValueError(f"it ends in the midst of {text}")
        yield Found(text, start, size)
        at = start + _whole_blocks(size)
    if at == 0:
        raise ValueError("it does not begin with a header")
    heads.finish()


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _name(head: bytes) -> bytes:
    name = head[:100].partition(b"\0")[0]
    prefix = head[345:500].partition(b"\0")[0] if head[345] else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes) -> int:
    """The number in a field of a header: octal digits, or bytes after a mark.

    Raises:
        ValueError: there is none.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _extended(heads: _Heads, head: bytes, at: int) -> tuple[bytes, int] | None:
    """The name that a header has for the next one, and where that is; None if it says what is not known here."""
    size = _number(head[124:136])
    if size > MOST_EXTENDED:
        return None
    heads.note(head, at)
    body = heads.read(at + BLOCK, at + BLOCK + size)
    following = at + BLOCK + _whole_blocks(size)
    if head[156] == GNU_NAME:
        return body.partition(b"\0")[0], following
    name = b""
    while body and body[0]:
        digits, _, _ = body.partition(b" ")
        key, _, value = body[len(digits) + 1 : int(digits) - 1].partition(b"=")
        body = body[int(digits) :]
        if key == b"path":
            name = value
        elif key not in WITHOUT_EFFECT:
            return None
    return name, following


class _Rest:
    """Reads headers that are rare as the standard library does; those with defaults for others are among them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._archive: tarfile.TarFile | None = None

    @property
    def has_defaults(self) -> bool:
        """Whether a header has been read that holds for all that follow."""
        return self._archive is not None and bool(self._archive.pax_headers)

    def at(self, position: int) -> tuple[Found | None, int]:
        """What the header at a position is of, if it is a file; and where the next header is.

        Raises:
            ValueError: it is no header, or that of a member which cannot be read by itself.
        """
        archive = self._archive
        if archive is None:
            archive = self._archive = tarfile.open(fileobj=self._source.opened(), mode="r:")  # noqa: SIM115
        if position:
            archive.firstmember = None  # type: ignore[attr-defined]
            archive.offset = position
        info = archive.next()
        archive.members.clear()  # type: ignore[attr-defined]  # otherwise it would keep all of them
        if info is None:
            raise ValueError(f"there is no header at byte {position:,}")
        if info.issparse():
            raise ValueError(f"{info.name} is sparse")
        found = None
        if info.islnk():
            found = Found(info.name, 0, 0, info.linkname)
        elif info.isreg():
            found = Found(info.name, info.offset_data, info.size)
            if info.offset_data + info.size > self._source.size:
                raise ValueError(f"it ends in the midst of {info.name}")
        return found, archive.offset


class _Heads:
    """Blocks of an archive one after the other; where they follow closely on one another, all between them is read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._is_remote = is_remote(source.folder.uri)
        self._window, self._begin, self._bytes = b"", 0, LEAST_BLOCK
        self._stream: Any = None
        self._blocks: list[int] = []  # of the window, that are headers
        self._sums: list[int] = []

    def block(self, at: int) -> bytes | None:
        """The block at a position; None at the end of the archive.

        Raises:
            ValueError: the archive ends in the midst of it, or a header before it has not the sum that it says.
        """
        begin = at - self._begin
        block = self._window[begin : begin + BLOCK] if begin >= 0 else b""
        if len(block) == BLOCK:
            return block
        block = self.read(at, at + BLOCK)
        if block and len(block) < BLOCK:
            raise ValueError("it ends in the midst of a header")
        return block or None

    def read(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` up to ``end``."""
        if not self._begin <= start <= end <= self._begin + len(self._window):
            self.finish()
            self._move(start, min(end, self._source.size))
        return self._window[start - self._begin : end - self._begin]

    def _move(self, start: int, end: int) -> None:
        """Read a window that holds these bytes."""
        window_end = self._begin + len(self._window)
        is_near = 0 <= start - window_end <= (PASSED_REMOTE if self._is_remote else PASSED_LOCAL)
        if self._is_remote and is_near and self._bytes == WINDOW:
            if self._stream is None:
                self._stream = self._source.windows(window_end, self._source.size, WINDOW)
            self._begin, self._window = window_end, b""
            while window_end < end:
                window_end, data = next(self._stream)
                if window_end + len(data) > start:
                    self._begin = self._begin if self._window else window_end
                    self._window += data
                window_end += len(data)
            return
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._bytes = min(self._bytes * 2, WINDOW) if is_near else LEAST_BLOCK
        self._begin, self._window = start, self._source.read(start, max(start + self._bytes, end))

    def note(self, head: bytes, at: int) -> None:
        """Take note of a header in the window, whose sum is compared with that of many others at once.

        Raises:
            ValueError: it says no sum.
        """
        self._blocks.append((at - self._begin) // BLOCK)
        self._sums.append(_number(head[148:156]))

    def finish(self) -> None:
        """Compare the sums.

        Raises:
            ValueError: one is another.
        """
        if not self._blocks:
            return
        blocks = np.frombuffer(self._window, np.uint8, len(self._window) // BLOCK * BLOCK).reshape(-1, BLOCK)
        heads, said = blocks[self._blocks], np.array(self._sums)
        is_sum = (_sums(heads) == said) | (_sums(heads.view(np.int8)) == said)  # there are writers of both kinds
        if not is_sum.all():
            at = self._begin + self._blocks[int(np.flatnonzero(~is_sum)[0])] * BLOCK
            raise ValueError(f"its header at byte {at:,} is damaged")
        self._blocks.clear()
        self._sums.clear()


def _sums(heads: np.ndarray) -> np.ndarray:
    """The sum of each header, as if there were blanks where it says that."""
    own = heads[:, 148:156].sum(axis=1, dtype=np.int64)
    sums: np.ndarray = heads.sum(axis=1, dtype=np.int64) - own + 8 * ord(" ")
    return sums
