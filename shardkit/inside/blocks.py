"""Blocks of objects that were read lately: small members of an archive are neighbours, and one request has many."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardkit.inside.source import Source

BLOCK_BYTES = 1 << 20
BLOCKS_HELD = 16
SMALL_BYTES = BLOCK_BYTES // 4  # what is larger is read by itself

_held: OrderedDict[tuple[Source, int], Future[bytes]] = OrderedDict()
_lock = threading.Lock()
_latest: tuple[Source | None, int, bytes] = (None, 0, b"")  # most are asked for many times in a row


def read_small(source: Source, start: int, end: int) -> bytes:
    """The bytes of an object from ``start`` up to ``end``, as `Source.read` gives them."""
    if end - start > SMALL_BYTES:
        return source.read(start, end)
    first, last = start // BLOCK_BYTES, max(end - 1, start) // BLOCK_BYTES
    parts = []
    for number in range(first, last + 1):
        at = number * BLOCK_BYTES
        parts.append(_block(source, number)[max(start - at, 0) : end - at])
    return parts[0] if first == last else b"".join(parts)


def _block(source: Source, number: int) -> bytes:
    """A block, which threads that want it at once read once."""
    global _latest  # noqa: PLW0603  it is replaced as a whole
    if _latest[0] is source and _latest[1] == number:
        return _latest[2]
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
    data = block.result()
    _latest = (source, number, data)
    return data
