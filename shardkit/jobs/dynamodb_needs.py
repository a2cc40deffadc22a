"""Jobs that wait for others, in DynamoDB: without counters, so that a job that completes touches no other.

A blocked job points to the first of the jobs that it needs which is not known to be ``Completed``. Now and then
somebody looks at the jobs pointed to, and moves the pointers of those that completed on; behind the last one the job
may go. So a job is found to wait in vain once those before the failed one have completed, and not earlier.
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

GONE = ""  # the status of a job that is not there any more: nobody can say that it completed
_IN_VAIN = frozenset({FAILED, STOPPED, GONE})


class Needs:
    """What a call of unblock() knows of the jobs that others need."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[str, str] = {}

    def unblock(self, limit: int) -> list[tuple[Job, str]]:
        """Let those go whose needs are met; at most so many of those that wait in vain, with what for."""
        lines = self._table.lines(LANE, "#lane = :lane", {"lane": BLOCKED}, (KEY, "waits_for"))
        blocked = {id_of(line): text_of(line, "waits_for") for line in lines}
        self._known = dict.fromkeys(blocked, NEW)  # they wait themselves: not worth a question
        self._ask(blocked.values())
        done = [job_id for job_id, needs in blocked.items() if self._known[needs] == COMPLETED]
        vain = [job_id for job_id, needs in blocked.items() if self._known[needs] in _IN_VAIN]
        found: list[tuple[Job, str]] = []
        for batch in batches(vain[:limit], TOGETHER):
            jobs = self._jobs(batch)
            found += [(jobs[job_id], blocked[job_id]) for job_id in batch if job_id in jobs]
        for batch in batches(done, TOGETHER):
            found += self._move_on(self._jobs(batch), blocked)
        return found[:limit]

    def _jobs(self, job_ids: list[str]) -> dict[str, Job]:
        """Those that are still ``New``: an index may lag behind."""
        jobs = map(job_of, self._table.items(map(job_key, job_ids), READ))
        return {job.job_id: job for job in jobs if job.status == NEW}

    def _ask(self, job_ids: Iterable[str]) -> None:
        """Get to know the statuses of those jobs."""
        asked = [job_id for job_id in dict.fromkeys(job_ids) if job_id not in self._known]
        self._known |= dict.fromkeys(asked, GONE)
        self._known |= statuses(self._table, asked, now=False)

    def _move_on(self, jobs: dict[str, Job], pointers: dict[str, str]) -> list[tuple[Job, str]]:
        """Point to the next needed job that has not completed, or let go; those that now wait in vain."""
        found = self._next(jobs, pointers)
        writes = [self._write(job_id, pointers[job_id], needs) for job_id, needs in found.items()]
        outcomes = self._table.write(writes)
        return [
            (jobs[job_id], needs)
            for (job_id, needs), outcome in zip(found.items(), outcomes, strict=True)
            if needs and outcome is None and self._known[needs] in _IN_VAIN
        ]

    def _next(self, jobs: dict[str, Job], pointers: dict[str, str]) -> dict[str, str]:
        """Of each job, the next needed one that has not completed; empty where all have."""
        rest = {job_id: job.depends_on[job.depends_on.index(pointers[job_id]) :] for job_id, job in jobs.items()}
        found: dict[str, str] = {}
        while rest:
            each = max(1, TOGETHER // len(rest))
            self._ask(needs for left in rest.values() for needs in left[:each])
            for job_id in list(rest):
                looked, left = rest[job_id][:each], rest[job_id][each:]
                unmet = next((needs for needs in looked if self._known[needs] != COMPLETED), "")
                if unmet or not left:
                    found[job_id] = unmet
                    del rest[job_id]
                else:
                    rest[job_id] = left
        return found

    def _write(self, job_id: str, before: str, needs: str) -> Write:
        """The pointer is no part of the job as others see it: its version stays."""
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
    """The statuses of those jobs, as far as there are any."""
    items = table.items(map(job_key, job_ids), (KEY, "status"), now=now)
    return {id_of(item): text_of(item, "status") for item in items}
