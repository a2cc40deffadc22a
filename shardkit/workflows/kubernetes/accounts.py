"""Who the pods are on the cluster, and what they may do there: report what a step gave, or begin a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.workflows.kubernetes.names import Manifest, metadata, namespace_of

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow

RBAC = "rbac.authorization.k8s.io"
STARTER = "starter"


def step_account(workflow: Workflow) -> list[Manifest]:
    """The account of the steps' pods: Argo's own container in them reports what a step gave, and may do nothing else.

    What it may do in AWS hangs on its name and namespace (`workflow cluster`), so that no manifest names a role.
    """
    rule = {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}
    return _account(workflow, workflow.name, rule)


def starter_account(workflow: Workflow) -> list[Manifest]:
    """The account of what answers the webhook, which may begin runs and nothing else."""
    rule = {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["create"]}
    return _account(workflow, starter_name(workflow), rule)


def starter_name(workflow: Workflow) -> str:
    """The name of the account that begins runs."""
    return f"{workflow.name}-{STARTER}"


def _account(workflow: Workflow, name: str, rule: dict[str, list[str]]) -> list[Manifest]:
    about = metadata(workflow, name)
    role = {"apiGroup": RBAC, "kind": "Role", "name": name}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace_of(workflow)}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": about, "rules": [rule]},
        {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": about, "roleRef": role, "subjects": [subject]},
    ]
