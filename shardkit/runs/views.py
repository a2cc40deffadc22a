"""A run, its summary, its jobs and its failures as notebooks show them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from shardkit.errors import ShardkitError
from shardkit.pages.view import AMBER, BLUE, GREY, RED, TEAL, VIOLET, View
from shardkit.runs.quarantine import by_kind
from shardkit.units import counted, first_line, human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from shardkit.runfolder.folder import RunFolder

LANES, SPANS, FOLDED = 16, 300, 5
COLOURS = (BLUE, TEAL, VIOLET, AMBER, GREY)
JOB_COLOURS = {"Completed": BLUE, "Failed": RED, "Stopped": AMBER, "InProgress": TEAL}


class Numbers(Protocol):
    """A run in numbers."""

    @property
    def run_id(self) -> str:
        """The run's id."""

    @property
    def status(self) -> str:
        """How it is."""

    @property
    def records(self) -> dict[str, int]:
        """How many records it has listed, done, quarantined and skipped."""

    def facts(self) -> list[tuple[str, str]]:
        """The numbers as texts, each with its name."""

    def messages(self) -> list[str]:
        """What there is to say beside them."""


def summary_view(summary: Numbers) -> str:
    """The numbers of a run."""
    return _with_numbers(View(f"Run {summary.run_id}: {summary.status}"), summary).to_html()


def _with_numbers(view: View, summary: Numbers) -> View:
    n = summary.records
    rest = n["listed"] - n["done"] - n["quarantined"] - n["skipped"]
    shares = [("done", n["done"], BLUE), ("skipped", n["skipped"], TEAL), ("quarantined", n["quarantined"], RED)]
    view.add_shares([*shares, ("open", rest, GREY)])
    view.add_facts(summary.facts())
    view.add_text("\n".join(summary.messages()))
    return view


def run_view(folder: RunFolder, summarize: Callable[[], Numbers]) -> str:
    """A run: its numbers, and what its workers did when."""
    from shardkit.runfolder.timings import chunk_timings

    try:
        summary = summarize()
        view = _with_numbers(View(f"Run {summary.run_id}: {summary.status}"), summary)
        _add_lanes(view, chunk_timings(folder))
    except ShardkitError as error:
        view = View(f"Run {folder.run_id}", str(error))
    return view.to_html()


def _add_lanes(view: View, chunks: pa.Table) -> None:
    """A lane for each worker, with its chunks."""
    timed = chunks.filter(chunks["begin"].is_valid()).select(["worker", "job", "begin", "end", "records", "chunk"])
    if not len(timed):
        return
    spans = timed.to_pylist()
    first, last = min(span["begin"] for span in spans), max(span["end"] for span in spans)
    whole = max((last - first).total_seconds(), 1e-6)
    lanes: dict[str, list[tuple[float, float, str, str]]] = {}
    jobs = list(dict.fromkeys(span["job"] for span in spans))
    for span in spans[:: -(-len(spans) // SPANS)]:
        begin, end = ((span[edge] - first).total_seconds() for edge in ("begin", "end"))
        tip = f"chunk {span['chunk']}: {counted(span['records'], 'record')} in {human_seconds(end - begin)}"
        colour = COLOURS[jobs.index(span["job"]) % len(COLOURS)]
        name = f"{span['job'] or ''}{span['worker']}"
        lanes.setdefault(name, []).append((begin / whole, end / whole, colour, tip))
    shown = [lanes[name] for name in sorted(lanes)]
    view.add_text(f"Chunks by worker, {human_seconds(whole)} from left to right:")
    view.add_lanes(shown[:LANES])
    if len(shown) > LANES:
        view.add_text(f"... and {counted(len(shown) - LANES, 'more worker')}")


def jobs_view(jobs: Sequence[dict[str, Any]]) -> str:
    """The jobs of a run."""
    states = Counter(job["status"] for job in jobs)
    view = View(counted(len(jobs), "job"))
    view.add_shares([(state, count, JOB_COLOURS.get(state, GREY)) for state, count in states.items()])
    failed_first = sorted(jobs, key=lambda job: job["status"] not in {"Failed", "Stopped"})
    rows = [
        (job["name"] or job["job"], job["status"], len(job["attempts"]), first_line(job["reason"] or ""))
        for job in failed_first
    ]
    view.add_table(["job", "status", "attempts", "reason"], rows)
    return view.to_html()


class JobList(list[dict[str, Any]]):
    """The jobs of a run, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return jobs_view(self)


def failures_view(entries: list[dict[str, Any]]) -> str:
    """The records in quarantine, those that failed alike together, with one traceback each."""
    view = View(f"{counted(len(entries), 'record')} in quarantine")
    groups = by_kind(entries)
    colours = itertools.cycle((RED, AMBER, VIOLET, TEAL, GREY))
    view.add_shares([(group[0]["error"], len(group), colour) for group, colour in zip(groups, colours, strict=False)])
    view.add_table(
        ["error", "records", "such as", "size"],
        [
            (
                f"{group[0]['error']}: {first_line(group[0]['message'])}",
                len(group),
                group[0]["key"],
                human_bytes(group[0]["bytes"] or 0),
            )
            for group in groups
        ],
    )
    for group in groups[:FOLDED]:
        if group[0]["traceback"]:
            view.add_folded(f"traceback of {group[0]['key']}", group[0]["traceback"])
    return view.to_html()
