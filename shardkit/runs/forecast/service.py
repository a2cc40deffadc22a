"""SageMaker as a forecast sees it: quotas, time to start, capacity errors, and jobs that take simulated time.

An object with the methods of the boto3 client that an engine has. Nothing happens by itself: what has become of the
jobs is worked out from the clock when somebody asks.
"""

from __future__ import annotations

import datetime
import heapq
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.engines.validation import refuse
from shardkit.jobs.job import parse_name
from shardkit.jobs.store import resources_of

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from shardkit.jobs.clock import Clock
    from shardkit.runs.forecast.conditions import Conditions

WORTH_S = 2.0  # a job that will have ended by then gets no help, as in runs/stealing.py
SMALLEST_STOLEN = 1 / 48  # of a job's time: the smallest chunk, 1/64, is to take less than 3/4 of what is left
RUNNING, COMPLETED, FAILED, STOPPED = "InProgress", "Completed", "Failed", "Stopped"
NO_CAPACITY = "CapacityError: Unable to provision requested ML compute capacity."


@dataclass(frozen=True)
class JobWork:
    """What a job has to do, in seconds on its own instance.

    Args:
        seconds: From its begin to its end, if nobody helps.
        longest_begin_s: When, within these, its longest chunk begins.
        longest_s: What this chunk takes.
        shared: Whether other jobs may do chunks of it once they are done, and it those of others.
    """

    seconds: float
    longest_begin_s: float = 0.0
    longest_s: float = 0.0
    shared: bool = False


@dataclass
class Attempt:
    """An attempt that the service has."""

    name: str
    work: JobWork
    instance_type: str
    instances: int
    created_at: float
    begins_at: float
    ends_at: float
    status: str = RUNNING
    reason: str = ""
    helpers: list[Attempt] = field(default_factory=list)

    @property
    def cannot_end_before(self) -> float:
        """However many help: the longest chunk is done by one worker."""
        return self.begins_at + self.work.longest_begin_s + self.work.longest_s


class ForecastService:
    """Processing jobs that take only simulated time.

    Args:
        clock: Gives the time.
        work: What each job does, by its id.
        conditions: Quotas, times to start, how often there is no instance.
        dice: The source of all that is random.
    """

    def __init__(self, clock: Clock, work: Mapping[str, JobWork], conditions: Conditions, dice: random.Random) -> None:
        self._clock, self._work, self._conditions, self._dice = clock, work, conditions, dice
        self._attempts: dict[str, Attempt] = {}
        self._running: dict[str, Attempt] = {}
        self._in_use: dict[str, int] = {}
        self._created: list[tuple[float, Attempt]] = []
        self._over: list[tuple[float, Attempt]] = []
        self._events: list[tuple[float, int, str, Attempt]] = []
        self._at_work: dict[str, Attempt] = {}  # those on their own shards, which others may help with
        self._warm: dict[str, list[tuple[float, float]]] = {}  # by type: idle since when, and kept until when
        self._events_made = 0
        self.instance_s: dict[str, float] = {}  # by type, of all attempts that had an instance, and idle warm ones
        self.attempts = self.no_capacity = 0

    # ---- the four methods -------------------------------------------------------------------------------------------

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        """CreateProcessingJob."""
        now, name = self._advance(), request["ProcessingJobName"]
        types, instances = resources_of(request)
        instance_type, used = types[0], self._in_use.get(types[0], 0)
        quota = self._conditions.quota(instance_type)
        if quota is not None and used + instances > quota:
            what = f"The limit for {instance_type} is {quota} instances, and {used} are in use."
            refuse("CreateProcessingJob", "ResourceLimitExceeded", what)
        job = parse_name(name)
        work = self._work[job[0] if job else name]
        attempt = Attempt(name, work, instance_type, instances, now, now, now)
        self.attempts += 1
        self._attempts[name] = self._running[name] = attempt
        self._in_use[instance_type] = used + instances
        self._created.append((now, attempt))
        if self._dice.random() < self._conditions.capacity_errors:
            attempt.reason = NO_CAPACITY
            self._plan(now + self._conditions.draw_no_capacity_s(self._dice), "refuse", attempt)
        else:
            attempt.begins_at = now + self._startup_s(instance_type, now)
            self._plan(attempt.begins_at, "begin", attempt)
        return {"ProcessingJobArn": name}

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        """DescribeProcessingJob."""
        self._advance()
        return _line(self._attempts[request["ProcessingJobName"]])

    def list_processing_jobs(self, **filters: Any) -> dict[str, Any]:
        """ListProcessingJobs: all on one page, as pages take no simulated time."""
        self._advance()
        if "LastModifiedTimeAfter" not in filters:
            return {"ProcessingJobSummaries": [_line(each) for each in self._running.values()]}
        since = filters["LastModifiedTimeAfter"].timestamp()
        begun = [each for _, each in _after(self._created, since) if each.status == RUNNING]
        over = [each for _, each in _after(self._over, since)]
        changed = sorted([*begun, *over], key=lambda each: each.created_at)
        return {"ProcessingJobSummaries": [_line(each) for each in changed]}

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        """StopProcessingJob."""
        now, attempt = self._advance(), self._attempts[request["ProcessingJobName"]]
        if attempt.status == RUNNING:
            self._end(attempt, now, STOPPED)
        return {}

    # ---- what happens in between ------------------------------------------------------------------------------------

    def _startup_s(self, instance_type: str, now: float) -> float:
        """How long until a job begins: on a warm instance seconds, on a new one as long as the service takes."""
        kept = self._warm.get(instance_type, [])
        for place, (idle_since, until) in enumerate(kept):
            if idle_since <= now <= until:
                del kept[place]
                self._bill(instance_type, now - idle_since)
                return self._conditions.warm_startup_s
        return self._conditions.draw_startup_s(self._dice)

    def _plan(self, at: float, what: str, attempt: Attempt) -> None:
        self._events_made += 1
        attempt.ends_at = at
        heapq.heappush(self._events, (at, self._events_made, what, attempt))

    def _advance(self) -> float:
        """Let everything happen that has happened by now."""
        now = self._clock.time()
        while self._events and self._events[0][0] <= now:
            at, _, what, attempt = heapq.heappop(self._events)
            if attempt.status != RUNNING or at != attempt.ends_at:
                continue  # it was stopped, or has got help since
            if what == "begin":
                if attempt.work.shared:
                    self._at_work[attempt.name] = attempt
                self._plan(at + attempt.work.seconds, "end", attempt)
            elif what == "refuse":
                self.no_capacity += 1
                self._end(attempt, at, FAILED)
            else:
                self._done(attempt, at)
        return now

    def _done(self, attempt: Attempt, at: float) -> None:
        """A shard is done: its own job and those that have helped with it help others, or end."""
        self._at_work.pop(attempt.name, None)
        helpers, attempt.helpers = attempt.helpers, []
        for each in (attempt, *helpers):
            if not (each.work.shared and self._help(each, at)):
                self._end(each, at, COMPLETED)

    def _help(self, helper: Attempt, at: float) -> bool:
        """Let a job do chunks of the one that will be at work longest; whether that is worth while."""
        slowest = max(self._at_work.values(), key=lambda each: each.ends_at, default=None)
        if slowest is None:
            return False
        left_s = slowest.ends_at - at
        begun = at >= slowest.begins_at + slowest.work.longest_begin_s
        soonest = slowest.cannot_end_before if begun else at + slowest.work.longest_s
        together = 1 + len(slowest.helpers)
        ends_at = max(at + left_s * together / (together + 1), soonest)
        if left_s <= max(WORTH_S, slowest.work.seconds * SMALLEST_STOLEN) or ends_at >= slowest.ends_at:
            return False
        slowest.helpers.append(helper)
        helper.ends_at = -1.0  # it ends with the other
        self._plan(ends_at, "end", slowest)
        return True

    def _end(self, attempt: Attempt, at: float, status: str) -> None:
        attempt.status, attempt.ends_at = status, at
        del self._running[attempt.name]
        self._at_work.pop(attempt.name, None)
        kind = attempt.instance_type
        self._in_use[kind] -= attempt.instances
        self._over.append((at, attempt))
        if attempt.reason == NO_CAPACITY:
            return
        self._bill(kind, (at - attempt.created_at) * attempt.instances)
        if self._conditions.keep_alive_s:
            self._warm.setdefault(kind, []).append((at, at + self._conditions.keep_alive_s))

    def _bill(self, instance_type: str, seconds: float) -> None:
        self.instance_s[instance_type] = self.instance_s.get(instance_type, 0.0) + seconds

    @property
    def next_event_at(self) -> float:
        """Before then nothing happens by itself."""
        return self._events[0][0] if self._events else 0.0

    def close(self) -> None:
        """Bill what warm instances have been kept for in vain."""
        for kind, kept in self._warm.items():
            self._bill(kind, sum(until - since for since, until in kept))


def _after(listed: list[tuple[float, Attempt]], since: float) -> list[tuple[float, Attempt]]:
    return listed[bisect_left(listed, since, key=lambda each: each[0]) :]


def _line(attempt: Attempt) -> dict[str, Any]:
    over = attempt.status != RUNNING
    line = {
        "ProcessingJobName": attempt.name,
        "CreationTime": _moment(attempt.created_at),
        "LastModifiedTime": _moment(attempt.ends_at if over else attempt.created_at),
        "ProcessingJobStatus": attempt.status,
    }
    if over:
        line["ProcessingEndTime"] = line["LastModifiedTime"]
    if attempt.status == FAILED:
        line["FailureReason"] = attempt.reason
    return line


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
