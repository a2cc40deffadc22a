"""The history of jobs as one HTML page with charts, which needs only a browser."""

from __future__ import annotations

import datetime
import math
from html import escape
from typing import TYPE_CHECKING, Any

from shardkit.cli.charts import STEPS_S, Series, bars, brief, dollars, legend, lines, percent, rows
from shardkit.jobs.wording import CAUSES_IN_WORDS
from shardkit.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shardkit.jobs.history import Row

NONE = "(none)"
SHOWN = 12  # owners and instance types in a chart
OPEN_UP_TO = 14  # a table with more rows is folded
HOURS_UP_TO_S, DAYS_UP_TO_S = 2 * 86400.0, 120 * 86400.0
STEPS = {"hour": datetime.timedelta(hours=1), "day": datetime.timedelta(days=1), "week": datetime.timedelta(days=7)}

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2430; --soft: #667085; --line: #e3e6eb;
  --blue: #2f6fdb; --red: #d9512c; --grey: #98a2b3; --violet: #7a5af0; --teal: #0d8a83; --amber: #d58a00 }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --card: #1a202a; --text: #e4e8ee; --soft: #98a2b3;
  --line: #2c3542; --blue: #5b93f0; --red: #f0774f; --grey: #6b7686; --violet: #a48bfa; --teal: #35b8af;
  --amber: #f0b03f } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 28px 24px 48px; max-width: 1280px; background: var(--page); color: var(--text);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { font-size: 22px; line-height: 1.25; margin: 0; overflow-wrap: anywhere } h2 { font-size: 15px; margin: 0 0 10px }
header p { color: var(--soft); margin: 4px 0 20px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); gap: 12px; margin-bottom: 16px }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 8px }
.tile { padding: 10px 14px } .tile b { display: block; font-size: 20px; font-weight: 600 }
.tile span { color: var(--soft); font-size: 12px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 16px }
section { padding: 14px 16px; min-width: 0 } .tables section { margin-top: 16px; overflow-x: auto }
svg { display: block; width: 100%; height: auto } svg text { fill: var(--soft); font-size: 12px }
@media (max-width: 600px) { svg text { font-size: 14px } }
.tick, .name { text-anchor: end } .date { text-anchor: middle } svg .name { fill: var(--text) }
.grid { stroke: var(--line) } .tip { fill: transparent } .tip:hover { fill: var(--soft); fill-opacity: .12 }
.blue { fill: var(--blue); background: var(--blue) } .red { fill: var(--red); background: var(--red) }
.grey { fill: var(--grey); background: var(--grey) } .violet { fill: var(--violet); background: var(--violet) }
.teal { fill: var(--teal); background: var(--teal) } .amber { fill: var(--amber); background: var(--amber) }
.line { fill: none; background: none; stroke-width: 2; stroke-linejoin: round } .line.blue { stroke: var(--blue) }
.line.teal { stroke: var(--teal) } .line.violet { stroke: var(--violet) } .line.amber { stroke: var(--amber) }
.legend { color: var(--soft); font-size: 12px; margin: -4px 0 6px } .key { margin-right: 14px; white-space: nowrap }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 6px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 500; font-size: 12px; cursor: pointer; vertical-align: bottom;
  white-space: normal }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 124px }
td.causes, th:last-child { white-space: normal; text-align: left; min-width: 110px }
tbody tr:last-child td { border-bottom: 0 }
tbody tr:hover td { background: color-mix(in srgb, var(--soft) 8%, transparent) }
summary { cursor: pointer; font-weight: 600; font-size: 15px } details[open] summary { margin-bottom: 10px }
footer, .note { color: var(--soft); font-size: 12px; margin-top: 16px } .note { margin: 8px 0 0 }
"""
# A click on the head of a column sorts the table by it; another click reverses the order.
SCRIPT = """
document.querySelectorAll("th").forEach(function (head) { head.addEventListener("click", function () {
  var at = head.cellIndex, body = head.closest("table").tBodies[0], up = head.dataset.up !== "1";
  head.closest("tr").querySelectorAll("th").forEach(function (each) { delete each.dataset.up });
  head.dataset.up = up ? "1" : "0";
  var value = function (row) { return row.cells[at].dataset.v };
  Array.from(body.rows).sort(function (a, b) { var x = value(a), y = value(b), n = x - y;
    return (isNaN(n) ? (x < y ? -1 : x > y ? 1 : 0) : n) * (up ? 1 : -1) }).forEach(function (row) {
    body.appendChild(row) }) }) });
"""
NOTES = (
    "Waiting: from a job's submission to the launch of its last attempt. Running: from an attempt's creation to its "
    "end, the start of its instances included. By instance type and by cause, every attempt counts by itself, "
    "whatever became of its job. Success rate: the completed among the completed and failed. All times are UTC."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"  # the page fetches nothing


def ways_for(since: float, until: float) -> tuple[str, ...]:
    """How ``summaries()`` is to group the jobs of that time for the page: by the hour if it is a few days."""
    spans = (("hour", HOURS_UP_TO_S), ("day", DAYS_UP_TO_S), ("week", math.inf))
    return (next(unit for unit, most_s in spans if until - since <= most_s), "owner", "instance_type", "cause", "total")


def history_page(groups: Mapping[str, Sequence[Row]], *, title: str, since: float, until: float) -> str:
    """The page.

    Args:
        groups: The result of ``summaries()``, grouped as ``ways_for()`` says.
        title: Its headline.
        since: The time from which on the jobs ended, seconds since 1970.
        until: The time before which they ended.
    """
    times = f"Jobs that ended from {_time(since)} to {_time(until)} UTC"
    body = _body(groups) if groups["total"] else "<section>No job ended in this time.</section>"
    return printable(f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>
<body><header><h1>{escape(title)}</h1><p>{escape(times)}</p></header>
{body}
<script>{SCRIPT}</script></body></html>
""")


def _body(groups: Mapping[str, Sequence[Row]]) -> str:
    unit = next(unit for unit in STEPS if unit in groups)
    (total,) = groups["total"]
    periods = _without_gaps(groups[unit], unit)
    parts = [
        _tiles(total),
        '<div class="charts">',
        *_over_time(periods, unit, priced=total.cost_usd is not None),
        *_by_group(groups, total),
        "</div>",
        '<div class="tables">',
        _table("Owners", "Owner", groups["owner"]),
        _table("Instance types", "Instance type", groups["instance_type"]),
        _table("Causes of failed attempts", "Cause", groups["cause"], tip=lambda key: CAUSES_IN_WORDS.get(key, "")),
        _table(f"{unit.capitalize()}s", unit.capitalize(), list(reversed(groups[unit]))),
        "</div>",
        f"<footer>{' '.join(_notes(total))}</footer>",
    ]
    return "\n".join(parts)


def _notes(total: Row) -> list[str]:
    notes = [NOTES]
    if total.unpriced_hours:
        notes.append(f"The cost lacks {total.unpriced_hours:,.1f} instance-hours whose price is not known.")
    return notes


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


def _tiles(total: Row) -> str:
    figures = [
        (f"{total.jobs:,}", "jobs ended"),
        (_or_dash(total.success_rate, percent), "success rate"),
        (_or_dash(total.attempts_per_job, lambda value: f"{value:.2f}"), "attempts a job"),
        (_or_dash(total.waited_median_s, brief), "waiting, median"),
        (_or_dash(total.ran_median_s, brief), "running, median"),
        (f"{total.instance_hours:,.1f}", "instance-hours"),
    ]
    if total.cost_usd is not None:
        figures.append((dollars(total.cost_usd), "cost"))
    tiles = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{name}</span></div>' for value, name in figures)
    return f'<div class="tiles">{tiles}</div>'


def _or_dash(value: float | None, text_of: Callable[[float], str]) -> str:
    return "-" if value is None else text_of(value)


def _over_time(periods: Sequence[tuple[str, Row | None]], unit: str, *, priced: bool) -> list[str]:
    names = [key[5:] if unit == "hour" else key for key, _ in periods]

    def series(name: str, colour: str, field: str) -> Series:
        return Series(name, colour, [getattr(row, field) if row else None for _, row in periods])

    ended = _outcomes([row for _, row in periods])
    waited = series("median", "teal", "waited_median_s"), series("95 %", "amber", "waited_p95_s")
    ran = series("median", "teal", "ran_median_s"), series("95 %", "amber", "ran_p95_s")
    rate, hours = series("success rate", "blue", "success_rate"), series("instance-hours", "violet", "instance_hours")
    sections = [
        _section(f"Jobs by {unit}", bars(names, ended), ended),
        _section(f"Success rate by {unit}", lines(names, [rate], text_of=percent, most=1.0)),
        _section(f"Waiting time by {unit}", lines(names, waited, text_of=brief, steps=STEPS_S), waited),
        _section(
            f"Running time of attempts by {unit}",
            lines(names, ran, text_of=brief, steps=STEPS_S),
            ran,
        ),
        _section(f"Instance-hours by {unit}", bars(names, [hours])),
    ]
    if priced:
        cost = series("cost", "amber", "cost_usd")
        sections.append(_section(f"Cost by {unit}", bars(names, [cost], text_of=dollars)))
    return sections


def _outcomes(rows: Sequence[Row | None]) -> list[Series]:
    colours = {"completed": "blue", "failed": "red", "stopped": "grey"}
    return [
        Series(name, colour, [getattr(row, name) if row else 0 for row in rows]) for name, colour in colours.items()
    ]


def _by_group(groups: Mapping[str, Sequence[Row]], total: Row) -> list[str]:
    causes = list(total.failed_attempts)
    failures = [Series("failed attempts", "red", list(total.failed_attempts.values()))]
    owners = groups["owner"][:SHOWN]
    ended = _outcomes(owners)
    types = sorted(groups["instance_type"], key=lambda row: -row.instance_hours)[:SHOWN]
    parts = [
        _section("Failed attempts by cause", rows(causes, failures) if causes else "None failed."),
        _section("Jobs by owner", rows(_names(owners), ended), ended, left=len(groups["owner"]) - len(owners)),
        _section(
            "Instance-hours by instance type",
            rows(_names(types), [Series("instance-hours", "violet", [row.instance_hours for row in types])]),
            left=len(groups["instance_type"]) - len(types),
        ),
    ]
    if total.cost_usd is not None:
        priced = [row for row in groups["owner"] if row.cost_usd is not None]
        dearest = sorted(priced, key=lambda row: -(row.cost_usd or 0))[:SHOWN]
        cost = [Series("cost", "amber", [row.cost_usd for row in dearest])]
        drawn = rows(_names(dearest), cost, text_of=dollars)
        parts.append(_section("Cost by owner", drawn, left=len(priced) - len(dearest)))
    return parts


def _names(rows: Sequence[Row]) -> list[str]:
    return [row.key or NONE for row in rows]


def _section(title: str, chart: str, series: Sequence[Series] = (), *, left: int = 0) -> str:
    keys = legend(series) if series else ""
    more = f'<p class="note">{left:,} more in the table below.</p>' if left else ""
    return f"<section><h2>{escape(title)}</h2>{keys}{chart}{more}</section>\n"


def _table(title: str, first: str, rows: Sequence[Row], *, tip: Callable[[str], str] = lambda _: "") -> str:
    """A table with all figures, folded if it is long."""
    priced = any(row.cost_usd is not None for row in rows)
    columns = [first, "Jobs", "Completed", "Failed", "Stopped", "Success", "Attempts", "A job", "Waited", "95 %"]
    columns += ["Ran", "95 %", "Inst.-hours", *(["Cost"] if priced else []), "Failed attempts"]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(_cells(row, tip(row.key), priced=priced))}</tr>\n" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    if len(rows) <= OPEN_UP_TO:
        return f"<section><h2>{escape(title)}</h2>{table}</section>"
    return f"<section><details><summary>{escape(title)} ({len(rows):,})</summary>{table}</details></section>"


def _cells(row: Row, tip: str, *, priced: bool) -> list[str]:
    causes = ", ".join(f"{number:,} {cause}" for cause, number in row.failed_attempts.items())
    numbers: list[tuple[Any, str]] = [
        *((value, f"{value:,}") for value in (row.jobs, row.completed, row.failed, row.stopped)),
        (row.success_rate, _or_dash(row.success_rate, percent)),
        (row.attempts, f"{row.attempts:,}"),
        (row.attempts_per_job, _or_dash(row.attempts_per_job, lambda value: f"{value:.2f}")),
        *((s, _or_dash(s, brief)) for s in (row.waited_median_s, row.waited_p95_s, row.ran_median_s, row.ran_p95_s)),
        (row.instance_hours, f"{row.instance_hours:,.1f}"),
    ]
    if priced:
        numbers.append((row.cost_usd, _or_dash(row.cost_usd, dollars)))
    name = row.key or NONE
    hover = f' title="{escape(tip)}"' if tip else ""
    return [
        f'<td data-v="{escape(name)}"{hover}>{escape(name)}</td>',
        *(f'<td data-v="{-1 if value is None else value}">{escape(text)}</td>' for value, text in numbers),
        f'<td class="causes" data-v="{sum(row.failed_attempts.values())}">{escape(causes)}</td>',
    ]
