"""What a fresh cluster needs for a workflow: nodes, the role for S3, and Argo at pinned versions.

    cluster.yaml                          for `eksctl create cluster`, or for `kind create cluster`
    argo-workflows.yaml, argo-events.yaml, argo-cd.yaml     values of the official charts
    install.sh                            the commands, in their order

No cluster was there to try them on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.workflows.kubernetes.folder import as_text
from shardkit.workflows.kubernetes.install import CHARTS, Place, script
from shardkit.workflows.kubernetes.machines import GPU, INSTANCE_TYPE, SPOT_LABELS, SPOT_TAINT
from shardkit.workflows.kubernetes.names import Manifest, namespace_of
from shardkit.workflows.kubernetes.webhook import JETSTREAM
from shardkit.workflows.kubernetes.words import argo_facts
from shardkit.workflows.resolve import resolve, secret_variables

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.workflows.document import Workflow

USUAL_TYPE = "m5.xlarge"
OWN_NODES = {"instanceType": "t3.large", "desiredCapacity": 2, "minSize": 2, "maxSize": 3}  # of Argo itself
MOST_NODES = 20
ADDONS = ("eks-pod-identity-agent", "aws-ebs-csi-driver", "vpc-cni", "coredns", "kube-proxy")
OBJECT_ACTIONS = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]


@dataclass(frozen=True, order=True)
class NodeGroup:
    """Nodes of one kind: their instance type, whether they are spot instances, and what an hour may cost."""

    instance_type: str
    spot: bool
    spot_price: float | None
    gpu: bool

    @property
    def name(self) -> str:
        """A name that a cluster takes."""
        return self.instance_type.replace(".", "-") + ("-spot" if self.spot else "")


def node_groups(workflows: list[Workflow]) -> list[NodeGroup]:
    """The kinds of nodes that the steps of all environments ask for."""
    groups = {
        NodeGroup(
            step.machines.instance_type or USUAL_TYPE,
            bool(step.machines.spot),
            step.machines.spot_price if step.machines.spot else None,
            bool(step.resources.gpu),
        )
        for workflow in workflows
        for step in workflow.steps
    }
    by_name: dict[str, NodeGroup] = {}
    for group in sorted(groups, key=lambda each: (each.name, each.spot_price or 0.0, each.gpu)):
        by_name[group.name] = group  # of the same kind, the dearer one that has GPUs
    return list(by_name.values())


def place_of(workflow: Workflow) -> Place:
    """What an environment has on the cluster."""
    buckets = set()
    for step in resolve(workflow, argo_facts(workflow)):
        uris = [step.output, *(step.pipeline.input.uris() if step.pipeline is not None else [])]
        buckets |= {uri.removeprefix("s3://").partition("/")[0] for uri in uris if uri.startswith("s3://")}
    return Place(namespace_of(workflow), tuple(sorted(buckets)), tuple(sorted(secret_variables(workflow))))


def cluster_files(workflow: Workflow, home: Path, *, kind: bool, region: str, bucket: str | None) -> dict[Path, str]:
    """The files for a fresh cluster that has room for all environments of a workflow, by their paths.

    Args:
        workflow: the workflow, with all its environments.
        home: the folder of the files.
        kind: a cluster of containers on one machine, instead of one in AWS.
        region: the region of AWS.
        bucket: where Argo keeps the logs of pods that are gone; without one they go with the pods.

    Raises:
        PipelineError: an environment has no namespace.
    """
    names: list[str | None] = [*workflow.environments]
    merged = [workflow.of_environment(name) for name in names or [None]]
    places, groups = [place_of(each) for each in merged], node_groups(merged)
    config = kind_config(workflow, groups) if kind else eks_config(workflow, groups, places, region, bucket)
    values = chart_values(None if kind else bucket, region)
    files = {home / f"{chart}.yaml": as_text(content, workflow.name) for chart, content in values.items()}
    return {
        home / "cluster.yaml": as_text(config, workflow.name),
        **files,
        home / "install.sh": script(workflow.name, places, kind=kind, with_values=set(values)),
    }


def chart_values(bucket: str | None, region: str) -> dict[str, Manifest]:
    """The values of the official charts, where their own defaults will not do."""
    events = {"configs": {"jetstream": {"versions": [_jetstream(JETSTREAM)]}}}
    values: dict[str, Manifest] = {"argo-events": events}
    if bucket is not None:
        store = {"bucket": bucket, "endpoint": f"s3.{region}.amazonaws.com", "region": region, "useSDKCreds": True}
        values["argo-workflows"] = {"artifactRepository": {"archiveLogs": True, "s3": store}}
    return {chart: values[chart] for chart in CHARTS if chart in values}


def _jetstream(version: str) -> dict[str, str]:
    return {
        "version": version,
        "natsImage": f"nats:{version}",
        "metricsExporterImage": "natsio/prometheus-nats-exporter:0.20.1",
        "configReloaderImage": "natsio/nats-server-config-reloader:0.23.0",
        "startCommand": "/nats-server",
    }


def eks_config(
    workflow: Workflow, groups: list[NodeGroup], places: list[Place], region: str, bucket: str | None
) -> Manifest:
    """The ClusterConfig for eksctl: nodes, and the role that each environment's account has in AWS."""
    own = {"name": "argo", **OWN_NODES, "volumeSize": 50}
    managed = [own, *(_managed(group) for group in groups if group.spot_price is None)]
    priced = [_priced(group) for group in groups if group.spot_price is not None]
    return {
        "apiVersion": "eksctl.io/v1alpha5",
        "kind": "ClusterConfig",
        "metadata": {"name": workflow.name, "region": region},
        "addons": [{"name": name} | _addon(name) for name in ADDONS],
        "addonsConfig": {"autoApplyPodIdentityAssociations": True},
        "iam": {
            "podIdentityAssociations": [
                _association(workflow, place, bucket) for place in places if place.buckets or bucket
            ]
        },
        "managedNodeGroups": managed,
        **({"nodeGroups": priced} if priced else {}),
    }


def _addon(name: str) -> dict[str, str]:
    """With a class of volumes that pods get if they name none."""
    return {"configurationValues": '{"defaultStorageClass": {"enabled": true}}'} if "ebs" in name else {}


def _association(workflow: Workflow, place: Place, bucket: str | None) -> Manifest:
    buckets = sorted({*place.buckets, *([bucket] if bucket else [])})
    statements: list[Manifest] = [
        {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{each}" for each in buckets]},
        {"Effect": "Allow", "Action": OBJECT_ACTIONS, "Resource": [f"arn:aws:s3:::{each}/*" for each in buckets]},
    ]
    return {
        "namespace": place.namespace,
        "serviceAccountName": workflow.name,
        "createServiceAccount": False,
        "permissionPolicy": {"Version": "2012-10-17", "Statement": statements},
    }


def _node_group(group: NodeGroup) -> Manifest:
    common: Manifest = {
        "name": group.name,
        "minSize": 0,
        "desiredCapacity": 1,
        "maxSize": MOST_NODES,
        "volumeSize": 100,
    }
    taints = [dict(SPOT_TAINT)] if group.spot else []
    taints += [{"key": GPU, "value": "true", "effect": "NoSchedule"}] if group.gpu else []
    return common | ({"taints": taints} if taints else {})


def _managed(group: NodeGroup) -> Manifest:
    types: dict[str, Any] = {"instanceTypes": [group.instance_type]}
    return _node_group(group) | types | ({"spot": True} if group.spot else {})


def _priced(group: NodeGroup) -> Manifest:
    """Spot instances with a price: only groups that EKS does not manage take one, and it puts no label on these."""
    label, value = next(iter(SPOT_LABELS.items()))
    share = {
        "instanceTypes": [group.instance_type],
        "maxPrice": group.spot_price,
        "onDemandBaseCapacity": 0,
        "onDemandPercentageAboveBaseCapacity": 0,
    }
    return _node_group(group) | {"labels": {label: value}, "instancesDistribution": share}


def kind_config(workflow: Workflow, groups: list[NodeGroup]) -> Manifest:
    """A cluster of containers on one machine, with a node for each kind that the steps ask for."""
    label, value = next(iter(SPOT_LABELS.items()))
    nodes: list[Manifest] = [{"role": "control-plane"}]
    for group in groups:
        labels = {INSTANCE_TYPE: group.instance_type} | ({label: value} if group.spot else {})
        nodes.append({"role": "worker", "labels": labels})
    return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "name": workflow.name, "nodes": nodes}
