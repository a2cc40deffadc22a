"""Jobs on this machine: `engine: {kind: local, ...}` in a pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from shardkit.engines import limits
from shardkit.engines.service_settings import ServiceSettings
from shardkit.engines.values import Count  # noqa: TC001  pydantic reads it
from shardkit.errors import PipelineError
from shardkit.traits import IsPath
from shardkit.user_state import state_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.jobs.policy import Policy

NOWHERE = "arn:aws:iam::000000000000:role/"  # of no account: the local engine asks for a role, and uses none


class Local(ServiceSettings):
    """The same jobs on this machine, without Docker and without an account.

    Examples:
        >>> engine = Local(max_instances=2)                                             # doctest: +SKIP

    ``root`` is the folder where the engine keeps its jobs; ``max_instances`` is how many instances run at once, over
    all jobs; ``endpoint_url`` is where S3 is, if not at AWS. What SageMaker's settings say is taken as well.

    Raises:
        PipelineError: a field is unknown or mistyped.
    """

    title: ClassVar[str] = "this machine"
    local: ClassVar[bool] = True
    sees_local_paths: ClassVar[bool] = True
    creates_per_s: ClassVar[float | None] = None

    kind: Literal["local"] = "local"
    role: str = f"{NOWHERE}local"
    image: str = Field("local", min_length=1, max_length=255)
    root: Annotated[str, IsPath()] = Field(default_factory=lambda: state_path("engine"), min_length=1)
    max_instances: Count = Field(4, ge=1, le=1000)
    isolation: Literal["auto", "namespace", "none"] = "auto"
    larger: Count = Field(0, ge=0, le=2)
    own_client: Any = Field(None, alias="client", exclude=True, repr=False)
    _client: Any = PrivateAttr(None)

    def __init__(self, processor: Any = None, /, **fields: Any) -> None:
        super().__init__(processor, **fields)

    @model_validator(mode="before")
    @classmethod
    def _as_the_engine(cls, fields: Any) -> Any:
        """Copy the settings of an existing local engine into the fields: another machine needs them."""
        engine = fields.get("client") if isinstance(fields, dict) else None
        settings = {name: getattr(engine, name, None) for name in ("root", "max_instances", "endpoint_url")}
        return {name: value for name, value in settings.items() if value is not None} | fields if engine else fields

    @field_validator("role")
    @classmethod
    def _any_role(cls, value: str) -> str:
        return value if limits.ROLE_ARN.fullmatch(value) else f"{NOWHERE}{value}"

    @field_validator("root", mode="before")
    @classmethod
    def _whole_path(cls, value: Any) -> Any:
        return os.path.abspath(os.path.expanduser(value)) if isinstance(value, str | os.PathLike) else value

    @classmethod
    def adopted(cls, value: Any) -> Local | None:
        """The settings of a local engine that is there already."""
        from shardkit.engines.local import LocalEngine

        if not isinstance(value, LocalEngine):
            return None
        isolation = "none" if value.isolation == "none" else "auto"
        return cls(client=value, root=value.root, max_instances=value.max_instances, isolation=isolation)

    @classmethod
    def serving(cls, max_instances: int | None, root: str | None = None) -> tuple[Any, Policy]:
        """The local engine, for the jobs of a queue."""
        from shardkit.engines.local import LocalEngine
        from shardkit.jobs.policy import Policy

        engine = LocalEngine(root, max_instances=max_instances)
        return engine, Policy.local(max_instances=engine.max_instances)

    def policy(self) -> Policy:
        """Calls cost nothing here."""
        from shardkit.jobs.policy import Policy

        return Policy.local(max_instances=self.max_instances)

    @property
    def look_every_s(self) -> float:
        """Looks cost little here."""
        return 0.5

    def check_instances(self, by: str, instances: int = 1) -> None:
        """See also that as many instances may run at once as a job has."""
        super().check_instances(by, instances)
        if instances > self.max_instances:
            raise PipelineError(
                f"shards.instances: {instances} instances at once, and engine.max_instances allows "
                f"{self.max_instances}.",
                hint="Raise the one, or lower the other.",
            )

    def own_folders(self) -> list[Path]:
        """Where the engine keeps its jobs."""
        return [Path(self.root)]

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
        """The lines that a job has written so far."""
        from shardkit.engines.logs import log_of

        hint = f"The jobs are under {self.root}; was something removed there?"
        return log_of(job_name, lambda: self.client().log_lines(job_name), hint=hint)
