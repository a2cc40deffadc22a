"""Errors of validation as sentences, with the field, its line, what is expected, and the nearest known name."""

from __future__ import annotations

import difflib
import functools
import json
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from shardkit.traits import Expected, Kinds, trait_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

ELSEWHERE = 0  # the line of a field that was not given in the file


def explain(
    error: ValidationError,
    kind: type[BaseModel],
    *,
    file: str | None = None,
    lines: dict[tuple[str | int, ...], int] | None = None,
) -> str:
    """A validation error as one sentence for each field."""
    line_of = lines or {}
    sentences: dict[tuple[str | int, ...], tuple[int, str]] = {}
    for problem in error.errors():
        at = _field_path(problem["loc"], kind)
        line = next((line_of[at[:i]] for i in range(len(at), 0, -1) if at[:i] in line_of), None)
        where = f"{file}, line {line}: " if line else "" if line == ELSEWHERE or not file else f"{file}: "
        sentences.setdefault(at, (line or 0, f"{where}{'.'.join(map(str, at))}: {_reason(problem, at, kind)}"))
    return "\n".join(text for _, text in sorted(sentences.values(), key=lambda item: item[0]))


def _field_path(loc: tuple[str | int, ...], kind: type[BaseModel]) -> tuple[str | int, ...]:
    """The location without the names that pydantic gives the members of a union."""
    path: list[str | int] = []
    model: Any = kind
    is_key = False
    for step in loc:
        fields = fields_of(model) if model is not None else {}
        if is_key:
            path.append(step)
            is_key = False
        elif step in fields:
            path.append(step)
            field = fields[str(step)]
            model = next(iter(models_of(field)), None)
            is_key = is_collection(field)
        elif model is not None and (not path or _is_model(model)):
            path.append(step)
            model = None
        elif isinstance(step, int):
            path.append(step)
    return tuple(path)


def is_collection(field: FieldInfo) -> bool:
    """Whether a field holds several values, by their numbers or names."""
    return any(get_origin(part) in {dict, tuple} for part in (field.annotation, *get_args(field.annotation)))


def members_of(field: FieldInfo, value: Any) -> list[dict[str, Any]]:
    """The mappings in the value of a field: those of its collection, else the value itself if it is one."""
    values: list[Any] = [value]
    if is_collection(field):
        values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [each for each in values if isinstance(each, dict)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def models_of(field: FieldInfo, value: Any = None) -> list[Any]:
    """The models that a field may hold, what they have in common first.

    With a ``value``, a mapping that has been given, these are only those that it may be of.
    """
    listed = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_model(kind)]
    kinds = trait_of(field, Kinds)
    if kinds is None:
        return listed
    if value is None:
        return listed + kinds.registry.loaded()
    name = value.get(kinds.field)
    kind = kinds.registry.find(name) if isinstance(name, str) else None
    return [kind] if kind is not None else []


@functools.lru_cache(maxsize=64)
def fields_of(model: Any) -> Mapping[str, FieldInfo]:
    """The fields of a model by the names that users give them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _expected(at: tuple[str | int, ...], kind: type[BaseModel]) -> str | None:
    """What the field at a path takes, in words, where it says so."""
    field = _field_at(at, kind)
    trait = trait_of(field, Expected) if field is not None else None
    return trait.text if trait is not None else None


def _field_at(at: tuple[str | int, ...], kind: type[BaseModel]) -> FieldInfo | None:
    """The field at a path; of a member of a collection, None."""
    field, models, is_key = None, [kind], False
    for step in at:
        if is_key:
            field, is_key = None, False
            continue
        field = next((fields[str(step)] for model in models if str(step) in (fields := fields_of(model))), None)
        if field is None:
            return None
        models, is_key = models_of(field), is_collection(field)
    return field


def _models_at(at: tuple[str | int, ...], kind: type[BaseModel]) -> list[Any]:
    """The models that the value at a path may be of."""
    models, is_key = [kind], False
    for step in at:
        if is_key:
            is_key = False
            continue
        field = next(fields[str(step)] for model in models if str(step) in (fields := fields_of(model)))
        models, is_key = models_of(field), is_collection(field)
    return models


def _reason(problem: Any, at: tuple[str | int, ...], kind: type[BaseModel]) -> str:
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        models = _models_at(at[:-1], kind)
        names = list(dict.fromkeys(name for model in models for name in fields_of(model)))
        return "this field is for another kind" if at[-1] in names else unknown_field(str(at[-1]), names)
    if problem["type"] == "missing":
        return "this field is missing"
    if problem["type"] == "literal_error":
        expected = problem["ctx"]["expected"]
        near = difflib.get_close_matches(
            str(given), [e.strip("' ") for e in expected.replace(" or ", ",").split(",")], n=1
        )
        guess = f"; did you mean {near[0]}?" if near else ""
        return f"expected {expected}, not {_shown(given)}{guess}"
    if problem["type"].endswith("too_short"):
        return "must not be empty"
    if problem["type"] != "value_error" and (expected := _expected(at, kind)) is not None:
        return f"expected {expected}, not {_shown(given)}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").split(", unable to parse")[0]
    return message if message.endswith((".", "?")) else f"{message[0].lower()}{message[1:]}, not {_shown(given)}"


def unknown_field(name: str, names: Sequence[str]) -> str:
    """The reason why a field is refused that does not exist."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known are {', '.join(names)}"


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[:80]
    except TypeError:
        return repr(value)[:80]
