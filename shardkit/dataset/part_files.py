"""Parts opened one after the other; parts in a store are opened ahead, because each takes a request or more."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from shardkit.storage.base import File

OPENED_AHEAD = 16  # a small part is in memory once it is open
KEPT_BYTES = 64 << 20
# For more than this, memory is fetched from the system each time, which takes longer than to copy a file.
COPIED_HERE_BYTES, COPIED_FAR_BYTES = 256 << 10, 8 << 20
KEPT_HERE_BYTES = 16 << 20  # of parts on this machine that were read whole to verify them when they were opened


class PartFiles:
    """The files of parts. Small ones that were read whole stay in memory, within bounds, until they are read again."""

    def __init__(self, parts: tuple[File, ...]) -> None:
        self.parts = parts
        self._are_far = not all(isinstance(part.folder, LocalFolder) for part in parts)
        self._kept: dict[int, pa.BufferReader] = {}
        self._room = KEPT_BYTES if self._are_far else KEPT_HERE_BYTES

    @property
    def copied_bytes(self) -> int:
        """How many bytes to read at a time where they are copied: a request to a store, or what memory gives fast."""
        return COPIED_FAR_BYTES if self._are_far else COPIED_HERE_BYTES

    def each(self, numbers: Iterable[int], *, readers: int = 1) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Yield each part's number and what opens it, or raises an OSError; ``readers`` call this at once."""
        if not self._are_far:
            yield from ((i, functools.partial(self._open, i)) for i in numbers)
            return
        ahead = max(1, OPENED_AHEAD // readers)
        left = iter(numbers)
        with ThreadPoolExecutor(ahead, thread_name_prefix="shardkit-open") as threads:
            coming = deque((i, threads.submit(self._open, i)) for i in itertools.islice(left, ahead))
            while coming:
                i, opened = coming.popleft()
                coming.extend((j, threads.submit(self._open, j)) for j in itertools.islice(left, 1))
                yield i, opened.result

    def _open(self, i: int) -> Any:
        kept = self._kept.pop(i, None)
        return kept if kept is not None else self.parts[i].open()

    def keep_or_close(self, i: int, opened: Any) -> None:
        """Keep an open part for the next time if it is in memory and there is room; otherwise close it."""
        if isinstance(opened, pa.BufferReader) and opened.size() <= self._room:
            self._room -= opened.size()
            self._kept[i] = opened
        else:
            opened.close()
