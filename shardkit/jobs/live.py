"""The live jobs as one round sees them: as the store had them, with the changes that the round has made since."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from shardkit.jobs.job import MAYBE
from shardkit.jobs.store import Flying

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shardkit.jobs.job import Job


class Flight:
    """Live jobs, and how many instances they take.

    Args:
        jobs: The live jobs, as the store has them.
    """

    def __init__(self, jobs: Iterable[Flying]) -> None:
        self.see(jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Flying]:
        return iter(self._jobs.values())

    def see(self, jobs: Iterable[Flying]) -> None:
        """Replace the jobs by those that the store has now."""
        self._jobs = {job.job_id: job for job in jobs}
        self._uncertain = {job.job_id: job for job in self if job.exists == MAYBE and job.uncertain}
        self._sums: tuple[Counter[str], Counter[str]] | None = None  # many readers never ask for them
        self._oldest: dict[str, float] = {}

    def update(self, job: Job) -> None:
        """Take in a job as it is now, live or not."""
        before = self._jobs.pop(job.job_id, None)
        self._oldest.clear()
        if before is not None:
            self._uncertain.pop(job.job_id, None)
            self._count(before, -1)
        if job.live:
            now = self._jobs[job.job_id] = Flying.of(job)
            if now.uncertain:
                self._uncertain[job.job_id] = now
            self._count(now, 1)

    def _count(self, job: Flying, sign: int) -> None:
        if self._sums is not None:
            by_owner, by_type = self._sums
            by_owner[job.owner] += sign * job.instances
            by_type[job.instance_type] += sign * job.instances

    def _instances(self) -> tuple[Counter[str], Counter[str]]:
        """How many instances there are of each owner, and of each type."""
        if self._sums is None:
            by_owner, by_type = self._sums = Counter(), Counter()
            alike = Counter((job.owner, job.instance_type, job.instances) for job in self)
            for (owner, kind, instances), count in alike.items():
                by_owner[owner] += instances * count
                by_type[kind] += instances * count
        return self._sums

    @property
    def instances(self) -> int:
        """How many there are in all."""
        return self._instances()[1].total()

    def of_owner(self, owner: str) -> int:
        """How many instances an owner's jobs take."""
        return self._instances()[0][owner]

    def of_type(self, instance_type: str, *, surely: bool = False) -> int:
        """How many instances of a type there are; ``surely``: only of jobs that the service is known to have."""
        doubtful = [job for job in self._uncertain.values() if job.instance_type == instance_type] if surely else []
        return self._instances()[1][instance_type] - sum(job.instances for job in doubtful)

    @property
    def uncertain(self) -> list[Flying]:
        """The jobs that the service may or may not have."""
        return list(self._uncertain.values())

    @property
    def stopping(self) -> list[Flying]:
        """The jobs that somebody has asked to stop."""
        return [job for job in self if job.stop_asked_at]

    @property
    def kinds(self) -> list[str]:
        """The kinds of jobs that there are."""
        return sorted({job.kind for job in self})

    def launched_at(self, kind: str = "") -> float:
        """When the oldest attempt, or the oldest of that kind, was launched; 0 if there is none."""
        if kind not in self._oldest:
            times = [job.launched_at for job in self if not kind or job.kind == kind]
            self._oldest[kind] = min(times, default=0.0)
        return self._oldest[kind]

    def prefix(self, kind: str) -> str:
        """The common beginning of the ids of that kind, if it is long enough to search for."""
        ids = [job.job_id for job in self if job.kind == kind]
        common = os.path.commonprefix([min(ids), max(ids)]) if ids else ""  # noqa: RUF071  of words, not of paths
        return common if len(common) >= 3 else ""
