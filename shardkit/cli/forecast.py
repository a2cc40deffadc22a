"""What `shardkit plan` says a run will take, in time and money."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import options

if TYPE_CHECKING:
    from shardkit.plan.plan import Plan
    from shardkit.runs.estimate import Sample
    from shardkit.runs.forecast.result import Forecast
    from shardkit.spec.spec import Spec

PRICES = click.option(
    "--prices",
    is_flag=False,
    flag_value="shipped",
    metavar="[FILE|aws]",
    help="Prices: a JSON file, AWS' price list, or by default a shipped table of common types.",
)
FORECAST = options(
    click.option("--deadline", metavar="TIME", help="With --sample: recommend what ends within 90m, 2h, 1d."),
    click.option("--budget", metavar="USD", help="With --sample: recommend what costs no more."),
    click.option("--quota", multiple=True, metavar="[TYPE=]N", help="How many instances at once; may be repeated."),
    click.option("--startup", metavar="TIME", help="From a job's creation to its work (default 4m on SageMaker)."),
    click.option("--capacity-errors", metavar="P%", help="Attempts for which there is no instance (default 0%)."),
    click.option("--trials", type=click.IntRange(1), metavar="N", help="How many runs to simulate (default 50)."),
    click.option("--seed", type=int, metavar="N", help="Of what is random in these (default 0)."),
)
NAMES = ("deadline", "budget", "quota", "startup", "capacity_errors", "trials", "seed")


def taken_from(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a forecast, taken out of those that were given."""
    return {name: value for name in NAMES if (value := given.pop(name)) not in (None, ())}


def wants_forecast(pipeline: Spec, given: dict[str, Any], *, sampled: bool) -> bool:
    """Whether there is to be a forecast: where a sample is run, and the engine has instances.

    Raises:
        click.UsageError: only a forecast has what was asked for, and no sample is to be run.
    """
    from shardkit.engines.service_settings import ServiceSettings

    if given and not sampled:
        first = next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--{first} is about what a sample says: give --sample 20 too.")
    return bool(given) or (sampled and isinstance(pipeline.engine, ServiceSettings))


def forecast(pipeline: Spec, plan: Plan, sample: Sample, prices: Any, given: dict[str, Any]) -> Forecast:
    """The forecast of a plan whose sample was run."""
    from shardkit.runs.forecast.forecast import make_forecast

    return make_forecast(pipeline, plan, sample, _asked(prices, given))


def check(pipeline: Spec, prices: Any, given: dict[str, Any]) -> None:
    """See that there can be a forecast, before a sample is run."""
    from shardkit.runs.forecast.forecast import check_forecast

    check_forecast(pipeline, _asked(prices, given))


def _asked(prices: Any, given: dict[str, Any]) -> Any:
    from shardkit.runs.forecast.ask import prices_from, seconds_of
    from shardkit.runs.forecast.forecast import TRIALS, Asked

    budget = _amount(given["budget"]) if "budget" in given else None
    return Asked(
        prices_from(prices, needed=budget is not None),
        seconds_of(given["deadline"], name="--deadline") if "deadline" in given else None,
        budget,
        dict(map(_quota, given.get("quota", ()))),
        seconds_of(given["startup"], name="--startup") if "startup" in given else None,
        _share(given.get("capacity_errors", "0%")),
        given.get("trials", TRIALS),
        given.get("seed", 0),
    )


def _amount(text: str) -> float:
    match = re.fullmatch(r"\s*\$?(\d+(?:\.\d+)?)\s*", text)
    if match is None:
        raise click.UsageError(f"--budget {text}: write US dollars, such as 50.")
    return float(match[1])


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if match is None or float(match[1]) >= 100:
        raise click.UsageError(f"--capacity-errors {text}: write a share such as 5%.")
    return float(match[1]) / 100


def _quota(text: str) -> tuple[str, int]:
    kind, _, number = text.rpartition("=")
    if not number.isdigit() or not int(number):
        raise click.UsageError(f"--quota {text}: write a number of instances such as 20, or ml.m5.xlarge=20.")
    return kind.strip(), int(number)
