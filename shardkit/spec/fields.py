"""What follows from the traits of a pipeline's fields: their flat names, and what of them holds anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.explain import fields_of, models_of
from shardkit.functions import name_of
from shardkit.storage.base import absolute_uri, is_remote
from shardkit.traits import Flat, IsPath, Short, fields_with, trait_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


def flat_fields(spec: type[BaseModel]) -> dict[str, str]:
    """The fields of sections that may be given without their section's name; and that name."""
    fields, shorts = fields_of(spec), fields_with(spec, Short)
    return {
        name: section
        for section in fields_with(spec, Flat)
        for model in models_of(fields[section])
        for name in fields_of(model)
        if name not in {shorts[section].field, shorts[section].several}
    }


def dotted_names(spec: type[BaseModel]) -> dict[str, str]:
    """What options and arguments without a dot in their names stand for, where they are fields of a section."""
    sections = {name: f"{name}.{short.field}" for name, short in fields_with(spec, Short).items()}
    flat = {name: f"{section}.{name}" for name, section in flat_fields(spec).items()}
    return flat | {name: sections[name] for name in fields_with(spec, Flat)}


def plain_data(content: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a model as any process may read them: paths are absolute, functions names, and tuples lists."""
    fields = fields_of(model)
    return {name: _plain(value, fields[name]) for name, value in content.items()}


def _plain(value: Any, field: FieldInfo) -> Any:
    if isinstance(value, tuple | list):
        model = next(iter(models_of(field)), None)
        return [plain_data(each, model) if model is not None and isinstance(each, dict) else each for each in value]
    if isinstance(value, dict):
        model = next(iter(models_of(field, value)), None)
        return plain_data(value, model) if model is not None else value
    path = trait_of(field, IsPath)
    if path is not None and isinstance(value, str) and value not in path.words:
        return _absolute(value) if value else None
    return name_of_function(value) if callable(value) else value


def _absolute(path: str) -> str:
    """A path or URI as a process in another folder may read it."""
    is_place = is_remote(path) or path.startswith("file://") or "://" not in path
    return absolute_uri(path) if is_place else path


def name_of_function(function: str | Callable[..., Any]) -> str:
    """A function that is given by its name, or itself, by its name."""
    return function if isinstance(function, str) else name_of(function)
