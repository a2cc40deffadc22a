"""What a run of a workflow would do, as text."""

from __future__ import annotations

import datetime
import shlex
from typing import TYPE_CHECKING

from shardkit.masking import masked
from shardkit.times import now
from shardkit.units import human_seconds
from shardkit.workflows.containers import runtime_of
from shardkit.workflows.document import CALENDAR, WEBHOOK
from shardkit.workflows.jobs_here import Here
from shardkit.workflows.order import levels
from shardkit.workflows.resolve import new_facts, resolve
from shardkit.workflows.run_files import RunFiles, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.resolve import Resolved

RUN_ID = "RUN-ID"


def plan_lines(workflow: Workflow, params: Mapping[str, str], *, containers: str | None = None) -> Iterator[str]:
    """The steps in their order, with their commands, and when the workflow runs.

    Raises:
        PipelineError: a parameter or a pipeline will not do.
    """
    facts = new_facts(workflow, params, run_id=RUN_ID)
    files = RunFiles(state_of(workflow) / RUN_ID)
    here = Here(files, workflow, containers=runtime_of(containers) if containers is not None else None)
    resolved = {each.step.name: each for each in resolve(workflow, facts, outputs=str(files.outputs))}
    environment = f" in {workflow.environment}" if workflow.environment else ""
    yield f"Workflow {workflow.name}{environment}: {_when(workflow)}"
    if facts.params:
        yield f"  parameters  {', '.join(f'{name}={value}' for name, value in facts.params.items())}"
    if workflow.engine is not None:
        yield f"  engine      {workflow.engine.kind}: each step is a job on {workflow.engine.title}"
    for number, level in enumerate(levels(workflow.steps), 1):
        for step in level:
            yield from _step_lines(number, resolved[step.name], here)


def _step_lines(number: int, resolved: Resolved, here: Here) -> Iterator[str]:
    step = resolved.step
    after = f", after {', '.join(step.after)}" if step.after else ""
    yield f"{number}. {step.name}{after}"
    words = here.about(step.name, resolved, 1)["words"]
    if resolved.pipeline is not None:
        words = ["shardkit", *words[3:]]
    if words:
        yield f"     command   {masked(shlex.join(words))}"
    else:
        yield "     command   that of its image (on this machine it needs --containers)"
    facts = [
        ("folder", str(here.workflow.folder) if resolved.pipeline is None else ""),
        ("image", resolved.image),
        ("secrets", ", ".join(f"{name} from {place}" for name, place in step.secrets.items())),
        ("output", resolved.output),
        ("retries", str(step.retries) if step.retries else ""),
        ("timeout", human_seconds(step.timeout) if step.timeout else ""),
    ]
    for name, text in facts:
        if text:
            yield f"     {name:<9} {masked(text)}"


def _when(workflow: Workflow) -> str:
    if workflow.mode == CALENDAR and workflow.calendar is not None:
        schedule = workflow.calendar.when()
        due = schedule.next(datetime.datetime.fromisoformat(now()))
        how = schedule.cron or f"every {schedule.every}"
        return f"on its calendar ({how}), next at {due:%Y-%m-%d %H:%M %Z}"
    if workflow.mode == WEBHOOK and workflow.webhook is not None:
        return f"when POST {workflow.webhook.path} comes to {workflow.webhook.host}:{workflow.webhook.port}"
    return "at once"
