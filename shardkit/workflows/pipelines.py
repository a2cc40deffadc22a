"""The pipelines of a workflow's steps, with what the workflow sets in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.spec.fields import dotted_names
from shardkit.spec.spec import Spec
from shardkit.workflows.expressions import PARAMS, VARIABLES, WORKFLOW, Reference, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Step


def pipeline_of(workflow: Workflow, step: Step, settings: Mapping[str, Any]) -> Spec:
    """The pipeline of a step, with these fields in place of its own, by their dotted names.

    Raises:
        PipelineError: it cannot be read, or a field will not do.
    """
    names = dotted_names(Spec)
    overrides = {names.get(name, name): value for name, value in settings.items()}
    return Spec.from_yaml(workflow.path(str(step.pipeline)), overrides=overrides)


def filled_settings(step: Step, value_of: Callable[[Reference], str]) -> dict[str, Any]:
    """What is set in a step's pipeline, its expressions filled in."""
    return {name: filled(value, value_of) for name, value in step.settings.items()}


def filled(value: Any, value_of: Callable[[Reference], str]) -> Any:
    """Plain data, the expressions in its texts filled in."""
    if isinstance(value, str):
        return parse(value).filled(value_of)
    if isinstance(value, dict):
        return {name: filled(each, value_of) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, value_of) for each in value]
    return value


class _NotYetKnown(Exception):
    """A value that only a run has."""


def known_settings(workflow: Workflow, step: Step) -> dict[str, Any]:
    """What is set in a step's pipeline, as far as it is known before a run."""

    def value_of(reference: Reference) -> str:
        value = None
        if reference.kind == VARIABLES:
            value = workflow.variables.get(reference.name)
        elif reference.kind == PARAMS and reference.name in workflow.params:
            value = workflow.params[reference.name].default
        elif reference.kind == WORKFLOW:
            value = workflow.name if reference.name == "name" else workflow.environment or ""
        if value is None:
            raise _NotYetKnown
        return value

    known = {}
    for name, value in step.settings.items():
        try:
            known[name] = filled(value, value_of)
        except (_NotYetKnown, ValueError):
            continue
    return known
