"""Pipelines from YAML files, and from fields on the command line. What reads YAML is loaded where there is some."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from shardkit.errors import PipelineError
from shardkit.explain import ELSEWHERE, explain, fields_of, members_of, models_of
from shardkit.spec.sections import INSIDE_FIELDS
from shardkit.traits import IsPath, Short, fields_with, trait_of

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

S = TypeVar("S", bound="BaseModel")


Lines = dict[tuple[str | int, ...], int]


def read_mapping(path: Path, *, what: str, fields: str, hint: str) -> tuple[dict[str, Any], Lines]:
    """The fields of a YAML file, not validated, and the line of each by its path.

    ``what`` the file is, the first ``fields`` of one, and a ``hint`` for who has none are words for errors.

    Raises:
        PipelineError: it cannot be read, or is not YAML, or no mapping.
    """
    import yaml

    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PipelineError(f"Cannot read the {what} {path}: {reason}.", hint=hint) from None
    try:
        content = yaml.safe_load(text)
        lines = _lines(yaml.compose(text, yaml.SafeLoader), path)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise PipelineError(f"{path}{where}: this is not YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: a {what} is a mapping of fields, such as {fields}.")
    return content, lines


def load_yaml(kind: type[S], path: Path, overrides: dict[str, Any]) -> S:
    """Read and validate a YAML file.

    Raises:
        PipelineError: it cannot be read, is not YAML, or a field is unknown, mistyped or missing.
    """
    content, lines = read_mapping(
        path,
        what="pipeline",
        fields="input:, function:, output:",
        hint="shardkit init blank DIR writes one to begin with.",
    )
    content.setdefault("source_dir", ".")
    anchor_paths(content, kind, path.resolve().parent)
    for name, value in overrides.items():
        _override(content, kind, name, value)
        sections = tuple(name.split("."))
        lines |= {sections[:i]: ELSEWHERE for i in range(min(2, len(sections)), len(sections) + 1)}
    try:
        return kind(**{str(name): value for name, value in content.items()})
    except PipelineError as error:
        if not isinstance(error.__cause__, ValidationError):
            raise
        raise PipelineError(explain(error.__cause__, kind, file=str(path), lines=lines)) from None


def from_settings(kind: type[S], settings: dict[str, Any]) -> S:
    """A pipeline from fields by their dotted names.

    Raises:
        PipelineError: a field is unknown, mistyped or missing.
    """
    content: dict[str, Any] = {}
    for name, value in settings.items():
        _override(content, kind, name, value)
    return kind(**content)


def anchor_paths(content: dict[str, Any], kind: type[BaseModel], folder: Path) -> None:
    """Relative paths count from the YAML file's folder; so do modules, unless source_dir says otherwise."""
    for name, field in fields_of(kind).items():
        value = content.get(name)
        if isinstance(value, str | list | int | float) and (short := trait_of(field, Short)) is not None:
            value = content[name] = short.section(value)
        for each in members_of(field, value):
            for model in models_of(field, each):
                anchor_paths(each, model, folder)
        path = trait_of(field, IsPath)
        if path is not None and isinstance(value, str) and value and "://" not in value and value not in path.words:
            content[name] = str(folder / os.path.expanduser(value))


def _override(content: dict[str, Any], kind: type[BaseModel], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    home = content
    short = fields_with(kind, Short).get(name)
    if short is not None and isinstance(value, list):
        value = short.section(value)
    elif short is not None and (isinstance(value, str) or short.is_number(value)):
        sections, last = [name], short.field
    for section in sections:
        if not isinstance(given := home.get(section), dict):
            is_word = section == "records" and isinstance(given, str) and given in INSIDE_FIELDS
            home[section] = {"inside": given} if is_word else {}
        home = home[section]
    home[last] = value


def parse_setting(text: str) -> tuple[str, Any]:
    """``field=value`` from the command line; the value is read as YAML.

    Raises:
        PipelineError: it has no ``=``, or the value is not YAML.
    """
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise PipelineError(f"--set {text}: expected FIELD=VALUE, such as input.uri=data/ or timeout=60.")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        return name.strip(), value


def _lines(node: Any, file: Path, at: tuple[str | int, ...] = ()) -> Lines:
    """The line of each field, by its path.

    Raises:
        PipelineError: a field is given twice.
    """
    import yaml

    lines: Lines = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, key.value)
            line = key.start_mark.line + 1
            if here in lines and key.value != "<<":
                raise PipelineError(f"{file}, line {line}: {'.'.join(map(str, here))}: this field is given twice.")
            lines[here] = line
            lines.update(_lines(value, file, here))
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            here = (*at, i)
            lines[here] = item.start_mark.line + 1
            lines.update(_lines(item, file, here))
    return lines
