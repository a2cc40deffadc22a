"""What the steps of a run have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.errors import PipelineError
from shardkit.masking import masked
from shardkit.workflows.problems import near
from shardkit.workflows.states import FAILED_STEP, RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.workflows.running import WorkflowRun


def log_lines(run: WorkflowRun, step: str | None = None) -> Iterator[str]:
    """The lines of the last attempt of a step; by default of all steps that failed or run, else of all.

    Raises:
        PipelineError: there is no such step.
    """
    states = run.states()
    if step is not None:
        chosen = [state for state in states if state.name == step]
        if not chosen:
            raise PipelineError(
                f"{run.workflow.name} has no step {step!r}; {near(step, [state.name for state in states])}"
            )
    else:
        chosen = [state for state in states if state.state in {FAILED_STEP, RUNNING}] or states
    for state in chosen:
        if len(chosen) > 1:
            yield f"== {state.name} ({state.state})"
        if state.job is None or not state.job.name:
            if len(chosen) == 1:
                yield f"Step {state.name} has not begun."
            continue
        yield from map(masked, run.place.log_lines(state.job.name))
