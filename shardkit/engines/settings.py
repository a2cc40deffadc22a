"""What the jobs of a run have in common, wherever they run, and the CreateProcessingJob requests made of self."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError, field_validator, model_validator

from shardkit.engines import environment as variables
from shardkit.engines import limits
from shardkit.engines.values import Count, Model
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.policy import Policy


class Settings(Model):
    """What every job of a run has in common; a subclass for each kind of engines says where it runs.

    A subclass names itself by its field ``kind``, as its entry in the table of kinds does, and has fields of its own.
    It has to implement `client`, `log_lines`, `vcpus` and `resources`; the rest has defaults, for a service that is not
    this machine. ``merge`` has other values of its fields, for the job that merges. What it says of itself by
    attributes of the class:

    Attributes:
        title: How messages name the place of the jobs.
        local: Whether the jobs run on this machine, and share its CPUs.
        sees_local_paths: Whether the jobs see this machine's folders; else input and output have to be in a store.
        stores: The schemes of the object stores that the jobs can use.
        creates_per_s: How many jobs a second the engine takes at most, to tell beforehand how long that will be; None
            where it takes no time to speak of.
        longest_name: How many characters the name of a job may have, at least 40. It is of letters, digits and -.
        lower_case_names: Whether the letters have to be small.
        longest_variable: How many characters the value of a variable of the environment may have.
        missing_hint: What to do where a field is missing that has to be there.
        cloudwatch: Whether the jobs' logs are in CloudWatch, so that messages can link to them.
    """

    title: ClassVar[str] = "the engine"
    local: ClassVar[bool] = False
    sees_local_paths: ClassVar[bool] = False
    stores: ClassVar[tuple[str, ...]] = ("s3",)
    creates_per_s: ClassVar[float | None] = 1.0
    cloudwatch: ClassVar[bool] = False
    longest_name: ClassVar[int] = 63
    lower_case_names: ClassVar[bool] = False
    longest_variable: ClassVar[int] = variables.LONGEST
    missing_hint: ClassVar[str] = ""

    kind: str
    max_runtime: Count | None = Field(None, ge=1, le=777600)
    env: dict[str, str] = Field(default_factory=dict)
    endpoint_url: str | None = None
    boto_session: Any = Field(None, exclude=True, repr=False)
    merge: dict[str, Any] | None = None

    def __init__(self, **fields: Any) -> None:
        variables.refuse_secrets({name: value for name, value in fields.items() if name not in ("env", "tags")})
        try:
            super().__init__(**fields)
        except ValidationError as error:
            from shardkit.explain import explain

            missing = any(problem["type"] == "missing" for problem in error.errors())
            raise PipelineError(explain(error, type(self)), hint=self.missing_hint if missing else "") from error

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
        return variables.checked(value, longest=cls.longest_variable)

    @model_validator(mode="after")
    def _fit_to_merge(self) -> Self:
        """See at once that the merge's own values can be used."""
        if self.merge is not None:
            if {"kind", "merge"} & set(self.merge):
                raise ValueError("merge: the job that merges runs where the others run; give fields such as its size.")
            try:
                self.for_merge()
            except PipelineError as error:
                raise ValueError(f"merge: {error.message}") from error
        return self

    @classmethod
    def adopted(cls, value: Any) -> Self | None:
        """The settings of an engine that is there already, given in place of settings; None if it is no such one."""
        del value
        return None

    @classmethod
    def serving(cls, max_instances: int | None, root: str | None = None) -> tuple[Engine, Policy]:
        """The engine, and the policy for it, for jobs in a queue that this machine serves, from any submitter.

        ``root`` is where the engine keeps its jobs, if that is a folder.

        Raises:
            PipelineError: such an engine runs the jobs of its own runs alone.
        """
        del max_instances, root
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

    @property
    def look_every_s(self) -> float:
        """How often a process that watches a run looks at what its jobs have done."""
        return 10.0

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
        return False

    @property
    @abstractmethod
    def vcpus(self) -> int:
        """The fewest CPUs that an instance of a job may have."""

    @property
    def larger_types(self) -> tuple[str, ...]:
        """The kinds of instances on which records go out again that need more memory than the first kind has."""
        return ()

    @property
    def create_call(self) -> str:
        """The call that makes a job, by its name in messages."""
        return "CreateProcessingJob"

    @property
    def places_inputs(self) -> bool:
        """Whether an input can be at any path in a job, and not only at one that the service chooses."""
        return True

    @property
    def output_key(self) -> str | None:
        """The id of the key that what is written to S3 is encrypted with; None leaves it to the bucket."""
        return None

    @abstractmethod
    def resources(self, instances: int) -> dict[str, Any]:
        """The part of a request that says what a job runs on: ``ProcessingResources``, and what else that takes."""

    def check_instances(self, by: str, instances: int = 1) -> None:
        """Make sure that a job can have as many instances as the shards, which are cut ``by`` something, ask for.

        Raises:
            PipelineError: it cannot, or no job would use them.
        """

    def check_site(self) -> None:
        """See that jobs as these settings have them are possible at all there, as far as that can be asked for.

        Raises:
            PipelineError: they are not; it is raised before anything is started.
        """

    def check_volume(self, job: int, size_bytes: int) -> None:
        """Make sure that there is room for what a job downloads to an instance.

        Raises:
            PipelineError: there is not.
        """

    def for_merge(self) -> Self:
        """The settings of the job that merges."""
        return self.replace(**self.merge, merge=None) if self.merge else self

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
        leftovers: str = "",
    ) -> dict[str, Any]:
        """The arguments of CreateProcessingJob, without ProcessingJobName.

        ``inputs`` are ProcessingInputs, ``outputs`` the Outputs of ProcessingOutputConfig; ``environment`` goes over
        the user's own. ``leftovers`` is the URI of a folder for what the service uploads by itself, if it does.

        Raises:
            PipelineError: the service would not take it; the message names the field.
        """
        del leftovers
        application: dict[str, Any] = {}
        application["ContainerEntrypoint"] = limits.check_words("entrypoint", entrypoint)
        if words := limits.check_words("arguments", arguments):
            application["ContainerArguments"] = words
        resources = self.resources(instances)
        application |= resources.pop("AppSpecification", {})
        request: dict[str, Any] = {"AppSpecification": application} | resources
        if listed := limits.check_inputs(inputs):
            request["ProcessingInputs"] = listed
        if kept := [dict(output) for output in outputs]:
            request["ProcessingOutputConfig"] = {"Outputs": kept}
            if self.output_key:
                request["ProcessingOutputConfig"]["KmsKeyId"] = self.output_key
        if given := self._environment(environment or {}):
            request["Environment"] = given
        if self.max_runtime is not None:
            request["StoppingCondition"] = {"MaxRuntimeInSeconds": self.max_runtime}
        return request

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        both = self.env | dict(more)
        for name, value in more.items():
            if max(len(name), len(value)) > self.longest_variable:
                raise PipelineError(f"environment.{name}: more than {self.longest_variable} characters.")
        if len(both) > variables.MOST_VARIABLES:
            raise PipelineError(
                f"env: {len(self.env)} variables and shardkit's own {len(both) - len(self.env)} are more than the "
                f"{variables.MOST_VARIABLES} that SageMaker takes."
            )
        return both

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and dict(self) == dict(other)  # without what they have looked up since

    def __hash__(self) -> int:
        return hash((self.kind, *sorted(self.env)))

    def replace(self, **fields: Any) -> Self:
        """A copy with other values."""
        own = type(self).model_fields.items()
        return type(self)(**{field.alias or name: getattr(self, name) for name, field in own} | fields)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain data; sessions and clients stay behind."""
        content = self.model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in content.items() if value not in ("", [], {})}
