"""From a plan and a sample to the forecast of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.engines.instances import instance_vcpus
from shardkit.engines.service_settings import ServiceSettings
from shardkit.errors import PipelineError
from shardkit.runs.forecast.advice import COMMON, Room, Wanted, advise
from shardkit.runs.forecast.conditions import Conditions
from shardkit.runs.forecast.options import Simulation, Way
from shardkit.runs.forecast.result import Forecast
from shardkit.runs.forecast.work import PlannedWork, RecordTimes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardkit.jobs.history import Prices
    from shardkit.plan.plan import Plan
    from shardkit.runs.estimate import Sample
    from shardkit.spec.spec import Spec

TRIALS = 50
SPOT = ("no wait for spot instances and no interruption, at the full price",)
MERGE_BYTES_PER_S = 50e6
MERGE_PART_S = 0.002


@dataclass(frozen=True)
class Asked:
    """What a forecast is to be of, beside the pipeline.

    Args:
        prices: Of instances; without any there is no money in it.
        deadline_s: When the run is to have ended, in seconds from its first launch.
        budget_usd: What it may cost.
        quotas: How many instances of each type there may be at once; under ``""`` of any type.
        startup_s: Seconds from a job's creation to its work.
        capacity_errors: The share of attempts for which there is no instance.
        trials: How many runs to simulate for each option.
        seed: Of all that is random in them.
    """

    prices: Prices | None = None
    deadline_s: float | None = None
    budget_usd: float | None = None
    quotas: Mapping[str, int] | None = None
    startup_s: float | None = None
    capacity_errors: float = 0.0
    trials: int = TRIALS
    seed: int = 0


def check_forecast(pipeline: Spec, asked: Asked) -> ServiceSettings:
    """See that there can be a forecast, before a sample is run; returns the engine.

    Raises:
        PipelineError: There can be none.
    """
    engine = pipeline.engine
    if not isinstance(engine, ServiceSettings):
        where = f"jobs on {engine.title}" if engine is not None else "a run without an engine"
        raise PipelineError(
            f"There is no forecast for {where}: its queue, instances and prices are SageMaker's.",
            hint="Set engine: sagemaker in the pipeline, or give --engine; --sample alone estimates pass 1.",
        )
    if asked.budget_usd is not None and asked.prices is None:
        raise PipelineError("A budget needs prices.", hint="Give --prices, or --prices FILE.")
    if asked.trials < 1:
        raise PipelineError(f"trials: expected 1 or more, not {asked.trials}.")
    _conditions(engine, asked)
    return engine


def make_forecast(pipeline: Spec, plan: Plan, sample: Sample, asked: Asked) -> Forecast:
    """Simulate a planned run over the timings of a sample.

    Raises:
        PipelineError: There can be no forecast of it.
        JobError: The prices cannot be asked for.
    """
    engine = check_forecast(pipeline, asked)
    if not len(sample.seconds):
        raise PipelineError("No record of the sample has said how long it took.")
    simulation = _simulation(pipeline, engine, plan, sample, asked)
    options = tuple(simulation.option(way) for way in _ways(pipeline, engine, plan))
    wanted = Wanted(asked.deadline_s, asked.budget_usd)
    recommended, advice = None, list[str]()
    if str(wanted):
        recommended, advice = advise(simulation, _room(pipeline, engine, plan, sample), wanted)
    return Forecast(
        options,
        str(wanted),
        recommended,
        tuple(advice),
        (*simulation.conditions.lines(), "a worker is as fast there as here", *(SPOT if engine.spot else ())),
        len(sample.seconds),
        plan.content["totals"]["records"],
        asked.trials,
        asked.prices.about if asked.prices is not None else "",
    )


def _conditions(engine: ServiceSettings, asked: Asked) -> Conditions:
    return Conditions.of(engine, quotas=asked.quotas, startup_s=asked.startup_s, capacity_errors=asked.capacity_errors)


def _simulation(pipeline: Spec, engine: ServiceSettings, plan: Plan, sample: Sample, asked: Asked) -> Simulation:
    estimate, totals = sample.estimate, plan.content["totals"]
    output = estimate.output_bytes * totals["records"] / max(estimate.records, 1)
    merge_s = 0.0 if plan.content["by_day"] else output / MERGE_BYTES_PER_S + totals["chunks"] * MERGE_PART_S
    calling = pipeline.calling(pipeline.function_ref())
    calls = totals["records"] / (calling.batch or 1)
    return Simulation(
        RecordTimes(sample.seconds, sample.bytes, sample.chunk_s),
        merge_s,
        calls / calling.rate_per_s if calling.rate_per_s else 0.0,
        engine.policy(),
        _conditions(engine, asked),
        asked.prices,
        engine.jobs,
        asked.trials,
        asked.seed,
    )


def _ways(pipeline: Spec, engine: ServiceSettings, plan: Plan) -> Iterator[Way]:
    """The pipeline as it is, and on each other of its instance types alone."""
    types = engine.instance_preferences or (engine.instance_type,)
    yield _way(pipeline, engine, plan, types, plan.content["workers"])
    for kind in types[1:]:
        workers = instance_vcpus(kind) if pipeline.workers == "auto" else plan.content["workers"]
        yield _way(pipeline, engine, plan, (kind,), workers)


def _way(pipeline: Spec, engine: ServiceSettings, plan: Plan, types: tuple[str, ...], workers: int) -> Way:
    jobs = [job["shards"] for job in plan.content["jobs"]]
    done = {(marker["shard"], marker["chunk"]) for marker in plan.taken_over}
    work = PlannedWork(
        plan.records, jobs, workers=workers, done=done, shared=_shared(pipeline, plan), merge_share=_merge_share(plan)
    )
    settings = {} if len(types) > 1 else {"engine.instance_type": types[0]}
    return Way(work, len(jobs), max(map(len, jobs)), types, _merge_types(engine) or types, workers, settings)


def _shared(pipeline: Spec, plan: Plan) -> bool:
    """Whether jobs that are done do chunks of slower ones."""
    rule = pipeline.shards
    wanted = rule is not None and rule.steal is not False and pipeline.input_mode == "stream"
    return wanted and len(plan.content["shards"]) > 1


def _merge_share(plan: Plan) -> float:
    """Seconds for each byte of input that a job merges by itself."""
    return 1 / MERGE_BYTES_PER_S if plan.content["by_day"] else 0.0


def _merge_types(engine: ServiceSettings) -> tuple[str, ...]:
    """The instance types of the merge, if it has its own."""
    if not engine.merge or not {"instance_type", "instance_preferences"} & set(engine.merge):
        return ()
    merge = engine.for_merge()
    return merge.instance_preferences or (merge.instance_type,)


def _room(pipeline: Spec, engine: ServiceSettings, plan: Plan, sample: Sample) -> Room:
    own = engine.instance_preferences or (engine.instance_type,)
    rule = plan.content["pipeline"]["shards"]
    return Room(
        plan.records.drop_columns(["shard", "chunk"]),
        rule,
        pipeline.chunks,
        plan.content["by_day"],
        tuple(dict.fromkeys([*own, *COMMON])),
        _merge_types(engine),
        bool(engine.instance_preferences),
        sample.estimate.memory_bytes,
        (pipeline.shards is None or pipeline.shards.steal is not False) and pipeline.input_mode == "stream",
        pipeline.workers if isinstance(pipeline.workers, int) else None,
        _merge_share(plan),
    )
