"""The rules for CreateTrainingJob that the service's model does not hold, and what the local engine cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.engines.validation import INVALID, broken_by_entrypoint, refuse, twice

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATION = "CreateTrainingJob"
BOOTSTRAP = "/opt/ml/input/data/code/bootstrap.sh"
LONGEST_S = 28 * 86400
MOST_PREFERENCES = 5


def check_rules(request: dict[str, Any], *, isolated: bool) -> None:
    """Check the rules.

    Raises:
        ClientError: ValidationException, a rule is broken; the message is as the service's are.
    """
    for problem in _broken(request, isolated=isolated):
        refuse(OPERATION, INVALID, problem)


def _broken(request: dict[str, Any], *, isolated: bool) -> Iterator[str]:
    algorithm = request.get("AlgorithmSpecification")
    if algorithm is None:
        yield "The request must have AlgorithmSpecification."
        return
    if "ResourceConfig" not in request:
        yield "The request must have ResourceConfig."
        return
    if ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm):
        yield "AlgorithmSpecification must have exactly one of TrainingImage and AlgorithmName."
    yield from broken_by_entrypoint(algorithm, BOOTSTRAP, "AlgorithmSpecification", isolated=isolated)
    yield from _broken_by_resources(request)
    yield from _broken_by_times(request)
    channels = request.get("InputDataConfig") or []
    for channel in channels:
        yield from _broken_by_channel(channel, algorithm["TrainingInputMode"])
    yield from twice("ChannelName", [channel["ChannelName"] for channel in channels])
    yield from twice("Tag key", [tag["Key"] for tag in request.get("Tags") or []])


def _broken_by_resources(request: dict[str, Any]) -> Iterator[str]:
    resources = request["ResourceConfig"]
    preferences = resources.get("InstancePreferences") or []
    if "InstanceGroups" in resources:
        yield "ResourceConfig has InstanceGroups; the local engine knows clusters of one instance type only."
    if bool(preferences) == ("InstanceType" in resources):
        yield "ResourceConfig must have exactly one of InstanceType and InstancePreferences."
    yield from twice("InstanceType in InstancePreferences", [given["InstanceType"] for given in preferences])
    counted = sum("InstanceCount" in given for given in preferences)
    if counted != len(preferences) * bool(preferences) and "InstanceCount" not in resources:
        yield "ResourceConfig must have InstanceCount, or every one of the InstancePreferences."
    if not preferences and not resources.get("InstanceCount"):
        yield "ResourceConfig must have an InstanceCount of 1 or more."
    if not resources.get("VolumeSizeInGB"):
        yield "ResourceConfig must have a VolumeSizeInGB of 1 or more."
    if resources.get("KeepAlivePeriodInSeconds") and request.get("EnableManagedSpotTraining"):
        yield "KeepAlivePeriodInSeconds is not supported with EnableManagedSpotTraining."


def _broken_by_times(request: dict[str, Any]) -> Iterator[str]:
    limits = request.get("StoppingCondition") or {}
    longest, wait = limits.get("MaxRuntimeInSeconds", 86400), limits.get("MaxWaitTimeInSeconds")
    if longest > LONGEST_S:
        yield f"MaxRuntimeInSeconds is {longest}; it must be {LONGEST_S} at most."
    if request.get("EnableManagedSpotTraining"):
        if wait is None:
            yield "MaxWaitTimeInSeconds must be given when EnableManagedSpotTraining is true."
        elif wait < longest:
            yield "MaxWaitTimeInSeconds must be equal to or greater than MaxRuntimeInSeconds."
    elif wait is not None:
        yield "MaxWaitTimeInSeconds must not be given unless EnableManagedSpotTraining is true."
    path = (request.get("CheckpointConfig") or {}).get("LocalPath", "/opt/ml/checkpoints")
    if not path.startswith("/opt/ml/") or ".." in path.split("/"):
        yield f"CheckpointConfig has the LocalPath {path}; it must begin with /opt/ml/."


def _broken_by_channel(channel: dict[str, Any], mode: str) -> Iterator[str]:
    name, source = channel["ChannelName"], channel["DataSource"]
    if len(source) != 1:
        yield f"Channel {name} must have exactly one DataSource."
    elif "S3DataSource" not in source:
        yield f"Channel {name} has a {next(iter(source))}; the local engine brings S3DataSource only."
    elif source["S3DataSource"]["S3DataType"] not in ("S3Prefix", "ManifestFile"):
        yield f"Channel {name} has an S3DataType that the local engine does not know."
    if channel.get("InputMode", mode) != "File":
        yield f"Channel {name} has InputMode {channel.get('InputMode', mode)}; the local engine knows File only."
    if channel.get("CompressionType", "None") != "None":
        yield f"Channel {name} has CompressionType Gzip, which the local engine does not know."
