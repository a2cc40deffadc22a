"""Strict validation of manifests: a field that a kind does not have fails, as a misspelt one is.

The core kinds are those of the `kubernetes-validate` package; the schemas of Argo Workflows, Events and the Application
of Argo CD lie beside the repository, and where they do not, these kinds are not validated.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from schemas import without_grammar

without_grammar()
SCHEMAS = Path(os.environ.get("SHARDKIT_SCHEMAS", Path(__file__).parents[3] / "shared" / "data" / "schemas"))
WORKFLOWS, EVENTS, APPLICATION = "argo-workflows.schema.json", "argo-events.schema.json", "argo-cd-application-crd.yaml"
ARGO_KINDS = {
    "WorkflowTemplate": (WORKFLOWS, "io.argoproj.workflow.v1alpha1.WorkflowTemplate"),
    "CronWorkflow": (WORKFLOWS, "io.argoproj.workflow.v1alpha1.CronWorkflow"),
    "Workflow": (WORKFLOWS, "io.argoproj.workflow.v1alpha1.Workflow"),
    "EventBus": (EVENTS, "io.argoproj.events.v1alpha1.EventBus"),
    "EventSource": (EVENTS, "io.argoproj.events.v1alpha1.EventSource"),
    "Sensor": (EVENTS, "io.argoproj.events.v1alpha1.Sensor"),
    "Application": (APPLICATION, ""),
}
NUMBER_OR_TEXT = {"type": ["integer", "string"]}
NEEDED = pytest.mark.skipif(not (SCHEMAS / WORKFLOWS).is_file(), reason="the schemas of Argo are not here")


def closed(schema: Any) -> Any:
    """The schema, in which an object has the fields that are described and no others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(each) for name, each in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "additionalProperties" not in schema:
        made["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return made


@functools.cache
def _schema(file: str) -> dict[str, Any]:
    text = (SCHEMAS / file).read_text("utf-8")
    if file == APPLICATION:
        whole = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        made = closed(whole["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
        made["properties"]["metadata"] = {"type": "object"}
        return made
    definitions = closed(json.loads(text)["definitions"])
    for name in definitions:
        if name.endswith((".IntOrString", ".Int64OrString", ".Amount")):
            definitions[name] = NUMBER_OR_TEXT
        if name.endswith(".K8SResource"):  # any manifest, which is validated by itself
            definitions[name] = {"type": "object"}
    if file == EVENTS:  # which demands a webhook's url, although Argo's own examples have none
        for each in definitions.values():
            each["required"] = [name for name in each.get("required", ()) if name != "url"]
    return {"definitions": definitions}


@functools.cache
def _validator(kind: str) -> Any:
    file, name = ARGO_KINDS[kind]
    schema = _schema(file)
    whole = {**schema, "$ref": f"#/definitions/{name}"} if name else schema
    from jsonschema import Draft7Validator  # which takes a while, and all processes of a test run import this module

    return Draft7Validator(whole)


def problems(manifest: dict[str, Any]) -> list[str]:
    """What its schema says against a manifest."""
    if manifest["kind"] not in ARGO_KINDS:
        return _core_problems(manifest)
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in _validator(manifest["kind"]).iter_errors(manifest)
    ]
    if manifest["kind"] == "Sensor" and not found:
        for trigger in manifest["spec"]["triggers"]:
            found += problems(trigger["template"]["k8s"]["source"]["resource"])
    return found


def _core_problems(manifest: dict[str, Any]) -> list[str]:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    try:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [str(error)]
    return []
