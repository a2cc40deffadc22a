"""A loop on one machine that runs a pipeline when its schedule says so."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import time
from typing import TYPE_CHECKING, Protocol

from shardkit.errors import LockLost, PipelineError, RunInterrupted, ShardkitError
from shardkit.runs.signals import ended_by
from shardkit.runs.start import start
from shardkit.storage.base import STATE_DIR
from shardkit.times import days_since, new_run_id, zone_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.spec.schedule import Schedule
    from shardkit.spec.spec import Spec
    from shardkit.storage.base import Folder
    from shardkit.storage.locks import Held

NOTE = f"{STATE_DIR}/schedule.json"
LOCK = f"{STATE_DIR}/schedule.lock"
LOOK_EVERY_S = 30.0  # a machine may sleep, and its clock may be set


class Clock(Protocol):
    """A source of dates that can wait for one; tests have their own. That of the queue counts seconds."""

    def now(self) -> datetime.datetime:
        """The time, with its zone."""

    def wait(self, until: datetime.datetime, look: Callable[[], object]) -> None:
        """Return when it is that time, or later; ``look`` is called now and then."""


class WallClock:
    """The machine's own clock."""

    def now(self) -> datetime.datetime:
        """The time, with its zone."""
        return datetime.datetime.now(datetime.timezone.utc)

    def wait(self, until: datetime.datetime, look: Callable[[], object]) -> None:
        """Return at that time, or once the time until then has passed, even if the clock is set back."""
        end = time.monotonic() + (until - self.now()).total_seconds()
        while (left := min((until - self.now()).total_seconds(), end - time.monotonic())) > 0:
            time.sleep(min(left, LOOK_EVERY_S))
            look()


class Timetable:
    """When the next run of a schedule is due, given when the last one began, which is noted in a folder.

    Whoever keeps to the schedule holds the folder's lock (`held`), so that two processes never do.
    """

    def __init__(self, schedule: Schedule, home: Folder, clock: Clock) -> None:
        self._schedule, self._home, self._clock = schedule, home, clock

    @contextlib.contextmanager
    def held(self) -> Iterator[Held]:
        """Hold the lock of the schedule.

        Raises:
            RunBusy: another process keeps to it.
            LockLost: another process has taken over, because this one was paused.
        """
        busy = f"Another schedule is running for {self._home.uri}."
        with self._home.lock(LOCK, busy) as held, _told_of_the_schedule(self._home.uri):
            yield held

    def due(self) -> datetime.datetime:
        """The time of the next run, which may be in the past; if there was no run yet, an interval is due at once.

        One run makes up for all times that were missed.
        """
        last, now = _last(self._home), self._clock.now()
        if last is None and self._schedule.every is not None:
            return now
        due = self._schedule.next(last or now)
        second = self._schedule.next(self._schedule.next(now))
        return due if due <= second else self._schedule.next(now)  # the clock was ahead when the last one began

    def await_due(self, due: datetime.datetime, held: Held) -> None:
        """Return when it is that time.

        Raises:
            RunInterrupted: by Ctrl-C or SIGTERM.
            LockLost: another process has taken over.
        """

        def look() -> None:
            # Only what is known without asking the store, which may be away for a while, long before the next run.
            if (lost := held.lost) is not None:
                raise lost

        try:
            self._clock.wait(due, look)
        except KeyboardInterrupt:
            raise RunInterrupted("The schedule has ended; no run was in progress.") from None

    def note(self, begun: datetime.datetime | None = None) -> datetime.datetime:
        """Note that a run has begun at that time, by default now, and return the time."""
        begun = begun or self._clock.now()
        self._home.write(NOTE, json.dumps({"last": begun.isoformat()}).encode())
        return begun

    def note_at_least(self, begun: datetime.datetime | None) -> None:
        """Note that a run has begun at that time, if no later one is noted: who began it may have died before."""
        last = _last(self._home)
        if begun is not None and (last is None or last < begun):
            self.note(begun)


class Scheduler:
    """Runs a pipeline when it is due, until it is interrupted."""

    def __init__(self, pipeline: Spec, *, say: Callable[[str], object], clock: Clock | None = None) -> None:
        self._pipeline = pipeline
        self._schedule = schedule_of(pipeline)
        self._output = pipeline.output_folder()
        self._say = say
        self._clock = clock or WallClock()
        self._times = Timetable(self._schedule, self._output, self._clock)

    def run(self, *, once: bool = False) -> None:
        """Run whenever the pipeline is due; with ``once``, only if it is due now.

        One run makes up for all times that were missed. A run that fails is reported, and the next one starts
        as usual; with ``once``, its error is raised.

        Raises:
            RunBusy: another process runs a schedule for the same output.
            LockLost: another process has taken over, because this one was paused.
            RunInterrupted: by Ctrl-C or SIGTERM; a run in progress is interrupted like any other, and can be resumed.
        """
        with ended_by(signal.SIGTERM), self._times.held() as held:
            while True:
                held.check()
                due = self._times.due()
                if due > self._clock.now():
                    self._say(f"{self._pipeline.pipeline_name()}: next at {due:%Y-%m-%d %H:%M %Z}.")
                    if once:
                        return
                    self._times.await_due(due, held)
                held.check()
                begun = self._times.note()
                if once:
                    self._run(begun)
                    return
                self._run_or_report(begun)

    def _run_or_report(self, begun: datetime.datetime) -> None:
        try:
            self._run(begun)
        except KeyboardInterrupt:
            raise
        except ShardkitError as error:
            self._say(f"{begun:%Y-%m-%d %H:%M} the run failed: {error.command_text}")
        except Exception as error:  # noqa: BLE001  whatever it was, the next run may succeed
            self._say(f"{begun:%Y-%m-%d %H:%M} the run failed: {type(error).__name__}: {error}")

    def _run(self, begun: datetime.datetime) -> None:
        planned = new_run_id()
        run = start(self._pipeline, days=self._days(begun), run_id=planned, quiet=True)
        counts = run.summary().records
        outcome = (
            f"{counts['done']:,} records done, {counts['quarantined']:,} quarantined, {counts['skipped']:,} skipped"
        )
        if run.run_id != planned:
            outcome = "it is the last one, because nothing has changed since"
        self._say(f"{begun:%Y-%m-%d %H:%M} run {run.run_id}: {outcome}.")
        self._clean()

    def _clean(self) -> None:
        from shardkit.runs.clean import clean_folder
        from shardkit.units import counted, human_bytes

        if self._schedule.clean is None:
            return
        try:
            done = clean_folder(self._output, older_than=self._schedule.clean)
        except ShardkitError as error:
            self._say(f"{self._clock.now():%Y-%m-%d %H:%M} old runs could not be removed: {error}")
        else:
            if done.files:
                self._say(f"  {counted(done.files, 'file')} of old runs removed, {human_bytes(done.bytes)}.")

    def _days(self, now: datetime.datetime) -> tuple[str, ...] | None:
        since, shards = self._schedule.since, self._pipeline.shards
        if since is None:
            return None
        zone = zone_of(shards.zone if shards is not None else None)
        return days_since(since, zone=zone, now=now.astimezone(zone))


def schedule_of(pipeline: Spec) -> Schedule:
    """The pipeline's schedule.

    Raises:
        PipelineError: it has none.
    """
    if pipeline.schedule is None:
        raise PipelineError(
            "The pipeline has no schedule.", hint='Set one, such as schedule: 3h, or schedule: "0 5 * * *".'
        )
    return pipeline.schedule


def next_times(pipeline: Spec, count: int, *, now: datetime.datetime | None = None) -> Iterator[datetime.datetime]:
    """The next times at which a pipeline is due."""
    schedule, due = schedule_of(pipeline), now or WallClock().now()
    for _ in range(count):
        due = schedule.next(due)
        yield due


def _last(output: Folder) -> datetime.datetime | None:
    """When the schedule's last run began, in this process or another."""
    try:
        return datetime.datetime.fromisoformat(json.loads(output.read(NOTE))["last"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _told_of_the_schedule(uri: str) -> Iterator[None]:
    """If the lock is lost, raise an error that is about the schedule, not about a run."""
    try:
        yield
    except LockLost as lost:
        raise LockLost(
            f"This schedule has ended, because it lost its lock while it was paused or cut off: another schedule for "
            f"{uri} may have begun since.",
            hint="No run was in progress. Start it again if no other keeps to it.",
        ) from lost
