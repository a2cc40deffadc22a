"""A forecast as it is asked for in Python and on the command line: texts become numbers, a place becomes prices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError
from shardkit.jobs.prices import KnownPrices, prices_at
from shardkit.runs.forecast.conditions import ANY
from shardkit.runs.forecast.forecast import Asked, check_forecast, make_forecast
from shardkit.times import interval

if TYPE_CHECKING:
    from shardkit.jobs.history import Prices
    from shardkit.runs.forecast.result import Forecast
    from shardkit.spec.spec import Spec

SHIPPED = "shipped"


def forecast_of(
    pipeline: Spec,
    records: int,
    *,
    prices: Prices | Mapping[str, float] | str | None,
    deadline: float | str | None,
    budget: float | None,
    quotas: Mapping[str, int] | int | None,
    startup_s: float | None,
    capacity_errors: float,
    days: Iterable[str] | None,
    trials: int,
    seed: int,
    quiet: bool,
) -> Forecast:
    """As `Pipeline.forecast`."""
    from shardkit.runs.estimate import take_sample
    from shardkit.runs.planning import make_run_plan
    from shardkit.times import new_run_id

    asked = Asked(
        prices_from(prices, needed=budget is not None),
        seconds_of(deadline) if deadline is not None else None,
        budget,
        {ANY: quotas} if isinstance(quotas, int) else quotas,
        startup_s,
        capacity_errors,
        trials,
        seed,
    )
    check_forecast(pipeline, asked)
    plan = make_run_plan(
        pipeline, function_ref=pipeline.function_ref(), run_id=new_run_id(), days=pipeline.chosen_days(days)
    )
    return make_forecast(pipeline, plan, take_sample(pipeline, records, quiet=quiet), asked)


def prices_from(prices: Prices | Mapping[str, float] | str | None, *, needed: bool = False) -> Prices | None:
    """Prices as they may be given; those that are shipped if some are ``needed`` and none are given.

    Raises:
        JobError: the file, or the price list, cannot be read.
    """
    if prices is None:
        return KnownPrices.shipped() if needed else None
    if isinstance(prices, Mapping):
        return KnownPrices(prices)
    return prices_at(prices) if isinstance(prices, str) else prices


def seconds_of(length: float | str, *, name: str = "deadline") -> float:
    """A time such as ``2h``, ``90m`` or ``30s``, or a number of seconds.

    Raises:
        PipelineError: it is neither.
    """
    if isinstance(length, int | float) and length > 0:
        return float(length)
    if isinstance(length, str) and re.fullmatch(r"\s*\d{1,5}\s*s?\s*", length):
        return float(length.strip().rstrip("s"))
    known = interval(length) if isinstance(length, str) else None
    if not known:
        raise PipelineError(f"{name}: expected a time such as 2h, 90m or 1d, not {length!r}.")
    return known.total_seconds()
