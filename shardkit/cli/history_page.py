"""The history of jobs as a page with charts."""

from __future__ import annotations

import datetime
import math
import re
from typing import TYPE_CHECKING, Any

from shardkit.jobs.wording import CAUSES_IN_WORDS
from shardkit.pages.charts import axis, chart, in_unit, palette, rows, tips
from shardkit.pages.page import Cell, Page
from shardkit.units import dollars, human_seconds, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shardkit.jobs.history import Row
    from shardkit.pages.charts import Chart

NONE = "(none)"
SHOWN = 12  # owners and instance types in a chart
HOURS_UP_TO_S, DAYS_UP_TO_S = 2 * 86400.0, 120 * 86400.0
STEPS = {"hour": datetime.timedelta(hours=1), "day": datetime.timedelta(days=1), "week": datetime.timedelta(days=7)}
OUTCOMES = {"completed": "--blue", "failed": "--red", "stopped": "--grey"}
NOTES = (
    "Waiting: from a job's submission to the launch of its last attempt. Running: from an attempt's creation to its "
    "end, the start of its instances included. By instance type and by cause, every attempt counts by itself, "
    "whatever became of its job. Success rate: the completed among the completed and failed. All times are UTC."
)


def ways_for(since: float, until: float) -> tuple[str, ...]:
    """How ``summaries()`` is to group the jobs of that time for the page: by the hour if it is a few days."""
    spans = (("hour", HOURS_UP_TO_S), ("day", DAYS_UP_TO_S), ("week", math.inf))
    return (next(unit for unit, most_s in spans if until - since <= most_s), "owner", "instance_type", "cause", "total")


def history_page(groups: Mapping[str, Sequence[Row]], *, title: str, since: float, until: float) -> str:
    """The page, as HTML.

    Args:
        groups: The result of ``summaries()``, grouped as ``ways_for()`` says.
        title: Its headline.
        since: The time from which on the jobs ended, seconds since 1970.
        until: The time before which they ended.

    Raises:
        PipelineError: The libraries that draw pages are not installed.
    """
    page = Page(title, f"Jobs that ended from {_time(since)} to {_time(until)} UTC")
    if groups["total"]:
        _fill(page, groups)
    else:
        page.add_text("Jobs", ["No job ended in this time."])
    return page.to_html()


def _fill(page: Page, groups: Mapping[str, Sequence[Row]]) -> None:
    unit = next(unit for unit in STEPS if unit in groups)
    (total,) = groups["total"]
    _add_tiles(page, total)
    _add_over_time(page, _without_gaps(groups[unit], unit), unit, priced=total.cost_usd is not None)
    _add_by_group(page, groups, total)
    _add_table(page, "Owners", "Owner", groups["owner"])
    _add_table(page, "Instance types", "Instance type", groups["instance_type"])
    _add_table(
        page, "Causes of failed attempts", "Cause", groups["cause"], tip=lambda key: CAUSES_IN_WORDS.get(key, "")
    )
    _add_table(page, f"{unit.capitalize()}s", unit.capitalize(), list(reversed(groups[unit])))
    page.footer = NOTES
    if total.unpriced_hours:
        page.footer += f" The cost lacks {total.unpriced_hours:,.1f} instance-hours whose price is not known."


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")


def _without_gaps(rows: Sequence[Row], unit: str) -> list[tuple[str, Row | None]]:
    """Every hour, day or week from the first to the last, with None for those without jobs."""
    row_of = {row.key: row for row in rows}
    at, last = (datetime.datetime.fromisoformat(rows[i].key) for i in (0, -1))
    periods: list[tuple[str, Row | None]] = []
    while at <= last:
        key = at.strftime("%Y-%m-%d %H:%M" if unit == "hour" else "%Y-%m-%d")
        periods.append((key, row_of.get(key)))
        at += STEPS[unit]
    return periods


def _add_tiles(page: Page, total: Row) -> None:
    page.add_tile(f"{total.jobs:,}", "jobs ended")
    page.add_tile(_or_dash(total.success_rate, percent), "success rate")
    page.add_tile(_or_dash(total.attempts_per_job, lambda value: f"{value:.2f}"), "attempts a job")
    page.add_tile(_or_dash(total.waited_median_s, _brief), "waiting, median")
    page.add_tile(_or_dash(total.ran_median_s, _brief), "running, median")
    page.add_tile(f"{total.instance_hours:,.1f}", "instance-hours")
    if total.cost_usd is not None:
        page.add_tile(dollars(total.cost_usd), "cost")


def _brief(seconds: float) -> str:
    """A duration, without the zeros at its end."""
    return re.sub(r"(?<=[a-z]) 0 (?:s|min|h)$", "", human_seconds(seconds))


def _plain(value: float) -> str:
    """A number, without needless digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"


def _or_dash(value: float | None, text_of: Callable[[float], str]) -> str:
    return "-" if value is None else text_of(value)


def _add_over_time(page: Page, periods: Sequence[tuple[str, Row | None]], unit: str, *, priced: bool) -> None:
    page.add_chart(f"Jobs by {unit}", _bars(periods, OUTCOMES, _plain))
    page.add_chart(f"Success rate by {unit}", _lines(periods, {"success rate": ("success_rate", "--blue")}, percent))
    for title, field in (("Waiting time", "waited"), ("Running time of attempts", "ran")):
        series = {"median": (f"{field}_median_s", "--teal"), "95 %": (f"{field}_p95_s", "--amber")}
        page.add_chart(f"{title} by {unit}", _lines(periods, series, _brief))
    page.add_chart(f"Instance-hours by {unit}", _bars(periods, {"instance_hours": "--violet"}, _plain))
    if priced:
        page.add_chart(f"Cost by {unit}", _bars(periods, {"cost_usd": "--amber"}, dollars))


def _when(periods: Sequence[tuple[str, Row | None]]) -> Chart:
    """The axis of periods, each of which has its place."""
    names = [key for key, _ in periods]
    return axis("at", "ordinal", sort=names, axis={"labelOverlap": True, "labelAngle": 0})


def _bars(
    periods: Sequence[tuple[str, Row | None]], colours: Mapping[str, str], text_of: Callable[[float], str]
) -> Chart:
    """Bars side by side, each a stack of the fields."""
    values = []
    for key, row in periods:
        for field in colours:
            n = (getattr(row, field) if row else None) or 0
            values.append({"at": key, "of": _words(field), "n": n, "text": text_of(n)})
    named = {_words(field): colour for field, colour in colours.items()}
    encoding = {
        "x": _when(periods),
        "y": axis("n"),
        "color": palette("of", named),
        "tooltip": tips(at="When", of="", text=""),
    }
    return chart(values, {"mark": {"type": "bar"}, "encoding": encoding})


def _words(field: str) -> str:
    return field.removesuffix("_usd").replace("_", "-")


def _lines(
    periods: Sequence[tuple[str, Row | None]],
    series: Mapping[str, tuple[str, str]],
    text_of: Callable[[float], str],
) -> Chart:
    """Lines from period to period, with gaps where there are no values."""
    values: list[dict[str, Any]] = []
    most = 0.0
    for key, row in periods:
        for name, (field, _) in series.items():
            n = getattr(row, field) if row else None
            most = max(most, n or 0)
            values.append({"at": key, "of": name, "n": n, "text": "-" if n is None else text_of(n)})
    is_share = text_of is percent
    unit_s, unit = (1.0, "") if is_share else in_unit(most, at_least=2)
    for value in values:
        value["n"] = None if value["n"] is None else value["n"] / unit_s
    y = axis("n", axis={"format": "%"}, scale={"domain": [0, 1]}) if is_share else axis("n", title=unit)
    colours = {name: colour for name, (_, colour) in series.items()}
    encoding = {
        "x": _when(periods),
        "y": y,
        "color": palette("of", colours),
        "tooltip": tips(at="When", of="", text=""),
    }
    return chart(values, {"mark": {"type": "line", "point": {"size": 18}}, "encoding": encoding})


def _add_by_group(page: Page, groups: Mapping[str, Sequence[Row]], total: Row) -> None:
    causes = [(cause, {"failed attempts": number}) for cause, number in total.failed_attempts.items()]
    if causes:
        page.add_chart("Failed attempts by cause", _rows(causes, {"failed attempts": "--red"}))
    else:
        page.add_text("Failed attempts by cause", ["None failed."], is_wide=False)
    owners = groups["owner"]
    ended = [(row.key or NONE, {name: getattr(row, name) for name in OUTCOMES}) for row in owners[:SHOWN]]
    page.add_chart("Jobs by owner", _rows(ended, OUTCOMES), note=_more(owners))
    types = sorted(groups["instance_type"], key=lambda row: -row.instance_hours)
    hours = [(row.key or NONE, {"instance-hours": row.instance_hours}) for row in types[:SHOWN]]
    page.add_chart("Instance-hours by instance type", _rows(hours, {"instance-hours": "--violet"}), note=_more(types))
    if total.cost_usd is not None:
        dearest = sorted((row for row in owners if row.cost_usd is not None), key=lambda row: -(row.cost_usd or 0))
        cost = [(row.key or NONE, {"cost": row.cost_usd or 0}) for row in dearest[:SHOWN]]
        page.add_chart("Cost by owner", _rows(cost, {"cost": "--amber"}, dollars), note=_more(dearest))


def _more(rows: Sequence[Row]) -> str:
    return f"{len(rows) - SHOWN:,} more in the table below." if len(rows) > SHOWN else ""


def _rows(
    stacks: Sequence[tuple[str, Mapping[str, float]]],
    colours: Mapping[str, str],
    text_of: Callable[[float], str] = _plain,
) -> Chart:
    """Bars below each other, each with its name, and its total as text."""
    values = []
    for name, stack in stacks:
        text = text_of(sum(stack.values()))
        values += [{"name": name, "of": of, "n": n, "text": text} for of, n in stack.items()]
    return rows(values, colours, tip=tips(name="", of="", n="", text="In all"))


def _add_table(
    page: Page, title: str, first: str, rows: Sequence[Row], *, tip: Callable[[str], str] = lambda _: ""
) -> None:
    """Add a table with all figures."""
    priced = any(row.cost_usd is not None for row in rows)
    columns = [first, "Jobs", "Completed", "Failed", "Stopped", "Success", "Attempts", "A job", "Waited", "95 %"]
    columns += ["Ran", "95 %", "Inst.-hours", *(["Cost"] if priced else []), "Failed attempts"]
    page.add_table(title, columns, [_cells(row, tip(row.key), priced=priced) for row in rows])


def _cells(row: Row, tip: str, *, priced: bool) -> list[Cell]:
    causes = ", ".join(f"{number:,} {cause}" for cause, number in row.failed_attempts.items())
    numbers: list[tuple[float | None, str]] = [
        *((value, f"{value:,}") for value in (row.jobs, row.completed, row.failed, row.stopped)),
        (row.success_rate, _or_dash(row.success_rate, percent)),
        (row.attempts, f"{row.attempts:,}"),
        (row.attempts_per_job, _or_dash(row.attempts_per_job, lambda value: f"{value:.2f}")),
        *((s, _or_dash(s, _brief)) for s in (row.waited_median_s, row.waited_p95_s, row.ran_median_s, row.ran_p95_s)),
        (row.instance_hours, f"{row.instance_hours:,.1f}"),
    ]
    if priced:
        numbers.append((row.cost_usd, _or_dash(row.cost_usd, dollars)))
    return [
        Cell(row.key or NONE, row.key or NONE, tip),
        *(Cell(text, -1 if value is None else value) for value, text in numbers),
        Cell(causes, sum(row.failed_attempts.values()), kind="left"),
    ]
