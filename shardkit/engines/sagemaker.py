"""How jobs run: on SageMaker, or as the same requests on this machine. What `engine:` in a pipeline says."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from shardkit.engines import images, limits
from shardkit.engines.instances import instance_vcpus, nearest
from shardkit.engines.settings import Count, Network, Settings
from shardkit.errors import PipelineError, ShardkitError
from shardkit.storage.aws_places import aws_settings
from shardkit.user_state import state_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["EngineSettings", "Local", "Network", "SageMaker", "Settings", "instance_vcpus", "settings_from"]

NOWHERE = "arn:aws:iam::000000000000:role/"  # of no account: the local engine asks for a role, and uses none


class SageMaker(Settings):
    """Jobs on SageMaker Processing.

    >>> engine = SageMaker(processor)                                               # doctest: +SKIP
    >>> engine = SageMaker(role="arn:aws:iam::123456789012:role/Data",              # doctest: +SKIP
    ...                    image="sklearn:1.4-2-py312", instance_type="ml.m5.4xlarge")

    ``processor`` is a Processor of the SageMaker SDK, 2.x or 3.x; fields given beside it go over what it says.
    ``volume_gb`` is in GB, ``max_runtime`` in seconds (the service's default is a day). ``instance_preferences`` are
    up to five instance types, tried in order; they replace ``instance_type``. ``kms_key`` is for the volumes and the
    output both. Clients are made from ``boto_session``, else from ``region`` and ``profile``, else as boto3 does.

    Raises:
        PipelineError: a field is unknown, mistyped or missing, or the service would refuse it.
    """

    kind: Literal["sagemaker"] = "sagemaker"
    own_client: Any = Field(None, alias="client", exclude=True, repr=False)
    _client: Any = PrivateAttr(None)
    _resolved: Any = PrivateAttr(None)
    _session: Any = PrivateAttr(None)

    def __init__(self, processor: Any = None, /, **fields: Any) -> None:
        super().__init__(processor, **fields)

    def session(self) -> Any:
        """The boto3 session that all clients are made from.

        Raises:
            PipelineError: the profile or the region is missing.
        """
        if self.boto_session is not None:
            return self.boto_session
        if self._session is None:
            self._session = self._make_session()
        return self._session

    def _make_session(self) -> Any:
        import boto3
        from botocore.exceptions import ProfileNotFound

        try:
            with aws_settings("AWS") if self.profile is None else contextlib.nullcontext():
                session = boto3.Session(region_name=self.region, profile_name=self.profile)
        except ProfileNotFound:
            raise PipelineError(
                f"engine.profile: there is no profile {self.profile} in the AWS configuration here.",
                hint="Give a profile that there is, or leave the field out.",
            ) from None
        if session.region_name is None:
            raise PipelineError("engine.region: no region is set.", hint="Give region=..., or set AWS_DEFAULT_REGION.")
        return session

    def client(self) -> Any:
        """boto3's SageMaker client."""
        if self._client is None:
            # The queue itself repeats calls, and must know of each one that was made.
            once = {"mode": "standard", "total_max_attempts": 1}
            self._client = self.own_client or self._boto_client("sagemaker", once, endpoint_url=self.endpoint_url)
        return self._client

    def resolved(self) -> SageMaker:
        """The settings with the role's ARN and the image's whole URI, which another machine needs to go on.

        Raises:
            PipelineError: there is no such role, image or instance type.
        """
        if self._resolved is None:
            self._check_types()
            fields: dict[str, Any] = {}
            if not limits.ROLE_ARN.fullmatch(self.role):
                fields["role"] = self._role_arn()
            if self.region is None and self.own_client is None:
                fields["region"] = self._region()
            if images.is_short(self.image):
                first = (*self.instance_preferences, self.instance_type)[0]
                fields["image"] = images.resolve(self.image, region=self._region(), instance_type=first)
            self._resolved = self.replace(**fields) if fields else self
        found: SageMaker = self._resolved
        return found

    def log_lines(self, job_name: str) -> Iterator[str]:
        """What a job has said so far, from CloudWatch Logs, in order; of several instances, each line says whose."""
        from shardkit.engines.logs import log_lines, told

        hint = "It takes logs:DescribeLogStreams and logs:GetLogEvents on /aws/sagemaker/ProcessingJobs."
        return told(job_name, lambda: log_lines(self._boto_client("logs"), job_name), hint=hint)

    def _boto_client(self, service: str, retries: Mapping[str, Any] | None = None, **options: Any) -> Any:
        from botocore.config import Config

        from shardkit._version import __version__

        config = Config(retries=retries or {"mode": "standard"}, user_agent_extra=f"shardkit/{__version__}")
        with aws_settings(f"AWS's {service}"):
            return self.session().client(service, region_name=self.region, config=config, **options)

    def _region(self) -> str:
        return self.region or str(self.session().region_name)

    def _role_arn(self) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return str(self._boto_client("iam").get_role(RoleName=self.role)["Role"]["Arn"])
        except (BotoCoreError, ClientError) as error:
            raise PipelineError(
                f"engine.role: cannot find out the ARN of {self.role}: {error}.", hint="Give the role's whole ARN."
            ) from None

    def _check_types(self) -> None:
        for name in self.instance_preferences or (self.instance_type,):
            near = nearest(name, _known_types())
            if near is not None:
                raise PipelineError(f"engine.instance_type: Processing has no {name}; did you mean {near}?")


class Local(Settings):
    """The same jobs on this machine, without Docker and without an account.

    >>> engine = Local(max_instances=2)                                             # doctest: +SKIP

    ``root`` is the folder where the engine keeps its jobs; ``max_instances`` is how many instances run at once, over
    all jobs; ``endpoint_url`` is where S3 is, if not at AWS. What SageMaker's settings say is taken as well.

    Raises:
        PipelineError: a field is unknown or mistyped.
    """

    local: ClassVar[bool] = True

    kind: Literal["local"] = "local"
    role: str = f"{NOWHERE}local"
    image: str = Field("local", min_length=1, max_length=255)
    root: str = Field(default_factory=lambda: state_path("engine"), min_length=1)
    max_instances: Count = Field(4, ge=1, le=1000)
    isolation: Literal["auto", "namespace", "none"] = "auto"
    own_client: Any = Field(None, alias="client", exclude=True, repr=False)
    _client: Any = PrivateAttr(None)

    def __init__(self, processor: Any = None, /, **fields: Any) -> None:
        super().__init__(processor, **fields)

    @model_validator(mode="before")
    @classmethod
    def _as_the_engine(cls, fields: Any) -> Any:
        """A local engine that is there already says itself where and how it runs; another machine wants to know."""
        engine = fields.get("client") if isinstance(fields, dict) else None
        told = {name: getattr(engine, name, None) for name in ("root", "max_instances", "endpoint_url")}
        return {name: value for name, value in told.items() if value is not None} | fields if engine else fields

    @field_validator("role")
    @classmethod
    def _any_role(cls, value: str) -> str:
        return value if limits.ROLE_ARN.fullmatch(value) else f"{NOWHERE}{value}"

    @field_validator("root", mode="before")
    @classmethod
    def _whole_path(cls, value: Any) -> Any:
        return os.path.abspath(os.path.expanduser(value)) if isinstance(value, str | os.PathLike) else value

    @property
    def vcpus(self) -> int:
        """The CPUs that an instance has, when as many run as may."""
        return max(1, (os.cpu_count() or 1) // self.max_instances)

    def client(self) -> Any:
        """The local engine."""
        if self._client is None:
            if self.own_client is None:
                from shardkit.engines.local import LocalEngine

                self._client = LocalEngine(
                    self.root,
                    max_instances=self.max_instances,
                    isolation=self.isolation,
                    endpoint_url=self.endpoint_url,
                )
            else:
                self._client = self.own_client
        return self._client

    def log_lines(self, job_name: str) -> Iterator[str]:
        """What a job has said so far."""
        from shardkit.engines.logs import told

        hint = f"The jobs are under {self.root}; was something removed there?"
        return told(job_name, lambda: self.client().log_lines(job_name), hint=hint)


def settings_from(data: Mapping[str, Any], **more: Any) -> SageMaker | Local:
    """Settings from plain data, as ``to_dict`` gives it; ``more`` goes over it, such as a ``boto_session``.

    Raises:
        PipelineError: a field is unknown, mistyped or missing.
    """
    fields = dict(data) | more
    kinds: dict[str, type[SageMaker | Local]] = {"sagemaker": SageMaker, "local": Local}
    kind = fields.get("kind")
    if kind not in kinds:
        raise PipelineError(f"engine.kind: expected 'sagemaker' or 'local', not {kind!r}.")
    return kinds[str(kind)](**fields)


def _engine(value: Any) -> Any:
    """Settings from a mapping; errors keep their places, so that a pipeline's YAML file can tell the lines."""
    if not isinstance(value, dict):
        return value
    if value.get("kind") not in {"sagemaker", "local"}:
        raise ValueError("expected a mapping with kind: sagemaker or kind: local.")
    try:
        return settings_from(value)
    except ShardkitError as error:
        if isinstance(error.__cause__, ValidationError):
            raise error.__cause__ from None
        raise


EngineSettings = Annotated[SageMaker | Local | None, BeforeValidator(_engine)]


@functools.lru_cache(maxsize=1)
def _known_types() -> frozenset[str]:
    """The instance types that the installed botocore knows; the service may know more."""
    import botocore.session

    model = botocore.session.get_session().get_service_model("sagemaker")
    return frozenset(getattr(model.shape_for("ProcessingInstanceType"), "enum", ()))
