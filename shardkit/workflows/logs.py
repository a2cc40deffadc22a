"""What the steps of a run have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.engines.following import JobLog, follow, lines_of
from shardkit.errors import PipelineError
from shardkit.masking import masked
from shardkit.workflows.problems import near
from shardkit.workflows.states import FAILED_STEP, RUNNING, WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.workflows.running import WorkflowRun
    from shardkit.workflows.states import StepState


def log_lines(run: WorkflowRun, step: str | None = None) -> Iterator[str]:
    """The lines of the last attempt of a step; by default of all steps that failed or run, else of all.

    Raises:
        PipelineError: there is no such step.
    """
    states = _meant(run, step)
    if step is None:
        states = [state for state in states if state.state in {FAILED_STEP, RUNNING}] or states
    logs = _logs(run, states)
    if step is not None and not logs:
        return iter([f"Step {step} has not begun."])
    return lines_of(logs)


def followed_lines(run: WorkflowRun, step: str | None = None) -> Iterator[str]:
    """The lines of a step, by default of all steps, as they are written, until the steps have ended.

    Raises:
        PipelineError: there is no such step.
    """

    def look() -> tuple[list[JobLog], bool]:
        states = _meant(run, step)
        return _logs(run, states), any(state.state in {RUNNING, WAITING} for state in states)

    _meant(run, step)
    return follow(look)


def _meant(run: WorkflowRun, step: str | None) -> list[StepState]:
    """How the steps are that are meant.

    Raises:
        PipelineError: there is no such step.
    """
    states = run.states()
    if step is None:
        return states
    chosen = [state for state in states if state.name == step]
    if not chosen:
        raise PipelineError(f"{run.workflow.name} has no step {step!r}; {near(step, [state.name for state in states])}")
    return chosen


def _logs(run: WorkflowRun, states: list[StepState]) -> list[JobLog]:
    """The logs of the steps that have begun."""
    return [
        JobLog(state.name, state.state, map(masked, run.place.log_lines(state.job.name)))
        for state in states
        if state.job is not None and state.job.name
    ]
