"""Blocks of objects that were read lately: small members of an archive are neighbours, and one request has many."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.inside.source import Source

BLOCK_BYTES = 1 << 20
BLOCKS_HELD, BLOCKS_AHEAD = 16, 8
SMALL_BYTES = BLOCK_BYTES // 4  # what is larger is read by itself

_held: OrderedDict[tuple[Source, int], Future[bytes]] = OrderedDict()
_lock = threading.Lock()
_latest: tuple[Source | None, int, bytes] = (None, 0, b"")  # most are asked for many times in a row


def read_small(source: Source, start: int, end: int) -> bytes:
    """The bytes of an object from ``start`` up to ``end``, as `Source.read` gives them."""
    if end - start > SMALL_BYTES:
        return source.read(start, end)
    global _latest  # noqa: PLW0603  it is replaced as a whole
    parts = []
    for number in numbers(start, end):
        latest = _latest
        if latest[0] is not source or latest[1] != number:
            latest = _latest = source, number, _block(source, number)
        at = number * BLOCK_BYTES
        parts.append(latest[2][max(start - at, 0) : end - at])
    return parts[0] if len(parts) == 1 else b"".join(parts)


def numbers(start: int, end: int) -> range:
    """The blocks in which the bytes from ``start`` up to ``end`` are; at least one."""
    return range(start // BLOCK_BYTES, max(end - 1, start) // BLOCK_BYTES + 1)


class BlocksAhead:
    """Has blocks read before they are needed, in the order in which they will be; ``submit`` calls it in a thread."""

    def __init__(self, submit: Callable[..., object]) -> None:
        self._submit = submit
        self._coming: deque[tuple[Source, int]] = deque()
        self._begun: deque[tuple[Source, int]] = deque()
        self._last: tuple[Source | None, int] = (None, 0)

    def expect(self, source: Source, start: int, end: int) -> None:
        """The bytes from ``start`` up to ``end`` will be needed, after those that were expected before."""
        for number in numbers(start, end):
            if self._last != (source, number):
                self._last = source, number
                self._coming.append((source, number))

    def begin(self, source: Source, start: int) -> None:
        """The bytes from ``start`` on are needed now."""
        block = source, start // BLOCK_BYTES
        while self._begun and self._begun[0] != block:
            self._begun.popleft()
        while self._coming and len(self._begun) < BLOCKS_AHEAD:
            self._begun.append(self._coming.popleft())
            self._submit(_read_ahead, *self._begun[-1])

    def forget(self) -> None:
        """Nothing is needed any more."""
        self._coming.clear()
        self._begun.clear()
        self._last = (None, 0)


def _read_ahead(source: Source, number: int) -> None:
    with contextlib.suppress(Exception):  # whoever needs the block will try again
        _block(source, number)


def _block(source: Source, number: int) -> bytes:
    """A block, which threads that want it at once read once."""
    key = (source, number)
    with _lock:
        block = _held.get(key)
        is_mine = block is None
        if block is None:
            block = _held[key] = Future()
            while len(_held) > BLOCKS_HELD:
                _held.popitem(last=False)
        else:
            _held.move_to_end(key)
    if is_mine:
        try:
            block.set_result(source.read(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES))
        except BaseException as error:
            with _lock:
                _held.pop(key, None)
            block.set_exception(error)
            raise
    return block.result()
