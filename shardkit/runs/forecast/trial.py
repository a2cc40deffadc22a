"""One simulated run: the real queue, from the first launch to the end of the merge."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shardkit.jobs import Policy, SimulatedClock, Submission, drive
from shardkit.jobs.job import COMPLETED
from shardkit.runs.forecast.service import ForecastService, JobWork
from shardkit.runs.forecast.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardkit.jobs.job import Job
    from shardkit.jobs.rounds import Report
    from shardkit.runs.forecast.conditions import Conditions

MERGE = "forecast-merge"
WAITS_FOR_ENDS = {"dependency", "max_instances"}  # jobs that wait for nothing but the ends of others


class SkippingClock(SimulatedClock):
    """A simulated clock that passes over looks at the service in which there would be nothing new.

    Args:
        start: The time at the beginning.
        look_every_s: The time from one look to the next.
    """

    def __init__(self, start: float, look_every_s: float) -> None:
        super().__init__(start)
        self._look_every_s = look_every_s
        self.quiet_until = 0.0

    def sleep(self, seconds: float) -> None:
        """Move on by that many seconds, and then by whole looks until something has happened."""
        super().sleep(seconds)
        if self.now < self.quiet_until:
            self.now += math.ceil((self.quiet_until - self.now) / self._look_every_s) * self._look_every_s
        self.quiet_until = 0.0


@dataclass(frozen=True)
class Resources:
    """What each job of a run asks for: its instance types, the first choice first, and how many instances."""

    types: tuple[str, ...]
    instances: int = 1

    def request(self) -> dict[str, Any]:
        """The part of a request that the queue and the service read."""
        cluster: dict[str, Any] = {"InstanceCount": self.instances}
        if len(self.types) > 1:
            cluster["InstancePreferences"] = [{"InstanceType": name} for name in self.types]
        else:
            cluster["InstanceType"] = self.types[0]
        return {"ProcessingResources": {"ClusterConfig": cluster}}


@dataclass(frozen=True)
class Outcome:
    """How one simulated run went.

    Args:
        end_s: Seconds from the first launch to the end of the run, as its driver sees it.
        instance_s: Seconds of instances, by type, from the creation of each attempt to its end.
        attempts: How many attempts there were.
        done: Whether all jobs completed.
    """

    end_s: float
    instance_s: Mapping[str, float]
    attempts: int
    done: bool


class Trials:
    """Simulated runs with the same number of jobs, each over its own draw of what they take.

    Args:
        jobs: How many there are, beside the merge.
        resources: What they ask for.
        merge: What the merge asks for.
        policy: The queue's.
        conditions: The service's.
    """

    def __init__(
        self, jobs: int, resources: Resources, merge: Resources, policy: Policy, conditions: Conditions
    ) -> None:
        self._conditions = conditions
        # A launcher that waits for the moment of its next call makes fewer rounds, and launches at the same moments.
        self._policy = replace(policy, launch_s=policy.poll_s)
        self._start = SimulatedClock().now
        request = resources.request()
        ids = [f"forecast-{number:05d}" for number in range(jobs)]
        submissions = [Submission(each, request) for each in ids]
        submissions.append(Submission(MERGE, merge.request(), depends_on=ids))
        self._jobs: Sequence[Job] = [each.job(self._start) for each in submissions]
        self._requests = {each.job_id: dict(each.request) for each in submissions}

    def run(self, work: Sequence[JobWork], merge_s: float, *, seed: int) -> Outcome:
        """One simulated run.

        Args:
            work: What each job takes.
            merge_s: What the merge takes.
            seed: Of all that is random in it.
        """
        clock, dice = SkippingClock(self._start, self._policy.poll_s), random.Random(seed)  # noqa: S311  no secret
        store = MemoryStore(self._jobs, self._requests)
        works = {job.job_id: each for job, each in zip(self._jobs, work, strict=False)}
        service = ForecastService(clock, works | {MERGE: JobWork(merge_s)}, self._conditions, dice)

        def after_round(_: Report, launched: Report) -> None:
            if launched.waiting.keys() <= WAITS_FOR_ENDS:
                clock.quiet_until = service.next_event_at

        drive(store, service, policy=self._policy, clock=clock, rng=dice, on_round=after_round)
        service.close()
        done = store.get(MERGE).status == COMPLETED
        return Outcome(clock.now - self._start, service.instance_s, service.attempts, done)
