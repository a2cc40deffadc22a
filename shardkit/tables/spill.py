"""Tables that are built piece by piece; beyond a budget of memory, they lie in a file in the temporary folder.

The file has no name and disappears with the table. It is mapped into memory, so that nothing is copied, and the memory
of what has been read can be given back.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import mmap
import tempfile
import threading
import weakref
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import StorageError
from shardkit.tables.arrays import arrow, numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LISTED = pa.schema(
    [("key", pa.string()), ("bytes", pa.int64()), ("etag", pa.string()), ("modified", pa.timestamp("us", "UTC"))]
)
BUDGET_BYTES = 16 << 20
PIECE_ROWS = 1 << 12  # smaller ones are not worth writing to the file
BATCH_ROWS = 1 << 16
LET_GO_ROWS = 1 << 17  # after so many rows, the memory of what was read is given back
LET_GO_BATCHES = 32
SLICE_ROWS = 64  # if pieces interleave more finely than that, sorting their rows is faster
SAMPLE_ROWS = 1 << 12
RANGE_SAMPLES = 64  # of a range of keys whose rows are sorted together

_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


class NoRoom(StorageError):
    """The temporary folder has no room for the rows beyond the memory budget."""


@dataclass(frozen=True)
class Piece:
    """Rows in key order, at least one; ``kept`` is the batch itself, or its number in the file."""

    first: str
    last: str
    rows: int
    kept: pa.RecordBatch | int


class Spill:
    """Keeps the batches of one table: in memory up to a budget, then in a file. Threads may share it."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._lock = threading.Lock()
        self._bytes = 0
        self._count = 0
        self._file: Any = None
        self._writer: Any = None

    def keep(self, batch: pa.RecordBatch) -> pa.RecordBatch | int:
        """Take in a batch; returns the batch itself, or its number in the file.

        Raises:
            NoRoom: the temporary folder is full, or cannot be written to.
        """
        with self._lock:
            if batch.num_rows < PIECE_ROWS or self._bytes + batch.nbytes <= BUDGET_BYTES:
                self._bytes += batch.nbytes
                return batch
            with _making_room():
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="shardkit-")  # noqa: SIM115  closed when it is mapped
                    self._writer = pa.ipc.new_stream(self._file, self._schema)
                self._writer.write_batch(batch)
            self._count += 1
            return self._count - 1

    def keep_sorted(self, batch: pa.RecordBatch) -> Piece:
        """Take in a batch that has rows and a ``key``, sorted by its keys."""
        if not _in_order(batch["key"]):
            batch = batch.take(pc.sort_indices(batch["key"]))
        keys = batch["key"]
        return Piece(keys[0].as_py(), keys[-1].as_py(), len(keys), self.keep(batch))

    def table(self, kept: Iterable[pa.RecordBatch | int]) -> pa.Table:
        """The table of what was kept; nothing more can be kept after that."""
        written = self._written()
        batches = [written[batch] if isinstance(batch, int) else batch for batch in kept]
        return pa.Table.from_batches(batches, schema=self._schema)

    def sorted_table(self, pieces: list[Piece]) -> pa.Table:
        """Pieces as a table in key order; only rows of pieces that interleave are copied."""
        whole = self.table(piece.kept for piece in pieces)
        slices = _merged(pieces, whole.to_batches(), limit=1000 + len(whole) // SLICE_ROWS)
        copies = Spill(self._schema)
        if slices is None:
            return copies.table([copies.keep(batch) for batch in _by_ranges(whole.to_batches())])
        as_they_are = set(map(id, slices))
        kept = [batch if id(batch) in as_they_are else copies.keep(batch) for batch in gathered(slices)]
        forget_pages()
        return copies.table(kept)

    def _written(self) -> list[pa.RecordBatch]:
        if self._file is None:
            return []
        with _making_room():
            self._writer.close()
            self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file.close()
        _MAPPED.add(mapped)
        reader = pa.ipc.open_stream(pa.py_buffer(mapped))
        batches = []
        for number in range(self._count):
            batches.append(reader.read_next_batch())
            if number % LET_GO_BATCHES == 0:
                forget_pages()
        return batches


def gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows, with small batches joined to batches of at least PIECE_ROWS unless a large one lies between."""
    small: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        large = batch.num_rows >= PIECE_ROWS
        if not large and batch.num_rows:
            small.append(batch)
            rows += batch.num_rows
        if large or rows >= PIECE_ROWS:
            yield from _one(small)
            small, rows = [], 0
        if large:
            yield batch
    yield from _one(small)


def _one(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    # Arrow's own memory pool would keep memory that one thread allocates and another frees.
    return [pa.concat_batches(batches, memory_pool=pa.system_memory_pool())] if len(batches) > 1 else batches


def batches_of(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """A table batch by batch; batches that lie in a file do not stay in memory."""
    rows = 0
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield batch
        rows += batch.num_rows
        if rows >= LET_GO_ROWS:
            forget_pages()
            rows = 0
    forget_pages()


def values_of(table: pa.Table, of: Callable[[pa.RecordBatch], pa.Array]) -> np.ndarray:
    """What a function returns for each batch, booleans or integers of one type, as one array."""
    joined = np.zeros(0, bool)
    end = 0
    for batch in batches_of(table):
        values = numpy(of(batch))
        if not end:
            joined = np.empty(len(table), values.dtype)
        joined[end : end + len(values)] = values
        end += len(values)
    return joined


def filtered(table: pa.Table, wanted: np.ndarray) -> pa.Table:
    """The rows of a table that are wanted; only batches with unwanted rows are copied."""
    if wanted.all():
        return table
    spill = Spill(table.schema)
    kept: list[pa.RecordBatch | int] = []
    end = 0
    for batch in batches_of(table):
        mask = wanted[end : end + len(batch)]
        end += len(batch)
        kept.append(batch if mask.all() else spill.keep(batch.filter(arrow(mask))))
    return spill.table(kept)


def forget_pages() -> None:
    """Give back the memory of what was read from the files; it is read again when it is needed."""
    for mapped in list(_MAPPED):
        mapped.madvise(mmap.MADV_DONTNEED)


def _merged(pieces: list[Piece], batches: list[pa.RecordBatch], *, limit: int) -> list[pa.RecordBatch] | None:
    """Slices of pieces in key order; None if they would be more than ``limit``."""
    heads = [(piece.first, number, 0) for number, piece in enumerate(pieces)]
    heapq.heapify(heads)
    slices = []
    while heads:
        _, number, begin = heapq.heappop(heads)
        batch, end = batches[number], pieces[number].rows
        if heads and heads[0][0] < pieces[number].last:
            keys = batch["key"]
            end = bisect_right(range(end), heads[0][0], begin, key=lambda row: keys[row].as_py())
            heapq.heappush(heads, (keys[end].as_py(), number, end))
        slices.append(batch.slice(begin, end - begin))
        if len(slices) > limit:
            return None
    return slices


def _by_ranges(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows of sorted batches in key order: those of one range of keys are in memory at a time.

    The ranges are about equally long, as samples of the keys say.
    """
    samples = sorted(batch["key"][row].as_py() for batch in batches for row in range(0, len(batch), SAMPLE_ROWS))
    ends = [*samples[RANGE_SAMPLES::RANGE_SAMPLES], None]
    begins = [0] * len(batches)
    for end in ends:
        some = []
        for number, batch in enumerate(batches):
            begin, keys = begins[number], batch["key"]
            stop = len(batch)
            if end is not None:
                stop = bisect_left(range(stop), end, begin, key=lambda row: keys[row].as_py())
            some.append(batch.slice(begin, stop - begin))
            begins[number] = stop
        together = pa.concat_batches(some)
        order = pc.sort_indices(together["key"])
        for begin in range(0, len(order), BATCH_ROWS):
            yield together.take(order.slice(begin, BATCH_ROWS))
        forget_pages()


def _in_order(keys: pa.Array) -> bool:
    ordered = pc.less_equal(keys.slice(0, max(len(keys) - 1, 0)), keys.slice(1))
    return bool(pc.all(ordered, min_count=0).as_py())


@contextlib.contextmanager
def _making_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        where = f" {tempfile.tempdir}" if tempfile.tempdir else ""  # without it, no folder can be written to
        raise NoRoom(
            f"Cannot write to the temporary folder{where}: {error.strerror or error}.",
            hint=f"{'Free some space there, or set' if full else 'Set'} TMPDIR to a folder of a disk with room: a long "
            "listing is kept there.",
        ) from error
