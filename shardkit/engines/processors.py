"""Processor objects of the SageMaker SDKs, 2.x and 3.x, read by what they carry: no SDK is imported."""

from __future__ import annotations

from typing import Any

from shardkit.errors import PipelineError

FIELDS = {  # a Processor's attribute: the field of the settings
    "role": "role",
    "image_uri": "image",
    "instance_type": "instance_type",
    "instance_count": "instance_count",
    "volume_size_in_gb": "volume_gb",
    "volume_kms_key": "volume_kms_key",
    "output_kms_key": "output_kms_key",
    "max_runtime_in_seconds": "max_runtime",
    "base_job_name": "base_job_name",
    "command": "command",
    "env": "env",
    "tags": "tags",
}
NETWORK = ("subnets", "security_group_ids", "enable_network_isolation", "encrypt_inter_container_traffic")
LOCAL_MODE = {"local", "local_gpu"}


def read_processor(processor: Any, *, local: bool = False) -> dict[str, Any]:
    """The fields of the settings that a Processor gives, and its session.

    ``local``: the jobs will run on this machine, so the SDK's local mode is no obstacle.

    Raises:
        PipelineError: it is no Processor, or one that shardkit cannot stand in for; it says why.
    """
    kind = type(processor).__name__
    if not all(hasattr(processor, name) for name in ("role", "image_uri", "instance_type", "sagemaker_session")):
        raise PipelineError(
            f"{kind} is no Processor of the SageMaker SDK.",
            hint="Give a Processor, ScriptProcessor, FrameworkProcessor or SKLearnProcessor, or fields by name.",
        )
    if _spark(processor):
        raise PipelineError(
            f"{kind} runs Spark, which spreads the work itself; shardkit runs Python on every instance.",
            hint="Give a ScriptProcessor or a FrameworkProcessor.",
        )
    fields = {ours: _plain(getattr(processor, theirs, None), theirs, kind) for theirs, ours in FIELDS.items()}
    fields["network"] = network_of(getattr(processor, "network_config", None))
    fields["tags"] = _with_config_tags(fields["tags"], processor.sagemaker_session)
    fields |= _instances(processor, fields, kind)
    if fields["instance_type"] in LOCAL_MODE:
        if not local:
            raise PipelineError(
                f"{kind} has instance_type={fields['instance_type']!r}: the SDK's local mode needs Docker.",
                hint="sk.Local(processor) runs the same job here without it.",
            )
        fields["instance_type"] = None
    fields |= _session(processor.sagemaker_session)
    return {name: value for name, value in fields.items() if value is not None}


def network_of(config: Any) -> Any:
    """A NetworkConfig of either SDK as a mapping; anything else as it is."""
    if config is None or not all(hasattr(config, name) for name in NETWORK):
        return config
    kind = type(config).__name__
    values = {name: _plain(getattr(config, name), f"network_config.{name}", kind) for name in NETWORK}
    return {name: value for name, value in values.items() if value is not None}


def _spark(processor: Any) -> bool:
    names = {base.__name__ for base in type(processor).__mro__}
    return bool(names & {"_SparkProcessorBase", "PySparkProcessor", "SparkJarProcessor"})


def _plain(value: Any, name: str, kind: str) -> Any:
    """The value, made sure that it is there now: a pipeline variable has one only when a SageMaker Pipeline runs.

    Raises:
        PipelineError: it is a pipeline variable.
    """
    if any(base.__name__ == "PipelineVariable" for base in type(value).__mro__):
        raise PipelineError(
            f"{kind}.{name} is a pipeline variable ({type(value).__name__}), whose value is known only while a "
            "SageMaker Pipeline runs; shardkit makes the jobs itself, now.",
            hint=f"Give {name} a plain value.",
        )
    if isinstance(value, dict):
        return {_plain(key, name, kind): _plain(item, f"{name}[{key!r}]", kind) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name, kind) for item in value]
    return value


def _instances(processor: Any, fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """Instance preferences, which 3.x gives as mappings, each perhaps with a count of its own."""
    preferences = _plain(getattr(processor, "instance_preferences", None), "instance_preferences", kind)
    if not preferences:
        return {}
    counts = {preference.get("InstanceCount") or fields["instance_count"] or 1 for preference in preferences}
    if len(counts) > 1:
        raise PipelineError(
            f"{kind}.instance_preferences has another InstanceCount for each type; shardkit cuts the work into shards "
            "before it knows which type a job gets.",
            hint="Give all of them the same InstanceCount.",
        )
    types = [preference.get("InstanceType") for preference in preferences]
    return {"instance_preferences": types, "instance_count": counts.pop(), "instance_type": None}


def _with_config_tags(tags: Any, session: Any) -> Any:
    """The tags, and those of the SDK's configuration file with other keys, which the SDK adds when it sends."""
    defaults: Any = getattr(session, "sagemaker_config", None)
    for step in ("SageMaker", "ProcessingJob", "Tags"):
        defaults = defaults.get(step) if isinstance(defaults, dict) else None
    own = list(tags or [])
    keys = {tag.get("Key") for tag in own if isinstance(tag, dict)}
    return [*own, *(tag for tag in defaults or [] if tag.get("Key") not in keys)] or None


def _session(session: Any) -> dict[str, Any]:
    """The boto3 session and the SageMaker client that the user's own session has."""
    if any(base.__name__ == "LocalSession" for base in type(session).__mro__):
        return {}
    return {
        "boto_session": getattr(session, "boto_session", None),
        "client": getattr(session, "sagemaker_client", None),
        "region": getattr(session, "boto_region_name", None),
    }
