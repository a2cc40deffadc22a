"""The store in a table of DynamoDB: for any number of machines, and for a Lambda function.

Every write is conditional on the version that was read, and a call takes up to a hundred of them. A round reads many
jobs from an index that has only what the round needs (see ``shardkit.jobs.dynamodb_table``).
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
import math
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import Clock, RealClock, is_due
from shardkit.jobs.dynamodb_calls import TOGETHER, Table, Unmet, Write
from shardkit.jobs.dynamodb_items import (
    BLOCKED,
    LANES,
    LIVE,
    READ,
    Item,
    attr,
    change_of,
    id_of,
    job_key,
    job_of,
    lane_of,
    new_item,
    number_of,
    text_of,
)
from shardkit.jobs.dynamodb_large import SHOWN, Requests
from shardkit.jobs.dynamodb_needs import Needs, statuses
from shardkit.jobs.dynamodb_table import ENDED, KEY, LANE, NOTICES, RUNS, WAITS
from shardkit.jobs.errors import JobNotFound
from shardkit.jobs.job import COMPLETED, FAILED, NEW, STATUSES, STOPPED, Job
from shardkit.jobs.job import LIVE as LIVE_STATUSES
from shardkit.jobs.store import Flying, Ready, Submission, Submitting, Waiting, check_statuses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_LANE = "#lane = :lane"
_READY = (KEY, "place", "owner", "instance_type", "instances", "not_before")
_FLYING = tuple(each.name for each in dataclasses.fields(Flying) if each.name != "job_id")


class DynamoDBStore(Submitting):
    """Jobs in a table of DynamoDB that ``shardkit.jobs.open.create_table()`` or a template has made.

    Threads and processes may share it.

    Args:
        table: The table's name.
        session: The boto3 session for clients; boto3's default settings if it is None.
        region: The table's region, if it is not the session's.
        clock: Gives the times of submissions.
        requests: The place for requests that are too large for an item: ``s3://bucket/prefix``. Nothing is ever deleted
            there, so give it a lifecycle rule.
        expire_days: DynamoDB may delete a job this many days after its end; None keeps it.
    """

    lag_s = 1.0  # how far an index may lag behind the table; usually some milliseconds

    def __init__(
        self,
        table: str,
        *,
        session: Any = None,
        region: str | None = None,
        clock: Clock | None = None,
        requests: str = "",
        expire_days: float | None = None,
    ) -> None:
        self._table = Table(table, session=session, region=region)
        self._requests = Requests(self._table, requests)
        self._clock = clock or RealClock()
        self._expire_days = expire_days
        self._lock = threading.Lock()
        self._stamp = 0

    def __repr__(self) -> str:
        return f"DynamoDBStore({self._table.name!r})"

    # ---- adding -----------------------------------------------------------------------------------------------------

    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """Add jobs in their order, a hundred per call; raises what submit() does.

        After an error the first of them may have been added; the same call again adds the rest.
        """
        prepared = [(each, each.job(self._clock.time()), each.text()) for each in submissions]
        first: dict[str, tuple[Submission, Job, str]] = {}
        for each in prepared:
            earlier = first.setdefault(each[1].job_id, each)
            if earlier is not each:
                each[0].check_same(*earlier[1:])
        pointers = self._pointers([job for _, job, _ in first.values()])
        orders = self._orders()
        jobs: dict[str, Job] = {}
        rows = iter(first.values())
        while batch := list(itertools.islice(rows, TOGETHER)):
            puts = (self._put(job, text, next(orders), pointers[job.job_id]) for _, job, text in batch)
            for (submission, job, _), outcome in zip(batch, self._table.write(puts), strict=True):
                jobs[job.job_id] = job if outcome is None else self._existing(submission, outcome)
        return [jobs[job.job_id] for _, job, _ in prepared]

    def _pointers(self, jobs: list[Job]) -> dict[str, str]:
        """For each job, the first one it needs that is not known to have completed."""
        numbers = {job.job_id: number for number, job in enumerate(jobs)}
        others = [
            needs for job in jobs for needs in job.depends_on if numbers.get(needs, len(jobs)) >= numbers[job.job_id]
        ]
        status_of = statuses(self._table, others) if others else {}
        pointers = {}
        for number, job in enumerate(jobs):
            met = [NEW if numbers.get(needs, number) < number else status_of.get(needs) for needs in job.depends_on]
            if None in met:
                needs = job.depends_on[met.index(None)]
                raise JobNotFound(
                    f"Job {job.job_id} depends on {needs}, which was not submitted.", hint=f"Submit {needs} first."
                )
            unmet = (needs for needs, status in zip(job.depends_on, met, strict=True) if status != COMPLETED)
            pointers[job.job_id] = next(unmet, "")
        return pointers

    def _orders(self) -> Iterator[str]:
        """Positions in the order of submission, after all that this store has given before."""
        with self._lock:
            self._stamp = max(int(self._clock.time() * 1e6), self._stamp + 1)
            stamp = self._stamp
        return (f"{stamp:017d}-{number:07d}" for number in itertools.count())

    def _put(self, job: Job, text: str, order: str, waits_for: str) -> Write:
        item = new_item(job, order=order, waits_for=waits_for)
        return self._table.put(item | self._requests.attributes(job.job_id, text, besides=len(item["about"]["B"])))

    def _existing(self, submission: Submission, outcome: Unmet) -> Job:
        job = job_of(outcome.item)
        submission.check_same(job, self._requests.text(outcome.item))
        return job

    # ---- reading ----------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """The job with that id.

        Raises:
            JobNotFound: There is none.
        """
        item = self._table.item(job_key(job_id))
        if not item:
            raise self._missing(job_id)
        return job_of(item)

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs with those ids; those that do not exist are left out."""
        jobs = map(job_of, self._table.items(map(job_key, job_ids), READ))
        return {job.job_id: job for job in jobs}

    def requests(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The requests of those jobs; jobs that do not exist are left out."""
        items = self._table.items(map(job_key, job_ids), (KEY, *SHOWN))
        return {id_of(item): json.loads(self._requests.text(item)) for item in items}

    def jobs(
        self,
        *,
        status: str | Iterable[str] | None = None,
        run: str = "",
        owner: str = "",
        limit: int | None = None,
        latest: bool = False,
    ) -> list[Job]:
        """Jobs in the order of their submission, as `Store.jobs` says."""
        wanted = set(STATUSES if status is None else check_statuses(status))
        page = None if owner or (run and status is not None) else limit  # if no line is filtered out, no more are read
        if limit is not None and limit <= 0:
            return []
        shown = (KEY, "place", "status", "owner")
        if run:
            lines = self._table.lines(RUNS, "#run = :run", {"run": run}, shown, latest=latest, limit=page)
        else:
            lanes = [lane for lane in LANES if _statuses_in(lane) & wanted]
            each = [self._table.lines(LANE, _LANE, {"lane": lane}, shown, latest=latest, limit=page) for lane in lanes]
            lines = heapq.merge(*each, key=lambda line: text_of(line, "place"), reverse=latest)
        job_ids = (
            id_of(line)
            for line in lines
            if text_of(line, "status") in wanted and (not owner or text_of(line, "owner") == owner)
        )
        return [job for job in self._whole(itertools.islice(job_ids, limit)) if job.status in wanted]

    def _whole(self, job_ids: Iterable[str]) -> Iterator[Job]:
        """The jobs with those ids, in that order, a hundred at a time."""
        left = iter(job_ids)
        while batch := list(itertools.islice(left, TOGETHER)):
            jobs = self.find(batch)
            yield from (jobs[job_id] for job_id in batch if job_id in jobs)

    def counts(self, *, run: str = "") -> dict[str, int]:
        """How many jobs there are, in all or in that run, by status; every status is named."""
        counts = Counter[str](dict.fromkeys(STATUSES, 0))
        if run:
            lines = self._table.lines(RUNS, "#run = :run", {"run": run}, ["status"])
            counts.update(text_of(line, "status") for line in lines)
            return dict(counts)
        for lane, status in ((NEW, NEW), (BLOCKED, NEW), *((each, each) for each in (COMPLETED, FAILED, STOPPED))):
            counts[status] += self._table.count(LANE, _LANE, {"lane": lane})
        counts.update(text_of(line, "status") for line in self._lane(LIVE, ["status"]))
        return dict(counts)

    def _lane(self, lane: str, shown: Sequence[str]) -> Iterator[Item]:
        return self._table.lines(LANE, _LANE, {"lane": lane}, shown)

    def waiting(self, now: float, *, most: int, longest_s: float = math.inf) -> Waiting:
        """The ``New`` jobs, in short; ``ready`` has at most ``most`` for each owner and instance type.

        A job that would wait for longer than ``longest_s`` counts as ready: the clock that set its time was ahead.
        """
        blocked = self._table.count(LANE, _LANE, {"lane": BLOCKED})
        taken, ready = Counter[tuple[str, str]](), list[Ready]()
        due = later = 0
        next_at: float | None = None
        for line in self._lane(NEW, _READY):
            not_before = number_of(line, "not_before")
            if not is_due(not_before, now, longest_s):
                later += 1
                next_at = not_before if next_at is None else min(next_at, not_before)
                continue
            due += 1
            each = (text_of(line, "owner"), text_of(line, "instance_type"))
            if taken[each] < most:
                taken[each] += 1
                ready.append(Ready(id_of(line), *each, int(number_of(line, "instances")), text_of(line, "place")))
        return Waiting(tuple(ready), due, later, next_at, blocked)

    def unblock(self, limit: int = 100) -> list[tuple[Job, str]]:
        """Unblock the jobs whose needs have all ``Completed``.

        Returns:
            At most ``limit`` ``New`` jobs that need one that failed or was stopped, each with the id of that one.
        """
        return Needs(self._table).unblock(limit)

    def dependents(self, job_id: str) -> list[Job]:
        """The jobs that wait for that one, or failed because it did not complete."""
        lines = self._table.lines(WAITS, "#waits_for = :needs", {"needs": job_id}, [KEY])
        candidates = self.find(map(id_of, lines))
        jobs = [
            job for job in candidates.values() if job.status == NEW or (job.status, job.cause) == (FAILED, "dependency")
        ]
        return sorted(jobs, key=lambda job: (job.submitted_at, job.job_id))

    def flight(self) -> list[Flying]:
        """All live jobs, in short."""
        return [
            Flying(
                job_id=id_of(line),
                status=text_of(line, "status"),
                kind=text_of(line, "kind"),
                owner=text_of(line, "owner"),
                instance_type=text_of(line, "instance_type"),
                instances=int(number_of(line, "instances")),
                exists=text_of(line, "exists"),
                launched_at=number_of(line, "launched_at"),
                changed_at=number_of(line, "changed_at"),
                lease_until=number_of(line, "lease_until"),
                stop_asked_at=number_of(line, "stop_asked_at"),
            )
            for line in self._lane(LIVE, (KEY, *_FLYING))
        ]

    def notices(self, now: float, *, limit: int = 100, longest_s: float = math.inf) -> list[Job]:
        """Ended jobs whose notice is due, the longest overdue first, and any put off for over ``longest_s``."""
        where = "#due = :due AND #notice_at <= :now"
        lines = self._table.lines(NOTICES, where, {"due": "due", "now": now}, [KEY], limit=limit)
        if longest_s < math.inf:
            where, late = "#due = :due AND #notice_at > :late", {"due": "due", "late": now + longest_s}
            lines = itertools.chain(lines, self._table.lines(NOTICES, where, late, [KEY], limit=limit))
        jobs = self._whole(id_of(line) for line in itertools.islice(lines, limit))
        return [job for job in jobs if job.notice_at > 0 and is_due(job.notice_at, now, longest_s)]

    def ended(self, since: float, until: float) -> Iterator[Job]:
        """The jobs that ended at ``since`` or later and before ``until``, in the order of their ends."""
        if until <= since:
            return iter(())
        shown = (KEY, "place", "changed_at")
        where = "#over = :over AND #changed_at BETWEEN :since AND :until"
        lines = self._table.lines(ENDED, where, {"over": "ended", "since": since, "until": until}, shown)
        at_once = itertools.groupby(lines, key=lambda line: number_of(line, "changed_at"))
        ordered = (id_of(line) for _, each in at_once for line in sorted(each, key=lambda line: text_of(line, "place")))
        return (job for job in self._whole(ordered) if job.ended and since <= job.changed_at < until)

    # ---- changing ---------------------------------------------------------------------------------------------------

    def update(self, job: Job) -> Job | None:
        """Write a changed job, unless somebody has changed it since it was read.

        Returns:
            The job as it is now; None if somebody else was faster, and nothing was written.
        """
        return self.update_many([job])[0]

    def update_many(self, jobs: Iterable[Job]) -> list[Job | None]:
        """The same for several jobs, each on its own, a hundred per call.

        Raises:
            JobNotFound: One of them does not exist; the others are written.
        """
        changes = [(job, job.written()) for job in jobs]
        outcomes = self._table.write(
            self._change(after, where="#version = :if_version", version=before.version) for before, after in changes
        )
        for (job, _), outcome in zip(changes, outcomes, strict=True):
            if outcome is not None and not outcome.item:
                raise self._missing(job.job_id)
        return [after if outcome is None else None for (_, after), outcome in zip(changes, outcomes, strict=True)]

    def _change(self, job: Job, *, where: str, also: Mapping[str, Any] | None = None, **values: Any) -> Write:
        sets, removed = change_of(job, expire_days=self._expire_days)
        copied = ("lane", "turn") if job.status == NEW else None
        lane = {} if copied else {"lane": attr(lane_of(job))}
        sets |= lane | dict(also or {})
        return self._table.change(job_key(job.job_id), sets, removed, where=where, copied=copied, **values)

    def take_over(self, jobs: Iterable[Job]) -> int:
        """Replace the jobs with the same ids, if these are later versions; their requests stay.

        Returns:
            How many were replaced.

        Raises:
            JobNotFound: One of them does not exist.
        """
        wanted = list(jobs)
        current = self.find(job.job_id for job in wanted)
        missing = [job.job_id for job in wanted if job.job_id not in current]
        if missing:
            raise self._missing(missing[0])
        later = [job for job in wanted if job.version > current[job.job_id].version]
        same = [job for job in wanted if job.version == current[job.job_id].version]
        outcomes = self._table.write(itertools.chain(map(self._taken, later), map(self._timed, same)))
        return sum(outcome is None for outcome in outcomes[: len(later)])

    def _taken(self, job: Job) -> Write:
        """The job as it was in the other store, with any notice that is due."""
        taken = dataclasses.replace(job.written(), version=job.version)
        also = {"submitted_at": attr(job.submitted_at)}
        return self._change(taken, where="#version < :if_version", also=also, version=job.version)

    def _timed(self, job: Job) -> Write:
        """The times that a job of the same version has in the other store."""
        times = {name: attr(getattr(job, name)) for name in ("submitted_at", "changed_at")}
        return self._table.change(job_key(job.job_id), times, where="#version = :if_version", version=job.version)

    # ---- what launchers and monitors share --------------------------------------------------------------------------

    def state(self, key: str) -> tuple[dict[str, Any], int]:
        """What is shared under that key, and its version; empty and 0 if nothing is."""
        item = self._table.item(f"state#{key}")
        return (json.loads(text_of(item, "value")), int(number_of(item, "version"))) if item else ({}, 0)

    def put_state(self, key: str, value: Mapping[str, Any], version: int) -> bool:
        """Write it, if its version is still that one; returns whether it was written."""
        item = {KEY: attr(f"state#{key}"), "value": attr(json.dumps(value)), "version": attr(version + 1)}
        if version:
            write = self._table.put(item, where="#version = :if_version", version=version)
        else:
            write = self._table.put(item)
        return self._table.write([write]) == [None]

    def _missing(self, job_id: str) -> JobNotFound:
        return JobNotFound(f"Table {self._table.name} has no job {job_id!r}.")


def _statuses_in(lane: str) -> set[str]:
    """The statuses of the jobs in a lane."""
    return set(LIVE_STATUSES) if lane == LIVE else {NEW if lane == BLOCKED else lane}
