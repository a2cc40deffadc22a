"""What lies under a prefix of an object store, as an Arrow table: many prefixes are listed side by side.

A store lists a thousand keys a request, one request after the other. So the folders of the first levels are found
first, level by level, and then all are listed at once. No Python object is made a key, and a long listing lies in a
file.
"""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.arrays import scalar
from shardkit.spill import BATCH_ROWS, LISTED, PIECE_ROWS, Piece, Spill, gathered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

LISTED_AT_ONCE = 32
FOLDERS_AHEAD = 4 * LISTED_AT_ONCE
ENOUGH_FOLDERS = 16
LEVELS = 4
PAGE = 1000


def list_objects(
    store: Any,
    prefix: str,
    ask: Callable[[Callable[[], Any]], Any],
    wanted: Callable[[pa.StringArray], pa.BooleanArray],
) -> pa.Table:
    """The objects under ``prefix``, in key order: ``key`` (what follows it), ``bytes``, ``etag`` and ``modified``.

    Args:
        store: an obstore store.
        prefix: empty, or ending with a slash.
        ask: makes a request, repeats it where that helps, and turns its errors into ours.
        wanted: which keys are.

    Raises:
        NoRoom: the listing is long, and the temporary folder cannot take it.
    """
    beside: list[Piece] = []
    folders = [prefix]
    with ThreadPoolExecutor(LISTED_AT_ONCE, thread_name_prefix="shardkit-list") as pool:
        listing = _Listing(store, len(prefix), wanted, lambda work, folder: pool.submit(ask, lambda: work(folder)))
        for _ in range(LEVELS):
            if not 0 < len(folders) < ENOUGH_FOLDERS:
                break
            levels = list(pool.map(lambda folder: ask(lambda: listing.level(folder)), folders))
            beside += itertools.chain.from_iterable(objects for objects, _ in levels)
            folders = sorted(folder for _, below in levels for folder in below)
        listed = _side_by_side(pool, lambda folder: ask(lambda: listing.everything(folder)), folders)
        return listing.table(itertools.chain(beside, itertools.chain.from_iterable(listed)))


def _side_by_side(
    pool: ThreadPoolExecutor, find: Callable[[str], list[Piece]], folders: Iterable[str]
) -> Iterator[list[Piece]]:
    """What is found in each folder, in their order. Only so many folders are ahead, for what is small is in memory."""
    ahead: deque[Future[list[Piece]]] = deque()
    try:
        for folder in folders:
            if len(ahead) == FOLDERS_AHEAD:
                yield ahead.popleft().result()
            ahead.append(pool.submit(find, folder))
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


class _Listing:
    """What is found of the objects that are wanted, by the threads of one listing."""

    def __init__(
        self,
        store: Any,
        cut: int,
        wanted: Callable[[pa.StringArray], pa.BooleanArray],
        beside: Callable[[Callable[[str], Any], str], Future[Any]],
    ) -> None:
        self._store = store
        self._cut = cut
        self._wanted = wanted
        self._beside = beside
        self._ahead: dict[str, Future[Any]] = {}
        self._spill = Spill(LISTED)

    def everything(self, folder: str) -> list[Piece]:
        """The objects in a folder and below."""
        return self._pieces(self._pages(folder))

    def level(self, folder: str) -> tuple[list[Piece], list[str]]:
        """The objects right in a folder, and the folders in it; or all objects in it, where a page tells of all."""
        # Asking for both gives all objects at once, however many. So it is not asked where there may be no folders.
        if (ahead := self._ahead.pop(folder, None)) is not None:
            listed = ahead.result()
        else:
            try:
                return self._pieces(_flat(self._pages(folder), len(folder))), []
            except _NotFlat as found:
                self._look_ahead(folder, found.keys)
                listed = self._both(folder)
        objects = pa.RecordBatchReader.from_stream(listed["objects"]).read_all().to_batches(max_chunksize=BATCH_ROWS)
        return self._pieces(objects), [f"{path.rstrip('/')}/" for path in listed["common_prefixes"]]

    def _both(self, folder: str) -> Any:
        return self._store.list_with_delimiter(folder or None, return_arrow=True)

    def _look_ahead(self, folder: str, keys: list[str]) -> None:
        """Ask already for the folders on the way to the first object, for each level may have one folder only.

        ``keys`` are those of a page; folders with objects right in them, of which there may be many, are left out.
        """
        for step in keys[0][len(folder) :].split("/")[: LEVELS - 1]:
            folder = f"{folder}{step}/"
            if any("/" not in key[len(folder) :] for key in keys if key.startswith(folder)) or keys[0] == folder[:-1]:
                return
            self._ahead[folder] = self._beside(self._both, folder)

    def table(self, pieces: Iterable[Piece]) -> pa.Table:
        """All pieces in key order. Those that are too small for a place in the file get one together."""
        found: list[Piece] = []

        def small() -> Iterator[pa.RecordBatch]:
            for piece in pieces:
                if piece.rows < PIECE_ROWS:
                    yield piece.place
                else:
                    found.append(piece)

        together = [self._spill.keep_sorted(batch) for batch in gathered(small())]
        return self._spill.sorted_table(found + together)

    def _pages(self, folder: str) -> Iterator[pa.RecordBatch]:
        for page in self._store.list(folder or None, chunk_size=PAGE, return_arrow=True):
            yield pa.record_batch(page)

    def _pieces(self, pages: Iterable[pa.RecordBatch]) -> list[Piece]:
        return [self._spill.keep_sorted(batch) for batch in gathered(map(self._compact, pages))]

    def _compact(self, page: pa.RecordBatch) -> pa.RecordBatch:
        """What is wanted of a page, all of it copied: the store's own form of it takes five times as much memory."""
        pool = pa.system_memory_pool()  # Arrow's own keeps what one thread has made and another let go
        key = pc.utf8_slice_codeunits(page["path"], self._cut, memory_pool=pool)
        etag = pc.utf8_trim(pc.fill_null(page["e_tag"], scalar("")), characters='"', memory_pool=pool)
        moment = pc.add(page["last_modified"].cast(pa.int64()), scalar(0), memory_pool=pool)
        columns = zip((key, page["size"], etag, moment), LISTED.types, strict=True)
        batch = pa.RecordBatch.from_arrays([pc.cast(c, t, memory_pool=pool) for c, t in columns], schema=LISTED)
        those = self._wanted(batch["key"])
        return batch if those.true_count == len(those) else batch.filter(those)


class _NotFlat(Exception):
    """A folder has folders in it; ``keys`` are those of a page that begin with one of an object in such a folder."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__()
        self.keys = keys


def _flat(pages: Iterable[pa.RecordBatch], cut: int) -> Iterator[pa.RecordBatch]:
    """The pages of a folder in which there are no folders, or whose first page is all of it."""
    coming = iter(pages)
    for number, page in enumerate(coming):
        below = pc.match_substring(pc.utf8_slice_codeunits(page["path"], cut), "/")
        first = pc.index(below, scalar(value=True)).as_py()
        whole = number == 0 and len(page) < PAGE and first >= 0 and next(coming, None) is None
        if first >= 0 and not whole:
            raise _NotFlat(page["path"][first:].to_pylist())
        yield page
