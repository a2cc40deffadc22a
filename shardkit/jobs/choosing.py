"""Which job is next: owners take turns, and jobs that there is no room for let others pass."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.jobs.live import Flight
    from shardkit.jobs.pace import Pace
    from shardkit.jobs.policy import Policy
    from shardkit.jobs.store import Ready, Waiting

RETRY, PACE, QUOTA, MAX_INSTANCES = "retry", "pace", "quota", "max_instances"


class Chooser:
    """Chooses among the jobs that may be launched now.

    The next one is the first job of the owner with the fewest instances in flight. An instance type that is used up is
    passed over. If no instances of any type are left, nothing is chosen, so that a large job gets its turn.

    Args:
        waiting: The jobs.
        flight: What is in flight; the caller adds to it the chosen jobs that are launched.
        policy: How many instances there may be.
        pace: Which quotas are used up.
    """

    def __init__(self, waiting: Waiting, flight: Flight, policy: Policy, pace: Pace) -> None:
        self._flight, self._policy, self._pace = flight, policy, pace
        self._lines: dict[tuple[str, str], deque[Ready]] = {}
        for job in waiting.ready:
            self._lines.setdefault((job.owner, job.instance_type), deque()).append(job)
        self._more = waiting.now > len(waiting.ready)
        self.too_large: list[tuple[Ready, str]] = []
        self.waits_for = RETRY
        self.short_of_quota: set[str] = set()

    def choose(self, most: int) -> list[Ready]:
        """The next jobs, at most ``most``; ``waits_for`` is what the others wait for.

        If that is a quota, ``short_of_quota`` has the instance types whose quota is used up. Jobs that need more than
        the policy ever allows are in ``too_large``, each with the reason.
        """
        chosen: list[Ready] = []
        planned = _Planned()
        full: set[str] = set()
        self.waits_for = PACE if self._more else RETRY
        self.short_of_quota.clear()
        while len(chosen) < most:
            line = min(
                (line for line in self._lines.values() if line and line[0].instance_type not in full),
                key=lambda line: (
                    self._flight.of_owner(line[0].owner) + planned.by_owner[line[0].owner],
                    line[0].order,
                ),
                default=None,
            )
            if line is None:
                break
            job = line[0]
            if self._too_large(job):
                line.popleft()
                continue
            short_of = self._short_of(job, planned)
            if short_of:
                self.waits_for = short_of
                self.short_of_quota |= {job.instance_type} if short_of == QUOTA else set()
                if self._no_instances(job, planned):
                    break
                full.add(job.instance_type)
                continue
            chosen.append(line.popleft())
            planned.add(job)
        if chosen or (most <= 0 and any(self._lines.values())):
            self.waits_for = PACE
        return chosen

    def put_back(self, jobs: Iterable[Ready]) -> None:
        """Put back jobs that were not tried."""
        for job in reversed(list(jobs)):
            self._lines[job.owner, job.instance_type].appendleft(job)

    def _too_large(self, job: Ready) -> bool:
        caps = (("max_instances", self._policy.max_instances), ("ceilings", self._ceiling(job)))
        for name, cap in caps:
            if cap is not None and job.instances > cap:
                reason = f"It needs {job.instances} instances at once; {name} allows {cap}."
                self.too_large.append((job, reason))
                return True
        return False

    def _ceiling(self, job: Ready) -> int | None:
        return self._policy.ceilings.get(job.instance_type)

    def _no_instances(self, job: Ready, planned: _Planned) -> bool:
        cap = self._policy.max_instances
        return cap is not None and self._flight.instances + planned.by_type.total() + job.instances > cap

    def _short_of(self, job: Ready, planned: _Planned) -> str:
        """What the job has to wait for; empty if there is room for it."""
        in_flight = self._flight.of_type(job.instance_type) + planned.by_type[job.instance_type]
        ceiling = self._ceiling(job)
        if self._no_instances(job, planned) or (ceiling is not None and in_flight + job.instances > ceiling):
            return MAX_INSTANCES
        return QUOTA if self._pace.over_quota(job.instance_type, job.instances, in_flight) else ""


class _Planned:
    """Instances of jobs that are chosen but not in flight yet."""

    def __init__(self) -> None:
        self.by_owner: Counter[str] = Counter()
        self.by_type: Counter[str] = Counter()

    def add(self, job: Ready) -> None:
        self.by_owner[job.owner] += job.instances
        self.by_type[job.instance_type] += job.instances
