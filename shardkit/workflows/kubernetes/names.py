"""What the manifests of a workflow have in common: names, labels, and the places inside a pod."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow

ARGO = "argoproj.io/v1alpha1"
CODE_FOLDER = "/code"  # a pipeline and its functions
SCRATCH = "/scratch"  # the pod's own volume, for temporary files
OUTPUTS = f"{SCRATCH}/outputs"  # where a step writes what later steps need to know
USER = 1000  # shardkit's own containers run as this user and group

Manifest = dict[str, Any]


def namespace_of(workflow: Workflow) -> str:
    """The namespace of an environment.

    Raises:
        PipelineError: it has none.
    """
    if workflow.namespace is None:
        where = f"environments.{workflow.environment}" if workflow.environment else "The workflow"
        raise PipelineError(
            f"{workflow.file}: {where} has no namespace.", hint="Write namespace: NAME, that of its own on the cluster."
        )
    return workflow.namespace


def labels_of(workflow: Workflow, component: str | None = None) -> dict[str, str]:
    """The labels of a manifest, or of the pods of one step."""
    labels = {"app.kubernetes.io/name": workflow.name, "app.kubernetes.io/managed-by": "shardkit"}
    return labels | ({"app.kubernetes.io/component": component} if component else {})


def metadata(workflow: Workflow, name: str | None = None) -> dict[str, Any]:
    """The metadata of a manifest: its name (that of the workflow by default), namespace and labels."""
    return {"name": name or workflow.name, "namespace": namespace_of(workflow), "labels": labels_of(workflow)}


def secret_ref(workflow: Workflow, variable: str) -> dict[str, str]:
    """Where the value of a secret variable is: the Secret that has the workflow's name, which no manifest holds."""
    return {"name": workflow.name, "key": variable}
