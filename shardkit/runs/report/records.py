"""Seconds and bytes of records: how they are distributed, and which are the extremes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardkit.pages.charts import axis, chart, tips
from shardkit.pages.page import Cell
from shardkit.runs.report.course import MEMORY_NOTE, memory_chart
from shardkit.runs.report.look import floats, rounded
from shardkit.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.pages.charts import Chart
    from shardkit.pages.page import Page
    from shardkit.runs.report.look import Look

EXTREMES = 20
BINS = 40
POINTS = 1_500
LEAST_S, LEAST_BYTES = 1e-6, 1.0


def add_records(page: Page, look: Look) -> None:
    """Add what is known of single records."""
    records = look.timings.records
    seconds, sizes = floats(records["seconds"]), floats(records["bytes"])
    if not len(records):
        return
    page.add_headline("Records")
    known = ~np.isnan(seconds)
    if known.any():
        spec = _distribution(np.maximum(seconds[known], LEAST_S), "seconds", duration)
        page.add_chart("Seconds a record", spec, note=_quantiles(seconds[known], duration))
    spec = _distribution(np.maximum(sizes, LEAST_BYTES), "bytes", human_bytes)
    page.add_chart("Bytes a record", spec, note=_quantiles(sizes, human_bytes))
    if known.any():
        page.add_chart("Seconds by bytes", _scatter(look, seconds, sizes), note=_sampled(int(known.sum())))
    if look.begin_s is not None:
        page.add_chart("Peak memory of workers", memory_chart(look), note=MEMORY_NOTE)
    if known.any():
        _add_extremes(page, "The slowest records", look, np.where(known, seconds, -1.0))
    _add_extremes(page, "The largest records", look, sizes)


def add_notes(page: Page, look: Look) -> None:
    """Add what the function has counted and logged."""
    summary = look.summary
    if not summary.counts and not summary.log:
        return
    page.add_headline("What the function says")
    if summary.counts:
        counts = [
            [Cell(name), Cell(f"{n:,}" if isinstance(n, int) else f"{n:,.6g}", n)] for name, n in summary.counts.items()
        ]
        page.add_table("Counted", ["Name", "Sum"], counts, is_wide=False)
    if summary.log:
        more = summary.logged - len(summary.log)
        lines = [[Cell(line["key"]), Cell(line["text"], kind="left")] for line in summary.log]
        page.add_table("Logged", ["Record", "Line"], lines, note=f"{more:,} more lines." if more else "")


def duration(seconds: float) -> str:
    """Seconds as people read them, also few: ``3.2 ms``."""
    if 0 < seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if 0 < seconds < 1 else human_seconds(seconds)


def _quantiles(values: np.ndarray, text_of: Callable[[float], str]) -> str:
    median, p95, most = (float(value) for value in np.quantile(values, [0.5, 0.95, 1.0]))
    total = float(values.sum())
    return f"Median {text_of(median)}, 95 % at most {text_of(p95)}, largest {text_of(most)}; {text_of(total)} in all."


def _sampled(number: int) -> str:
    return "" if number <= POINTS else f"{POINTS:,} of {number:,} records, the slowest among them."


def _distribution(values: np.ndarray, unit: str, text_of: Callable[[float], str]) -> Chart:
    """A histogram whose classes grow by a factor."""
    low, high = float(values.min()), float(values.max())
    high = max(high, low * 1.001)
    bins = min(BINS, max(int(np.log10(high / low) * 12), 8), len(values))
    edges = np.geomspace(low, high, bins + 1)
    edges[-1] = np.nextafter(high, np.inf)
    numbers, _ = np.histogram(values, edges)
    bars = [
        {
            "b": rounded(edges[i], 6),
            "e": rounded(edges[i + 1], 6),
            "n": number,
            "text": f"{text_of(edges[i])} to {text_of(edges[i + 1])}",
        }
        for i, number in enumerate(numbers.tolist())
    ]
    encoding = {
        "x": axis("b", title=unit, scale={"type": "log", "nice": False}, axis={"format": "~s", "tickCount": 6}),
        "x2": {"field": "e"},
        "y": axis("n", title="records"),
        "y2": {"datum": 0},
        "tooltip": tips(text="Between", n="Records"),
    }
    return chart(bars, {"mark": {"type": "bar", "color": "--blue"}, "encoding": encoding})


def _scatter(look: Look, seconds: np.ndarray, sizes: np.ndarray) -> Chart:
    """A point for each of some records, the slowest among them."""
    known = np.flatnonzero(~np.isnan(seconds))
    if len(known) > POINTS:
        slowest = known[np.argpartition(-seconds[known], POINTS // 10)[: POINTS // 10]]
        known = np.union1d(slowest, known[:: len(known) // POINTS + 1])
    names = look.timings.records["record"].take(known).to_pylist()
    points = [
        {
            "x": rounded(max(sizes[i], LEAST_BYTES)),
            "y": rounded(max(seconds[i], LEAST_S)),
            "name": name,
            "size": human_bytes(sizes[i]),
            "took": duration(seconds[i]),
        }
        for i, name in zip(known.tolist(), names, strict=True)
    ]
    encoding = {
        "x": axis("x", title="bytes", scale={"type": "log"}, axis={"format": "~s", "tickCount": 6}),
        "y": axis("y", title="seconds", scale={"type": "log"}, axis={"format": "~s", "tickCount": 6}),
        "tooltip": tips(name="Record", size="Size", took="Took"),
    }
    mark = {"type": "point", "filled": True, "color": "--violet", "size": 20, "opacity": 0.55}
    return chart(points, {"mark": mark, "encoding": encoding})


def _add_extremes(page: Page, title: str, look: Look, by: np.ndarray) -> None:
    """A table of the records of which there is most."""
    records = look.timings.records
    count = min(EXTREMES, len(by))
    top = np.argpartition(-by, count - 1)[:count]
    top = top[np.argsort(-by[top], kind="stable")]
    chosen = records.take(top[by[top] >= 0]).to_pylist()
    columns = ["Record", "Took", "Size", "Rows", "Chunk", "Attempt", "Worker"]
    rows = [
        [
            Cell(each["record"]),
            _number(each["seconds"], duration),
            _number(each["bytes"], human_bytes),
            _number(each["rows"], "{:,}".format),
            Cell(f"{each['shard']}/{each['chunk']}"),
            Cell(str(each["attempt"]), each["attempt"]),
            Cell(" ".join(filter(None, (each["job"], each["worker"]))) or "-", kind="left"),
        ]
        for each in chosen
    ]
    page.add_table(title, columns, rows)


def _number(value: float | None, text_of: Callable[[float], str]) -> Cell:
    return Cell("-", -1) if value is None else Cell(text_of(value), value)
