"""The Application of Argo CD for an environment: what is in its folder of the repository is what the cluster has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from shardkit.errors import PipelineError
from shardkit.workflows.kubernetes.names import ARGO, Manifest, labels_of, namespace_of

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.workflows.document import Workflow

HOME = "argocd"  # the namespace of Argo CD, and the folder of the Applications
_USER = re.compile(r"^[a-z+]+://[^/@]*:[^/@]*@")


def application(workflow: Workflow, environment: str, folder: Path, repository: str) -> Manifest:
    """The Application that keeps a cluster at what ``folder`` holds in the branch that ``repository`` has by default.

    Raises:
        PipelineError: the repository's URL has a password.
    """
    if _USER.match(repository):
        raise PipelineError(
            "--repository: the URL has a password, and everybody who sees the manifest would see it.",
            hint="Give it without; Argo CD has credentials of its own for repositories.",
        )
    spec: Manifest = {
        "project": "default",
        "source": {"repoURL": repository, "targetRevision": "HEAD", "path": _path_in_repository(folder)},
        "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace_of(workflow)},
        "syncPolicy": {
            "automated": {"prune": True, "selfHeal": True},
            "syncOptions": ["CreateNamespace=true", "ApplyOutOfSyncOnly=true"],
        },
    }
    about = {"name": f"{workflow.name}-{environment}", "namespace": HOME, "labels": labels_of(workflow)}
    return {"apiVersion": ARGO, "kind": "Application", "metadata": about, "spec": spec}


def repository_of(file: Path) -> str | None:
    """The repository that an Application names which has been written already."""
    try:
        content: Any = yaml.safe_load(file.read_text("utf-8"))
        return str(content["spec"]["source"]["repoURL"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None


def _path_in_repository(folder: Path) -> str:
    """The folder as seen from the root of its repository; without one, as it was given."""
    whole = folder.resolve()
    root = next((parent for parent in whole.parents if (parent / ".git").exists()), None)
    return whole.relative_to(root).as_posix() if root is not None else folder.as_posix().strip("/")
