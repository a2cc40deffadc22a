"""The folder of manifests: what it should hold, written, or compared with what it does.

deploy/dev/workflow-template.yaml, service-account.yaml, ...     an environment, for `kubectl apply -f deploy/dev`
deploy/argocd/dev.yaml                                           its Application, if there is a repository
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from shardkit.errors import PipelineError
from shardkit.workflows.document import CALENDAR, WEBHOOK
from shardkit.workflows.kubernetes.accounts import starter_account, step_account
from shardkit.workflows.kubernetes.calendar import cron_workflow
from shardkit.workflows.kubernetes.gitops import HOME, application, repository_of
from shardkit.workflows.kubernetes.references import problems_in
from shardkit.workflows.kubernetes.template import workflow_manifests
from shardkit.workflows.kubernetes.webhook import webhook_manifests

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.kubernetes.names import Manifest

NO_ENVIRONMENT = "default"  # the folder of a workflow without environments
DIFF_LINES = 40


@dataclass(frozen=True)
class Drift:
    """A file that is not as the workflow's file says: how, in a word, and the lines that differ."""

    file: Path
    how: str
    diff: str = ""


def manifests_of(workflow: Workflow, leave_out: Iterable[str] = ()) -> list[Manifest]:
    """All manifests of one environment; the workflow is as it is there.

    Raises:
        PipelineError: something in it cannot be had on a cluster.
    """
    manifests = [*step_account(workflow), *workflow_manifests(workflow, leave_out)]
    if workflow.mode == CALENDAR:
        manifests.append(cron_workflow(workflow))
    if workflow.mode == WEBHOOK:
        manifests += [*starter_account(workflow), *webhook_manifests(workflow)]
    if problems := problems_in(manifests):
        raise PipelineError("The manifests do not fit together: " + "; ".join(problems))
    return manifests


def files_of(
    workflow: Workflow, output: Path, environments: Iterable[str | None], repository: str | None
) -> dict[Path, str]:
    """The files that ``output`` should hold for these environments, by their paths.

    Raises:
        PipelineError: something in the workflow cannot be had on a cluster.
    """
    files = {}
    for environment in environments:
        merged, name = workflow.of_environment(environment), environment or NO_ENVIRONMENT
        leave_out = [str(output), *([merged.output] if merged.output else [])]
        for file, manifest in named(manifests_of(merged, leave_out)).items():
            files[output / name / file] = as_text(manifest, workflow.name)
        place = output / HOME / f"{name}.yaml"
        known = repository or repository_of(place)
        if known:
            files[place] = as_text(application(merged, name, output / name, known), workflow.name)
    return files


def named(manifests: Iterable[Manifest]) -> dict[str, Manifest]:
    """Manifests by the names of their files: the kind, and the rest of the name where there are several."""
    files: dict[str, Manifest] = {}
    for manifest in manifests:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", manifest["kind"]).lower()
        name = manifest["metadata"]["name"]
        code = re.fullmatch(r"(?P<step>.+)-code-[0-9a-f]{10}", name)
        short = f"{kind}-{code['step']}" if code else kind
        files[f"{short}.yaml" if f"{short}.yaml" not in files else f"{short}-{name}.yaml"] = manifest
    return files


class ManifestDumper(yaml.SafeDumper):
    """Writes every list and mapping in full, without anchors, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is shared."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


ManifestDumper.add_representer(str, _text)


def head_of(workflow: str) -> str:
    """The first line of all files that are written for a workflow of that name."""
    return f"# Written by shardkit for the workflow {workflow}: change the workflow's file, and write it again.\n"


def as_text(manifest: Mapping[str, Any], workflow: str) -> str:
    """A manifest as YAML, for a workflow of that name."""
    return head_of(workflow) + yaml.dump(
        manifest, Dumper=ManifestDumper, sort_keys=False, width=120, allow_unicode=True
    )


def write(files: Mapping[Path, str], workflow: str, home: Path | None = None) -> list[Path]:
    """Write the files, and remove others that were written for the ``workflow`` of that name; returns these.

    They are looked for beside the files and, with ``home``, in all folders in that: an environment may be gone.

    Raises:
        PipelineError: one cannot be written.
    """
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text("utf-8") != text:
                path.write_text(text, "utf-8")
        stale = [path for path in _others(files, workflow, home) if _is_of(path, workflow)]
        for path in stale:
            path.unlink()
    except OSError as error:
        raise PipelineError(f"The manifests cannot be written: {error}.") from error
    return stale


def drift(files: Mapping[Path, str], workflow: str, home: Path | None = None) -> list[Drift]:
    """How the folder differs from the files that it should hold; the arguments are as for `write`."""
    drifts = []
    for path, text in files.items():
        if not path.is_file():
            drifts.append(Drift(path, "is missing"))
            continue
        there = path.read_text("utf-8", errors="replace")
        if there != text:
            lines = difflib.unified_diff(there.splitlines(), text.splitlines(), "there", "should be", lineterm="", n=1)
            drifts.append(Drift(path, "differs", "\n".join(list(lines)[:DIFF_LINES])))
    return drifts + [Drift(path, "is not of this workflow") for path in _others(files, workflow, home)]


def _others(files: Mapping[Path, str], workflow: str, home: Path | None) -> list[Path]:
    """Other YAML files: all in the folders of the environments, and in the rest of ``home`` those of the workflow."""
    folders = {path.parent for path in files if path.parent.name != HOME}
    others = {path for folder in folders for path in folder.glob("*.yaml")}
    others |= {path for path in home.glob("*/*.yaml") if _is_of(path, workflow)} if home is not None else set()
    return sorted(others - set(files))


def _is_of(path: Path, workflow: str) -> bool:
    """Whether a file was written for the workflow of that name."""
    return path.read_text("utf-8", errors="replace").startswith(head_of(workflow))
