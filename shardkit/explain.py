"""Errors of validation as sentences, with the field, its line, what is expected, and the nearest known name."""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from shardkit.traits import Kinds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

ELSEWHERE = 0  # the line of a field that was not given in the file
# What fields expect that take several kinds of values; pydantic names only the first kind.
EXPECTED = {
    "anonymous": "true or false",
    "catalog": "a mapping such as {glue: {database: features, table: ads}}",
    "columns": "a mapping of columns to types",
    "combine": "module:callable, or a function",
    "exclude": "a glob or a list of globs",
    "function": "module:callable, or a function",
    "glue": "a mapping with its database and table",
    "input": "a folder, or a mapping with its uri",
    "max_failures": "a count such as 10, or a share such as 1%",
    "output": "a folder, or a mapping with its uri",
    "partition_by": "a column or a list of columns",
    "pattern": "a glob or a list of globs",
    "queue": "dynamodb, dynamodb://TABLE, or a mapping with its place",
    "records": "file, stem, directory, or module:callable",
    "requester_pays": "true or false",
    "schedule": "a time such as 3h, a cron expression, or a mapping such as {every: 3h, since: 2d}",
    "schema": "a mapping of columns to types",
    "shards": "a mapping such as {by: directory, depth: 1}",
    "widen_ints": "true or false",
    "workers": "'auto' or a number of 1 or more",
}


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
        fields = _fields(model) if model is not None else {}
        if step in fields:
            path.append(step)
            field = fields[str(step)]
            model = next(iter(_models_of(field)), None)
            is_key = any(get_origin(part) is dict for part in get_args(field.annotation))
        elif is_key:
            path.append(step)
            is_key = False
        elif model is not None and (not path or _is_model(model)):
            path.append(step)
            model = None
        elif isinstance(step, int):
            path.append(step)
    return tuple(path)


def _fields(model: Any) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _models_of(field: FieldInfo) -> list[Any]:
    """The models that a field may hold, what they have in common first."""
    listed = [kind for kind in (field.annotation, *get_args(field.annotation)) if _is_model(kind)]
    return listed + [kind for trait in field.metadata if isinstance(trait, Kinds) for kind in trait.registry.loaded()]


def _reason(problem: Any, at: tuple[str | int, ...], kind: type[BaseModel]) -> str:
    given = problem.get("input")
    if problem["type"] == "extra_forbidden":
        models: list[Any] = [kind]
        for step in at[:-1]:
            models = _models_of(_fields(models[0])[str(step)])
        known = list(dict.fromkeys(name for model in models for name in _fields(model)))
        return "this field is for another kind" if at[-1] in known else unknown_field(str(at[-1]), known)
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
    if at[-1] in EXPECTED and problem["type"] != "value_error":
        return f"expected {EXPECTED[str(at[-1])]}, not {_shown(given)}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ").split(", unable to parse")[0]
    return message if message.endswith((".", "?")) else f"{message[0].lower()}{message[1:]}, not {_shown(given)}"


def unknown_field(name: str, known: Sequence[str]) -> str:
    """The reason why a field is refused that does not exist."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known are {', '.join(known)}"


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)[:80]
    except TypeError:
        return repr(value)[:80]
