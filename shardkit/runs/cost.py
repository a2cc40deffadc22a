"""What a run may cost: refused before it starts, where a forecast says more; and told to the queue of its jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shardkit.engines.instances import instance_vcpus
from shardkit.engines.service_settings import ServiceSettings
from shardkit.errors import CostExceeded, PipelineError
from shardkit.hints import Hint
from shardkit.jobs import JobError
from shardkit.jobs.prices import prices_at
from shardkit.jobs.spending import COST, CostLimit, cost_limit_of, limit_cost
from shardkit.runfolder.steps import advice
from shardkit.units import counted, dollars

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from shardkit.jobs.job import Job
    from shardkit.jobs.store import Store
    from shardkit.plan.plan import Plan
    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.spec import Spec

TRIALS = 20  # of the forecast before a run


def with_known_prices(pipeline: Spec) -> Spec:
    """The pipeline with the prices of its instances written out, as another machine may go on with it.

    Raises:
        PipelineError: A price is not known.
    """
    cost, engine = pipeline.max_cost, pipeline.engine
    if cost is None or engine is None:
        return pipeline
    if not isinstance(engine, ServiceSettings):
        raise PipelineError(
            f"max_cost: nothing is known about what jobs on {engine.title} cost.", hint="Leave out max_cost."
        )
    types = _types(engine)
    if isinstance(cost.prices, str):
        try:
            source = prices_at(cost.prices, region=engine.region or "")
            prices = {kind: source.usd_per_hour(kind, engine.jobs) for kind in (*types, *engine.larger_types)}
        except JobError as error:
            raise PipelineError(f"max_cost.prices: {error.message}", hint=error.hint) from None
        known = {kind: price for kind, price in prices.items() if price is not None}
    else:
        known = dict(cost.prices)
    missing = next((kind for kind in types if kind not in known), None)
    if missing is not None:
        raise PipelineError(
            f"max_cost: no price is known for {missing}.",
            hint=f"Give prices: max_cost: {{usd: {cost.usd:g}, prices: aws}}; or a JSON file in place of aws.",
        )
    return pipeline.replace(max_cost=cost.model_copy(update={"prices": _with_larger(engine, known)}))


def _types(engine: ServiceSettings) -> tuple[str, ...]:
    """The instance types of the jobs, and that of the merge."""
    merge = engine.for_merge()
    chosen = (each for one in (engine, merge) for each in one.instance_preferences or (one.instance_type,))
    return tuple(dict.fromkeys(chosen))


def _with_larger(engine: ServiceSettings, known: Mapping[str, float]) -> dict[str, float]:
    """The prices, and those of larger instances that a job may come to: where none is known, by their vCPUs."""
    first = (*engine.instance_preferences, engine.instance_type)[0]
    if first not in known:
        return dict(known)
    larger = {kind: known[first] * instance_vcpus(kind) / instance_vcpus(first) for kind in engine.larger_types}
    return larger | dict(known)


def check_forecast_cost(pipeline: Spec, plan: Plan, progress: Progress) -> None:
    """Run a sample, and see that half of the simulated runs cost no more than the run may.

    Raises:
        CostExceeded: They cost more.
    """
    from shardkit.jobs.prices import KnownPrices
    from shardkit.runs.estimate import take_sample
    from shardkit.runs.forecast.forecast import Asked, make_forecast

    cost = pipeline.max_cost
    if cost is None or not cost.sample or isinstance(cost.prices, str):
        return
    sample = take_sample(pipeline, cost.sample, quiet=True)
    option = make_forecast(pipeline, plan, sample, Asked(KnownPrices(cost.prices), trials=TRIALS)).as_planned
    if option.usd is None:
        return
    foreseen = f"{dollars(option.usd.p50)} (p50; p95 {dollars(option.usd.p95)})"
    if option.usd.p50 > cost.usd:
        raise CostExceeded(
            f"By a sample of {counted(len(sample.seconds), 'record')} the run would cost {foreseen}, and max_cost "
            f"allows {dollars(cost.usd)}; it was not started.",
            hint=Hint(
                f"Raise max_cost, or see what fits into it: pipeline.forecast(budget={cost.usd:g}).",
                f"Raise max_cost, or see what fits into it: shardkit plan ... --sample 20 --budget {cost.usd:g}.",
            ),
        )
    progress.note(f"By a sample the run will cost {foreseen}, of at most {dollars(cost.usd)}.")


def limit_jobs(store: Store, run: str, pipeline: Spec, planned: Mapping[str, Any], changed: Collection[str]) -> None:
    """Tell the queue what the jobs of a run may cost.

    A limit that it has already stays, as it may be another than the plan's; unless the pipeline says otherwise now.

    Args:
        store: The queue.
        run: The jobs' run in it.
        pipeline: As the run goes on with it.
        planned: The pipeline in the plan.
        changed: The settings that are others now, by their dotted names.
    """
    cost = pipeline.max_cost
    usd, before = cost.usd if cost is not None else None, (planned.get("max_cost") or {}).get("usd")
    said = usd != before or any(name.partition(".")[0] == "max_cost" for name in changed)
    if not said and cost_limit_of(store, run) is not None:
        return
    limit = CostLimit(cost.usd, cost.prices) if cost is not None and not isinstance(cost.prices, str) else None
    limit_cost(store, run, limit, time.time())


def check_spent(folder: RunFolder, store: Store, run: str) -> None:
    """See that something is left to spend before further jobs are submitted.

    Raises:
        CostExceeded: Nothing is.
    """
    limit = cost_limit_of(store, run)
    if limit is not None and (spent := limit.spent(store.jobs(run=run), time.time())) >= limit.usd:
        raise _exceeded(folder, limit, spent, "nothing more is launched")


def check_not_ended_by_cost(folder: RunFolder, store: Store, run: str, failed: Sequence[Job]) -> None:
    """Raise that a run was stopped by what it had cost, if nothing else went wrong with the jobs that failed.

    Raises:
        CostExceeded: It was.
    """
    limit, causes = cost_limit_of(store, run), {job.cause for job in failed if job.status == "Failed"}
    if limit is not None and COST in causes and causes <= {COST, "dependency"}:
        spent = limit.spent(store.jobs(run=run), time.time())
        raise _exceeded(folder, limit, spent, f"{counted(len(failed), 'job')} not launched")


def _exceeded(folder: RunFolder, limit: CostLimit, spent: float, what: str) -> CostExceeded:
    """The error of a run that has spent what it may."""
    more = float(f"{2 * max(limit.usd, spent):.2g}")
    return CostExceeded(
        f"Run {folder.run_id} is stopped: {dollars(spent)} are spent and max_cost allows {dollars(limit.usd)}; {what}. "
        "What was launched has gone on to its end, and is kept.",
        hint=advice(folder, lambda step: f"\nGo on with a higher limit: {step('resume', max_cost=more)}"),
    )
