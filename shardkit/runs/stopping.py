"""Stopping the jobs of a run, until the service has heard it of all of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shardkit.errors import RunFailed
from shardkit.runfolder.steps import advice
from shardkit.units import counted

if TYPE_CHECKING:
    from shardkit.jobs import Job
    from shardkit.runs.on_engine import RunJobs

STOP_TRIES = 4  # in vain, with longer and longer waits


def stop_jobs(jobs: RunJobs) -> int:
    """Stop all jobs of a run that have not ended; returns how many there were.

    Raises:
        RunFailed: the service did not answer for some, which go on.
    """
    folder, stopped = jobs.folder, jobs.stop()
    at_work, tries = _still_at_work(stopped), 0
    while at_work and tries < STOP_TRIES:
        time.sleep(2.0**tries)
        left = _still_at_work(jobs.stop())
        tries = 0 if left < at_work else tries + 1
        at_work = left
    if at_work:
        raise RunFailed(
            f"Run {folder.run_id}: the service does not answer, and {counted(at_work, 'job')} could not be stopped.",
            hint=advice(folder, lambda step: f"Try again: {step('stop')}"),
        )
    return len(stopped)


def _still_at_work(jobs: list[Job]) -> int:
    """How many jobs are at work and have not been asked to stop."""
    return sum(job.live and job.exists == "yes" and not job.stop_sent_at for job in jobs)
