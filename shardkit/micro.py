"""Micro-sharding: a shard's records to chunks, and chunks to workers.

Each worker process has a lane, a thread that watches over it and takes the next chunk when it comes free. When that
process dies, only its own chunk is begun again: the record that it was at is run by itself first, and quarantined
if it brings that process down too.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import BudgetExceeded, RunFailed
from shardkit.packing import longest_first
from shardkit.pool import Stop, Stopped, WorkerDied, WorkerPool
from shardkit.repeats import count_of
from shardkit.worker import EXIT_OUT_OF_MEMORY, ChunkTask, Settled, failure_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from shardkit.board import Slot

# What a record costs beside its bytes (opening it, calling the function), in bytes of reading.
RECORD_COST_BYTES = 1 << 14
LARGEST_SHARE = 1 / 8  # of a worker's share of the work: the first dynamic chunks
SMALLEST_SHARE = 1 / 64  # the last ones
CHUNK_RECORDS = 5_000  # an upper bound, so that a crash never costs more than that
CHUNK_BYTES = 1 << 30
DEATHS_OUTSIDE_RECORDS = 3
PUBLISHED_AT_ONCE = 4


def assign_chunks(sizes: np.ndarray, *, how: str, workers: int, least_cost: float = 0.0) -> np.ndarray:
    """The chunk number, from 0 on, of each of a shard's records.

    Args:
        sizes: bytes of each record, in key order, int64.
        how: ``even`` (as many contiguous chunks as workers, of record counts differing by one at most), ``balanced``
            (as many chunks as workers, packed by bytes, the longest first) or ``dynamic`` (many contiguous chunks,
            large ones and then ever smaller ones).
        workers: how many vCPUs the shard has.
        least_cost: what a dynamic chunk costs at the least, where the workers have other shards to do as well.
    """
    count = len(sizes)
    if how == "even":
        chunks = min(workers, count)
        return (np.arange(count, dtype=np.int64) * chunks // max(count, 1)).astype(np.int32)
    costs = record_costs(sizes)
    if how == "balanced":
        return longest_first(costs.astype(np.int64), bins=min(workers, count))
    return _ever_smaller(costs, workers=workers, least_cost=least_cost)


def record_costs(sizes: np.ndarray, counts: np.ndarray | int = 1) -> np.ndarray:
    """What each record, or so many records of that size together, are expected to cost, in bytes of reading."""
    costs = sizes.astype(np.float64)
    costs += np.multiply(counts, RECORD_COST_BYTES)
    return costs


def _ever_smaller(costs: np.ndarray, *, workers: int, least_cost: float) -> np.ndarray:
    """Contiguous chunks whose cost falls with what remains, as guided self-scheduling has them."""
    ends = np.cumsum(costs, out=costs)  # in their place: nobody needs the costs any more
    total = float(ends[-1]) if len(ends) else 0.0
    chunk = np.empty(len(costs), np.int32)
    start = number = 0
    while start < len(costs):
        done = float(ends[start - 1]) if start else 0.0
        target = max((total - done) * LARGEST_SHARE / workers, total * SMALLEST_SHARE / workers, least_cost)
        stop = int(np.searchsorted(ends, done + min(target, CHUNK_BYTES), "right"))
        stop = min(max(stop, start + 1), start + CHUNK_RECORDS)
        chunk[start:stop] = number
        start, number = stop, number + 1
    return chunk


@dataclass(frozen=True)
class Counts:
    """How far the work is: records and bytes handled, and how many of the records were quarantined.

    ``repeated`` are the requests that the workers have made again, by the reason, as far as chunks have ended.
    """

    records: int
    bytes: int
    quarantined: int
    repeated: Counter[str] = dataclasses.field(default_factory=Counter)


class Tally:
    """Counts what is committed and what the workers are at, and stops the work when too much has failed."""

    def __init__(self, pool: WorkerPool, stop: Stop, *, before: Counts, max_quarantined: int) -> None:
        self._pool = pool
        self._stop = stop
        self._committed = before
        self._max_quarantined = max_quarantined
        self._lock = threading.Lock()

    def add(self, marker: dict[str, Any], slot: Slot) -> None:
        """Count a chunk's marker instead of what the board says of the chunk."""
        with self._lock:
            slot.begin_chunk()
            known, records = self._committed, marker["records"]
            self._committed = Counts(
                known.records + records["listed"],
                known.bytes + marker["bytes_in"],
                known.quarantined + records["quarantined"],
                known.repeated + count_of(marker),
            )

    def counts(self) -> Counts:
        """The counts as of now."""
        with self._lock:
            known = self._committed
            live = [slot.read() for slot in self._pool.slots()]
        return Counts(
            known.records + sum(r.done for r in live),
            known.bytes + sum(r.bytes for r in live),
            known.quarantined + sum(r.failed for r in live),
            known.repeated,
        )

    def check_budget(self) -> None:
        """Ask for the end when more records are quarantined than allowed."""
        quarantined = self.counts().quarantined
        if quarantined > self._max_quarantined and not self._stop.asked:
            # Patience without end: what failed is only known for good once its chunk is committed.
            self._stop.ask(BudgetExceeded(f"{quarantined} records are quarantined."), patience_s=None)


class _Feed:
    """Tasks, for several threads to take from."""

    def __init__(self, tasks: Iterable[ChunkTask]) -> None:
        self._tasks = iter(tasks)
        self._lock = threading.Lock()

    def take(self) -> ChunkTask | None:
        """The next task; None when there is none left."""
        with self._lock:
            return next(self._tasks, None)


class _Publisher:
    """Commits finished chunks to a store that is far away, while the workers go on."""

    def __init__(self, publish: Callable[[dict[str, Any]], None], stop: Stop) -> None:
        self._publish = publish
        self._stop = stop
        self._room = threading.Semaphore(PUBLISHED_AT_ONCE)
        self._threads = ThreadPoolExecutor(PUBLISHED_AT_ONCE, thread_name_prefix="shardkit-publish")
        self._error: BaseException | None = None

    def add(self, marker: dict[str, Any]) -> None:
        """Have a chunk committed; waits while too many are on their way."""
        self._room.acquire()
        self._threads.submit(self._one, marker)

    def _one(self, marker: dict[str, Any]) -> None:
        try:
            self._publish(marker)
        except BaseException as error:  # noqa: BLE001  it is raised by check()
            self._error = self._error or error
            self._stop.ask(error, patience_s=0.0)
        finally:
            self._room.release()

    def close(self) -> None:
        """Wait until all is committed."""
        self._threads.shutdown()

    def check(self) -> None:
        """Raise what kept a chunk from being committed."""
        if self._error is not None:
            raise self._error


class Supervisor:
    """Sees chunks through to their markers, whatever happens to the workers."""

    def __init__(
        self,
        pool: WorkerPool,
        stop: Stop,
        tally: Tally,
        *,
        timeout_s: float | None,
        publish: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._pool = pool
        self._publisher = _Publisher(publish, stop) if publish is not None else None
        self._stop = stop
        self._tally = tally
        self._timeout_s = timeout_s

    def run(self, tasks: Iterable[ChunkTask]) -> None:
        """See the tasks through; ends early when a stop is asked for."""
        try:
            self._all_lanes(_Feed(tasks))
        finally:
            if self._publisher is not None:
                self._publisher.close()
        if self._publisher is not None:
            self._publisher.check()

    def _all_lanes(self, feed: _Feed) -> None:
        # Leaving the block waits for all threads: one that is in the middle of Arrow when the interpreter ends would
        # take the process down.
        with ThreadPoolExecutor(self._pool.size, thread_name_prefix="shardkit-lane") as threads:
            try:
                for lane in as_completed([threads.submit(self._lane, feed) for _ in range(self._pool.size)]):
                    lane.result()
            except BaseException as error:
                self._stop.ask(error, patience_s=0.0)  # or the other lanes would go on
                raise

    def _lane(self, feed: _Feed) -> None:
        """One chunk after the other, for one worker."""
        task = feed.take()
        while task is not None and not self._stop.asked:
            # Where objects must be fetched, the worker is told beforehand which ones it will need next.
            following = feed.take() if self._pool.fetches else None
            self._chunk(dataclasses.replace(task, ahead=following))
            task = following or feed.take()

    def _chunk(self, task: ChunkTask) -> dict[str, Any] | None:
        """One chunk's marker, or None if it was stopped before its first record was done."""
        deaths_outside, last = 0, -1
        while True:
            if self._stop.asked:
                if self._stop.is_urgent or last < 0:
                    return None
                # What failed before the worker's death has been counted, so it must be put on record.
                task = dataclasses.replace(task, until=last + 1)
            try:
                return self._ask(task)
            except Stopped:
                return None
            except WorkerDied as death:
                deaths_outside += death.position < 0
                suspects = [death.position] if death.position >= 0 else self._suspects(task, death, deaths_outside)
                for position in suspects:
                    settled = self._settle(task, position, death)
                    if settled is None:
                        return None
                    last = max(last, position)
                    task = dataclasses.replace(task, settled=task.settled | {position: settled})
                    if self._stop.asked:
                        break

    def _ask(self, task: ChunkTask, *, fresh: bool = False) -> dict[str, Any]:
        with self._pool.worker(fresh=fresh) as worker:
            marker = worker.ask(task, timeout_s=self._timeout_s, stop=self._stop)
            if task.alone is None:
                self._tally.add(marker, worker.slot)
            else:
                worker.slot.begin_chunk()
        if task.alone is None and self._publisher is not None:
            self._publisher.add(marker)
        self._tally.check_budget()
        return marker

    def _suspects(self, task: ChunkTask, death: WorkerDied, deaths: int) -> list[int]:
        """Which records may have caused a death that came outside any record, as converting their rows may have.

        Raises:
            RunFailed: none of them has, and the deaths do not end.
        """
        if deaths < DEATHS_OUTSIDE_RECORDS:
            return []
        if death.loading or deaths > DEATHS_OUTSIDE_RECORDS:
            raise self._hopeless(task, death)
        return [position for position in range(len(task.ids)) if position not in task.settled]

    def _settle(self, task: ChunkTask, position: int, death: WorkerDied) -> Settled | None:
        """What becomes of a record that a worker died at, or may have died of; None if it was stopped."""
        if death.timed_out:
            return Settled(failure=self._obituary(task, death))
        alone = dataclasses.replace(task, alone=position, settled={}, until=None, ahead=None)
        # A worker that has worked before may die of what an earlier record left behind: only a fresh one is proof.
        fresh = death.position == position
        deaths_before = 0
        while True:
            try:
                outcome = self._ask(alone, fresh=fresh)
            except Stopped:
                return None
            except WorkerDied as again:
                not_at_it = again.loading or again.exit_code is None
                deaths_before += not_at_it
                if deaths_before == DEATHS_OUTSIDE_RECORDS:
                    raise self._hopeless(task, again) from None
                if fresh and not not_at_it:
                    return Settled(failure=self._obituary(task, dataclasses.replace(again, position=position)))
                fresh = True
                continue
            return (
                Settled(failure=outcome["quarantine"][0]) if outcome["quarantine"] else Settled(parts=outcome["parts"])
            )

    def _obituary(self, task: ChunkTask, death: WorkerDied) -> dict[str, Any]:
        import pyarrow as pa

        row = pa.ipc.open_stream(task.records).read_all().slice(death.position, 1).to_pylist()[0]
        error, message = describe_death(death, self._timeout_s)
        return failure_entry(
            record=task.ids[death.position],
            key=row["key"],
            bytes=row["bytes"],
            error=error,
            message=message,
            seconds=round(death.seconds, 3),
            signal=death.signal_name,
            peak_memory_bytes=death.peak_memory_bytes,
            attempt=task.attempt,
        )

    def _hopeless(self, task: ChunkTask, death: WorkerDied) -> RunFailed:
        how = describe_death(death, self._timeout_s)[1]
        where = "while it loaded the function" if death.loading else "outside any record"
        return RunFailed(
            f"A worker died {DEATHS_OUTSIDE_RECORDS} times {where}, at chunk {task.chunk} of shard {task.shard}: "
            f"{how}.",
            hint="See the messages above; if memory is short, use fewer workers. Then resume the run.",
        )


def describe_death(death: WorkerDied, timeout_s: float | None) -> tuple[str, str]:
    """The kind and the story of a worker's end, as the quarantine tells them."""
    if death.timed_out:
        return "TimeoutError", f"took longer than {timeout_s:g} s (the pipeline's timeout) and was killed"
    peak = "" if death.peak_memory_bytes is None else f"; its peak memory was {death.peak_memory_bytes / 1e6:,.0f} MB"
    if death.exit_code == EXIT_OUT_OF_MEMORY:
        return "MemoryError", f"there was not enough memory to store the rows{peak}"
    if death.exit_code is None:
        return "WorkerDied", f"the process that workers are forked from was killed (usually: out of memory){peak}"
    if death.signal_name is None:
        return "WorkerDied", f"the worker process exited with code {death.exit_code}{peak}"
    guess = " (usually: out of memory)" if death.signal_name == "SIGKILL" else ""
    return "WorkerDied", f"the worker process was ended by {death.signal_name}{guess}{peak}"
