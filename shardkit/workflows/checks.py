"""What is wrong with a workflow although each of its fields is right by itself."""

from __future__ import annotations

import itertools
import os
import re
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError
from shardkit.masking import secret_places
from shardkit.workflows.document import CALENDAR, WEBHOOK
from shardkit.workflows.expressions import PARAMS, RUN, STEPS, VARIABLES, WORKFLOW, Template, parse
from shardkit.workflows.order import circle, needs
from shardkit.workflows.parts import texts_in
from shardkit.workflows.pipelines import known_settings, pipeline_of
from shardkit.workflows.problems import Place, Problem, near
from shardkit.workflows.values import secret_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Step

SHELLS = re.compile(r"(?:.*/)?(?:ba|da|k|z|a)?sh")
PROGRAMS = re.compile(r"(?:.*/)?(?:(?:ba|da|k|z|a)?sh|python[0-9.]*|perl|ruby|node)")
EVALUATED = {"-c", "-lc", "-ec", "-exc", "-xc", "-e"}


def secrets_in(content: Mapping[str, Any]) -> Iterator[Problem]:
    """Where the file's fields, not yet validated, hold secrets in clear; never what they are."""
    for place in secret_places(_without_references(content)):
        at = tuple(int(name) if name.isdigit() else name for name in place.split("."))
        name = at[-1] if isinstance(at[-1], str) and at[-1].isidentifier() else "NAME"
        yield Problem(
            at,
            f"this looks like a secret, and everybody may read the file: put it in a variable, and write env:{name}.",
        )


def _without_references(value: Any) -> Any:
    """Plain data without the texts that say where a secret is, or are filled in later."""
    if isinstance(value, dict):
        return {str(name): _without_references(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_references(each) for each in value]
    if isinstance(value, str) and (secret_name(value) or "{{" in value):
        return re.sub(r"env:\w+|\{\{.*?\}\}", "", value)
    return value


def problems_of(workflow: Workflow) -> Iterator[Problem]:
    """All that is wrong with a workflow, in any of its environments."""
    yield from _of_steps(workflow)
    for name in workflow.environments or [None]:
        says_mode = name is not None and "mode" in workflow.environments[name].model_fields_set
        yield from _of_environment(workflow.of_environment(name), ("environments", str(name)) if says_mode else ())


def _of_steps(workflow: Workflow) -> Iterator[Problem]:
    """What is wrong with the steps' names and order."""
    names = [step.name for step in workflow.steps]
    for i, step in enumerate(workflow.steps):
        at: Place = ("steps", i)
        if step.name in names[:i]:
            yield Problem((*at, "name"), f"there are two steps {step.name}.")
        for other in step.after:
            if other == step.name:
                yield Problem((*at, "after"), "a step cannot come after itself.")
            elif other not in names:
                rest = [name for name in names if name != step.name]
                yield Problem((*at, "after"), f"there is no step {other}; {near(other, rest)}")
        yield from _of_commands(step, at)
        yield from _of_file(workflow, step, at)
    if found := circle(workflow.steps):
        last = next(i for i, step in enumerate(workflow.steps) if step.name == found[0])
        way = " after ".join([*found, found[0]])
        yield Problem(("steps", last, "after"), f"these steps wait for each other: {way}. Take one of the after away.")


def _of_commands(step: Step, at: Place) -> Iterator[Problem]:
    """A parameter in a text that a shell evaluates is code from whoever gives the parameter."""
    for i, (option, text) in enumerate(itertools.pairwise(step.command)):
        program = next((word for word in reversed(step.command[: i + 1]) if PROGRAMS.fullmatch(word)), None)
        if program is None or option not in EVALUATED:
            continue
        outside = [each for each in parse(text).references if each.kind == PARAMS]
        if outside:
            cure = f"""{program} {option} 'echo "$1"' {program} "{outside[0]}\""""
            how = f"give it as a word of its own, as in {cure}" if SHELLS.fullmatch(program) else "give it in env"
            yield Problem(
                (*at, "command", i + 1), f"{program} would run what is in {outside[0]} as a program; {how}, or in env."
            )


def _of_file(workflow: Workflow, step: Step, at: Place) -> Iterator[Problem]:
    if step.pipeline is not None and not os.path.isfile(workflow.path(step.pipeline)):
        yield Problem(
            (*at, "pipeline"), f"there is no file {workflow.path(step.pipeline)}; paths count from the workflow's."
        )


def _of_environment(merged: Workflow, where: Place) -> Iterator[Problem]:
    """What is wrong in one environment; ``where`` is the place of what says its mode."""
    if merged.mode == CALENDAR and merged.calendar is None:
        yield Problem((*where, "mode"), "mode: calendar needs calendar: {schedule: '0 5 * * *'}, or {interval: 3h}.")
    if merged.mode == WEBHOOK and merged.webhook is None:
        yield Problem((*where, "mode"), "mode: webhook needs webhook: {port: 12000, token: env:NAME}.")
    if merged.queue is not None and merged.engine is None:
        yield Problem(("queue",), "only jobs of an engine go into a queue: set engine, too, or leave queue out.")
    for name, parameter in merged.params.items():
        if merged.mode == CALENDAR and parameter.default is None:
            yield Problem(("params", name), "a calendar gives no parameters, so that this one needs a default.")
    for at, text, kinds in _texts(merged):
        yield from _of_text(merged, at, parse(text), kinds)
    yield from _of_pipelines(merged)


# What each kind of text may name. Who calls a webhook gives parameters, and must not choose an image with them.
ALL = (PARAMS, VARIABLES, STEPS, WORKFLOW, RUN)
OUTPUT = (PARAMS, VARIABLES, WORKFLOW, RUN)
FIXED = (VARIABLES, WORKFLOW)
# Nor which code is run: a program, a function, where these are looked for.
CODE = (VARIABLES, STEPS, WORKFLOW, RUN)
CODE_FIELDS = {"function", "combine", "records", "source_dir", "requirements", "engine", "parallel", "queue"}
SEARCHED = re.compile(r"PATH|PYTHON\w+|LD_\w+|BASH_ENV|ENV|PERL5\w+|NODE_\w+")


def _texts(merged: Workflow) -> Iterator[tuple[Place, str, tuple[str, ...]]]:
    """The texts with expressions, each with its place and what it may name."""
    if merged.output is not None:
        yield ("output",), merged.output, OUTPUT
    if merged.image is not None:
        yield ("image",), merged.image, FIXED
    for i, step in enumerate(merged.steps):
        at = ("steps", i)
        if step.image is not None:
            yield (*at, "image"), step.image, FIXED
        if step.output is not None:
            yield (*at, "output"), step.output, OUTPUT
        for number, word in enumerate(step.command):
            yield (*at, "command", number), word, ALL if number else CODE
        for name, text in step.plain_env.items():
            yield (*at, "env", name), text, CODE if SEARCHED.fullmatch(name) else ALL
        for name, value in step.settings.items():
            for text in texts_in(value):
                yield (*at, "set", name), text, CODE if name.partition(".")[0] in CODE_FIELDS else ALL


def _of_text(merged: Workflow, at: Place, template: Template, kinds: tuple[str, ...]) -> Iterator[Problem]:
    where = f" in environment {merged.environment}" if merged.environment else ""
    for reference in template.references:
        if reference.kind not in kinds:
            yield Problem(at, f"{reference} has no place here, where {', '.join(kinds)} may stand.")
        elif reference.kind == PARAMS and reference.name not in merged.params:
            why = (
                near(reference.name, merged.params)
                if merged.params
                else f"write params: {{{reference.name}: DEFAULT}}."
            )
            yield Problem(at, f"{reference}: there is no parameter {reference.name}{where}; {why}")
        elif reference.kind == VARIABLES and reference.name not in merged.variables:
            yield Problem(
                at,
                f"{reference}: there is no variable {reference.name}{where}; {near(reference.name, merged.variables)}",
            )
        elif reference.kind == STEPS:
            yield from _of_step_reference(merged, at, reference.name)


def _of_step_reference(merged: Workflow, at: Place, name: str) -> Iterator[Problem]:
    step = merged.steps[int(at[1])]
    if name not in {each.name for each in merged.steps}:
        known = [each.name for each in merged.steps if each.name != step.name]
        yield Problem(at, f"{{{{steps.{name}.output}}}}: there is no step {name}; {near(name, known)}")
    elif name not in needs(merged.steps, step.name):
        yield Problem(at, f"{{{{steps.{name}.output}}}}: {step.name} does not come after {name}; write after: {name}.")


def _of_pipelines(merged: Workflow) -> Iterator[Problem]:
    """Pipelines that will not do with what is set in them, as far as that is known before a run."""
    for i, step in enumerate(merged.steps):
        if step.pipeline is None or not os.path.isfile(merged.path(step.pipeline)):
            continue
        try:
            pipeline_of(merged, step, known_settings(merged, step))
        except PipelineError as error:
            yield Problem(("steps", i, "set" if step.settings else "pipeline"), error.message)
