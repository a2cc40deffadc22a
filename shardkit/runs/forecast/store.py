"""Jobs in memory, for one simulated run: the queue's store without a file."""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING, Any

from shardkit.jobs.errors import JobNotFound
from shardkit.jobs.job import COMPLETED, FAILED, NEW, STATUSES, STOPPED, Job
from shardkit.jobs.store import Flying, Ready, Submission, Submitting, Waiting, check_statuses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


class MemoryStore(Submitting):
    """The jobs of one run, for a single launcher and monitor in this process.

    Args:
        jobs: The jobs, in the order of their submission.
        requests: Their requests.
    """

    lag_s = 0.0

    def __init__(self, jobs: Sequence[Job], requests: Mapping[str, dict[str, Any]]) -> None:
        self._jobs = {job.job_id: job for job in jobs}
        self._requests = requests
        self._place = {job.job_id: place for place, job in enumerate(jobs)}
        self._ids = [job.job_id for job in jobs]
        self._ready: dict[str, list[int]] = {}  # by instance type, the places of New jobs that wait for no other job
        self._delayed: set[str] = set()  # those of them that were put off
        self._flying: dict[str, Flying] = {}
        self._states: dict[str, tuple[dict[str, Any], int]] = {}
        self._needed_by: dict[str, list[str]] = {}
        self._blocked: dict[str, int] = {}  # the New jobs that wait for others, and for how many
        self._failed = False
        for job in jobs:
            for needs in job.depends_on:
                self._needed_by.setdefault(needs, []).append(job.job_id)
            if job.depends_on:
                self._blocked[job.job_id] = len(job.depends_on)
            else:
                self._enter(job)

    def _enter(self, job: Job) -> None:
        """Take in how a job is now."""
        if job.live:
            self._flying[job.job_id] = Flying.of(job)
        elif job.status == NEW and job.job_id not in self._blocked:
            bisect.insort(self._ready.setdefault(job.instance_type, []), self._place[job.job_id])
            if job.not_before:
                self._delayed.add(job.job_id)

    def _leave(self, job: Job) -> None:
        """Forget how a job was."""
        if job.live:
            del self._flying[job.job_id]
        elif job.status == NEW and job.job_id not in self._blocked:
            places = self._ready[job.instance_type]
            del places[bisect.bisect_left(places, self._place[job.job_id])]
            self._delayed.discard(job.job_id)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """All jobs are there from the beginning."""
        raise NotImplementedError

    def get(self, job_id: str) -> Job:
        """The job with that id."""
        if job_id not in self._jobs:
            raise JobNotFound(f"There is no job {job_id!r}.")
        return self._jobs[job_id]

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs with those ids; those that do not exist are left out."""
        return {each: self._jobs[each] for each in job_ids if each in self._jobs}

    def requests(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The requests of those jobs."""
        return {each: self._requests[each] for each in job_ids}

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
        found = [job for job in self._jobs.values() if job.status in wanted and run in {"", job.run}]
        found = [job for job in found if owner in {"", job.owner}]
        return (found[::-1] if latest else found)[:limit]

    def counts(self, *, run: str = "") -> dict[str, int]:
        """How many jobs there are, by status."""
        counts = dict.fromkeys(STATUSES, 0)
        for job in self.jobs(run=run):
            counts[job.status] += 1
        return counts

    def waiting(self, now: float, *, most: int, longest_s: float = math.inf) -> Waiting:
        """The ``New`` jobs, in short."""
        del longest_s
        later = [at for each in self._delayed if (at := self._jobs[each].not_before) > now]
        first = heads(self._ready.values(), most + len(later))
        jobs = [self._jobs[self._ids[place]] for place in first]
        ready = [
            Ready(job.job_id, job.owner, job.instance_type, job.instances, place)
            for place, job in zip(first, jobs, strict=True)
            if job.not_before <= now
        ]
        everything = sum(map(len, self._ready.values()))
        return Waiting(tuple(ready), everything - len(later), len(later), min(later, default=None), len(self._blocked))

    def unblock(self, limit: int = 100) -> list[tuple[Job, str]]:
        """``New`` jobs that wait for one that failed or was stopped, each with the id of that one."""
        if not self._failed:
            return []
        vain = [
            (self._jobs[each], needs)
            for each in self._blocked
            for needs in self._jobs[each].depends_on
            if self._jobs[needs].status in {FAILED, STOPPED}
        ]
        return list({job.job_id: (job, needs) for job, needs in vain}.values())[:limit]

    def dependents(self, job_id: str) -> list[Job]:
        """The jobs that wait for that one."""
        return [self._jobs[each] for each in self._needed_by.get(job_id, ())]

    def flight(self) -> list[Flying]:
        """All live jobs, in short."""
        return list(self._flying.values())

    def notices(self, now: float, *, limit: int = 100, longest_s: float = math.inf) -> list[Job]:
        """Nobody is notified."""
        del now, limit, longest_s
        return []

    def ended(self, since: float, until: float) -> Iterator[Job]:
        """The jobs that ended then, in the order of their ends."""
        ended = [job for job in self._jobs.values() if job.ended and since <= job.changed_at < until]
        return iter(sorted(ended, key=lambda job: job.changed_at))

    # ---- changing ---------------------------------------------------------------------------------------------------

    def update(self, job: Job) -> Job | None:
        """Write a changed job, unless somebody has changed it since it was read."""
        return self.update_many([job])[0]

    def update_many(self, jobs: Iterable[Job]) -> list[Job | None]:
        """The same for several jobs, each on its own."""
        return [self._write(job) for job in jobs]

    def _write(self, job: Job) -> Job | None:
        before = self._jobs[job.job_id]
        if before.version != job.version:
            return None
        written = job.written()
        self._leave(before)
        if written.status != NEW:
            self._blocked.pop(job.job_id, None)
        self._jobs[job.job_id] = written
        self._enter(written)
        self._failed |= written.status in {FAILED, STOPPED}
        if written.status == COMPLETED != before.status:
            self._unblock(written.job_id)
        return written

    def _unblock(self, completed: str) -> None:
        for each in self._needed_by.get(completed, ()):
            if each in self._blocked:
                self._blocked[each] -= 1
                if not self._blocked[each]:
                    del self._blocked[each]
                    self._enter(self._jobs[each])

    def take_over(self, jobs: Iterable[Job]) -> int:
        """There are no other copies of these jobs."""
        del jobs
        return 0

    def state(self, key: str) -> tuple[dict[str, Any], int]:
        """What is shared under that key, and its version."""
        return self._states.get(key, ({}, 0))

    def put_state(self, key: str, value: Mapping[str, Any], version: int) -> bool:
        """Write it, if its version is still that one."""
        if self._states.get(key, ({}, 0))[1] != version:
            return False
        self._states[key] = dict(value), version + 1
        return True


def heads(lines: Iterable[list[int]], most: int) -> list[int]:
    """The first ``most`` of each line, in order."""
    return sorted(place for line in lines for place in line[:most])
