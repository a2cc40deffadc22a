"""What the jobs of a run on an engine have printed."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from shardkit.engines.following import JobLog, follow, lines_of
from shardkit.errors import PipelineError
from shardkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.jobs import Job
    from shardkit.runs.on_engine import RunJobs

JOBS_NAMED = 3


def logs_of(jobs: RunJobs, part: str | None) -> Iterator[str]:
    """The lines of the jobs with ``part`` in their names; by default of those that failed or, if none did, of all.

    Raises:
        PipelineError: there is no such job.
    """
    chosen = _launched(jobs, part)
    if part is None:
        chosen = [job for job in chosen if job.status == "Failed"] or chosen
    return lines_of([_log(jobs, job) for job in chosen])


def followed_logs(jobs: RunJobs, part: str | None) -> Iterator[str]:
    """The lines of the jobs with ``part`` in their names, by default of all, as they come, until the jobs have ended.

    Raises:
        PipelineError: there is no such job.
    """

    def look() -> tuple[list[JobLog], bool]:
        jobs.refresh()
        meant = [job for job in jobs.current() if part is None or part in job.name or part in job.job_id]
        return [_log(jobs, job) for job in meant if job.name], any(not job.ended for job in meant)

    if not any(part is None or part in job.job_id for job in jobs.current()):
        _launched(jobs, part)
    return follow(look)


def _log(jobs: RunJobs, job: Job) -> JobLog:
    return JobLog(job.name, job.status, map(masked, jobs.engine.log_lines(job.name)))


def _launched(jobs: RunJobs, part: str | None) -> list[Job]:
    """The jobs that have been launched and are meant.

    Raises:
        PipelineError: none is.
    """
    current = jobs.current()
    launched = [job for job in current if job.name]
    if part is None:
        return launched
    chosen = [job for job in launched if part in job.name]
    if not chosen:
        raise _no_such_job(jobs.folder.run_id, part, current)
    return chosen


def _no_such_job(run_id: str, part: str, jobs: list[Job]) -> PipelineError:
    waiting = next((job for job in jobs if part in job.job_id and not job.name), None)
    if waiting is not None:
        return PipelineError(f"Job {waiting.job_id} of run {run_id} has not been launched, and has said nothing.")
    names = [job.name for job in jobs if job.name]
    near = difflib.get_close_matches(part, names, n=1, cutoff=0.3)
    hint = f"Did you mean {near[0]}?" if near else f"Its jobs are {', '.join(names[:JOBS_NAMED])}." if names else ""
    return PipelineError(f"Run {run_id} has no job {part!r}.", hint=hint)
