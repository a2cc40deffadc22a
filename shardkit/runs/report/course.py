"""How a run went: progress against the plan, throughput, who worked when, and memory."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.pages.charts import axis, chart, in_unit, palette, rows, tips
from shardkit.runfolder.ledger import DONE, ELSEWHERE, OPEN, QUARANTINED, SKIPPED
from shardkit.runs.report.look import floats, rounded, seconds_since
from shardkit.units import counted, human_bytes, human_seconds, percent

if TYPE_CHECKING:
    from shardkit.pages.charts import Chart
    from shardkit.pages.page import Page
    from shardkit.runs.report.look import Look

SHARD_BARS = 16
BINS = 80
LANES = 40
SPANS = 3_000  # bars of the timeline; when there are more, those of a lane that touch are drawn as one
POINTS = 1_500
STATES = {
    DONE: ("done", "--teal"),
    SKIPPED: ("taken over", "--blue"),
    QUARANTINED: ("quarantined", "--red"),
    OPEN: ("open", "--grey"),
}
SPAN_COLOURS = {"first attempt": "--teal", "later attempt": "--amber", "with failures": "--red"}


def add_course(page: Page, look: Look) -> None:
    """Add what happened when."""
    page.add_headline("The course of the run")
    page.add_chart("Records against the plan", *_progress(look), is_wide=True)
    if look.begin_s is None or look.end_s is None:
        return
    begin_s, most_s = look.begin_s, max(look.end_s - look.begin_s, 0.001)
    for title, spec in _throughput(look, begin_s, most_s):
        page.add_chart(title, spec)
    spec, note = _timeline(look, begin_s, most_s)
    page.add_chart("Chunks by worker", spec, note=note, is_wide=True)


MEMORY_NOTE = "Each point is a chunk: the most memory that its worker's process has had meanwhile."


def _progress(look: Look) -> tuple[Chart]:
    """The states of records, by shard, or by some shards together if there are many."""
    ledger = look.ledger
    mine = ledger.state != ELSEWHERE
    shards = np.unique(ledger.shard[mine])
    size = -(-len(shards) // SHARD_BARS) or 1
    groups = [shards[start : start + size] for start in range(0, len(shards), size)]
    values = []
    for group in groups:
        states = ledger.state[mine & (ledger.shard >= group[0]) & (ledger.shard <= group[-1])]
        name = f"shard {group[0]}" if len(group) == 1 else f"shards {group[0]} to {group[-1]}"
        settled = int((states != OPEN).sum())
        text = percent(settled / len(states))
        for state, (of, _) in STATES.items():
            if number := int((states == state).sum()):
                values.append({"name": name, "of": of, "n": number, "text": text})
    used = {value["of"] for value in values}
    colours = {name: colour for name, colour in STATES.values() if name in used}
    return (rows(values, colours, tip=tips(name="Shard", of="State", n="Records", text="Settled")),)


def _throughput(look: Look, begin_s: float, most_s: float) -> list[tuple[str, Chart]]:
    """Records and bytes a second, over time."""
    records = look.timings.records
    ended = seconds_since(records["begin"], begin_s) + floats(records["seconds"])
    known = ~np.isnan(ended)
    bins = min(max(int(known.sum()) // 4, 4), BINS)
    edges = np.linspace(0, most_s * (1 + 1e-9), bins + 1)
    width, (unit_s, unit) = most_s / bins, in_unit(most_s)
    numbers, _ = np.histogram(ended[known], edges)
    sizes, _ = np.histogram(ended[known], edges, weights=floats(records["bytes"])[known])
    charts = []
    for title, what, amounts, size in (
        ("Records a second", "records", numbers, 1.0),
        ("Megabytes a second", "MB", sizes, 1e6),
    ):
        values = [
            {
                "at": rounded((edges[i] + width / 2) / unit_s),
                "n": rounded(amount / size / width),
                "when": human_seconds(edges[i]),
            }
            for i, amount in enumerate(amounts.tolist())
        ]
        mark = {"type": "area", "color": "--blue", "opacity": 0.75, "interpolate": "step", "line": {"color": "--blue"}}
        encoding = {
            "x": axis("at", title=f"{unit} since the first chunk began"),
            "y": axis("n"),
            "tooltip": tips(when="After", n=f"{what}/s"),
        }
        charts.append((title, chart(values, {"mark": mark, "encoding": encoding})))
    return charts


def _timeline(look: Look, begin_s: float, most_s: float) -> tuple[Chart, str]:
    """A bar for each chunk, in the lane of its worker."""
    lanes, left_out = _lanes(look)
    unit_s, unit = in_unit(most_s)
    spans = _spans(look, begin_s)
    shown = [span for span in spans if span["lane"] in lanes]
    notes = []
    if len(shown) > SPANS:
        shown = _joined(shown, most_s / 1000)
        notes.append("Chunks of a worker that follow each other are drawn as one.")
    if left_out:
        notes.append(f"{counted(left_out, 'worker')} that ended earlier are left out.")
    values = [_span_value(span, lanes, unit_s) for span in shown]
    used = {value["of"] for value in values}
    colours = {name: colour for name, colour in SPAN_COLOURS.items() if name in used}
    encoding = {
        "x": axis("b", title=f"{unit} since the first chunk began", scale={"nice": False}),
        "x2": {"field": "e"},
        "y": axis("lane", "nominal", sort=list(lanes.values()), axis={"ticks": False, "domain": False}),
        "color": palette("of", colours),
        "tooltip": tips(lane="Worker", what="Chunk", when="From", took="Took", records="Records", of="Outcome"),
    }
    height = len(lanes) * (18 if len(lanes) <= 12 else 13)
    mark = {"type": "bar", "cornerRadius": 1, "minBandSize": 6}
    return chart(values, {"mark": mark, "encoding": encoding}, height=height), " ".join(notes)


def _spans(look: Look, begin_s: float) -> list[dict[str, Any]]:
    """The chunks that say when they were worked on."""
    chunks = look.timings.chunks
    begins, ends = seconds_since(chunks["begin"], begin_s), seconds_since(chunks["end"], begin_s)
    columns = {name: chunks[name].to_pylist() for name in ("job", "worker", "shard", "chunk", "attempt")}
    records, failed = (chunks[name].to_pylist() for name in ("records", "quarantined"))
    spans = []
    for i in np.argsort(begins, kind="stable").tolist():
        if np.isnan(begins[i]) or np.isnan(ends[i]):
            continue
        attempt = columns["attempt"][i]
        of = "with failures" if failed[i] else "first attempt" if attempt == 1 else "later attempt"
        spans.append(
            {
                "lane": (columns["job"][i] or "", columns["worker"][i] or ""),
                "b": float(begins[i]),
                "e": float(ends[i]),
                "of": of,
                "what": f"{columns['shard'][i]}/{columns['chunk'][i]}, attempt {attempt}",
                "records": records[i],
            }
        )
    return spans


def _lanes(look: Look) -> tuple[dict[tuple[str, str], str], int]:
    """The workers that are shown, with the names of their lanes in order, and how many are not shown."""
    chunks = look.timings.chunks
    last: dict[tuple[str, str], float] = {}
    times = floats(chunks["end"].cast("int64"))
    for job, worker, end in zip(chunks["job"].to_pylist(), chunks["worker"].to_pylist(), times, strict=True):
        if worker is not None and not np.isnan(end):
            lane = (job or "", worker)
            last[lane] = max(last.get(lane, 0.0), float(end))
    latest = sorted(last, key=lambda lane: -last[lane])[:LANES]
    return _lane_names(sorted(latest, key=_in_natural_order)), len(last) - len(latest)


def _lane_names(lanes: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Short names of lanes: jobs without the words that all begin with, workers as their number if that will do."""
    jobs = sorted({job for job, _ in lanes})
    words = zip(*(job.split("-") for job in jobs), strict=False)
    begin = "-".join(same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, words))
    begin = begin if len(jobs) > 1 else ""
    short = {lane: " ".join(filter(None, (_without(lane[0], begin), lane[1].rpartition("/")[2]))) for lane in lanes}
    if len(jobs) > 1 and len(set(short.values())) == len(lanes):
        return short
    return {lane: " ".join(filter(None, (_without(lane[0], begin), lane[1]))) for lane in lanes}


def _without(name: str, begin: str) -> str:
    return name.removeprefix(begin).lstrip("-")


def _in_natural_order(lane: tuple[str, str]) -> list[str]:
    """A key by which worker 10 comes after worker 9."""
    return [part.zfill(12) if part.isdecimal() else part for part in re.split(r"(\d+)", " ".join(lane))]


def _joined(spans: list[dict[str, Any]], gap_s: float) -> list[dict[str, Any]]:
    """The spans with those of a lane that follow each other within ``gap_s`` as one, if they ended alike."""
    made: list[dict[str, Any]] = []
    open_of: dict[tuple[str, str], dict[str, Any]] = {}
    for span in spans:
        before = open_of.get(span["lane"])
        if before is not None and before["of"] == span["of"] and span["b"] - before["e"] <= gap_s:
            before["e"] = max(before["e"], span["e"])
            before["records"] += span["records"]
            before["number"] += 1
            before["what"] = counted(before["number"], "chunk")
        else:
            open_of[span["lane"]] = {**span, "number": 1}
            made.append(open_of[span["lane"]])
    return made


def _span_value(span: dict[str, Any], lanes: dict[tuple[str, str], str], unit_s: float) -> dict[str, Any]:
    return {
        "lane": lanes[span["lane"]],
        "b": round(span["b"] / unit_s, 4),
        "e": round(span["e"] / unit_s, 4),
        "of": span["of"],
        "what": span["what"],
        "when": human_seconds(span["b"]),
        "took": human_seconds(span["e"] - span["b"]),
        "records": span["records"],
    }


def memory_chart(look: Look) -> Chart:
    """The peak memory of each chunk's worker, over time."""
    begin_s = look.begin_s or 0.0
    most_s = (look.end_s or 0.0) - begin_s
    chunks = look.timings.chunks
    peaks, ends = floats(chunks["peak_memory_bytes"]), seconds_since(chunks["end"], begin_s)
    known = np.flatnonzero(~np.isnan(peaks) & ~np.isnan(ends) & (peaks > 0))
    if len(known) > POINTS:  # the largest are always there
        largest = known[np.argsort(-peaks[known])[: POINTS // 10]]
        known = np.union1d(largest, known[:: len(known) // POINTS + 1])
    unit_s, unit = in_unit(most_s)
    names = [f"{s}/{c}" for s, c in zip(chunks["shard"].to_pylist(), chunks["chunk"].to_pylist(), strict=True)]
    values = [
        {
            "at": rounded(ends[i] / unit_s),
            "n": rounded(peaks[i] / 1e6),
            "chunk": names[i],
            "text": human_bytes(peaks[i]),
        }
        for i in known.tolist()
    ]
    mark = {"type": "point", "filled": True, "color": "--violet", "size": 24, "opacity": 0.6}
    encoding = {
        "x": axis("at", title=f"{unit} since the first chunk began"),
        "y": axis("n", title="MB"),
        "tooltip": tips(chunk="Chunk", text="Peak"),
    }
    return chart(values, {"mark": mark, "encoding": encoding})
