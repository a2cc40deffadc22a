"""What only a run knows, in Argo's words: its name, its day, its parameters."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from shardkit.workflows.expressions import VARIABLES, Reference, parse
from shardkit.workflows.resolve import Facts

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow

RUN_NAME = "{{workflow.name}}"
DAY = "-".join(f"{{{{workflow.creationTimestamp.{letter}}}}}" for letter in "Ymd")  # UTC
_TAG = re.compile(r"\{\{.*?\}\}")


def argo_facts(workflow: Workflow) -> Facts:
    """The facts of a run, as tags that Argo fills in when the run has begun."""
    return Facts(RUN_NAME, DAY, {name: f"{{{{workflow.parameters.{name}}}}}" for name in workflow.params})


def fixed_text(workflow: Workflow, text: str) -> str:
    """A text that names nothing but the environment's variables and the workflow, as an image does."""

    def value_of(reference: Reference) -> str:
        if reference.kind == VARIABLES:
            return workflow.variables[reference.name]
        return workflow.name if reference.name == "name" else workflow.environment or ""

    return parse(text).filled(value_of)


def setting_words(name: str, value: Any) -> list[str]:
    """The words that set a field of a pipeline on the command line, which reads the value as YAML."""
    if isinstance(value, str) and not _TAG.search(value) and _is_plain(value):
        return ["--set", f"{name}={value}"]
    return ["--set", f"{name}={json.dumps(value, ensure_ascii=False)}"]


def _is_plain(text: str) -> bool:
    """Whether a text is itself when it is read as YAML."""
    try:
        return bool(yaml.safe_load(text) == text)
    except yaml.YAMLError:
        return False
