"""A workflow from its YAML file, checked for each of its environments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from shardkit.errors import PipelineError
from shardkit.explain import explain
from shardkit.spec.yaml import anchor_paths, read_mapping
from shardkit.workflows.checks import problems_of, secrets_in
from shardkit.workflows.document import Workflow
from shardkit.workflows.problems import raise_for

if TYPE_CHECKING:
    import os


def read_workflow(path: str | os.PathLike[str]) -> Workflow:
    """Read a workflow from its YAML file, and check all that can be checked without running it.

    Raises:
        PipelineError: it cannot be read, or something in it will not do; the message has the line of each mistake.
    """
    file = Path(path)
    content, lines = read_mapping(
        file, what="workflow", fields="name:, steps:", hint="shardkit workflow init DIR writes one to begin with."
    )
    raise_for(secrets_in(content), file=file, lines=lines)  # before any error could show one
    anchor_paths(content, Workflow, file.resolve().parent)
    for each in (content, *_mappings(content.get("environments"))):
        for field, short in (("engine", "kind"), ("queue", "place")):
            if isinstance(each.get(field), str):
                each[field] = {short: each[field]}
    try:
        workflow = Workflow(**{str(name): value for name, value in content.items()})
    except ValidationError as error:
        raise PipelineError(explain(error, Workflow, file=str(file), lines=lines)) from None
    workflow._file, workflow._lines = file, lines  # noqa: SLF001  what `Workflow` keeps of how it was read
    raise_for(problems_of(workflow), file=file, lines=lines)
    return workflow


def _mappings(value: object) -> list[dict[str, object]]:
    return [each for each in value.values() if isinstance(each, dict)] if isinstance(value, dict) else []
