"""Expressions in a workflow's texts: ``{{steps.features.output}}``.

    {{params.NAME}}             a parameter of the run
    {{variables.NAME}}          a variable of the environment
    {{steps.NAME.output}}       where an earlier step has put what it made
    {{workflow.name}}           {{workflow.environment}}
    {{run.id}}                  {{run.date}}, the day on which the run began, such as 2026-01-31

That is the whole grammar: names and dots, no operators, no calls. A text is parsed when the file is read, and filled in
once: what is put in place of an expression is never looked at again, so that a parameter cannot bring an expression.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PARAMS, VARIABLES, STEPS, WORKFLOW, RUN = "params", "variables", "steps", "workflow", "run"
_EXPRESSION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_NAMES = re.compile(r"\s*([A-Za-z_][\w-]*(?:\.[A-Za-z0-9_][\w-]*)*)\s*", re.ASCII)
# What may follow each first name; None for any one name.
_SHAPES: dict[str, tuple[str, ...] | None] = {
    PARAMS: None,
    VARIABLES: None,
    STEPS: None,
    WORKFLOW: ("name", "environment"),
    RUN: ("id", "date"),
}
_FORMS = "{{params.NAME}}, {{variables.NAME}}, {{steps.NAME.output}}, {{workflow.name}} or {{run.id}}"


@dataclass(frozen=True)
class Reference:
    """One expression: what kind of value it names, and which.

    Args:
        kind: ``params``, ``variables``, ``steps``, ``workflow`` or ``run``.
        name: The name of the parameter, variable or step; of ``workflow`` and ``run`` what of them is meant.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{{{{{self.kind}.{self.name}{'.output' if self.kind == STEPS else ''}}}}}"


@dataclass(frozen=True)
class Template:
    """A text with expressions: plain texts and references, in their order."""

    parts: tuple[str | Reference, ...]

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references, in their order."""
        return tuple(part for part in self.parts if isinstance(part, Reference))

    def filled(self, value_of: Callable[[Reference], str]) -> str:
        """The text with a value in the place of each reference."""
        return "".join(part if isinstance(part, str) else value_of(part) for part in self.parts)


def parse(text: str) -> Template:
    """A text as a template.

    Raises:
        ValueError: an expression is none that there is; the message says what is expected.
    """
    parts: list[str | Reference] = []
    end = 0
    for match in _EXPRESSION.finditer(text):
        parts += [text[end : match.start()], _reference(match[1])]
        end = match.end()
    parts.append(text[end:])
    if any("{{" in part for part in parts if isinstance(part, str)):
        raise ValueError("{{ begins an expression, which ends with }}: the end is missing.")
    return Template(tuple(part for part in parts if part))


def has_expression(text: str) -> bool:
    """Whether a text has an expression, or what looks like the beginning of one."""
    return "{{" in text


def _reference(inner: str) -> Reference:
    shown = f"{{{{{inner[:60]}}}}}"
    names = _NAMES.fullmatch(inner)
    if names is None:
        raise ValueError(f"{shown} is no expression: expected {_FORMS}.")
    kind, *rest = names[1].split(".")
    if kind not in _SHAPES:
        near = difflib.get_close_matches(kind, _SHAPES, n=1)
        guess = f"did you mean {{{{{'.'.join([near[0], *rest])}}}}}?" if near else f"expected {_FORMS}."
        raise ValueError(f"{shown} is no expression: {guess}")
    if kind == STEPS:
        if len(rest) != 2 or rest[1] != "output":
            form = Reference(STEPS, rest[0] if rest else "NAME")
            raise ValueError(f"{shown}: what there is of a step is its output, {form}.")
        return Reference(kind, rest[0])
    words = _SHAPES[kind]
    if len(rest) != 1 or (words is not None and rest[0] not in words):
        forms = " or ".join(f"{{{{{kind}.{word}}}}}" for word in words or ("NAME",))
        raise ValueError(f"{shown} is no expression: expected {forms}.")
    return Reference(kind, rest[0])
