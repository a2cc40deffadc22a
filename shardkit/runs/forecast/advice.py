"""Which instance type, how many jobs and how many workers keep to a deadline and a budget."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.engines.instances import instance_memory_bytes, instance_vcpus
from shardkit.plan.cut import Cut, cut_chunks
from shardkit.plan.shards import number_shards
from shardkit.runs.forecast.options import Option, Simulation, Way
from shardkit.runs.forecast.work import PlannedWork
from shardkit.tables.arrays import arrow, numpy
from shardkit.units import dollars, human_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

# Types that are compared beside the engine's own, where they have memory enough and a price.
COMMON = tuple(f"ml.{family}.{size}" for family in ("m5", "c5", "r5") for size in ("xlarge", "2xlarge", "4xlarge"))
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000)
USABLE = 0.9  # of an instance's memory: the rest is for the system and the job's own process
TRIED = 4  # ways that are simulated before it is said that none will do
SPARE = 1.03  # what the quick reckoning has to leave free


@dataclass(frozen=True)
class Wanted:
    """What the run is to keep to; None is no limit."""

    deadline_s: float | None = None
    budget_usd: float | None = None

    def is_met(self, end_s: float, usd: float | None) -> bool:
        """Whether such an end and such a cost keep to it."""
        in_time = self.deadline_s is None or end_s <= self.deadline_s
        return in_time and (self.budget_usd is None or (usd is not None and usd <= self.budget_usd))

    def __str__(self) -> str:
        parts = [
            f"a deadline of {human_seconds(self.deadline_s)}" if self.deadline_s is not None else "",
            f"a budget of {dollars(self.budget_usd)}" if self.budget_usd is not None else "",
        ]
        return " and ".join(filter(None, parts))


@dataclass(frozen=True)
class Reckoned:
    """A way that was reckoned quickly: when it ends and what it costs, about."""

    instance_type: str
    jobs: int
    workers: int
    end_s: float
    cost: float


@dataclass(frozen=True)
class Room:
    """What may be varied: the records and how they may be cut, the types, and what limits workers.

    ``worker_bytes`` is the memory that a worker of the sample took.
    """

    records: pa.Table
    rule: Mapping[str, Any] | None
    chunks: str
    by_day: bool
    types: tuple[str, ...]
    merge_types: tuple[str, ...]
    has_preferences: bool
    worker_bytes: int
    shared: bool
    fixed_workers: int | None
    merge_share: float

    def workers_on(self, instance_type: str) -> int:
        """How many workers fit on an instance; 0 if there is no memory even for one."""
        memory, most = instance_memory_bytes(instance_type), self.fixed_workers or instance_vcpus(instance_type)
        if memory is None or not self.worker_bytes:
            return most
        return min(most, int(memory * USABLE / self.worker_bytes))

    def numbers_of_jobs(self) -> list[int]:
        """How many jobs there may be, at most as many as there are groups that must stay whole."""
        most = len(self.records)
        if self.rule is not None and self.rule["by"] == "s3key":
            most = min(most, 100)
        elif self.rule is not None and self.rule["by"] != "size":
            most = len(np.unique(number_shards(self.records, self._rule(most))))
        return sorted({min(number, most) for number in LADDER})

    def _rule(self, jobs: int) -> dict[str, Any]:
        """The shards' rule for so many jobs."""
        rule = dict(self.rule or {"by": "size"})
        if rule["by"] == "size":
            return {name: value for name, value in rule.items() if name != "target"} | {"count": jobs}
        return rule | ({"instances": jobs} if rule["by"] == "s3key" else {"max_jobs": jobs})

    def shards(self, jobs: int) -> np.ndarray:
        """The shard of each record with so many jobs."""
        return number_shards(self.records, self._rule(jobs))

    def settings(self, instance_type: str, jobs: int, workers: int) -> dict[str, Any]:
        """The fields that make a pipeline run in that way."""
        kind: dict[str, Any] = {"engine.instance_type": instance_type}
        if self.has_preferences:
            kind = {"engine.instance_preferences": [instance_type]}
        rule = self._rule(jobs)
        if rule["by"] == "size":
            kind["shards"] = rule
        else:
            kind["shards.instances" if rule["by"] == "s3key" else "shards.max_jobs"] = jobs
        usual = self.fixed_workers is None and workers == instance_vcpus(instance_type)
        return kind if usual else kind | {"workers": workers}

    def way(self, reckoned: Reckoned) -> Way:
        """A way with its shards and chunks cut as its plan would have them."""
        shard = self.shards(reckoned.jobs)
        cut = Cut(self.chunks, reckoned.workers, own_instances=reckoned.workers > 1)
        nothing = np.full(len(shard), -1, np.int32)
        chunk = cut_chunks(self.records, shard, shard, nothing, cut, by_day=False)
        table = self.records.select(["bytes"]).append_column("shard", arrow(shard))
        jobs: list[list[int]] = [[number] for number in range(int(shard.max()) + 1)]
        together = self.rule is not None and self.rule["by"] == "s3key"
        jobs = [[number for job in jobs for number in job]] if together else jobs
        work = PlannedWork(
            table.append_column("chunk", arrow(chunk)),
            jobs,
            workers=reckoned.workers,
            shared=self.shared and int(shard.max()) > 0,
            merge_share=self.merge_share,
        )
        return Way(
            work,
            len(jobs),
            max(map(len, jobs)),
            (reckoned.instance_type,),
            self.merge_types or (reckoned.instance_type,),
            reckoned.workers,
            self.settings(reckoned.instance_type, reckoned.jobs, reckoned.workers),
        )


def advise(simulation: Simulation, room: Room, wanted: Wanted) -> tuple[Option | None, list[str]]:
    """The option that keeps to what is wanted, and what is to be said about it.

    With a deadline it is the cheapest that ends in time in 95 % of the trials; with a budget alone, the one that ends
    first of those that cost no more in 95 % of them.
    """
    ways = list(_reckon(simulation, room))
    if not ways:
        return None, ["No instance type has the memory for a worker, or a known price."]
    by_cost = wanted.deadline_s is not None
    best = sorted(ways, key=lambda each: (each.cost, each.end_s) if by_cost else (each.end_s, each.cost))
    hopeful = [each for each in best if wanted.is_met(each.end_s * SPARE, _usd(simulation, each, SPARE))]
    for reckoned in hopeful[:TRIED]:
        option = simulation.option(room.way(reckoned))
        if wanted.is_met(option.end_s.p95, option.usd.p95 if option.usd else None):
            return option, []
    first = min(ways, key=lambda each: (each.end_s, each.cost)), min(ways, key=lambda each: (each.cost, each.end_s))
    extremes = [simulation.option(room.way(each)) for each in dict.fromkeys(first)]
    fastest = min(extremes, key=lambda each: each.end_s.p95)
    lines = [f"{str(wanted).capitalize()} {'are' if ' and ' in str(wanted) else 'is'} out of reach."]
    lines.append(f"The fastest is {option_text(fastest)}.")
    if extremes[-1] is not fastest:
        lines.append(f"The cheapest is {option_text(extremes[-1])}.")
    return None, lines


def option_text(option: Option) -> str:
    """An option in one line."""
    cost = f" and {dollars(option.usd.p95)}" if option.usd is not None else ""
    jobs = f"{option.jobs:,} job{'' if option.jobs == 1 else 's'}"
    return (
        f"{', '.join(option.instance_types)} with {jobs} of {option.workers} workers: at most "
        f"{human_seconds(option.end_s.p95)}{cost} in 95% of trials"
    )


def _usd(simulation: Simulation, reckoned: Reckoned, times: float) -> float | None:
    return reckoned.cost * times if simulation.prices is not None else None


def _reckon(simulation: Simulation, room: Room) -> Iterable[Reckoned]:
    """Every type with every number of jobs, reckoned without the queue."""
    dice = np.random.default_rng(simulation.seed)
    seconds = np.mean([simulation.times.drawn(numpy(room.records["bytes"]), dice) for _ in range(8)], axis=0)
    for jobs in room.numbers_of_jobs():
        shard = room.shards(jobs)
        of_shards = np.bincount(shard, seconds)
        longest = np.zeros(len(of_shards))
        np.maximum.at(longest, shard, seconds)
        for kind in room.types:
            workers, rate = room.workers_on(kind), simulation.rate(kind)
            if not workers or (simulation.prices is not None and rate is None):
                continue
            took = np.maximum(of_shards / workers, longest)
            end_s, instance_s = _end_of(took, simulation, kind)
            yield Reckoned(kind, jobs, workers, end_s, instance_s / 3600 * (rate if rate is not None else 1.0))


def _end_of(took: np.ndarray, simulation: Simulation, instance_type: str) -> tuple[float, float]:
    """When jobs that take so long would end, with their merge, and the seconds of their instances."""
    startup_s = simulation.conditions.startup_s * 1.05
    free = [0.0] * simulation.at_once(len(took), instance_type)
    took = took * max(1.0, simulation.least_s * len(free) / max(float(took.sum()), 1e-9))
    if simulation.policy.creates_per_s:
        free = [number / simulation.policy.creates_per_s for number in range(len(free))]
    for seconds in took.tolist():
        heapq.heapreplace(free, free[0] + startup_s + seconds)
    end_s = max(free) + startup_s + simulation.merge_s + 2 * simulation.policy.poll_s
    return end_s, float(took.sum()) + (len(took) + 1) * startup_s + simulation.merge_s
