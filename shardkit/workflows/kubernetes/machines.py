"""Where a step's pods run, and what they get there: nodes, volume, processors and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.workflows.kubernetes.names import CODE_FOLDER, SCRATCH

if TYPE_CHECKING:
    from shardkit.workflows.parts import Machines, Resources, Step

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
# What EKS and Karpenter call the nodes of spot instances, each with its own label.
SPOT_LABELS = {"eks.amazonaws.com/capacityType": "SPOT", "karpenter.sh/capacity-type": "spot"}
SPOT_TAINT = {"key": "spot", "value": "true", "effect": "NoSchedule"}
GPU = "nvidia.com/gpu"


def placement(step: Step, *, gpu: bool = True) -> dict[str, Any]:
    """The fields of a template that say on which nodes its pods may run."""
    fields: dict[str, Any] = {}
    machines = step.machines
    if machines.instance_type is not None:
        fields["nodeSelector"] = {INSTANCE_TYPE: machines.instance_type}
    if machines.spot is not None:
        fields["affinity"] = _spot_affinity(machines)
    tolerations: list[dict[str, str]] = []
    if machines.spot:
        tolerations.append({**SPOT_TAINT, "operator": "Equal"})
    if gpu and step.resources.gpu:
        tolerations.append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
    if tolerations:
        fields["tolerations"] = tolerations
    return fields


def _spot_affinity(machines: Machines) -> dict[str, Any]:
    """Spot nodes only, whatever has made them; or none of these."""
    if machines.spot:
        terms = [
            {"matchExpressions": [{"key": label, "operator": "In", "values": [value]}]}
            for label, value in SPOT_LABELS.items()
        ]
    else:  # a node that has no such label is no spot node
        others = [{"key": label, "operator": "NotIn", "values": [value]} for label, value in SPOT_LABELS.items()]
        terms = [{"matchExpressions": others}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def resources(needs: Resources, *, gpu: bool = True) -> dict[str, Any]:
    """What a container asks for. Memory is a limit too; processors are not, so that idle ones are not lost."""
    requests: dict[str, str] = {}
    if needs.cpu is not None:
        requests["cpu"] = f"{needs.cpu:g}"
    if needs.memory is not None:
        requests["memory"] = needs.memory
    limits = {name: value for name, value in requests.items() if name == "memory"}
    if gpu and needs.gpu:
        requests[GPU] = limits[GPU] = str(needs.gpu)
    return {name: value for name, value in (("requests", requests), ("limits", limits)) if value}


def scratch_volume(step: Step | None) -> dict[str, Any]:
    """The pod's own volume: a disk that is made with the pod and removed with it, or a folder of the node."""
    size = step.machines.volume if step is not None else None
    if size is None:
        return {"name": "scratch", "emptyDir": {}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


SCRATCH_MOUNT = {"name": "scratch", "mountPath": SCRATCH}
CODE_MOUNT = {"name": "code", "mountPath": CODE_FOLDER, "readOnly": True}
