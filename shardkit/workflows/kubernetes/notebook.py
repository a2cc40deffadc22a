"""A notebook server in the namespace of an environment, with the account and so the rights of its steps.

Jupyter listens on the loopback interface of its pod alone, so that nothing else on the cluster reaches it, whatever
network policies there are: `kubectl port-forward` does. The token is in the Secret that the steps have, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.workflows.kubernetes.machines import resources
from shardkit.workflows.kubernetes.names import Manifest, labels_of, metadata, secret_ref
from shardkit.workflows.kubernetes.pods import OWN_CONTAINER, OWN_POD
from shardkit.workflows.parts import Resources

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow

HOME = "/home/work"
PORT = 8888
TOKEN = "JUPYTER_TOKEN"  # noqa: S105  the name of the variable, which Jupyter reads
USUAL_SIZE = "20Gi"
USUAL_NEEDS = Resources(cpu=2, memory="8Gi")


def notebook_manifests(workflow: Workflow, image: str, *, size: str = USUAL_SIZE) -> list[Manifest]:
    """The StatefulSet with its volume, and a Service without an address: only `kubectl port-forward` leads to it.

    Args:
        workflow: the workflow, as it is in its environment.
        image: one with shardkit and jupyterlab.
        size: that of the volume, which outlives the pod.

    Raises:
        PipelineError: the environment has no namespace.
    """
    name = f"{workflow.name}-notebook"
    about, labels = metadata(workflow, name), labels_of(workflow, "notebook")
    service: Manifest = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": about,
        "spec": {"clusterIP": "None", "selector": labels, "ports": [{"name": "http", "port": PORT}]},
    }
    claim: Manifest = {
        "metadata": {"name": "home"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }
    container: Manifest = {
        "name": "notebook",
        "image": image,
        "command": jupyter_command(),
        "env": [
            {"name": "HOME", "value": HOME},
            {"name": TOKEN, "valueFrom": {"secretKeyRef": secret_ref(workflow, TOKEN)}},
            *({"name": variable, "value": value} for variable, value in workflow.variables.items()),
        ],
        "resources": resources(USUAL_NEEDS),
        "volumeMounts": [{"name": "home", "mountPath": HOME}],
        "securityContext": dict(OWN_CONTAINER),
    }
    pod = {"serviceAccountName": workflow.name, "securityContext": dict(OWN_POD), "containers": [container]}
    spec: Manifest = {
        "serviceName": name,
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
        "volumeClaimTemplates": [claim],
    }
    return [service, {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": about, "spec": spec}]


def jupyter_command() -> list[str]:
    """The words that start Jupyter in the pod."""
    return [
        *("jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={PORT}"),
        *("--ServerApp.port_retries=0", f"--ServerApp.root_dir={HOME}"),
    ]
