"""A schedule: when a pipeline is due, and a loop that runs it then, on one machine."""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shardkit.clock import interval, new_run_id
from shardkit.days import days_since, zone_of
from shardkit.errors import PipelineError, RunInterrupted, ShardkitError
from shardkit.runfolder.folder import STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.pipeline import Pipeline
    from shardkit.storage.base import Folder

NOTE = f"{STATE_DIR}/schedule.json"
LOCK = f"{STATE_DIR}/schedule.lock"
LOOK_EVERY_S = 30.0  # a machine may sleep, and its clock may be set
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


class Schedule(BaseModel):
    """When a pipeline is due: ``every`` so long, or by a ``cron`` expression; ``since`` tells which days are looked at.

    With ``clean`` such as ``7d``, run folders go that are older than that and that nothing counts on any more.

    In a pipeline ``schedule: 3h`` is short for ``{every: 3h}``, and ``schedule: "0 5 * * *"`` for ``{cron: ...}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    every: Annotated[str, Field(min_length=1)] | None = None
    cron: Annotated[str, Field(min_length=1)] | None = None
    since: Annotated[str, Field(min_length=1)] | None = None
    clean: Annotated[str, Field(min_length=1)] | None = None
    zone: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"cron" if " " in given.strip() or given.startswith("@") else "every": given}
        return given

    @field_validator("every", "since", "clean")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and not interval(value):
            raise ValueError(f"expected a time such as 30m, 3h, 1d or 2w, not {value!r}.")
        return value

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        from cronsim import CronSim, CronSimError

        if value is not None:
            try:
                next(CronSim(value, EPOCH))
            except (CronSimError, StopIteration) as error:
                raise ValueError(f"{value!r} is no cron expression ({error or 'it is never due'}).") from None
        return value

    @field_validator("zone")
    @classmethod
    def _is_zone(cls, value: str | None) -> str | None:
        try:
            zone_of(value)
        except PipelineError:
            raise ValueError(f"there is no time zone {value!r}; write a name such as Europe/Paris, or UTC.") from None
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> Schedule:
        if (self.every is None) == (self.cron is None):
            raise ValueError("expected either every (such as 3h) or cron (such as '0 5 * * *').")
        return self

    def next(self, after: datetime.datetime) -> datetime.datetime:
        """The first time that is due after another, in the schedule's zone.

        Intervals are counted from midnight, UTC, of 1970-01-01, so that it does not matter when the loop was started.
        """
        from cronsim import CronSim

        here = after.astimezone(zone_of(self.zone))
        if self.cron is not None:
            due: datetime.datetime = next(CronSim(self.cron, here))
            return due
        step = cast("datetime.timedelta", interval(str(self.every)))
        return (EPOCH + ((after - EPOCH) // step + 1) * step).astimezone(here.tzinfo)


class Clock(Protocol):
    """Tells the time and waits; a test has one of its own."""

    def now(self) -> datetime.datetime:
        """The time, with its zone."""

    def wait(self, until: datetime.datetime) -> None:
        """Return when it is that time, or later."""


class WallClock:
    """The machine's own clock."""

    def now(self) -> datetime.datetime:
        """The time, with its zone."""
        return datetime.datetime.now(datetime.timezone.utc)

    def wait(self, until: datetime.datetime) -> None:
        """Return when it is that time, or so much time has passed as it is away now: a clock may be set back."""
        end = time.monotonic() + (until - self.now()).total_seconds()
        while (left := min((until - self.now()).total_seconds(), end - time.monotonic())) > 0:
            time.sleep(min(left, LOOK_EVERY_S))


class Scheduler:
    """Runs a pipeline when it is due, until it is interrupted."""

    def __init__(self, pipeline: Pipeline, *, say: Callable[[str], object], clock: Clock | None = None) -> None:
        self._pipeline = pipeline
        self._schedule = schedule_of(pipeline)
        self._output = pipeline.output_folder()
        self._say = say
        self._clock = clock or WallClock()

    def run(self, *, once: bool = False) -> None:
        """Run whenever it is due; with ``once``, only if it is due by now.

        Times that were missed are caught up by one run. A run that fails is told of, and the next comes in its time.

        Raises:
            RunBusy: another process keeps to a schedule for the same output.
            LockLost: another one does by now, for this one was paused.
            RunInterrupted: by Ctrl-C or SIGTERM; a run in progress is interrupted as any other, and can be resumed.
        """
        busy = f"Another schedule is running for {self._output.uri}."
        with _ended_by_sigterm(), self._output.lock(LOCK, busy) as held:
            while True:
                due = self._due()
                if due > self._clock.now():
                    self._say(f"{self._pipeline.pipeline_name()}: next at {due:%Y-%m-%d %H:%M %Z}.")
                    if once:
                        return
                    self._wait(due)
                held.check()
                self._run_once()
                if once:
                    return

    def _wait(self, due: datetime.datetime) -> None:
        try:
            self._clock.wait(due)
        except KeyboardInterrupt:
            raise RunInterrupted("The schedule has ended; no run was in progress.") from None

    def _due(self) -> datetime.datetime:
        """The time of the next run, which may be past; an interval that was never begun is due at once."""
        last, now = _last(self._output), self._clock.now()
        if last is None and self._schedule.every is not None:
            return now
        due = self._schedule.next(last or now)
        second = self._schedule.next(self._schedule.next(now))
        return due if due <= second else self._schedule.next(now)  # the clock was ahead when the last one began

    def _run_once(self) -> None:
        begun = self._clock.now()
        self._output.write(NOTE, json.dumps({"last": begun.isoformat()}).encode())
        try:
            planned = new_run_id()
            run = self._pipeline.run(days=self._days(begun), run_id=planned, quiet=True)
        except KeyboardInterrupt:
            raise
        except ShardkitError as error:
            self._say(f"{begun:%Y-%m-%d %H:%M} the run failed: {error}")
        except Exception as error:  # noqa: BLE001  whatever it was, the next one may do
            self._say(f"{begun:%Y-%m-%d %H:%M} the run failed: {type(error).__name__}: {error}")
        else:
            counts = run.summary().records
            told = (
                f"{counts['done']:,} records done, {counts['quarantined']:,} quarantined, {counts['skipped']:,} skipped"
            )
            if run.run_id != planned:
                told = "it is the last, for nothing has changed since"
            self._say(f"{begun:%Y-%m-%d %H:%M} run {run.run_id}: {told}.")
            self._clean()

    def _clean(self) -> None:
        from shardkit.runfolder.display import counted, human_bytes
        from shardkit.runs.clean import clean_folder

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


def schedule_of(pipeline: Pipeline) -> Schedule:
    """The pipeline's schedule.

    Raises:
        PipelineError: it has none.
    """
    if pipeline.schedule is None:
        raise PipelineError(
            "The pipeline has no schedule.", hint='Set one, such as schedule: 3h, or schedule: "0 5 * * *".'
        )
    return pipeline.schedule


def next_times(pipeline: Pipeline, count: int, *, now: datetime.datetime | None = None) -> Iterator[datetime.datetime]:
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
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
