"""The webhook: an EventSource that takes calls, and a Sensor that begins a run for each.

    POST --> EventSource --> EventBus --> Sensor --> Workflow, of the WorkflowTemplate

The EventSource compares the token of each call (``Authorization: Bearer ...``) with the one in the Secret. Its Service
is reached within the cluster only; what lets calls in from outside, with TLS, is an Ingress of the cluster's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.errors import PipelineError
from shardkit.workflows.kubernetes.accounts import starter_name
from shardkit.workflows.kubernetes.names import ARGO, Manifest, labels_of, metadata, namespace_of, secret_ref

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow

BUS = "default"  # one for all workflows of a namespace
JETSTREAM = "2.14.4"  # the controller's configuration has to know it: `workflow cluster` writes it there
EVENT, CALL, BEGIN = "run", "call", "begin"


def webhook_manifests(workflow: Workflow) -> list[Manifest]:
    """What an environment whose mode is webhook needs: EventBus, EventSource and Sensor."""
    return [_bus(workflow), _source(workflow), _sensor(workflow)]


def _bus(workflow: Workflow) -> Manifest:
    about = {**metadata(workflow, BUS), "labels": {"app.kubernetes.io/managed-by": "shardkit"}}
    return {
        "apiVersion": ARGO,
        "kind": "EventBus",
        "metadata": about,
        "spec": {"jetstream": {"version": JETSTREAM, "replicas": 3}},
    }


def _source(workflow: Workflow) -> Manifest:
    webhook = workflow.webhook
    if webhook is None:  # which the checks of the file have seen to
        raise PipelineError(f"{workflow.file}: mode: webhook needs webhook:.")
    if not webhook.port:
        raise PipelineError(f"{workflow.file}: webhook.port: a Service needs a port.", hint="Write one, such as 12000.")
    call = {
        "port": str(webhook.port),
        "endpoint": webhook.path,
        "method": "POST",
        "maxPayloadSize": webhook.max_body,
        "authSecret": secret_ref(workflow, webhook.token_name),
    }
    spec: Manifest = {
        "eventBusName": BUS,
        "service": {"ports": [{"port": webhook.port, "targetPort": webhook.port}]},
        "template": {"metadata": {"labels": labels_of(workflow, "webhook")}},
        "webhook": {EVENT: call},
    }
    return {"apiVersion": ARGO, "kind": "EventSource", "metadata": metadata(workflow), "spec": spec}


def _sensor(workflow: Workflow) -> Manifest:
    begun: Manifest = {
        "apiVersion": ARGO,
        "kind": "Workflow",
        "metadata": {
            "generateName": f"{workflow.name}-",
            "namespace": namespace_of(workflow),
            "labels": labels_of(workflow),
        },
        "spec": {"workflowTemplateRef": {"name": workflow.name}},
    }
    trigger: Manifest = {"operation": "create", "source": {"resource": begun}}
    if workflow.params:
        given = [{"name": name, "value": parameter.default or ""} for name, parameter in workflow.params.items()]
        begun["spec"]["arguments"] = {"parameters": given}
        trigger["parameters"] = [
            {
                "src": {"dependencyName": CALL, "dataKey": f"body.{name}"}
                | ({"value": parameter.default} if parameter.default is not None else {}),
                "dest": f"spec.arguments.parameters.{number}.value",
            }
            for number, (name, parameter) in enumerate(workflow.params.items())
        ]
    spec: Manifest = {
        "eventBusName": BUS,
        "template": {"serviceAccountName": starter_name(workflow)},
        "dependencies": [{"name": CALL, "eventSourceName": workflow.name, "eventName": EVENT}],
        "triggers": [{"template": {"name": BEGIN, "k8s": trigger}, "retryStrategy": {"steps": 3}}],
    }
    return {"apiVersion": ARGO, "kind": "Sensor", "metadata": metadata(workflow), "spec": spec}
