"""What became of jobs, by day, owner, instance type or cause: how many succeeded, how long they took, what they cost.

Jobs come as a stream, and only sums and histograms of them are kept, so that a million of them take no more memory
than ten thousand.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from shardkit.jobs.errors import JobError
from shardkit.jobs.job import COMPLETED, FAILED, STOPPED
from shardkit.jobs.wording import billed_s, ran_s, waited_s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from shardkit.jobs.job import Job

BY = ("hour", "day", "week", "owner", "instance_type", "cause", "run", "kind")
GROWTH = 1.01  # from one class of a histogram to the next: figures read from it are accurate to half a per cent


class Prices(Protocol):
    """The price of an instance hour; ``about`` says in words where it is from, and of when."""

    about: str

    def usd_per_hour(self, instance_type: str, kind: str) -> float | None:
        """In US dollars, for a ``processing`` or ``training`` job; None if that is not known."""


@dataclass(frozen=True)
class Row:
    """What became of the jobs of one day, owner, instance type or cause.

    By instance type and by cause, each attempt counts in its own row, not in that of its job: one that failed for want
    of an instance counts as ``capacity`` whatever became of its job.

    Args:
        key: The day (of the job's end, in UTC), the Monday of the week, the owner and so on; empty if a job has none.
        jobs: How many jobs ended.
        completed: How many of them completed.
        failed: How many failed.
        stopped: How many were stopped.
        success_rate: The share of the completed among the completed and failed; None if there are none.
        attempts: How many attempts there were.
        attempts_per_job: How many attempts a job took; None if there are no jobs.
        failed_attempts: How many attempts ended badly, by cause.
        waited_median_s: From a job's submission to the launch of its last attempt; None if none was launched.
        waited_p95_s: The same time, which 95 % of jobs did not exceed.
        ran_median_s: How long the service had an attempt, from its creation to its end.
        ran_p95_s: The same time, which 95 % of attempts did not exceed.
        instance_hours: The hours of all attempts' instances.
        cost_usd: What these cost; None if no prices were given, or no price of what ran is known.
        unpriced_hours: The hours of instances whose price is not known, which are not in the cost.
    """

    key: str
    jobs: int
    completed: int
    failed: int
    stopped: int
    success_rate: float | None
    attempts: int
    attempts_per_job: float | None
    failed_attempts: Mapping[str, int]
    waited_median_s: float | None
    waited_p95_s: float | None
    ran_median_s: float | None
    ran_p95_s: float | None
    instance_hours: float
    cost_usd: float | None
    unpriced_hours: float


def summarize(jobs: Iterable[Job], *, by: str, prices: Prices | None = None) -> list[Row]:
    """What became of jobs, in groups.

    Args:
        jobs: Jobs that have ended, such as a store's ``ended()``; others are left out.
        by: ``hour``, ``day``, ``week``, ``owner``, ``instance_type``, ``cause``, ``run`` or ``kind``.
        prices: What instances cost; without them there is no cost.

    Returns:
        A row for each group: in order of time, or the largest first.

    Raises:
        JobError: Jobs cannot be grouped that way.
    """
    return summaries(jobs, by=[by], prices=prices)[by]


def summaries(jobs: Iterable[Job], *, by: Iterable[str], prices: Prices | None = None) -> dict[str, list[Row]]:
    """The same in several ways at once; ``total`` is a way too, with one row for all jobs."""
    groups: dict[str, dict[str, _Group]] = {_checked(way): {} for way in by}
    for job in jobs:
        if job.ended:
            for way, of_way in groups.items():
                _add(of_way, way, job, prices)
    return {way: _rows(way, of_way, priced=prices is not None) for way, of_way in groups.items()}


def _checked(way: str) -> str:
    if way not in {*BY, "total"}:
        raise JobError(f"Jobs cannot be grouped by {way!r}.", hint=f"There are {', '.join(BY)}.")
    return way


def _add(groups: dict[str, _Group], way: str, job: Job, prices: Prices | None) -> None:
    """Count a job, and each of its attempts where it belongs."""
    own = _KEYS[way](job)
    _group(groups, own).add_job(job)
    for entry in job.attempts:
        key = str(entry.get(way) or "") if way in _OF_ATTEMPTS else own
        _group(groups, key).add_attempt(job, entry, prices)


def _group(groups: dict[str, _Group], key: str) -> _Group:
    if key not in groups:
        groups[key] = _Group()
    return groups[key]


def _rows(way: str, groups: Mapping[str, _Group], *, priced: bool) -> list[Row]:
    rows = [group.row(key, priced=priced) for key, group in groups.items()]
    if way in {"hour", "day", "week"}:
        return sorted(rows, key=lambda row: row.key)
    return sorted(rows, key=lambda row: (-row.jobs, -row.attempts, row.key))


def _ended(job: Job) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(job.changed_at, datetime.timezone.utc)


def _monday(day: datetime.date) -> str:
    return (day - datetime.timedelta(days=day.weekday())).isoformat()


def _last_type(job: Job) -> str:
    return str((job.attempts[-1].get("instance_type") if job.attempts else "") or job.instance_type)


_KEYS: dict[str, Callable[[Job], str]] = {
    "hour": lambda job: _ended(job).strftime("%Y-%m-%d %H:00"),
    "day": lambda job: _ended(job).date().isoformat(),
    "week": lambda job: _monday(_ended(job).date()),
    "owner": lambda job: job.owner,
    "instance_type": _last_type,
    "cause": lambda job: job.cause if job.status == FAILED else "",
    "run": lambda job: job.run,
    "kind": lambda job: job.kind,
    "total": lambda _: "",
}
_OF_ATTEMPTS = {"instance_type", "cause"}


class Histogram:
    """Durations in classes that grow by one per cent: a few thousand numbers hold any number of durations."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self._number, self._least, self._most = 0, math.inf, 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._classes[round(math.log(max(seconds, 1e-3), GROWTH))] += 1
        self._number += 1
        self._least, self._most = min(self._least, seconds), max(self._most, seconds)

    def at(self, share: float) -> float | None:
        """The duration that this share of them does not exceed; None if there are none."""
        left = math.ceil(share * self._number)
        for each in sorted(self._classes):
            left -= self._classes[each]
            if left <= 0:
                return min(max(GROWTH**each, self._least), self._most)
        return None


@dataclass
class _Group:
    """The sums of a group."""

    status: Counter[str] = field(default_factory=Counter)
    tries: int = 0
    attempts: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    waited: Histogram = field(default_factory=Histogram)
    ran: Histogram = field(default_factory=Histogram)
    hours: float = 0.0
    cost: float = 0.0
    unpriced: float = 0.0

    def add_job(self, job: Job) -> None:
        """Count a job."""
        self.status[job.status] += 1
        self.tries += len(job.attempts)
        waited = waited_s(job)
        if waited is not None:
            self.waited.add(waited)

    def add_attempt(self, job: Job, entry: Mapping[str, Any], prices: Prices | None) -> None:
        """Count an attempt."""
        self.attempts += 1
        if entry.get("status") == FAILED:
            self.causes[entry.get("cause") or "unknown"] += 1
        seconds = ran_s(entry)
        if seconds is None:
            return
        self.ran.add(seconds)
        hours = seconds / 3600 * (entry.get("instances") or job.instances)
        self.hours += hours
        price = prices.usd_per_hour(entry.get("instance_type") or "", job.kind) if prices else None
        if price is None:
            self.unpriced += hours
        else:
            self.cost += hours * price * ((billed_s(entry) or 0.0) / seconds if seconds else 0.0)

    def row(self, key: str, *, priced: bool) -> Row:
        """The group as a row."""
        done, failed, jobs = self.status[COMPLETED], self.status[FAILED], self.status.total()
        return Row(
            key=key,
            jobs=jobs,
            completed=done,
            failed=failed,
            stopped=self.status[STOPPED],
            success_rate=done / (done + failed) if done + failed else None,
            attempts=self.attempts,
            attempts_per_job=self.tries / jobs if jobs else None,
            failed_attempts=dict(self.causes.most_common()),
            waited_median_s=self.waited.at(0.5),
            waited_p95_s=self.waited.at(0.95),
            ran_median_s=self.ran.at(0.5),
            ran_p95_s=self.ran.at(0.95),
            instance_hours=self.hours,
            cost_usd=self.cost if priced and (self.cost or not self.unpriced) else None,
            unpriced_hours=self.unpriced if priced else 0.0,
        )
