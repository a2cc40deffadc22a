"""The pipelines of a workflow's steps, with what the workflow sets in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.explain import fields_of, models_of
from shardkit.spec.fields import dotted_names
from shardkit.spec.spec import Spec
from shardkit.traits import IsPath, Short, trait_of
from shardkit.workflows.expressions import PARAMS, VARIABLES, WORKFLOW, Reference, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Step


def pipeline_of(workflow: Workflow, step: Step, settings: Mapping[str, Any]) -> Spec:
    """The pipeline of a step, with these fields in place of its own, as `filled_settings` gives them.

    Raises:
        PipelineError: it cannot be read, or a field will not do.
    """
    return Spec.from_yaml(workflow.path(str(step.pipeline)), overrides=settings)


def filled_settings(workflow: Workflow, step: Step, value_of: Callable[[Reference], str]) -> dict[str, Any]:
    """What is set in a step's pipeline, by dotted names: expressions are filled in, and paths absolute."""
    names = dotted_names(Spec)
    settings = {}
    for given, value in step.settings.items():
        name = names.get(given, given)
        text = filled(value, value_of)
        settings[name] = workflow.path(text) if isinstance(text, str) and _is_path(name) else text
    return settings


def filled(value: Any, value_of: Callable[[Reference], str]) -> Any:
    """Plain data, the expressions in its texts filled in."""
    if isinstance(value, str):
        return parse(value).filled(value_of)
    if isinstance(value, dict):
        return {name: filled(each, value_of) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, value_of) for each in value]
    return value


def _is_path(name: str) -> bool:
    """Whether a field of a pipeline, by its dotted name, is a path."""
    models: list[Any] = [Spec]
    field = None
    for part in name.split("."):
        field = next((fields[part] for model in models if part in (fields := fields_of(model))), None)
        if field is None:
            return False
        models = models_of(field)
    if field is not None and (short := trait_of(field, Short)) is not None:
        return _is_path(f"{name}.{short.field}")
    return field is not None and trait_of(field, IsPath) is not None


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

    known: dict[str, Any] = {}
    for name, value in step.settings.items():
        try:
            one = step.model_copy(update={"settings": {name: value}})
            known |= filled_settings(workflow, one, value_of)
        except _NotYetKnown:
            continue
    return known
