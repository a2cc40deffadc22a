"""A store that was lost, or is on another machine: its jobs as data, and from the service's list."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from shardkit.jobs import calls, transitions
from shardkit.jobs.causes import needs_describe
from shardkit.jobs.clock import Clock, RealClock, iso, seconds_of
from shardkit.jobs.errors import JobError
from shardkit.jobs.job import COMPLETED, LAUNCHED, PROCESSING, YES, Job, parse_name
from shardkit.jobs.policy import Policy
from shardkit.jobs.rounds import Change, settle
from shardkit.jobs.store import Submission

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.store import Store

FORMAT = 1
_FIELDS = tuple(each.name for each in dataclasses.fields(Job))


def export_jobs(store: Store, *, requests: bool = True) -> dict[str, Any]:
    """All jobs as plain data that JSON can hold.

    Args:
        store: The jobs.
        requests: Whether to include their requests. Without them the data is small, and can be imported only where the
            same jobs have been submitted.

    Returns:
        The data for ``import_jobs()``.
    """
    jobs = store.jobs()
    asked = store.requests(job.job_id for job in jobs) if requests else {}
    rows = [{name: getattr(job, name) for name in _FIELDS} for job in jobs]
    return {"format": FORMAT, "jobs": [row | {"request": asked[row["job_id"]]} if requests else row for row in rows]}


def import_jobs(store: Store, data: Mapping[str, Any]) -> int:
    """Take in jobs that were exported: those that the store does not have, and later states of those that it has.

    What happened after the export is not in the data: call ``adopt()`` next.

    Args:
        store: The store to import into.
        data: What ``export_jobs()`` made.

    Returns:
        How many jobs were added or replaced.

    Raises:
        JobError: The data is of a later version, or lacks the request of a job that the store does not have.
        JobConflict: A job of the store has the id of another one in the data.
    """
    if data.get("format") != FORMAT:
        raise JobError(
            f"These jobs were exported in format {data.get('format')!r}; this version reads {FORMAT}.",
            hint="Import them with the version of shardkit that exported them.",
        )
    jobs = [_job(row) for row in data["jobs"]]
    existing = store.find(job.job_id for job in jobs)
    new = []
    for job, row in zip(jobs, data["jobs"], strict=True):
        if "request" in row:
            new.append(Submission(job.job_id, row["request"], job.depends_on, job.owner, job.run, job.notify, job.tags))
        elif job.job_id not in existing:
            raise JobError(
                f"Job {job.job_id} was exported without its request, and {store!r} does not have it.",
                hint="Submit the jobs first, then import their states.",
            )
    store.submit_many(new)
    replaced = store.take_over(jobs)
    added = [job for job in jobs if job.job_id not in existing]
    return replaced + sum(job.version <= 1 for job in added)


def _job(row: Mapping[str, Any]) -> Job:
    """A job of exported data."""
    values: dict[str, Any] = {name: value for name, value in row.items() if name in _FIELDS}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Job(**values)


def adopt(
    store: Store,
    engine: Engine,
    *,
    name_contains: str = "",
    policy: Policy | None = None,
    clock: Clock | None = None,
) -> list[Change]:
    """Rebuild from the service's list what the store does not know of its Processing jobs, by job and attempt names.

    Use it after a store was lost and its jobs were submitted again, or after it was restored from an older state.

    Args:
        store: The jobs, submitted.
        engine: The service.
        name_contains: What the names of all these jobs have in common; the fewer jobs match, the fewer calls.
        policy: Whether attempts that failed are tried again.
        clock: Gives the time.

    Returns:
        The jobs that changed.

    Raises:
        EngineRefused: The service takes no calls from this client.
    """
    rules, time = policy or Policy(), clock or RealClock()
    service = calls.Service(engine)
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for page in service.list_pages(PROCESSING, NameContains=name_contains):
        for line in page:
            parsed = parse_name(line["ProcessingJobName"])
            if parsed:
                lines.setdefault(parsed[0], {})[parsed[1]] = line
    changes = []
    for job in store.find(lines).values():
        attempts = _with_reasons(service, job, lines[job.job_id])

        def rebuild(current: Job, attempts: dict[int, dict[str, Any]] = attempts) -> Job | None:
            return _rebuilt(current, attempts, time.time(), rules)

        done = settle(store, job, rebuild)
        if done.version != job.version:
            changes.append(Change.of(done))
    return changes


def _with_reasons(service: calls.Service, job: Job, lines: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The attempts whose end the store does not know, each with the reason if it failed."""
    wanted = {}
    for attempt, line in sorted(lines.items()):
        if job.entry(attempt).get("ended_at") or attempt < job.attempt:
            continue
        full = service.describe(job.kind, line["ProcessingJobName"]) if needs_describe(line) else line
        wanted[attempt] = full
    return wanted


def _rebuilt(job: Job, attempts: dict[int, dict[str, Any]], now: float, policy: Policy) -> Job | None:
    """The job after these attempts, the oldest first."""
    changed = job
    for attempt, answer in attempts.items():
        if changed.status == COMPLETED or attempt < changed.attempt or changed.entry(attempt).get("ended_at"):
            continue
        if attempt > changed.attempt:
            begun = seconds_of(answer.get("CreationTime")) or now
            changed = transitions.ahead(changed, attempt, begun).with_entry(launched_at=iso(begun))
        elif changed.exists != YES:
            changed = transitions.created(dataclasses.replace(changed, status=LAUNCHED), now)
        changed = transitions.observed(changed, answer, now, policy)
    return None if changed is job else dataclasses.replace(changed, version=job.version, changed_at=now)
