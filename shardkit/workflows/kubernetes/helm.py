"""The same manifests as a Helm chart: ``values.yaml`` is the one file in which environments differ.

    Chart.yaml
    values.yaml                                  environment: dev; of each its namespace, images, variables, schedule
    templates/dev-workflow-template.yaml ...     rendered if that environment is chosen

The manifests are made with a mark in the place of each such value. In a template a mark becomes an expression of
Helm's, and the braces of Argo's own expressions are escaped.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from shardkit._version import __version__
from shardkit.workflows.kubernetes.folder import NO_ENVIRONMENT, ManifestDumper, as_text, head_of, manifests_of, named
from shardkit.workflows.kubernetes.names import namespace_of

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.kubernetes.names import Manifest

CHART_VERSION = "0.1.0"
_MARK = re.compile(r"HELM(\d+)MARK")
_SCHEME = re.compile(r"[a-z][a-z0-9]*://")
ONE_LINE = 100_000


class Marks:
    """The values of one environment, each of which gets a mark in the manifests."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._expressions: list[str] = []

    def mark(self, value: str, *path: str) -> str:
        """Note a value under a path; returns its mark. That of a URI is one, too."""
        home = self.values
        for name in path[:-1]:
            home = home.setdefault(name, {})
        home[path[-1]] = value
        scheme = found[0] if (found := _SCHEME.match(value)) else ""
        place = f"index $env {' '.join(json.dumps(name) for name in path)}"
        self._expressions.append(
            f"{{{{ {place} | trimPrefix {json.dumps(scheme)} | toJson | trimAll {json.dumps(chr(34))} }}}}"
        )
        return f"{scheme}HELM{len(self._expressions) - 1}MARK"

    def filled(self, text: str) -> str:
        """A manifest's text with Helm's expressions in the place of the marks."""
        escaped = text.replace("{{", '{{ "{{" }}')
        return _MARK.sub(lambda match: self._expressions[int(match[1])], escaped)


class _Dumper(ManifestDumper):
    """Quotes each text with a mark, as its value may be anything."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if _MARK.search(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def chart_files(workflow: Workflow, home: Path) -> dict[Path, str]:
    """The files of the chart in a folder, by their paths.

    Raises:
        PipelineError: something in the workflow cannot be had on a cluster.
    """
    files: dict[Path, str] = {}
    environments: dict[str, Any] = {}
    names: list[str | None] = [*workflow.environments]
    for environment in names or [None]:
        name, marks = environment or NO_ENVIRONMENT, Marks()
        merged = workflow.of_environment(environment)
        leave_out = [str(home), *([merged.output] if merged.output else [])]
        manifests = manifests_of(_marked(merged, marks), leave_out)
        for manifest in manifests:
            _mark_times(manifest, marks)
        for file, manifest in named(manifests).items():
            files[home / "templates" / f"{name}-{file}"] = _template(manifest, name, marks, head_of(workflow.name))
        environments[name] = marks.values
    first = next(iter(environments))
    values = as_text({"environment": first, "environments": environments}, workflow.name)
    chart = {
        "apiVersion": "v2",
        "name": workflow.name,
        "description": f"The workflow {workflow.name} on Kubernetes with Argo",
        "type": "application",
        "version": CHART_VERSION,
        "appVersion": __version__,
    }
    return {home / "Chart.yaml": as_text(chart, workflow.name), home / "values.yaml": values, **files}


def _marked(merged: Workflow, marks: Marks) -> Workflow:
    """The workflow with marks in the place of what `values.yaml` says."""
    steps = tuple(
        step.model_copy(update={"image": marks.mark(step.image, "images", step.name)})
        if step.image is not None and "{{" not in step.image
        else step
        for step in merged.steps
    )
    own = {
        "namespace": marks.mark(namespace_of(merged), "namespace"),
        "variables": {name: marks.mark(value, "variables", name) for name, value in merged.variables.items()},
        "steps": steps,
    }
    if merged.image is not None and "{{" not in merged.image:
        own["image"] = marks.mark(merged.image, "image")
    copied = merged.model_copy(update=own)
    copied._environment = merged.environment  # noqa: SLF001  another of the same class
    return copied


def _mark_times(manifest: Manifest, marks: Marks) -> None:
    """Put marks in the place of a calendar's times, which are checked before."""
    if manifest["kind"] == "CronWorkflow":
        spec = manifest["spec"]
        spec["schedules"] = [marks.mark(spec["schedules"][0], "schedule")]
        spec["timezone"] = marks.mark(spec["timezone"], "zone")


def _template(manifest: Manifest, environment: str, marks: Marks, head: str) -> str:
    text = marks.filled(yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=ONE_LINE, allow_unicode=True))
    chosen = json.dumps(environment)
    return (
        f"{head}{{{{- $env := index .Values.environments {chosen} }}}}\n"
        f"{{{{- if eq .Values.environment {chosen} }}}}\n{text}{{{{- end }}}}\n"
    )
