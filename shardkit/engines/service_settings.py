"""What the jobs of a run have in common where they are requests to SageMaker Processing: role, image, instances."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from shardkit.engines import limits
from shardkit.engines.instances import TYPE, instance_vcpus, known_types, larger_than, not_a_type
from shardkit.engines.processors import network_of, read_processor
from shardkit.engines.settings import Settings
from shardkit.engines.training import Terms, as_training
from shardkit.engines.values import Count, Key, Names, Network  # noqa: TC001  pydantic reads them
from shardkit.errors import PipelineError
from shardkit.units import human_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

GIB = 1 << 30
MOST_KEPT_S = 21600
VOLUME_SLACK = 1.1  # code, scratch and parts on their way lie on the same volume


def _both_keys(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields in which ``kms_key`` is written out: it is the volume's key and the output's."""
    if "kms_key" not in fields:
        return fields
    rest = {name: value for name, value in fields.items() if name != "kms_key"}
    return dict.fromkeys(("volume_kms_key", "output_kms_key"), fields["kms_key"]) | rest


def _outdated(given: set[str]) -> set[str]:
    """What of a Processor's connection does not hold beside the fields that are given."""
    if given & {"boto_session", "profile"}:
        return {"boto_session", "client", "region"}
    return {"client"} if given & {"region", "endpoint_url"} else set()


class ServiceSettings(Settings):
    """What every job of a run has in common where SageMaker's own requests are understood.

    A subclass has to implement `client` and `log_lines`.
    """

    missing_hint: ClassVar[str] = "Give a Processor of the SageMaker SDK, or these by name."

    role: Annotated[str, Field(min_length=1, max_length=2048)]
    image: Annotated[str, Field(min_length=1, max_length=255)]
    instance_type: str = "ml.m5.xlarge"
    instance_preferences: Names = ()
    larger: Count = Field(2, ge=0, le=2)
    instance_count: Count = Field(1, ge=1, le=100)
    volume_gb: Count = Field(30, ge=1, le=16384)
    volume_kms_key: Key | None = None
    output_kms_key: Key | None = None
    base_job_name: Annotated[str, AfterValidator(limits.checked_name)] = ""
    command: Names = ()
    tags: dict[str, str] = Field(default_factory=dict)
    network: Network | None = None
    region: str | None = None
    profile: str | None = None
    jobs: Literal["processing", "training"] = "processing"
    spot: Annotated[bool, Field(strict=True)] = False
    max_wait: Count | None = Field(None, ge=1)
    keep_alive: Count | None = Field(None, ge=1, le=MOST_KEPT_S)

    def __init__(self, processor: Any = None, /, **fields: Any) -> None:
        if processor is None:
            processor = fields.pop("processor", None)
        if processor is not None:
            read = read_processor(processor, local=self.local)
            for name in _outdated({name for name, value in fields.items() if value is not None}):
                read.pop(name, None)
            if self.local:
                read.pop("client", None)
            if fields.get("instance_type"):
                read.pop("instance_preferences", None)
            fields = read | _both_keys(fields)
        super().__init__(**fields)

    @model_validator(mode="before")
    @classmethod
    def _one_key_for_all(cls, fields: Any) -> Any:
        return _both_keys(fields) if isinstance(fields, dict) else fields

    @field_validator("role")
    @classmethod
    def _some_role(cls, value: str) -> str:
        return limits.checked_role(value)

    @field_validator("instance_type", "instance_preferences")
    @classmethod
    def _types(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        for name in names:
            if not re.fullmatch(TYPE, name):
                raise ValueError(not_a_type(name))
        if len(set(names)) < len(names):
            raise ValueError("an instance type is named twice.")
        if len(names) > 5:
            raise ValueError(f"{len(names)} instance types are too many: SageMaker takes at most 5.")
        return value

    @field_validator("command")
    @classmethod
    def _python(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and not any(os.path.basename(word).startswith("python") for word in value):
            raise ValueError(f"shardkit runs Python, such as ['python3'], not {' '.join(value)}.")
        return value

    @field_validator("tags", mode="before")
    @classmethod
    def _tags(cls, value: Any) -> Any:
        return limits.checked_tags({} if value is None else value)

    @field_validator("network", mode="before")
    @classmethod
    def _network(cls, value: Any) -> Any:
        return network_of(value)

    @model_validator(mode="after")
    def _terms_of_training(self) -> Self:
        if self.jobs != "training":
            named = next((name for name in ("spot", "max_wait", "keep_alive") if getattr(self, name)), None)
            if named is not None:
                raise ValueError(f"{named}: Processing jobs have no such instances; set jobs: training too.")
        if self.max_wait is not None and not self.spot:
            raise ValueError("max_wait: only jobs on spot instances wait for them; set spot: true too.")
        if self.max_wait is not None and self.max_wait < (self.max_runtime or 0):
            raise ValueError(
                f"max_wait: {self.max_wait} s are less than max_runtime, {self.max_runtime} s; it has both in it."
            )
        return self

    @property
    def create_call(self) -> str:
        """The call that makes a job."""
        return f"Create{self.jobs.capitalize()}Job"

    @property
    def places_inputs(self) -> bool:
        """Whether an input can be at any path; a training job's channels have each a path of their own."""
        return self.jobs == "processing"

    def request(self, *, leftovers: str = "", **options: Any) -> dict[str, Any]:
        """The arguments of CreateProcessingJob or, for training jobs, of CreateTrainingJob, without the job's name."""
        request = super().request(**options)
        if self.jobs == "processing":
            return request
        terms = Terms(self.spot, self.max_wait, self.keep_alive)
        return as_training(request, terms, leftovers=leftovers, key=self.output_key)

    @property
    def isolated(self) -> bool:
        """Whether the jobs have no network at all, not even to S3."""
        return self.network is not None and self.network.enable_network_isolation

    @property
    def vcpus(self) -> int:
        """The fewest vCPUs that an instance of a job may have."""
        return min(map(instance_vcpus, self.instance_preferences or (self.instance_type,)))

    @property
    def larger_types(self) -> tuple[str, ...]:
        """The instance types on which records go out again that need more memory, the next larger one first."""
        if not self.larger:
            return ()
        return larger_than(
            (*self.instance_preferences, self.instance_type)[0], known_types(self.jobs), most=self.larger
        )

    @property
    def output_key(self) -> str | None:
        """The key for the output."""
        return self.output_kms_key

    def check_volume(self, job: int, size_bytes: int) -> None:
        """See that it fits the volume, beside code, scratch files and parts on their way."""
        if size_bytes * VOLUME_SLACK > self.volume_gb * GIB:
            raise PipelineError(
                f"engine.volume_gb: job {job} downloads {human_bytes(size_bytes)} to an instance, and the volume has "
                f"{self.volume_gb} GB.",
                hint=f"Set volume_gb to {int(size_bytes * VOLUME_SLACK / GIB) + 1} or more, cut smaller shards, or use "
                "input_mode: stream.",
            )

    def check_instances(self, by: str, instances: int = 1) -> None:
        """Make sure that a Processor's instance_count is what the shards are for.

        ``by``: what the shards are cut by; ``instances``: how many instances they ask for.

        Raises:
            PipelineError: several instances were asked for, and no job would use them.
        """
        if self.instance_count == 1 or (by == "s3key" and self.instance_count == instances):
            return
        if by == "s3key":
            raise PipelineError(
                f"engine.instance_count: {self.instance_count} instances, but the shards are for {instances}.",
                hint=f"Give shards: {{by: s3key, instances: {self.instance_count}}}, or leave instance_count out.",
            )
        raise PipelineError(
            f"engine.instance_count: {self.instance_count} instances would all do the same work: with shards by {by}, "
            "each job runs on one instance, and there are many jobs.",
            hint=f"Set instance_count to 1, or cut by object: shards: {{by: s3key, instances: {self.instance_count}}}.",
        )

    def resources(self, instances: int) -> dict[str, Any]:
        """Role, image, cluster, network and tags."""
        resolved = self.resolved()
        request: dict[str, Any] = {
            "RoleArn": resolved.role,
            "AppSpecification": {"ImageUri": resolved.image},
            "ProcessingResources": {"ClusterConfig": self._cluster(instances)},
        }
        if self.network is not None:
            request["NetworkConfig"] = self.network.request()
        if self.tags:
            request["Tags"] = [{"Key": key, "Value": value} for key, value in self.tags.items()]
        return request

    def _cluster(self, instances: int) -> dict[str, Any]:
        cluster: dict[str, Any] = {"InstanceCount": instances, "VolumeSizeInGB": self.volume_gb}
        if self.instance_preferences:
            cluster["InstancePreferences"] = [{"InstanceType": name} for name in self.instance_preferences]
        else:
            cluster["InstanceType"] = self.instance_type
        if self.volume_kms_key:
            cluster["VolumeKmsKeyId"] = self.volume_kms_key
        return cluster

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data, without what only training jobs have where there are none."""
        content = super().to_dict()
        unused = {"jobs", "spot"} if self.jobs == "processing" else {"spot"} if not self.spot else set()
        return {name: value for name, value in content.items() if name not in unused}

    def replace(self, **fields: Any) -> Self:
        """A copy with other values; an ``instance_type`` alone goes over ``instance_preferences``."""
        fields = _both_keys(fields)
        if fields.get("jobs") == "processing":
            fields = {"spot": False, "keep_alive": None} | fields
        if fields.get("spot") is False:
            fields = {"max_wait": None} | fields
        if "instance_type" in fields:
            fields = {"instance_preferences": ()} | fields
        return super().replace(**fields)
