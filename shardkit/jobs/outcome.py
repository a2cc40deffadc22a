"""What became of the jobs that a launcher has claimed, written all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.jobs import transitions
from shardkit.jobs.job import LAUNCHED, YES, Job
from shardkit.jobs.rounds import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.jobs.clock import Clock
    from shardkit.jobs.policy import Policy
    from shardkit.jobs.store import Store


class Outcome:
    """Collects what became of each job of a block; a job that nothing was reported of got no call.

    Args:
        store: The jobs.
        clock: Gives the time.
        repeats: The ids of jobs that an earlier call may have made.
    """

    def __init__(self, store: Store, clock: Clock, repeats: set[str]) -> None:
        self._store, self._clock, self._repeats = store, clock, repeats
        self._changes: dict[str, Callable[[Job], Job]] = {}
        self.taken: list[Job] = []

    def is_first(self, job: Job) -> bool:
        """Whether no earlier call can have made it."""
        return job.job_id not in self._repeats

    def took(self, job: Job) -> None:
        """The service has it."""
        now = self._clock.time()
        self._changes[job.job_id] = lambda job: transitions.created(job, now)
        self.taken.append(job)

    def failed(self, job: Job, reason: str, *, surely_not: bool) -> None:
        """The call made nothing, or nobody knows whether it did."""
        if not surely_not:
            self.doubtful(job, reason)
            return
        now = self._clock.time()
        self._changes[job.job_id] = lambda job: transitions.put_back(job, now, reason)

    def doubtful(self, job: Job, reason: str) -> None:
        """Nobody knows whether the call made it."""
        now = self._clock.time()
        self._changes[job.job_id] = lambda job: transitions.doubtful(job, now, reason)

    def refused(self, job: Job, reason: str) -> None:
        """The service will never take it."""
        now = self._clock.time()
        self._changes[job.job_id] = lambda job: transitions.refused(job, now, reason)

    def no_quota(self, job: Job, reason: str, policy: Policy) -> None:
        """The account may have none of the larger instances that it has come to."""
        now = self._clock.time()
        self._changes[job.job_id] = lambda job: transitions.no_quota(job, now, reason, policy)

    def write(self, claimed: list[Job]) -> list[Job]:
        """Write it, unless somebody else knows more about an attempt by now; returns the jobs as they are then."""
        written = self._store.update_many(self._change(job)(job) for job in claimed)
        return [now or self._settle(before) for before, now in zip(claimed, written, strict=True)]

    def _change(self, job: Job) -> Callable[[Job], Job]:
        change = self._changes.get(job.job_id)
        if change is not None:
            return change
        now = self._clock.time()
        if self.is_first(job):
            return lambda job: transitions.put_back(job, now, "")
        return lambda job: transitions.doubtful(job, now, "")

    def _settle(self, claimed: Job) -> Job:
        change = self._change(claimed)
        sure = claimed in self.taken

        def if_ours(job: Job) -> Job | None:
            same = job.attempt == claimed.attempt and job.status == LAUNCHED and job.exists != YES
            return change(job) if same and (sure or job.lease_until == claimed.lease_until) else None

        return settle(self._store, self._store.get(claimed.job_id), if_ours)
