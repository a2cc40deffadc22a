"""One way to run a plan, simulated many times: on which instances, with how many jobs and workers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shardkit.runs.forecast.trial import Outcome, Resources, Trials

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardkit.jobs import Policy
    from shardkit.jobs.history import Prices
    from shardkit.runs.forecast.conditions import Conditions
    from shardkit.runs.forecast.service import JobWork
    from shardkit.runs.forecast.work import PlannedWork, RecordTimes

SIDE_BY_SIDE = 20_000  # from so many simulated jobs on, several processes simulate them


class Spread(NamedTuple):
    """What half of the trials did not exceed, and what 95 % did not."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of what trials gave."""
        return cls(*(float(each) for each in np.quantile(values, [0.5, 0.95], method="inverted_cdf")))


@dataclass(frozen=True)
class Option:
    """One way to run the plan, and what it takes.

    Args:
        instance_types: In order of preference.
        jobs: How many jobs there are, beside the merge.
        workers: How many processes work in each.
        end_s: Seconds from the first launch to the end of the run.
        usd: What the instances cost; None if a price is not known.
        instance_hours: Of all instances, in the median.
        attempts: How many attempts there were, in the median.
        failed: In how many of the trials a job failed for good.
        settings: The fields of the pipeline that make it this one.
    """

    instance_types: tuple[str, ...]
    jobs: int
    workers: int
    end_s: Spread
    usd: Spread | None
    instance_hours: float
    attempts: int
    failed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "instance_types": list(self.instance_types),
            "jobs": self.jobs,
            "workers": self.workers,
            "end_s": self.end_s._asdict(),
            "usd": self.usd._asdict() if self.usd is not None else None,
            "instance_hours": self.instance_hours,
            "attempts": self.attempts,
            "failed_trials": self.failed,
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Way:
    """One way to run the plan, to be simulated."""

    work: PlannedWork
    jobs: int
    instances: int
    types: tuple[str, ...]
    merge_types: tuple[str, ...]
    workers: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulation:
    """What all ways have in common.

    Args:
        times: What records take.
        merge_s: What the merge takes.
        least_s: What all jobs together take at least, however many there are, as calls may begin at a rate alone.
        policy: The queue's.
        conditions: The service's.
        prices: Of instances, if they are known.
        job_kind: ``processing`` or ``training``.
        trials: How many.
        seed: Of all that is random.
    """

    times: RecordTimes
    merge_s: float
    least_s: float
    policy: Policy
    conditions: Conditions
    prices: Prices | None
    job_kind: str
    trials: int
    seed: int

    def option(self, way: Way) -> Option:
        """Simulate one way."""
        made = Trials(
            way.jobs, Resources(way.types, way.instances), Resources(way.merge_types), self.policy, self.conditions
        )
        drawn = [
            self._at_rate(way, way.work.drawn(self.times, np.random.default_rng([self.seed, number])))
            for number in range(self.trials)
        ]
        outcomes = self._outcomes(made, drawn)
        costs = [self.usd(outcome.instance_s) for outcome in outcomes]
        known = [cost for cost in costs if cost is not None]
        return Option(
            way.types,
            way.jobs,
            way.workers,
            Spread.of([outcome.end_s for outcome in outcomes]),
            Spread.of(known) if len(known) == len(costs) else None,
            Spread.of([sum(outcome.instance_s.values()) / 3600 for outcome in outcomes]).p50,
            int(Spread.of([outcome.attempts for outcome in outcomes]).p50),
            sum(not outcome.done for outcome in outcomes),
            way.settings,
        )

    def at_once(self, jobs: int, instance_type: str) -> int:
        """How many jobs there may be at once."""
        limits = (jobs, self.conditions.quota(instance_type), self.policy.max_instances)
        return min(each for each in limits if each is not None)

    def _at_rate(self, way: Way, work: list[JobWork]) -> list[JobWork]:
        """What jobs take where the rate of calls is what holds them up: all of them as much longer."""
        together_s = sum(each.seconds for each in work) / self.at_once(way.jobs, way.types[0])
        if together_s >= self.least_s or not together_s:
            return work
        slower = self.least_s / together_s
        return [replace(each, seconds=each.seconds * slower, shared=False) for each in work]

    def _outcomes(self, made: Trials, drawn: list[Any]) -> list[Outcome]:
        numbered = list(enumerate(drawn, self.seed * self.trials))
        if len(drawn) * len(drawn[0]) < SIDE_BY_SIDE:
            return [made.run(work, self.merge_s, seed=seed) for seed, work in numbered]
        import joblib

        call = joblib.delayed(made.run)
        side_by_side = joblib.Parallel(n_jobs=-1, prefer="processes")
        return list(side_by_side(call(work, self.merge_s, seed=seed) for seed, work in numbered))

    def usd(self, instance_s: Mapping[str, float]) -> float | None:
        """What instances of these types cost for so many seconds; None if a price is not known."""
        rates = {kind: self.rate(kind) for kind in instance_s}
        if any(rate is None for rate in rates.values()):
            return None
        return sum(seconds / 3600 * (rates[kind] or 0.0) for kind, seconds in instance_s.items())

    def rate(self, instance_type: str) -> float | None:
        """US dollars an hour; None if that is not known."""
        return self.prices.usd_per_hour(instance_type, self.job_kind) if self.prices is not None else None
