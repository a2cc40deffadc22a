"""How the steps of a run are, as the queue of their jobs says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.jobs.job import COMPLETED, FAILED, NEW, STOPPED
from shardkit.jobs.wording import seconds_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardkit.jobs import Job

STEP, GENERATION, OUTPUT, BEGINNING = "step", "generation", "step_output", "beginning"  # tags of a step's job
DONE, RUNNING, WAITING, NOT_BEGUN = "done", "running", "waiting", "not begun"
FAILED_STEP, STOPPED_STEP = "failed", "stopped"


@dataclass(frozen=True)
class StepState:
    """How a step is.

    Args:
        name: The step.
        state: ``done``, ``running``, ``waiting`` (for other steps, or to be tried again), ``failed``, ``stopped``, or
            ``not begun`` because a step before it did not end well.
        attempts: How often it was begun.
        seconds: How long the last attempt took, or has taken so far; None if it has not begun.
        reason: Why it is so, in words.
        output: Where it puts what it makes.
        job: Its job; None if it was not submitted.
    """

    name: str
    state: str
    attempts: int = 0
    seconds: float | None = None
    reason: str = ""
    output: str = ""
    job: Job | None = None


def latest_jobs(jobs: Iterable[Job]) -> dict[str, Job]:
    """The job of each step that counts: the latest; by the step's name."""
    latest: dict[str, Job] = {}
    for job in jobs:
        name = job.tags.get(STEP, "")
        if name and (name not in latest or generation_of(job) >= generation_of(latest[name])):
            latest[name] = job
    return latest


def generation_of(job: Job) -> int:
    """How many times the step was submitted, with this one."""
    return int(job.tags.get(GENERATION, "1"))


def states_of(names: Sequence[str], jobs: Iterable[Job], now: float) -> list[StepState]:
    """How the steps of these names are, in that order."""
    latest = latest_jobs(jobs)
    names = [*names, *(name for name in latest if name not in names)]
    return [_state(name, latest.get(name), now) for name in names]


def _state(name: str, job: Job | None, now: float) -> StepState:
    if job is None:
        return StepState(name, NOT_BEGUN)
    entry = job.entry()
    begun = seconds_at(entry.get("created_at")) if entry.get("created_at") else None
    ended = seconds_at(entry.get("ended_at")) if entry.get("ended_at") else now if job.live else None
    seconds = max(0.0, ended - begun) if begun is not None and ended is not None else None
    return StepState(name, _word(job), len(job.attempts), seconds, job.reason, job.tags.get(OUTPUT, ""), job)


def _word(job: Job) -> str:
    if job.status == COMPLETED:
        return DONE
    if job.status == FAILED:
        return NOT_BEGUN if job.cause == "dependency" else FAILED_STEP
    if job.status == STOPPED:
        return STOPPED_STEP if job.attempts else NOT_BEGUN
    return WAITING if job.status == NEW else RUNNING


def outcome_of(states: Iterable[StepState]) -> str:
    """How the whole run is: ``running`` as long as a step is, ``failed``, ``stopped`` or ``done``."""
    words = {state.state for state in states}
    if words & {RUNNING, WAITING}:
        return RUNNING
    if FAILED_STEP in words:
        return FAILED_STEP
    return STOPPED_STEP if words & {STOPPED_STEP, NOT_BEGUN} else DONE
