"""The jobs of a run and its quarantine as lines of text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from shardkit.jobs.transitions import AS_ASKED, WAITS
from shardkit.runs.quarantine import by_kind
from shardkit.units import counted, first_line, human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS_SHOWN = 5
FEW_FAILURES = 20  # up to so many are listed one by one


def job_lines(jobs: list[dict[str, Any]]) -> Iterator[str]:
    """The jobs of a run: how many are in each state, and why some failed."""
    if not jobs:
        return
    states = Counter("waiting" if job["reason"].startswith(WAITS) else job["status"] for job in jobs)
    attempts = sum(len(job["attempts"]) for job in jobs)
    yield f"jobs     {len(jobs):,}: {', '.join(f'{count:,} {state}' for state, count in states.items())}" + (
        f"; {counted(attempts, 'attempt')}" if attempts > len(jobs) else ""
    )
    waits = Counter(job["reason"].removeprefix(WAITS) for job in jobs if job["reason"].startswith(WAITS))
    for reason, count in waits.most_common(JOBS_SHOWN):
        yield f"  {count:,} {'waits' if count == 1 else 'wait'} for: {reason}"
    unlaunched = [job for job in jobs if job["cause"] == "cost"]
    if unlaunched:
        yield f"  {counted(len(unlaunched), 'job')} not launched: {unlaunched[-1]['reason']}"
    with_reason = [job for job in jobs if _says_why(job)]
    for job in with_reason[:JOBS_SHOWN]:
        yield f"  {job['name'] or job['job']} is {job['status']}: {job['reason'].splitlines()[0][:300]}"
    if len(with_reason) > JOBS_SHOWN:
        yield f"  ... and {len(with_reason) - JOBS_SHOWN:,} more"


def _says_why(job: dict[str, Any]) -> bool:
    """Whether its reason is one that nothing else tells."""
    reason, plain = job["reason"], job["status"] == "Completed" or job["cause"] in {"dependency", "cost"}
    return bool(reason) and reason != AS_ASKED and not reason.startswith(WAITS) and not plain


def failure_lines(entry: dict[str, Any], *, traceback: bool) -> Iterator[str]:
    """One record of the quarantine."""
    size = human_bytes(entry["bytes"])
    yield f"{entry['key']} ({size}, shard {entry['shard']}): {_what_failed(entry)}"
    yield from _traceback_lines(entry, traceback=traceback)


def grouped_failure_lines(entries: list[dict[str, Any]], *, traceback: bool) -> Iterator[str]:
    """A line for each kind of failure, the most frequent first, and perhaps the traceback of its first record."""
    for group in by_kind(entries):
        first, size = group[0], counted(len(group), "record")
        yield f"{size}{', such as' if len(group) > 1 else ':'} {first['key']}: {_what_failed(first)}"
        yield from _traceback_lines(first, traceback=traceback)


def _what_failed(entry: dict[str, Any]) -> str:
    return f"{entry['error']}: {first_line(entry['message'])}"


def _traceback_lines(entry: dict[str, Any], *, traceback: bool) -> Iterator[str]:
    if traceback and entry["traceback"]:
        yield from (f"    {line}" for line in entry["traceback"].rstrip().splitlines())
