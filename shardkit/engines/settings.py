"""What the jobs of a run have in common, wherever they run, and the CreateProcessingJob requests made of self."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from shardkit.engines import environment as variables
from shardkit.engines import limits
from shardkit.engines.instances import TYPE, instance_vcpus, not_a_type
from shardkit.engines.processors import network_of, read_processor
from shardkit.engines.values import Count, Key, Model, Names, Network
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.policy import Policy


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


class Settings(Model):
    """What every job of a run has in common; a subclass for each kind of engines says where it runs.

    A subclass names itself by its field ``kind``, as its entry in the table of kinds does, and has fields of its own.
    It has to implement `client` and `log_lines`; the rest has defaults, for a service that is not this machine.
    What it says of itself by attributes of the class:

    Attributes:
        title: How messages name the place of the jobs.
        local: Whether the jobs run on this machine, and share its CPUs.
        sees_local_paths: Whether the jobs see this machine's folders; else input and output have to be in a store.
        stores: The schemes of the object stores that the jobs can use.
        creates_per_s: How many jobs a second the engine takes at most, to tell beforehand how long that will be; None
            where it takes no time to speak of.
        look_every_s: How often a process that watches a run looks at its jobs.
        cloudwatch: Whether the jobs' logs are in CloudWatch, so that messages can link to them.
    """

    title: ClassVar[str] = "the engine"
    local: ClassVar[bool] = False
    sees_local_paths: ClassVar[bool] = False
    stores: ClassVar[tuple[str, ...]] = ("s3",)
    creates_per_s: ClassVar[float | None] = 1.0
    look_every_s: ClassVar[float] = 10.0
    cloudwatch: ClassVar[bool] = False

    kind: str
    role: Annotated[str, Field(min_length=1, max_length=2048)]
    image: Annotated[str, Field(min_length=1, max_length=255)]
    instance_type: str = "ml.m5.xlarge"
    instance_preferences: Names = ()
    instance_count: Count = Field(1, ge=1, le=100)
    volume_gb: Count = Field(30, ge=1, le=16384)
    volume_kms_key: Key | None = None
    output_kms_key: Key | None = None
    max_runtime: Count | None = Field(None, ge=1, le=777600)
    base_job_name: Annotated[str, AfterValidator(limits.checked_name)] = ""
    command: Names = ()
    tags: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    network: Network | None = None
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    boto_session: Any = Field(None, exclude=True, repr=False)

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
        variables.refuse_secrets({name: value for name, value in fields.items() if name not in ("env", "tags")})
        try:
            super().__init__(**fields)
        except ValidationError as error:
            from shardkit.explain import explain

            missing = {problem["loc"] for problem in error.errors() if problem["type"] == "missing"}
            hint = "Give a Processor of the SageMaker SDK, or these by name." if missing else ""
            raise PipelineError(explain(error, type(self)), hint=hint) from error

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

    @field_validator("env", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ValueError("expected a mapping of names to texts.")  # noqa: TRY004  pydantic wants a ValueError
        for name, item in value.items():
            if not isinstance(name, str) or not isinstance(item, str | int | float) or isinstance(item, bool):
                raise ValueError(f"expected a text for {name}; put it in quotes.")  # noqa: TRY004  pydantic wants this
        return {name: variables.as_text(item) for name, item in value.items()}

    @field_validator("env")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        return variables.checked(value)

    @field_validator("network", mode="before")
    @classmethod
    def _network(cls, value: Any) -> Any:
        return network_of(value)

    @classmethod
    def adopted(cls, value: Any) -> Self | None:
        """The settings of an engine that is there already, given in place of settings; None if it is no such one."""
        del value
        return None

    @classmethod
    def serving(cls, max_instances: int | None) -> tuple[Engine, Policy]:
        """The engine, and the policy for it, for jobs in a queue that this machine serves, from any submitter.

        Raises:
            PipelineError: such an engine runs the jobs of its own runs alone.
        """
        del max_instances
        raise PipelineError(f"No queue can be served for jobs on {cls.title}.", hint="Run the pipeline without queue:.")

    @abstractmethod
    def client(self) -> Engine:
        """The engine client: the four methods of boto3's SageMaker client, as ``shardkit.jobs.Engine`` has them."""

    @abstractmethod
    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that a job has written so far.

        Raises:
            RunFailed: none of it is available.
        """

    def policy(self) -> Policy:
        """How fast jobs are launched and looked at, and how often they are tried."""
        from shardkit.jobs.policy import Policy

        return Policy()

    def session(self) -> Any:
        """The boto3 session for a table of jobs; None for boto3's own."""
        return self.boto_session

    def storage_session(self) -> Any:
        """The boto3 session for input and output; None for boto3's own."""
        return self.boto_session

    def python_version(self) -> str | None:
        """The minor version of Python that the jobs have, such as 3.12; None if it cannot be known beforehand."""
        return None

    def job_environment(self) -> dict[str, str]:
        """The variables that every job of a run has in its environment, beside ``env``."""
        return {}

    def own_folders(self) -> list[Path]:
        """Folders of this machine for the engine's own files, which no job takes along."""
        return []

    @property
    def isolated(self) -> bool:
        """Whether the jobs have no network at all, not even to S3."""
        return self.network is not None and self.network.enable_network_isolation

    @property
    def vcpus(self) -> int:
        """The fewest vCPUs that an instance of a job may have."""
        return min(map(instance_vcpus, self.instance_preferences or (self.instance_type,)))

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

    def resolved(self) -> Self:
        """The settings with whatever had to be asked for: the role's ARN, the image's URI."""
        return self

    def request(
        self,
        *,
        entrypoint: Iterable[str],
        arguments: Iterable[str] = (),
        inputs: Iterable[Mapping[str, Any]] = (),
        outputs: Iterable[Mapping[str, Any]] = (),
        environment: Mapping[str, str] | None = None,
        instances: int = 1,
    ) -> dict[str, Any]:
        """The arguments of CreateProcessingJob, without ProcessingJobName.

        ``inputs`` are ProcessingInputs, ``outputs`` the Outputs of ProcessingOutputConfig; ``environment`` goes over
        the user's own.

        Raises:
            PipelineError: the service would not take it; the message names the field.
        """
        resolved = self.resolved()
        application: dict[str, Any] = {"ImageUri": resolved.image}
        application["ContainerEntrypoint"] = limits.check_words("entrypoint", entrypoint)
        if words := limits.check_words("arguments", arguments):
            application["ContainerArguments"] = words
        request: dict[str, Any] = {
            "RoleArn": resolved.role,
            "AppSpecification": application,
            "ProcessingResources": {"ClusterConfig": self._cluster(instances)},
        }
        if listed := limits.check_inputs(inputs):
            request["ProcessingInputs"] = listed
        if kept := [dict(output) for output in outputs]:
            request["ProcessingOutputConfig"] = {"Outputs": kept}
            if self.output_kms_key:
                request["ProcessingOutputConfig"]["KmsKeyId"] = self.output_kms_key
        if given := self._environment(environment or {}):
            request["Environment"] = given
        if self.network is not None:
            request["NetworkConfig"] = self.network.request()
        if self.max_runtime is not None:
            request["StoppingCondition"] = {"MaxRuntimeInSeconds": self.max_runtime}
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

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        both = self.env | dict(more)
        for name, value in more.items():
            if max(len(name), len(value)) > variables.LONGEST:
                raise PipelineError(f"environment.{name}: more than {variables.LONGEST} characters.")
        if len(both) > variables.MOST_VARIABLES:
            raise PipelineError(
                f"env: {len(self.env)} variables and shardkit's own {len(both) - len(self.env)} are more than the "
                f"{variables.MOST_VARIABLES} that SageMaker takes."
            )
        return both

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and dict(self) == dict(other)  # without what they have looked up since

    def __hash__(self) -> int:
        return hash((self.kind, self.role, self.image))

    def replace(self, **fields: Any) -> Self:
        """A copy with other values; an ``instance_type`` alone goes over ``instance_preferences``."""
        fields = _both_keys(fields)
        if "instance_type" in fields:
            fields = {"instance_preferences": ()} | fields
        return type(self)(
            **{field.alias or name: getattr(self, name) for name, field in type(self).model_fields.items()} | fields
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; sessions and clients stay behind."""
        content = self.model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in content.items() if value not in ("", [], {})}
