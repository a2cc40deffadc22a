"""Jobs of the queue and their history as text for people, and as plain data."""

from __future__ import annotations

import datetime
import shlex
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import iso
from shardkit.jobs.job import IN_PROGRESS, NEW
from shardkit.jobs.wording import CAUSES_IN_WORDS, log_group, log_url, ran_s, seconds_at, waited_s
from shardkit.masking import masked, masked_data
from shardkit.units import dollars, human_seconds, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shardkit.jobs import Job
    from shardkit.jobs.history import Row
    from shardkit.jobs.notices import NoticeReport
    from shardkit.jobs.rounds import Report

REASON_CHARACTERS = 60
_SHOWN = (
    *("job_id", "status", "attempt", "name", "reason", "cause", "kind", "owner", "run", "tags", "depends_on"),
    *("instance_types", "instance_type", "instances", "notify", "notified", "attempts"),
)
_TIMES = ("submitted_at", "changed_at", "launched_at", "not_before", "stop_asked_at")


def job_data(job: Job, *, region: str = "") -> dict[str, Any]:
    """A job as JSON can hold it; times are ISO 8601 in UTC, null if there is none."""
    times = {name: iso(getattr(job, name)) if getattr(job, name) else None for name in _TIMES}
    facts: dict[str, Any] = masked_data({name: getattr(job, name) for name in _SHOWN})
    return facts | times | {"log_url": log_url(job, region)}


def list_lines(jobs: Sequence[Job]) -> Iterator[str]:
    """A line for each job, under a line of headings."""
    rows = [("JOB", "STATUS", "ATTEMPT", "INSTANCE", "OWNER", "SUBMITTED", "REASON")]
    for job in jobs:
        reason = masked(" ".join(f"{job.cause}: {job.reason}".split()) if job.cause else job.reason)
        short = reason if len(reason) <= REASON_CHARACTERS else f"{reason[: REASON_CHARACTERS - 3]}..."
        type_ = f"{job.instances} x {job.instance_type}" if job.instances > 1 else job.instance_type
        rows.append((job.job_id, job.status, str(job.attempt), type_, job.owner, _minute(job.submitted_at), short))
    return _aligned(rows, right={2})


def change_lines(seen: Report, launched: Report, notices: NoticeReport) -> Iterator[str]:
    """The changes of a round of serving a queue, a line each."""
    for change in (*seen.changed, *launched.changed):
        why = f": {change.reason}" if change.reason else ""
        if change.status != IN_PROGRESS:
            yield f"{change.name or change.job_id} {'is tried again' if change.status == NEW else change.status}{why}"
    for name in launched.launched:
        yield f"{name} Launched"
    for job_id in notices.sent:
        yield f"notice of {job_id} sent"
    for trouble in (seen.trouble, launched.trouble, *notices.trouble):
        if trouble:
            yield f"trouble: {trouble}"


def show_lines(job: Job, *, region: str = "", place: str = "") -> Iterator[str]:
    """All about a job."""
    yield f"Job {job.job_id}: {job.status}" + (f" ({job.cause}: {CAUSES_IN_WORDS[job.cause]})" if job.cause else "")
    particulars = [
        ("reason", job.reason),
        ("kind", job.kind),
        ("owner", job.owner),
        ("run", job.run),
        ("tags", ", ".join(f"{name}={value}" for name, value in job.tags.items())),
        ("needs", ", ".join(job.depends_on)),
        ("instances", f"{job.instances} x {' or '.join(job.instance_types)}" if job.instance_types else ""),
        ("submitted", _second(job.submitted_at)),
        ("ended" if job.ended else "changed", _second(job.changed_at)),
        ("waited", _or_dash(waited_s(job), human_seconds) if job.attempts else ""),
        ("not before", _second(job.not_before) if job.status == "New" and job.not_before else ""),
        ("to be stopped", f"since {_second(job.stop_asked_at)}" if job.stop_asked_at and not job.ended else ""),
        ("notice", _notice(job)),
        ("log", log_url(job, region) or (f"{log_group(job)}, {job.name}/..." if job.attempts else "")),
    ]
    yield from (f"  {name:<13} {masked(text)}" for name, text in particulars if text)
    if job.attempts:
        yield ""
        rows: list[tuple[str, ...]] = [("ATTEMPT", "STATUS", "CAUSE", "INSTANCE", "LAUNCHED", "RAN", "REASON")]
        rows += [_attempt(entry) for entry in job.attempts]
        yield from (f"  {line}" for line in _aligned(rows, right={0, 5}))
    if job.status in {"Failed", "Stopped"}:
        yield ""
        yield f"Try again: shardkit jobs again {job.job_id}" + (f" --store {shlex.quote(place)}" if place else "")


def _attempt(entry: dict[str, Any]) -> tuple[str, ...]:
    launched = seconds_at(entry.get("launched_at"))
    return (
        str(entry["attempt"]),
        entry.get("status") or "",
        entry.get("cause") or "",
        entry.get("instance_type") or "",
        _second(launched) if launched else "",
        _or_dash(ran_s(entry), human_seconds),
        masked(" ".join((entry.get("reason") or "").split())),
    )


def _notice(job: Job) -> str:
    """Who gets notice of the job's end, and whether it was sent."""
    if not job.notify:
        return ""
    left = [target for target in job.notify if target not in job.notified]
    if not job.ended:
        return f"to {', '.join(job.notify)}"
    if not left:
        return f"sent to {', '.join(job.notify)}"
    if job.notice_at < 0:
        return f"given up: {', '.join(left)}"
    return f"not yet sent to {', '.join(left)}" + (f"; {job.notice_tries} tries" if job.notice_tries else "")


def history_lines(rows: Sequence[Row], by: str) -> Iterator[str]:
    """A line for each day, owner and so on; each time has two columns, its median and its 95th percentile."""
    if not rows:
        return iter(["No job ended in this time."])
    priced = any(row.cost_usd is not None for row in rows)
    head = (
        by.upper(),
        "JOBS",
        "DONE",
        "FAILED",
        "STOPPED",
        "SUCCESS",
        "ATTEMPTS",
        "WAITED",
        "95%",
        "RAN",
        "95%",
        "HOURS",
    )
    table = [(*head, *(["COST"] if priced else []), "FAILED ATTEMPTS")]
    for row in rows:
        causes = ", ".join(f"{number:,} {cause}" for cause, number in row.failed_attempts.items())
        times = (row.waited_median_s, row.waited_p95_s, row.ran_median_s, row.ran_p95_s)
        numbers = [f"{number:,}" for number in (row.jobs, row.completed, row.failed, row.stopped)]
        numbers += [_or_dash(row.success_rate, percent), f"{row.attempts:,}"]
        numbers += [_or_dash(time, human_seconds) for time in times]
        numbers += [f"{row.instance_hours:,.2f}", *([_or_dash(row.cost_usd, dollars)] if priced else [])]
        table.append((row.key or "(none)", *numbers, causes))
    lines = list(_aligned(table, right=set(range(1, len(table[0]) - 1))))
    unpriced = sum(row.unpriced_hours for row in rows)
    if unpriced:
        lines.append(f"The cost lacks {unpriced:,.1f} instance-hours whose price is not known.")
    return iter(lines)


def _or_dash(value: float | None, text_of: Callable[[float], str]) -> str:
    return "-" if value is None else text_of(value)


def _aligned(rows: Sequence[Sequence[str]], *, right: set[int]) -> Iterator[str]:
    """Rows as lines, with their columns aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row))
        yield "  ".join(cells).rstrip()


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _minute(seconds: float) -> str:
    return _time(seconds).strftime("%Y-%m-%d %H:%M")


def _second(seconds: float) -> str:
    return _time(seconds).strftime("%Y-%m-%d %H:%M:%S UTC")
