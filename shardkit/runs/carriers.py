"""What a run's jobs on SageMaker cost and how long they take to start, as Processing jobs and as training jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.engines.service_settings import ServiceSettings
from shardkit.units import human_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.jobs.history import Prices
    from shardkit.spec.spec import Spec

MINUTES = "each job starts in minutes"
SECONDS = "the next job starts in seconds; idle time costs too"


class Carrier(NamedTuple):
    """A kind of job on a kind of instance: how it starts, and its price on demand in US dollars an hour."""

    kind: str
    instances: str
    start: str
    usd_per_hour: float | None
    chosen: bool


def carriers_of(pipeline: Spec, prices: Prices | None = None) -> list[Carrier]:
    """What may carry the jobs of a pipeline; empty where they are not SageMaker's.

    ``prices``: of an instance hour; without it no price is known.

    Raises:
        JobError: the prices cannot be asked for.
    """
    engine = pipeline.engine
    if not isinstance(engine, ServiceSettings) or engine.local:
        return []
    first = (*engine.instance_preferences, engine.instance_type)[0]
    price = {kind: prices.usd_per_hour(first, kind) if prices else None for kind in ("processing", "training")}
    mine, warm = engine.jobs == "training", bool(engine.keep_alive) and not engine.spot
    wait_s = engine.max_wait or engine.max_runtime or 86400
    found = f"starts when there is an instance, ends within {human_seconds(wait_s)}"
    kept = f"kept for {human_seconds(engine.keep_alive)}" if warm and engine.keep_alive else "kept with keep_alive"
    return [
        Carrier("Processing", "on demand", MINUTES, price["processing"], not mine),
        Carrier("training", "on demand", MINUTES, price["training"], mine and not engine.spot and not warm),
        Carrier("training", f"warm, {kept}", SECONDS, price["training"], warm),
        Carrier("training", "spot", f"{found}; up to 90% cheaper, says AWS", price["training"], mine and engine.spot),
    ]


def carriers_text(pipeline: Spec, prices: Prices | None = None, *, seconds: float | None = None) -> str:
    """The carriers as lines for people; empty if there are none.

    ``seconds``: how long all work takes on the workers of one instance, if a sample was run.
    """
    return "\n".join(_lines(pipeline, prices, seconds))


def _lines(pipeline: Spec, prices: Prices | None, seconds: float | None) -> Iterator[str]:
    carriers = carriers_of(pipeline, prices)
    engine: Any = pipeline.engine
    for number, each in enumerate(carriers):
        title = f"  carriers of {(*engine.instance_preferences, engine.instance_type)[0]}" if not number else ""
        if title:
            yield title
        mark = "->" if each.chosen else "  "
        price = ""
        if each.usd_per_hour is not None:
            price = f", ${each.usd_per_hour:.3f} an hour" + (" on demand" if each.instances == "spot" else "")
            if seconds is not None:
                price += f", about ${each.usd_per_hour * seconds / 3600:.2f} for pass 1"
        yield f"        {mark} {each.kind}, {each.instances}: {each.start}{price}"
