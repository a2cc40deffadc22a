"""What a run will take, in time and money: a table of options, as text and as notebooks show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.pages.view import View
from shardkit.units import counted, dollars, human_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.runs.forecast.options import Option

HEAD = ("instances", "jobs", "workers", "end p50", "p95", "cost p50", "p95")


@dataclass(frozen=True, repr=False)
class Forecast:
    """What a run will take on an engine: time and money, each as p50 and p95 over simulated runs.

    Args:
        options: First the pipeline as it is, then with each other of its instance types.
        wanted: The deadline and the budget that were asked for, in words; empty if none were.
        recommended: What keeps to these; None if nothing does, or nothing was asked for.
        advice: What is to be said about that.
        assumed: What the forecast takes for granted.
        sampled: How many records were run.
        records: How many the plan has.
        trials: How many runs were simulated for each option.
    """

    options: tuple[Option, ...]
    wanted: str
    recommended: Option | None
    advice: tuple[str, ...]
    assumed: tuple[str, ...]
    sampled: int
    records: int
    trials: int
    prices: str = ""

    @property
    def as_planned(self) -> Option:
        """The pipeline as it is."""
        return self.options[0]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "sampled": self.sampled,
            "records": self.records,
            "trials": self.trials,
            "options": [option.to_dict() for option in self.options],
            "wanted": self.wanted,
            "recommended": self.recommended.to_dict() if self.recommended is not None else None,
            "advice": list(self.advice),
            "assumed": list(self.assumed),
            "prices": self.prices,
        }

    def __str__(self) -> str:
        return forecast_text(self)

    def __repr__(self) -> str:
        end = self.as_planned.end_s
        return f"Forecast(end_s={end.p50:.0f}..{end.p95:.0f}, usd={self.as_planned.usd})"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:  # noqa: FBT001  IPython passes it so
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return forecast_view(self)


def forecast_text(forecast: Forecast) -> str:
    """A forecast as lines for people."""
    lines = [HEAD, *map(_cells, forecast.options)]
    if forecast.recommended is not None:
        lines.append(_cells(forecast.recommended))
    if all(option.usd is None for option in forecast.options):
        lines = [line[:5] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([f"  {line[0]:<{widths[0]}}", *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    known = len(forecast.options) + 1
    text = [_headline(forecast), *rows[:known]]
    if forecast.wanted:
        text.append(f"For {forecast.wanted}:")
    if forecast.recommended is not None:
        text += [*rows[known:], f"    {settings_text(forecast.recommended.settings)}"]
    text += [f"  {line}" for line in forecast.advice]
    return "\n".join([*text, *_assumptions(forecast)])


def _headline(forecast: Forecast) -> str:
    of = f"{forecast.sampled:,} of {counted(forecast.records, 'record')}"
    return f"Forecast from a sample of {of}, over {counted(forecast.trials, 'simulated run')}:"


def _assumptions(forecast: Forecast) -> list[str]:
    lines = [f"  assumed  {'; '.join(forecast.assumed)}"]
    if forecast.prices:
        lines.append(f"  prices   {forecast.prices}")
    failed = forecast.as_planned.failed
    if failed:
        lines.append(f"  In {failed:,} of the simulated runs a job found no instance in all of its attempts.")
    return lines


def _cells(option: Option) -> tuple[str, ...]:
    cost = ("-", "-") if option.usd is None else (dollars(option.usd.p50), dollars(option.usd.p95))
    times = human_seconds(option.end_s.p50), human_seconds(option.end_s.p95)
    return (", ".join(option.instance_types), f"{option.jobs:,}", f"{option.workers:,}", *times, *cost)


def settings_text(settings: Mapping[str, Any]) -> str:
    """Fields as the command line takes them."""
    import shlex

    return " ".join(f"--set {shlex.quote(f'{name}={_yaml(value)}')}" for name, value in settings.items())


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_yaml(each)}' for name, each in value.items())}}}"
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, list) else str(value)


def forecast_view(forecast: Forecast) -> str:
    """The forecast in HTML: a table of the options, and what was assumed."""
    view = View(_headline(forecast).rstrip(":"))
    options = [*forecast.options, *([forecast.recommended] if forecast.recommended is not None else [])]
    rows = [_cells(option) for option in options]
    if len(options) > 1:
        view.add_text("End by option, p95:")
        view.add_bars(
            [(f"{row[0]}, {row[1]} jobs: {row[4]}", o.end_s.p95) for row, o in zip(rows, options, strict=True)]
        )
    view.add_table(HEAD, rows)
    if forecast.recommended is not None:
        view.add_text(f"The last one is for {forecast.wanted}: {settings_text(forecast.recommended.settings)}")
    for line in forecast.advice:
        view.add_text(line)
    view.add_facts([("assumed", "; ".join(forecast.assumed)), ("prices", forecast.prices)])
    return view.to_html()
