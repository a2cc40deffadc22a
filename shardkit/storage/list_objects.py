"""Lists a prefix of an object store as an Arrow table: many prefixes are listed side by side.

A store lists a thousand keys per request, one request after the other. So the folders of the first levels are found
first, level by level, and then all are listed at once. Meanwhile the first listing goes on for a few pages, which may
be all there is. Keys never become Python objects, and a long listing goes to a file.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.storage.refusals import strange
from shardkit.tables.arrays import scalar
from shardkit.tables.spill import BATCH_ROWS, LISTED, PIECE_ROWS, Piece, Spill, gathered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

LISTED_AT_ONCE = 32
FOLDERS_AHEAD = 4 * LISTED_AT_ONCE
ENOUGH_FOLDERS = 16
LEVELS = 4
PAGE = 1000
FEW_PAGES = 5


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
    with (
        ThreadPoolExecutor(LISTED_AT_ONCE, thread_name_prefix="shardkit-list") as pool,
        contextlib.closing(_Listing(store, len(prefix), wanted, pool, ask)) as listing,
    ):
        for depth in itertools.count():
            if (few := listing.few_pages(folders)) is not None:
                return listing.table(few)
            if depth == LEVELS or not 0 < len(folders) < ENOUGH_FOLDERS:
                break
            levels = list(pool.map(listing.level, folders))
            beside += itertools.chain.from_iterable(objects for objects, _ in levels)
            folders = sorted(folder for _, below in levels for folder in below)
        listed = _side_by_side(pool, listing.everything, folders)
        return listing.table(itertools.chain(beside, itertools.chain.from_iterable(listed)))


def _side_by_side(
    pool: ThreadPoolExecutor, find: Callable[[str], list[Piece]], folders: Iterable[str]
) -> Iterator[list[Piece]]:
    """The pieces of each folder, in order. In flight at most: FOLDERS_AHEAD. Small results stay in memory."""
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
    """The wanted objects, collected by the threads of one listing."""

    def __init__(
        self,
        store: Any,
        cut: int,
        wanted: Callable[[pa.StringArray], pa.BooleanArray],
        pool: ThreadPoolExecutor,
        ask: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self._store = store
        self._cut = cut
        self._wanted = wanted
        self._pool = pool
        self._ask = ask
        self._ahead: dict[str, Future[Any]] = {}
        self._few: Future[list[Piece] | None] | None = None
        self._closed = False
        self._spill = Spill(LISTED)

    def everything(self, folder: str) -> list[Piece]:
        """The objects in a folder and below."""
        pieces: list[Piece] = self._ask(lambda: self._pieces(self._pages(folder)))
        return pieces

    def few_pages(self, folders: list[str]) -> list[Piece] | None:
        """All objects, if they are listed by now; ``folders`` are those that would be looked into next.

        If the next step would list a single folder from its first page on, this waits for the result instead.
        """
        if self._few is None or not (self._few.done() or (len(folders) == 1 and folders[0] not in self._ahead)):
            return None
        few, self._few = self._few, None
        return few.result() if few.exception() is None else None  # after a failure they are listed again

    def close(self) -> None:
        """Ask for no more pages."""
        self._closed = True

    def level(self, folder: str) -> tuple[list[Piece], list[str]]:
        """The objects directly in a folder and its subfolders; or all objects below it, if one page holds them all."""
        level: tuple[list[Piece], list[str]] = self._ask(lambda: self._level(folder))
        return level

    def _level(self, folder: str) -> tuple[list[Piece], list[str]]:
        # Asking for both returns all objects at once, however many. So only ask if there are folders.
        if (ahead := self._ahead.pop(folder, None)) is not None:
            listed = ahead.result()
        else:
            try:
                return self._pieces(_flat(self._pages(folder), len(folder))), []
            except _NotFlat as nested:
                self._look_ahead(folder, nested.keys)
                if len(folder) == self._cut and nested.pages is not None:
                    self._few = self._pool.submit(self._all_of, nested.pages)
                listed = self._both(folder)
        objects = pa.RecordBatchReader.from_stream(listed["objects"]).read_all().to_batches(max_chunksize=BATCH_ROWS)
        return self._pieces(objects), [f"{path.rstrip('/')}/" for path in listed["common_prefixes"]]

    def _both(self, folder: str) -> Any:
        listed = self._store.list_with_delimiter(folder or None, return_arrow=True)
        count = len(listed["objects"]) + len(listed["common_prefixes"])
        if count % PAGE == 0:  # full pages only, or nothing: perhaps something other than the store sent the last page
            again = self._store.list_with_delimiter(folder or None, return_arrow=True)
            if not count or len(again["objects"]) + len(again["common_prefixes"]) != count:
                raise strange(folder, "a list that is cut short")
        return listed

    def _look_ahead(self, folder: str, keys: list[str]) -> None:
        """Request the folders on the way to the first object ahead of time: each level may have only one folder.

        ``keys`` are those of a page. Folders with objects directly in them, which may be many, are left out.
        """
        for step in keys[0][len(folder) :].split("/")[: LEVELS - 1]:
            folder = f"{folder}{step}/"
            if any("/" not in key[len(folder) :] for key in keys if key.startswith(folder)) or keys[0] == folder[:-1]:
                return
            self._ahead[folder] = self._pool.submit(self._ask, functools.partial(self._both, folder))

    def _all_of(self, pages: Iterator[pa.RecordBatch]) -> list[Piece] | None:
        """The objects of some pages; None if there are many pages."""
        seen: list[pa.RecordBatch] = []
        for page in pages:
            if self._closed or len(seen) == FEW_PAGES:
                return None
            seen.append(page)
        return self._pieces(seen)

    def table(self, pieces: Iterable[Piece]) -> pa.Table:
        """All pieces in key order. Pieces too small to be written on their own share one batch."""
        large: list[Piece] = []

        def small() -> Iterator[pa.RecordBatch]:
            for piece in pieces:
                if piece.rows < PIECE_ROWS:
                    yield piece.kept
                else:
                    large.append(piece)

        together = [self._spill.keep_sorted(batch) for batch in gathered(small())]
        return self._spill.sorted_table(large + together)

    def _pages(self, folder: str) -> Iterator[pa.RecordBatch]:
        # Asking again after the last key costs a request. The many small folders, which are not empty, do without.
        return whole_list(self._store, folder, least=0 if len(folder) == self._cut else PAGE)

    def _pieces(self, pages: Iterable[pa.RecordBatch]) -> list[Piece]:
        return [self._spill.keep_sorted(batch) for batch in gathered(map(self._compact, pages))]

    def _compact(self, page: pa.RecordBatch) -> pa.RecordBatch:
        """The wanted rows of a page, copied: the store's own form of the page takes five times as much memory."""
        pool = pa.system_memory_pool()  # Arrow's own pool keeps memory that one thread allocated and another freed
        key = pc.utf8_slice_codeunits(page["path"], self._cut, memory_pool=pool)
        etag = pc.utf8_trim(pc.fill_null(page["e_tag"], scalar("")), characters='"', memory_pool=pool)
        moment = pc.add(page["last_modified"].cast(pa.int64()), scalar(0), memory_pool=pool)
        columns = zip((key, page["size"], etag, moment), LISTED.types, strict=True)
        batch = pa.RecordBatch.from_arrays([pc.cast(c, t, memory_pool=pool) for c, t in columns], schema=LISTED)
        those = self._wanted(batch["key"])
        return batch if those.true_count == len(those) else batch.filter(those)


def whole_list(store: Any, folder: str, *, least: int = PAGE) -> Iterator[pa.RecordBatch]:
    """The pages of a list, to the very end, in the store's own order.

    Something that answers in a store's place with a page of well-formed HTML seems to list no objects and to end the
    list. So a list of more than ``least`` objects, or of none, is asked for once more from its last key on.

    Raises:
        Unanswered: the list goes in circles.
    """
    total, highest, offset = 0, "", None
    while True:
        fresh, previous = 0, None
        for raw_page in store.list(folder or None, offset=offset, chunk_size=PAGE, return_arrow=True):
            page = pa.record_batch(raw_page)
            if previous is not None and pc.index(page["path"], previous).as_py() >= 0:
                raise strange(folder, "a list that goes in circles")
            if len(page):
                previous = page["path"][-1]
            if offset is not None:  # some servers have an order of their own
                page = page.filter(pc.greater(page["path"], scalar(offset)))
            if len(page):
                fresh += len(page)
                highest = max(highest, pc.min_max(page["path"])["max"].as_py())
                yield page
        total += fresh
        if (offset is not None and not fresh) or 0 < total <= least:
            return
        if offset is None and not total:
            return
        offset = highest


class _NotFlat(Exception):
    """A folder has folders in it; ``keys`` are those of a page, from the first key that lies in such a folder on.

    ``pages`` are that page and all that follow, if it is the first.
    """

    def __init__(self, keys: list[str], pages: Iterator[pa.RecordBatch] | None) -> None:
        super().__init__()
        self.keys = keys
        self.pages = pages


def _flat(pages: Iterable[pa.RecordBatch], cut: int) -> Iterator[pa.RecordBatch]:
    """The pages of a folder that has no folders in it, or only one page."""
    coming = iter(pages)
    for number, page in enumerate(coming):
        below = pc.match_substring(pc.utf8_slice_codeunits(page["path"], cut), "/")
        first = pc.index(below, scalar(value=True)).as_py()
        if first >= 0:
            short = number == 0 and len(page) < PAGE
            begun = [page, *itertools.islice(coming, 1)] if short else [page]
            if not (short and len(begun) == 1):
                whole = itertools.chain(begun, coming) if number == 0 else None
                raise _NotFlat(page["path"][first:].to_pylist(), whole)
        yield page
