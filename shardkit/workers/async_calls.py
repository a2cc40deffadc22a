"""Calls an ``async def`` function on many records at once, in one thread; their rows stay in the records' order."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError
from shardkit.workers.answers import by_record
from shardkit.workers.batch_calls import batches_of, collect_one, warn_of_batch
from shardkit.workers.board import GIVE_WAY, GO_ON, REST, STOP
from shardkit.workers.calls import OF_THE_RECORD, Calls, doubt
from shardkit.workers.flight import Flight, Outcome, drop_failed
from shardkit.workers.replies import DESCRIPTORS, OTHERS, WORN
from shardkit.workers.steps import Steps, coroutine_of

if TYPE_CHECKING:
    from shardkit.record import Record
    from shardkit.workers.chunk_run import ChunkRun
    from shardkit.workers.tasks import ChunkTask

LOOK_S = 0.05  # between two looks at what the program wishes
STOP_S = 4.0  # for calls under way when the run is to stop: the program waits longer
HELD_BYTES = 64 << 20  # of rows whose turn has not come, before no further call begins

Open = Callable[["ChunkTask"], "ChunkRun"]


class AsyncCalls(Calls):
    """Calls the function up to ``most`` times at once, with ``size`` records each if it takes batches.

    The calls share a thread. The board says which of them has the word, and which ones wait. While the last calls of a
    chunk wait for their answers, the first ones of the next chunk begin; ``open_run`` makes that chunk's `ChunkRun`.
    """

    def __init__(
        self,
        *args: Any,
        loop: asyncio.AbstractEventLoop,
        most: int,
        size: int | None,
        timeout_s: float | None,
        open_run: Open,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._loop = loop
        self._most = most
        self._size = size
        self._timeout_s = timeout_s
        self._open = open_run
        self._ahead: Flight | None = None
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._beats: asyncio.TimerHandle | None = None
        self._stops_at: float | None = None
        self._has_told = False
        self._given_up: set[asyncio.Future[Any]] = set()
        self._may_begin_at: float | None = None
        self._look_s = LOOK_S if timeout_s is None else min(LOOK_S, timeout_s / 4)

    def begun(self, task: ChunkTask) -> ChunkRun | None:
        """The chunk of a task, if its first calls have begun already; those of any other task are dropped."""
        if self._ahead is None or replace(self._ahead.task, ahead=None) == replace(task, ahead=None):
            return self._ahead.run if self._ahead is not None else None
        flight, self._ahead = self._ahead, None
        self._loop.run_until_complete(self._end(flight))
        return None

    def chunk(self, run: ChunkRun, task: ChunkTask) -> str:
        """Work on the records of a chunk; returns why it was cut before its end, if the rest should run elsewhere."""
        flight, self._ahead = self._ahead, None
        if flight is None:
            flight = self._flight(run, task)
        else:
            flight.task = task
            for first, count in flight.under_way.items():
                self._slot.enter(first, count)
        try:
            return self._loop.run_until_complete(self._fly(flight))
        except (SystemExit, KeyboardInterrupt):  # of a task that a call has begun, which nobody could name
            os._exit(1)

    def _flight(self, run: ChunkRun, task: ChunkTask) -> Flight:
        return Flight.of(run, task, batches_of(run, task, self._size or 1))

    def meanwhile(self, work: Callable[[], Any]) -> Any:
        """Do some other work in a thread, while the calls of the next chunk go on."""
        return work() if self._ahead is None else self._loop.run_until_complete(self._beside(work, self._ahead))

    async def _beside(self, work: Callable[[], Any], ahead: Flight) -> Any:
        done = self._loop.run_in_executor(None, work)
        done.add_done_callback(lambda _: self._changed.set())
        self._beat()
        while not done.done() and self._error is None:
            self._changed.clear()
            try:
                self._begin_calls(ahead)
            except StorageError as error:  # which ends the work on that chunk, when its turn has come
                self._error = error
            await self._changed.wait()
        self._rest_beat()
        return await done

    def close(self) -> None:
        """End what was begun for a chunk that did not come."""
        if self._ahead is not None:
            self._loop.run_until_complete(self._end(self._ahead))

    async def _fly(self, flight: Flight) -> str:
        """See all calls of a chunk through; returns what `chunk` does."""
        why = ""
        self._stops_at = None
        self._beat()
        try:
            while True:
                self._changed.clear()
                if self._error is not None:
                    raise self._error
                if elsewhere := self._take(flight):
                    return elsewhere
                if not why and self._guard.is_crowded:
                    why = WORN
                if not flight.order:
                    return self._end_of(flight) or why
                wish = self._slot.wished if flight.task.alone is None else GO_ON
                if wish == REST:
                    self._rest_if_quiet(flight)
                elif why or wish == GIVE_WAY or (wish == STOP and flight.task.until is None):
                    if self._may_leave(flight, wish):
                        flight.run.cut(flight.order[0])
                        return why or (OTHERS if wish == GIVE_WAY else "")
                else:
                    self._begin_calls(flight)
                await self._changed.wait()
        finally:
            self._rest_beat()
            await self._end(flight)

    @staticmethod
    def _end_of(flight: Flight) -> str:
        """Cut a chunk where it is to end, if that is not at its end; returns why the rest should run elsewhere."""
        if flight.ends is None:
            return ""
        flight.run.cut(flight.ends[0])
        return flight.ends[1]

    def _rest_if_quiet(self, flight: Flight) -> None:
        """Rest, if no call waits for anything any more."""
        if not flight.calls and not (self._ahead and self._ahead.calls):
            self._rest()
            self._changed.set()

    def _may_leave(self, flight: Flight, wish: int) -> bool:
        """Whether a chunk that is to end early can be cut: its calls have ended, or there is no time for them."""
        if wish == STOP and self._stops_at is None:
            self._stops_at = self._loop.time() + STOP_S
        return not flight.calls or (self._stops_at is not None and self._loop.time() > self._stops_at)

    def _beat(self) -> None:
        """Show that the thread goes on, and look at what is wished, again and again."""
        self._slot.begin_several()
        self._changed.set()
        self._beats = self._loop.call_later(self._look_s, self._beat)

    def _rest_beat(self) -> None:
        if self._beats is not None:
            self._beats.cancel()

    def _take(self, flight: Flight) -> str:
        """Take the rows whose turn it is; returns why a record should run elsewhere, before which the chunk is cut."""
        run, task, slot = flight.run, flight.task, self._slot
        while flight.order:
            i = flight.order[0]
            if not self._settled(run, i, task):
                if i not in flight.outcomes:
                    break
                outcome, rows = flight.take(i), 0
                if outcome.elsewhere:
                    run.cut(i)
                    return outcome.elsewhere
                if outcome.result is not None:
                    rows = outcome.result.row_count
                    slot.begin_storing(i)
                    run.writer.add(outcome.result)
                    if outcome.notes is not None:
                        run.note(i, outcome.notes)
                run.note_end(i, begun=outcome.begun, ended=outcome.ended, rows=rows, failure=outcome.failure)
                slot.count_record(run.bytes[i], failed=outcome.failure is not None)
            flight.order.popleft()
        slot.begin_several()
        return ""

    def _begin_calls(self, flight: Flight) -> None:
        """Begin as many calls as there is room for: those of the next chunk when this one has no more."""
        while True:
            source = flight if flight.waiting else self._next(flight)
            if source is None or not source.waiting:
                return
            flights = [flight] if self._ahead is None or self._ahead is flight else [flight, self._ahead]
            is_first = source is flight and source.waiting[0][0] == flight.order[0]
            if sum(len(each.calls) for each in flights) >= self._most:
                return
            if not is_first and sum(each.held_bytes for each in flights) > HELD_BYTES:
                return
            if not self._may_begin():
                return
            self._begin(source, source.waiting.popleft())

    def _next(self, flight: Flight) -> Flight | None:
        """The calls of the next chunk, if it is known."""
        following = flight.task.ahead
        if flight is self._ahead:
            return None
        if self._ahead is None and following is not None and flight.task.alone is None:
            run = self._open(following)
            run.announce()
            self._ahead = self._flight(run, following)
        return self._ahead

    def _may_begin(self) -> bool:
        """Whether the pace lets a call begin now; if not, it is asked again when the time has come."""
        if self._pace is None:
            return True
        now = self._loop.time()
        if self._may_begin_at is None:
            self._may_begin_at = now + self._pace.reserve()
        if now < self._may_begin_at:
            self._loop.call_at(self._may_begin_at, self._changed.set)
            return False
        self._may_begin_at = None
        return True

    def _begin(self, flight: Flight, unit: list[int]) -> None:
        """Begin a call with the records at these positions, apart from those whose objects cannot be had."""
        run, records = flight.run, {}
        for i in unit:
            begun = run.times.clock()
            try:
                record = run.record(i)
                if record is not None:
                    records[i] = record
                else:
                    self._without_call(flight, i, Outcome(begun, run.times.clock()))
            except OF_THE_RECORD as error:
                self._without_call(flight, i, Outcome(begun, run.times.clock(), failure=error))
            except StorageError as error:
                if not self._may_run_elsewhere(error, flight.task):
                    raise
                flight.note(i, Outcome(begun, begun, elsewhere=DESCRIPTORS))
                self._changed.set()
        if records:
            flight.under_way[unit[0]] = len(unit)
            if flight is not self._ahead:
                self._slot.enter(unit[0], len(unit))
            flight.calls[unit[0]] = self._loop.create_task(self._see_through(flight, unit[0], records))

    def _without_call(self, flight: Flight, i: int, outcome: Outcome) -> None:
        """Note the outcome of a record for which there is nothing to call."""
        flight.note(i, outcome)
        flight.run.release(i)
        self._changed.set()

    async def _see_through(self, flight: Flight, number: int, records: dict[int, Record]) -> None:
        """Call the function with some records, and if that fails, with each of them by itself."""
        had_run, self._has_run = self._has_run, True
        try:
            if len(records) == 1 or not await self._together(flight, records):
                for i, record in records.items():
                    fresh = record if len(records) == 1 else flight.run.record(i) or record
                    await self._by_itself(flight, i, fresh, had_run=had_run)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  the chunk raises it
            self._error = error
        finally:
            del flight.calls[number], flight.under_way[number]
            if flight is not self._ahead:
                self._slot.leave(number)
            self._changed.set()

    async def _by_itself(self, flight: Flight, i: int, record: Record, *, had_run: bool) -> None:
        """Call the function with one record, and note its outcome."""
        run = flight.run
        outcome = Outcome(run.times.clock(), 0.0, large=run.large_record(i))
        argument = record if self._size is None else [record]
        given, outcome.failure = await self._answer(flight, record.key, i, argument)
        if outcome.failure is None:
            try:
                given = given if self._size is None else by_record(given, [record])[0]
                outcome.result = run.collect(given, i, record.key, outcome.large)
            except BaseException as error:  # noqa: BLE001  it costs only that record
                outcome.failure = error
        self._recover()
        if outcome.failure is not None and flight.task.alone is None:
            outcome.elsewhere = doubt(outcome.failure, had_run=had_run)
        self._note(flight, i, record, outcome)

    async def _together(self, flight: Flight, records: dict[int, Record]) -> bool:
        """Call the function with a batch, and note the outcomes; whether it has succeeded."""
        run, several = flight.run, list(records.values())
        begun = run.times.clock()
        outcomes = {i: Outcome(begun, begun, large=run.large_record(i)) for i in records}
        given, failure = await self._answer(flight, f"{several[0].key} ...", None, several)
        if failure is None:
            try:
                for i, rows in zip(records, by_record(given, several), strict=True):
                    collect_one(run, i, rows, records[i].key, outcomes[i])
            except BaseException as error:  # noqa: BLE001  it costs at most the records of the batch
                failure = error
        self._recover()
        if failure is not None:
            if not self._has_told:
                self._has_told = True
                warn_of_batch(len(several), several[0].key, failure)
            traceback.clear_frames(failure.__traceback__)
            for outcome in outcomes.values():
                drop_failed(outcome)
            return False
        each_s = (run.times.clock() - begun) / len(records)
        for number, (i, outcome) in enumerate(outcomes.items()):
            outcome.begun = begun + number * each_s
            self._note(flight, i, records[i], outcome, ended=outcome.begun + each_s)
        return True

    def _note(self, flight: Flight, i: int, record: Record, outcome: Outcome, *, ended: float | None = None) -> None:
        outcome.ended = flight.run.times.clock() if ended is None else ended
        outcome.notes = record.notes
        if outcome.failure is not None:
            drop_failed(outcome)
        flight.note(i, outcome)
        flight.run.release(i)

    async def _answer(
        self, flight: Flight, key: str, position: int | None, argument: Any
    ) -> tuple[Any, BaseException | None]:
        """What the function has given, and what it has raised; or that it took too long."""
        call = self._loop.create_task(self._stepwise(flight, key, position, argument))
        try:
            done, _ = await asyncio.wait({call}, timeout=self._timeout_s)
        except asyncio.CancelledError:
            self._give_up(call)
            raise
        if done:
            return call.result()
        self._give_up(call)
        limit = f"{self._timeout_s:g} s (the pipeline's timeout)"
        return None, TimeoutError(f"took longer than {limit} and was cancelled")

    async def _stepwise(
        self, flight: Flight, key: str, position: int | None, argument: Any
    ) -> tuple[Any, BaseException | None]:
        """The same without a limit."""
        slot, log = self._slot, self._log

        def begin() -> None:
            log.key = key
            if flight is self._ahead:
                slot.begin_ahead()
            elif position is None:
                slot.begin_several()
            else:
                slot.begin_record(position)

        try:
            return await Steps(self._called(argument), begin, slot.begin_several), None
        except BaseException as error:  # noqa: BLE001  even SystemExit from a record's function costs only that record
            return None, error

    async def _called(self, argument: Any) -> Any:
        return await coroutine_of(self._function(argument))

    def _give_up(self, call: asyncio.Task[Any]) -> None:
        """Cancel a call, and do not wait until it heeds that."""
        call.cancel()
        self._given_up.add(call)
        call.add_done_callback(self._given_up.discard)

    async def _end(self, flight: Flight) -> None:
        """Cancel the calls of a chunk that are under way, and remove what they have written."""
        calls = list(flight.calls.values())
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
            await asyncio.sleep(0)  # for what they have given up
        flight.drop()
