"""The report's page: its figures at the top, and then its parts."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.hints import as_command, is_command
from shardkit.jobs.history import summarize
from shardkit.pages.page import Cell, Page
from shardkit.runfolder.ledger import ELSEWHERE, OPEN
from shardkit.runs.report.changes import add_changes
from shardkit.runs.report.checks import add_checks
from shardkit.runs.report.course import add_course
from shardkit.runs.report.data import add_dataset
from shardkit.runs.report.failures import add_failures
from shardkit.runs.report.look import Look
from shardkit.runs.report.records import add_notes, add_records
from shardkit.units import counted, human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.jobs.history import Prices
    from shardkit.jobs.job import Job
    from shardkit.runfolder.folder import RunFolder

FOOTER = (
    "Times are those of each machine's own clock. Chunks and records that were computed and then lost with a machine "
    "are not in it. Everything is from the run folder, the dataset's statistics and a sample of its rows."
)


def report_page(
    folder: RunFolder, *, jobs: Sequence[Job] = (), prices: Prices | None = None, refresh_s: int = 0
) -> tuple[str, bool]:
    """A run as a page of HTML, and whether somebody works on it at the moment.

    Args:
        folder: The run's.
        jobs: The jobs of a run on an engine.
        prices: What instances cost, if that is known.
        refresh_s: After how many seconds a browser loads the page again, while the run goes on.

    Raises:
        PipelineError: The libraries that draw pages are not installed.
        Damaged: The plan or the records cannot be read.
    """
    look = Look.at(folder)
    name = look.plan["pipeline"].get("name") or "run"
    page = Page(
        title=f"{name}: run {folder.run_id}, {look.summary.status}",
        subtitle=_subtitle(look),
        refresh_s=refresh_s if look.is_live else 0,
        footer=FOOTER,
    )
    _add_tiles(page, look)
    if text := _message(look):
        page.add_text("What to know", text)
    add_course(page, look)
    if jobs:
        _add_jobs(page, jobs, prices)
    add_records(page, look)
    add_notes(page, look)
    add_failures(page, look)
    add_checks(page, look)
    add_dataset(page, look)
    add_changes(page, look)
    return page.to_html(), look.is_live


def _subtitle(look: Look) -> str:
    created = datetime.datetime.fromisoformat(look.plan["created"]).astimezone(datetime.timezone.utc)
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{look.folder.output.uri} | planned {created:%Y-%m-%d %H:%M} UTC | as of {now:%Y-%m-%d %H:%M:%S} UTC"


def _add_tiles(page: Page, look: Look) -> None:
    summary, ledger = look.summary, look.ledger
    n = summary.records
    page.add_tile(f"{n['done'] + n['skipped']:,}", f"of {counted(n['listed'], 'record')} done")
    page.add_tile(f"{n['quarantined']:,}", "in quarantine")
    page.add_tile(f"{summary.rows:,}", "rows" if summary.status == "done" else "rows so far")
    page.add_tile(human_bytes(summary.bytes_in), "input")
    page.add_tile(human_seconds(summary.seconds), "time")
    if look.begin_s is not None and look.end_s is not None and look.end_s > look.begin_s:
        took = look.end_s - look.begin_s
        page.add_tile(f"{len(look.timings.records) / took:,.1f}/s", "records, in pass 1")
        if (left := _left_s(look, took)) is not None:
            page.add_tile(human_seconds(left), "left of pass 1, about")
    chunks = look.timings.chunks
    workers = len(
        {pair for pair in zip(chunks["job"].to_pylist(), chunks["worker"].to_pylist(), strict=True) if pair[1]}
    )
    if workers:
        page.add_tile(f"{workers:,}", "workers")
    if look.result is not None:
        page.add_tile(f"{len(look.result['files']):,}", "files of the dataset")
        if (merged := _merge_s(look)) is not None:
            page.add_tile(human_seconds(merged), "pass 2")
    if ledger.damaged:
        page.add_tile(f"{len(ledger.damaged):,}", "damaged markers")


def _left_s(look: Look, took_s: float) -> float | None:
    """How long the open records take, at the rate of those that are settled; None if nobody works on them."""
    ledger = look.ledger
    open_bytes = float(ledger.bytes[ledger.state == OPEN].sum())
    worked = float(np.sum(look.timings.records["bytes"].to_numpy())) if len(look.timings.records) else 0.0
    if not look.is_live or not worked or not (ledger.state[ledger.state != ELSEWHERE] == OPEN).any():
        return None
    return open_bytes / worked * took_s


def _merge_s(look: Look) -> float | None:
    """From the end of the last chunk to the end of the run."""
    finished = look.result.get("finished") if look.result is not None else None
    if not finished or look.end_s is None:
        return None
    seconds = datetime.datetime.fromisoformat(finished).timestamp() - look.end_s
    return seconds if 0 <= seconds < 30 * 86400 else None


def _message(look: Look) -> list[str]:
    """What the run's summary says in words."""
    summary, face = look.summary, as_command if is_command() else str
    message = face(summary.message or "")
    reason = summary.reason if summary.reason and summary.reason not in message else ""
    texts = (message, reason, face(summary.set_aside))
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]


def _add_jobs(page: Page, jobs: Sequence[Job], prices: Prices | None) -> None:
    """Add what the jobs on an engine took, and what they cost."""
    page.add_headline("Jobs")
    rows = summarize(jobs, by="instance_type", prices=prices)
    columns = ["Instance type", "Attempts", "Failed", "Waited, median", "Ran, median", "Instance-hours"]
    cells: list[list[Cell]] = []
    for row in rows:
        times: list[Any] = [row.waited_median_s, row.ran_median_s]
        cells.append(
            [
                Cell(row.key or "(none)"),
                Cell(f"{row.attempts:,}", row.attempts),
                Cell(f"{sum(row.failed_attempts.values()):,}", sum(row.failed_attempts.values())),
                *(Cell("-", -1) if s is None else Cell(human_seconds(s), s) for s in times),
                Cell(f"{row.instance_hours:,.2f}", row.instance_hours),
                *(
                    [Cell("-", -1) if row.cost_usd is None else Cell(f"${row.cost_usd:,.2f}", row.cost_usd)]
                    if prices
                    else []
                ),
            ]
        )
    page.add_table("Instances", [*columns, *(["Cost"] if prices else [])], cells)
