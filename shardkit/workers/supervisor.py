"""Chunks seen through to their markers, whatever happens to the workers.

When a worker process dies, only its own chunk is begun again: the record that it was at is run by itself first, and
quarantined if it brings that process down too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np

from shardkit.errors import RunFailed
from shardkit.tables.number_text import numbers_of
from shardkit.workers.deaths import WorkerDied, describe_death, too_little
from shardkit.workers.gate import Gate, holds_much
from shardkit.workers.guard import EXIT_OUT_OF_MEMORY
from shardkit.workers.pool import Stopped
from shardkit.workers.replies import LEFT, MEMORY
from shardkit.workers.tasks import Settled, failure_entry
from shardkit.workers.timing import US

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.runfolder.document_types import Marker, QuarantineEntry
    from shardkit.runfolder.others import Others
    from shardkit.runfolder.stop import Stop
    from shardkit.workers.gate import Turn
    from shardkit.workers.neighbours import Neighbours
    from shardkit.workers.pool import WorkerPool
    from shardkit.workers.replies import Reply
    from shardkit.workers.tally import Tally
    from shardkit.workers.tasks import ChunkTask

DEATHS_OUTSIDE_RECORDS = 3
DEATHS_OF_SERVER = 10


@dataclasses.dataclass
class _Deaths:
    """How often workers died at a chunk for which none of its records could be blamed."""

    outside: int = 0
    of_server: int = 0


class Supervisor:
    """Sees chunks through to their markers, whatever happens to the workers."""

    def __init__(
        self,
        pool: WorkerPool,
        stop: Stop,
        tally: Tally,
        *,
        timeout_s: float | None,
        publish: Callable[[Marker], object] | None = None,
        others: Others | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._pool = pool
        self._gate = Gate(pool, neighbours)
        self._publish = publish
        self._others = others
        self._stop = stop
        self._tally = tally
        self._timeout_s = timeout_s

    def see_through(self, task: ChunkTask) -> list[Marker]:
        """Have one chunk worked on until its markers are written, or until a stop is asked for; for any thread.

        Returns:
            The markers: one, unless the chunk was committed in pieces; of a chunk that was stopped, those so far.
        """
        markers: list[Marker] = []
        with contextlib.suppress(Stopped):
            self._chunk(task, markers)
        return markers

    def _chunk(self, task: ChunkTask, markers: list[Marker]) -> None:
        """See one chunk through.

        Raises:
            Stopped: it was stopped on the way.
        """
        deaths = _Deaths()
        while True:
            if self._is_done_elsewhere(task):
                return
            last = max((position for position in task.settled if position >= task.begin), default=-1)
            if self._stop.asked:
                if self._stop.is_urgent or last < 0:
                    return
                # What failed before the worker's death has been counted, so it must be put on record.
                task = dataclasses.replace(task, until=last + 1)
            try:
                reply = self._ask(task, loading_alone=deaths.outside > 0)
            except WorkerDied as death:
                task = self._after_death(task, death, deaths)
                continue
            markers.append(reply["marker"])
            end = task.begin + reply["marker"]["records"]["listed"] + (reply["cut"] == LEFT)
            if not reply["cut"] or end == len(task.ids):
                return
            task = dataclasses.replace(task, begin=end, piece=task.piece + 1)
            if reply["cut"] == MEMORY:
                task = self._after_death(task, _raised(end, reply["marker"]["peak_memory_bytes"]), deaths)

    def _after_death(self, task: ChunkTask, death: WorkerDied, deaths: _Deaths) -> ChunkTask:
        """The same chunk, with what is to be known of the records that a worker may have died of.

        Raises:
            Stopped: there is no time left to know.
            RunFailed: there is no record that it died of, and the deaths do not end.
        """
        if death.made_room:  # which says nothing of its record
            self._gate.learn_of_unfinished(task.largest_bytes, death)
            return task
        limit = self._gate.lower(death) if death.may_be_memory else 0
        suspects = self._suspects(task, death, deaths)
        for position in suspects:
            settled = self._settle(task, position, death, is_only=len(suspects) == 1)
            if self._pool.leaves and settled.failure is not None and settled.failure.get("of_memory"):
                self._pool.left.append(task.ids[position])
                task = dataclasses.replace(task, left=task.left | {position})
            else:
                task = dataclasses.replace(task, settled=task.settled | {position: settled})
            if settled.failure is not None:
                self._gate.restore(limit)
            if self._stop.asked or (settled.failure is not None and (death.is_spoilt or death.several)):
                break
        return dataclasses.replace(task, ahead=None)  # or a worker may die of the next chunk again and again

    def _ask(
        self,
        task: ChunkTask,
        *,
        fresh: bool = False,
        quiet: bool = False,
        cleared: bool = False,
        loading_alone: bool = False,
    ) -> Reply:
        """Have a task worked on, with ``quiet`` while all others are idle; the reply."""
        if loading_alone:
            with self._gate.alone(self._stop), self._pool.worker() as worker:
                worker.prepare(self._stop)
        tick = self._tick(task)
        largest = task.largest_bytes
        way_in = self._gate.turn(self._stop, record_bytes=largest)
        if quiet:
            way_in = self._gate.alone(self._stop, cleared=cleared)
        with way_in as turn:
            if cleared:
                self._pool.discard_idle()
            with self._pool.worker(fresh=fresh) as worker:
                turn.takes(worker)
                reply = worker.ask(task, timeout_s=self._timeout_s, stop=self._stop, tick=lambda: tick(turn))
                counts = task.alone is None and not self._is_done_elsewhere(task)
                if counts:
                    self._note(task, reply["marker"])
                    self._tally.add(reply["marker"], worker.slot)
                else:
                    worker.slot.begin_chunk()
                self._gate.learn(largest, reply["marker"]["peak_memory_bytes"])
        if counts and self._publish is not None:
            self._publish(reply["marker"])
        self._tally.check_budget()
        return reply

    def _is_done_elsewhere(self, task: ChunkTask) -> bool:
        """Whether other jobs have committed what is left of a chunk."""
        return self._others is not None and self._others.have_done(np.array(task.ids[task.begin :], np.int64))

    def _note(self, task: ChunkTask, marker: Marker) -> None:
        if self._others is not None:
            end = task.begin + marker["records"]["listed"]
            self._others.note(marker, np.array(task.ids[task.begin : end], np.int64))

    def _tick(self, task: ChunkTask) -> Callable[[Turn], None]:
        """What is to be done now and then while a worker is at a task.

        It raises `Stopped`, which costs the worker, once other jobs have done the chunk: the record that it is at may
        take it long.
        """
        others, turn_seen = self._others, 0

        def tick(turn: Turn) -> None:
            nonlocal turn_seen
            turn.tick()
            if others is not None and others.turn != turn_seen:
                turn_seen = others.turn
                if self._is_done_elsewhere(task):
                    raise Stopped

        return tick

    def _suspects(self, task: ChunkTask, death: WorkerDied, deaths: _Deaths) -> list[int]:
        """The records that may have caused a death, the likeliest first.

        Converting their rows may have, too, so that they need not be what the worker was at.

        Raises:
            RunFailed: none of them has, and the deaths do not end.
        """
        open_ = [position for position in range(task.begin, len(task.ids)) if position not in task.settled]
        if several := _of_several(death, open_):
            return several
        if death.is_spoilt and 0 <= death.reached < len(task.ids):  # it may have been noticed a record later
            return [position for position in reversed(open_) if position <= death.reached]
        if death.position in open_:
            return [death.position]
        if death.exit_code is None:
            deaths.of_server += 1
            if deaths.of_server > DEATHS_OF_SERVER:
                raise self._hopeless(task, death, deaths.of_server)
            return []
        deaths.outside += 1
        if deaths.outside < DEATHS_OUTSIDE_RECORDS:
            return []
        if death.loading or deaths.outside > DEATHS_OUTSIDE_RECORDS:
            raise self._hopeless(task, death, DEATHS_OUTSIDE_RECORDS)
        return open_

    def _settle(self, task: ChunkTask, position: int, death: WorkerDied, *, is_only: bool) -> Settled:
        """What becomes of a record that a worker died at, or may have died of, as the only one or one of several.

        It is run by itself. Where others may have had the memory that it needs, they are idle meanwhile, and in the end
        they even give back what they hold: only then is it guilty.

        Raises:
            Stopped: there is no time left to know.
        """
        if death.timed_out and is_only:
            return self._dead(task, death, position)
        alone = dataclasses.replace(task, alone=position, settled={}, until=None, ahead=None)
        # A worker that has worked before may die of what an earlier record left behind: only a fresh one is proof.
        fresh = death.position == position or (is_only and bool(death.several))
        quiet, cleared = death.needs_quiet, False
        others = 0
        while True:
            try:
                outcome = self._ask(alone, fresh=fresh, quiet=quiet, cleared=cleared)["marker"]
            except WorkerDied as again:
                if again.made_room:
                    quiet = True
                    continue
                others += again.loading or again.exit_code is None
                if again.loading and others >= DEATHS_OUTSIDE_RECORDS:
                    raise self._hopeless(task, again, others) from None
                if again.timed_out and death.timed_out:
                    return self._dead(task, again, position)
                last_word = fresh and (quiet or not again.needs_quiet) and not again.loading
                if last_word and again.exit_code is None:
                    last_word = others > 1
                elif last_word and again.may_be_memory and not cleared:
                    cleared = holds_much(self._pool.resident_bytes(), again)
                    last_word = not cleared
                if last_word:
                    again = dataclasses.replace(again, memory_bytes=self._gate.was_memory(again))
                    return self._dead(task, again, position)
                fresh, quiet = True, quiet or again.needs_quiet
                continue
            times = outcome["timings"]
            failure = outcome["quarantine"][0] if outcome["quarantine"] else None
            if failure is not None and failure["error"] == MemoryError.__name__:
                failure = self._of_memory(failure, outcome["peak_memory_bytes"])
            seconds = float(numbers_of(times["durations_us"])[0]) / US
            return Settled(times["begin_s"], seconds, failure, outcome["parts"], outcome.get("notes"))

    def _of_memory(self, failure: QuarantineEntry, peak_bytes: int) -> QuarantineEntry:
        """The failure of a record whose function got too little memory though it ran alone."""
        cure = too_little(peak_bytes, self._gate.memory_bytes)
        message = f"{failure['message']} ({cure})" if failure["message"] else cure
        return {**failure, "message": message, "peak_memory_bytes": peak_bytes, "of_memory": True}

    def _dead(self, task: ChunkTask, death: WorkerDied, position: int) -> Settled:
        obituary = self._obituary(task, dataclasses.replace(death, position=position))
        return Settled(time.time() - death.seconds, death.seconds, obituary)

    def _obituary(self, task: ChunkTask, death: WorkerDied) -> QuarantineEntry:
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
            of_memory=bool(death.memory_bytes),
        )

    def _hopeless(self, task: ChunkTask, death: WorkerDied, times: int) -> RunFailed:
        how = describe_death(death, self._timeout_s)[1]
        where = "while it loaded the function" if death.loading else "outside any record"
        return RunFailed(
            f"A worker died {times} times {where}, at chunk {task.chunk} of shard {task.shard}: {how}.",
            hint="See the messages above; if memory is short, use fewer workers. Then resume the run.",
        )


def _of_several(death: WorkerDied, open_: list[int]) -> list[int]:
    """The records that may have caused the death of a worker that was at several, the likeliest first."""
    several = [position for position in death.several if position in open_]
    likeliest = death.position
    if not several or likeliest not in open_:
        return several
    if likeliest in several and not death.needs_quiet and not death.is_spoilt:
        return [likeliest]
    return [likeliest, *(position for position in several if position != likeliest)]  # or its rows were being stored


def _raised(position: int, peak: int) -> WorkerDied:
    """As if the worker had died at a record for which Python had no memory."""
    return WorkerDied(
        position=position,
        reached=position,
        loading=False,
        exit_code=EXIT_OUT_OF_MEMORY,
        seconds=0.0,
        timed_out=False,
        garbled=False,
        peak_memory_bytes=peak,
    )
