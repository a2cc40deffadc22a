"""The steps of one run, with all expressions filled in: what each of them runs, and where its output goes."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.times import new_run_id, zone_of
from shardkit.workflows.expressions import PARAMS, RUN, STEPS, VARIABLES, Reference, parse
from shardkit.workflows.order import levels
from shardkit.workflows.pipelines import filled_settings, pipeline_of
from shardkit.workflows.problems import near

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.spec.spec import Spec
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Step

_SECRETS = re.compile(r"(?:^|:)env:([A-Za-z_][A-Za-z0-9_]*)$")


@dataclass(frozen=True)
class Facts:
    """What only a run has: its id, the day on which it began, and its parameters."""

    run_id: str
    date: str
    params: Mapping[str, str]


@dataclass(frozen=True)
class Resolved:
    """A step of a run.

    Args:
        step: The step, as it is in the environment.
        words: Its command; of a pipeline, none.
        image: Its image; empty if it has none.
        env: Its variables that are no secrets.
        output: The folder or URI of what it makes; empty if nothing says where that is.
        pipeline: Its pipeline, with what the workflow sets in it.
        settings: What that is, by dotted names.
    """

    step: Step
    words: tuple[str, ...]
    image: str
    env: Mapping[str, str]
    output: str
    pipeline: Spec | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def new_facts(workflow: Workflow, given: Mapping[str, str], *, run_id: str = "") -> Facts:
    """The facts of a run that begins now, with parameters as they were given.

    Raises:
        PipelineError: a parameter is unknown or missing, or its value will not do.
    """
    zone = zone_of(workflow.calendar.zone if workflow.calendar is not None else None)
    date = datetime.datetime.now(zone).date().isoformat()
    return Facts(run_id or new_run_id(), date, parameters(workflow, given))


def parameters(workflow: Workflow, given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a run: those that are given, and the defaults of the others.

    Raises:
        PipelineError: one is unknown or missing, or its value will not do.
    """
    values = {}
    for name in given:
        if name not in workflow.params:
            raise PipelineError(f"{workflow.name} has no parameter {name!r}; {near(name, workflow.params)}")
    for name, parameter in workflow.params.items():
        value = given.get(name, parameter.default)
        if value is None:
            raise PipelineError(f"{workflow.name} needs the parameter {name}.", hint=f"Give --param {name}=VALUE.")
        if why := parameter.refusal(value):
            raise PipelineError(f"Parameter {name}: {why}")
        values[name] = value
    return values


def resolve(
    workflow: Workflow, facts: Facts, *, outputs: str = "", made: Mapping[str, str] | None = None
) -> list[Resolved]:
    """The steps of a run, in an order in which they could run one by one.

    Args:
        workflow: The workflow, as it is in its environment.
        facts: What the run has.
        outputs: The folder for the outputs of the steps for which the file names none.
        made: The outputs of steps that have ended, which later steps use whatever the file says now.

    Raises:
        PipelineError: a pipeline will not do with what is set in it, or a step needs an output that has no place.
    """
    places: dict[str, str] = {}
    steps = []
    for step in (step for level in levels(workflow.steps) for step in level):
        resolved = _resolved(workflow, step, facts, places, outputs)
        places[step.name] = (made or {}).get(step.name) or resolved.output
        steps.append(resolved)
    return steps


def _resolved(workflow: Workflow, step: Step, facts: Facts, places: Mapping[str, str], outputs: str) -> Resolved:
    def value_of(reference: Reference) -> str:
        if reference.kind == PARAMS:
            return facts.params[reference.name]
        if reference.kind == VARIABLES:
            return workflow.variables[reference.name]
        if reference.kind == RUN:
            return facts.run_id if reference.name == "id" else facts.date
        if reference.kind == STEPS:
            if not places[reference.name]:
                raise PipelineError(
                    f"{step.name}: {reference} has no place: nothing says where {reference.name} puts what it makes.",
                    hint=f"Give {reference.name} an output, or the workflow one: output: s3://bucket/prefix/",
                )
            return places[reference.name]
        return workflow.name if reference.name == "name" else workflow.environment or ""

    def text(template: str) -> str:
        return parse(template).filled(value_of)

    image = text(step.image) if step.image is not None else ""
    env = {name: text(value) for name, value in step.plain_env.items()}
    env = dict(workflow.variables) | {"SHARDKIT_RUN_ID": facts.run_id} | env
    if step.pipeline is not None:
        settings = filled_settings(workflow, step, value_of)
        pipeline = pipeline_of(workflow, step, settings)
        return Resolved(step, (), image, env, workflow.path(pipeline.output.uri), pipeline, settings)
    output = _output(workflow, step, text, outputs)
    if output:
        env = {"SHARDKIT_OUTPUT": output} | env
    return Resolved(step, tuple(map(text, step.command)), image, env, output)


def _output(workflow: Workflow, step: Step, text: Any, outputs: str) -> str:
    """Where a step that is no pipeline puts what it makes."""
    if step.output is not None:
        return workflow.path(text(step.output))
    folder = workflow.path(text(workflow.output)) if workflow.output is not None else outputs
    return f"{folder.rstrip('/')}/{step.name}" if folder else ""


def secret_variables(workflow: Workflow) -> set[str]:
    """The variables that hold the secrets of a workflow, which only the steps that name them may see."""
    notify = workflow.notify
    texts = [*notify.all()]
    texts += [workflow.webhook.token] if workflow.webhook is not None else []
    texts += [value for step in workflow.steps for value in step.env.values()]
    return {match[1] for text in texts if (match := _SECRETS.search(text))}
