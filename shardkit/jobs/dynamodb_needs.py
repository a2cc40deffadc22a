"""Jobs that wait for others, in DynamoDB: without counters, so that a job that completes touches no other.

A blocked job points to the first job it needs that is not known to be ``Completed``. Now and then a call of unblock()
reads the jobs pointed to, and moves the pointers past those that have completed; a job is unblocked when its pointer
has passed the last one. So a job turns out to wait in vain only once those before the failed one have completed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.jobs.dynamodb_calls import TOGETHER
from shardkit.jobs.dynamodb_items import BLOCKED, READ, Item, attr, id_of, job_key, job_of, text_of
from shardkit.jobs.dynamodb_table import KEY, LANE
from shardkit.jobs.job import COMPLETED, FAILED, NEW, STOPPED, Job
from shardkit.jobs.store import batches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.jobs.dynamodb_calls import Table, Write

GONE = ""  # the status of a job that does not exist any more: nobody can say whether it completed
_IN_VAIN = frozenset({FAILED, STOPPED, GONE})


class Needs:
    """The statuses of jobs that others need, which a call of unblock() has read."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._statuses: dict[str, str] = {}

    def unblock(self, limit: int) -> list[tuple[Job, str]]:
        """Unblock the jobs whose needs are met; returns some that wait in vain, each with the job it waits for."""
        lines = self._table.lines(LANE, "#lane = :lane", {"lane": BLOCKED}, (KEY, "waits_for"))
        blocked = {id_of(line): text_of(line, "waits_for") for line in lines}
        self._statuses = dict.fromkeys(blocked, NEW)  # they are waiting themselves, so there is no need to read them
        self._ask(blocked.values())
        done = [job_id for job_id, needs in blocked.items() if self._statuses[needs] == COMPLETED]
        vain = [job_id for job_id, needs in blocked.items() if self._statuses[needs] in _IN_VAIN]
        in_vain: list[tuple[Job, str]] = []
        for batch in batches(vain[:limit], TOGETHER):
            jobs = self._jobs(batch)
            in_vain += [(jobs[job_id], blocked[job_id]) for job_id in batch if job_id in jobs]
        for batch in batches(done, TOGETHER):
            in_vain += self._move_on(self._jobs(batch), blocked)
        return in_vain[:limit]

    def _jobs(self, job_ids: list[str]) -> dict[str, Job]:
        """Those that are still ``New``: an index may lag behind."""
        jobs = map(job_of, self._table.items(map(job_key, job_ids), READ))
        return {job.job_id: job for job in jobs if job.status == NEW}

    def _ask(self, job_ids: Iterable[str]) -> None:
        """Read the statuses of those jobs, unless they were read before."""
        asked = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in self._statuses]
        self._statuses |= dict.fromkeys(asked, GONE)
        self._statuses |= statuses(self._table, asked, now=False)

    def _move_on(self, jobs: dict[str, Job], pointers: dict[str, str]) -> list[tuple[Job, str]]:
        """Point each job to the next unfinished one it needs, or unblock it; returns those that now wait in vain."""
        next_needs = self._next(jobs, pointers)
        writes = [self._write(job_id, pointers[job_id], needs) for job_id, needs in next_needs.items()]
        outcomes = self._table.write(writes)
        return [
            (jobs[job_id], needs)
            for (job_id, needs), outcome in zip(next_needs.items(), outcomes, strict=True)
            if needs and outcome is None and self._statuses[needs] in _IN_VAIN
        ]

    def _next(self, jobs: dict[str, Job], pointers: dict[str, str]) -> dict[str, str]:
        """For each job, the next one it needs that has not completed; empty if all have."""
        rest = {job_id: job.depends_on[job.depends_on.index(pointers[job_id]) :] for job_id, job in jobs.items()}
        next_needs: dict[str, str] = {}
        while rest:
            each = max(1, TOGETHER // len(rest))
            self._ask(needs for left in rest.values() for needs in left[:each])
            for job_id in list(rest):
                asked, left = rest[job_id][:each], rest[job_id][each:]
                unmet = next((needs for needs in asked if self._statuses[needs] != COMPLETED), "")
                if unmet or not left:
                    next_needs[job_id] = unmet
                    del rest[job_id]
                else:
                    rest[job_id] = left
        return next_needs

    def _write(self, job_id: str, before: str, needs: str) -> Write:
        """The change of a pointer. Others do not see it as part of the job, so the version stays."""
        free: Item = {"lane": attr(NEW), "turn": attr(NEW)}
        return self._table.change(
            job_key(job_id),
            {"waits_for": attr(needs)} if needs else free,
            [] if needs else ["waits_for"],
            where="#status = :if_status AND #turn = :if_turn AND #waits_for = :if_needs",
            status=NEW,
            turn=BLOCKED,
            needs=before,
        )


def statuses(table: Table, job_ids: Iterable[str], *, now: bool = True) -> dict[str, str]:
    """The statuses of those of the jobs that exist."""
    items = table.items(map(job_key, job_ids), (KEY, "status"), now=now)
    return {id_of(item): text_of(item, "status") for item in items}
