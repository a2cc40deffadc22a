"""Jobs on SageMaker Processing: `engine: {kind: sagemaker, ...}` in a pipeline."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr

from shardkit.engines import images, limits
from shardkit.engines.instances import known_types, nearest
from shardkit.engines.service_settings import ServiceSettings
from shardkit.errors import PipelineError
from shardkit.storage.aws_locations import aws_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardkit.jobs.policy import Policy

# The queue itself repeats calls, and must know of each one that was made.
ONCE = {"mode": "standard", "total_max_attempts": 1}


class SageMaker(ServiceSettings):
    """Jobs on SageMaker Processing.

    Examples:
        >>> engine = SageMaker(processor)                                               # doctest: +SKIP
        >>> engine = SageMaker(role="arn:aws:iam::123456789012:role/Data",              # doctest: +SKIP
        ...                    image="sklearn:1.4-2-py312", instance_type="ml.m5.4xlarge")

    ``processor`` is a Processor of the SageMaker SDK, 2.x or 3.x; fields given beside it override its own.
    ``volume_gb`` is in GB, ``max_runtime`` in seconds (the service's default is a day). ``instance_preferences`` are
    up to five instance types, tried in order; they replace ``instance_type``. ``kms_key`` is for the volumes and the
    output both. Clients are made from ``boto_session``, else from ``region`` and ``profile``, else as boto3 does.

    Raises:
        PipelineError: a field is unknown, mistyped or missing, or the service would refuse it.
    """

    title: ClassVar[str] = "SageMaker"
    cloudwatch: ClassVar[bool] = True

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
            self._client = self.own_client or self._boto_client("sagemaker", ONCE, endpoint_url=self.endpoint_url)
        return self._client

    @classmethod
    def serving(cls, max_instances: int | None, root: str | None = None) -> tuple[Any, Policy]:
        """boto3's SageMaker client, for the jobs of a queue."""
        import boto3
        from botocore.config import Config

        from shardkit.jobs.policy import Policy

        if root is not None:
            raise PipelineError("SageMaker keeps its jobs itself.", hint="Give no --root.")
        return boto3.client("sagemaker", config=Config(retries=ONCE)), Policy(max_instances=max_instances)

    def policy(self) -> Policy:
        """As the service wants it; where `shardkit engine serve` stands in for it, calls cost nothing."""
        from shardkit.jobs.policy import Policy

        own = self.endpoint_url is not None and urlsplit(self.endpoint_url).hostname in ("127.0.0.1", "localhost")
        return Policy.local() if own else Policy()

    def storage_session(self) -> Any:
        """The session for the storage, where the settings name one."""
        return self.session() if self.boto_session or self.profile or self.region else None

    def python_version(self) -> str | None:
        """The minor version of Python in the image, if its name says it."""
        version = re.search(r"(?:py|python)[:-]?3\.?(\d{1,2})\b", self.image)
        return f"3.{version[1]}" if version is not None else None

    def job_environment(self) -> dict[str, str]:
        """Which Python the jobs run, and the region that they are in."""
        python = {"SHARDKIT_PYTHON": self.command[0]} if self.command else {}
        if {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(self.env):
            return python
        return python | {"AWS_DEFAULT_REGION": str(self.session().region_name)}

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
        resolved: SageMaker = self._resolved
        return resolved

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines of a job so far, from CloudWatch Logs, in order; of several instances, each line names its own."""
        from shardkit.engines.logs import GROUP, TRAINING_GROUP, log_lines, log_of

        merge = job_name.rpartition("-")[0].endswith("-merge")
        group = TRAINING_GROUP if (self.for_merge() if merge else self).jobs == "training" else GROUP
        hint = f"It takes logs:DescribeLogStreams and logs:GetLogEvents on {group}."
        return log_of(job_name, lambda: log_lines(self._boto_client("logs"), job_name, group=group), hint=hint)

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
            near = nearest(name, known_types(self.jobs))
            if near is not None:
                kind = self.jobs.capitalize()
                raise PipelineError(f"engine.instance_type: {kind} has no {name}; did you mean {near}?")
