"""Jobs on a Slurm cluster: `engine: {kind: slurm, ...}` in a pipeline."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, field_validator

from shardkit.engines.settings import Settings
from shardkit.engines.values import Count, Names, NoTruth
from shardkit.errors import PipelineError
from shardkit.traits import IsPath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.engines.slurm import SlurmEngine
    from shardkit.jobs.policy import Policy

Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s]+$")]
TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
# Options of sbatch that the engine sets itself, or that would have a job run twice or elsewhere.
TAKEN = re.compile(
    r"(-a|--array|-J|--job-name|-o|--output|-e|--error|-i|--input|-D|--chdir|--requeue|--no-requeue|--wrap|--parsable"
    r"|-W|--wait|-n|--ntasks|-N|--nodes|--open-mode|-M|--clusters|--test-only|-d|--dependency|--export|--export-file"
    r"|-p|--partition|-A|--account|-q|--qos|-t|--time|-c|--cpus-per-task|--mem)(=.*)?"
)


class Slurm(Settings):
    """Jobs on a Slurm cluster.

    Examples:
        >>> engine = Slurm(partition="short", cpus=8, memory_gb=32, time="4:00:00")           # doctest: +SKIP

    ``root`` is the folder where the engine keeps its jobs, on a filesystem that the nodes share with this machine;
    ``options`` are further options of sbatch. The rest is what each job asks Slurm for; what is not given, Slurm's own
    settings decide.

    Raises:
        PipelineError: a field is unknown or mistyped.
    """

    title: ClassVar[str] = "Slurm"
    sees_local_paths: ClassVar[bool] = True
    creates_per_s: ClassVar[float | None] = None
    longest_variable: ClassVar[int] = 100_000  # Linux takes 128 KiB, the name with it

    kind: Literal["slurm"] = "slurm"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    cpus: Count = Field(1, ge=1, le=4096)
    memory_gb: Annotated[float, NoTruth] | None = Field(None, gt=0, le=65536)
    gpus: str | None = None
    time: str | None = None
    options: Names = ()
    root: Annotated[str, IsPath()] = Field(default_factory=lambda: str(Path.home() / ".shardkit" / "slurm"))
    isolation: Literal["auto", "none"] = "auto"
    max_jobs: Count | None = Field(None, ge=1, le=1_000_000)
    poll_s: Annotated[float, NoTruth] = Field(5.0, ge=0.1, le=600)
    own_client: Any = Field(None, alias="client", exclude=True, repr=False)
    _client: Any = PrivateAttr(None)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)

    @field_validator("root", mode="before")
    @classmethod
    def _whole_path(cls, value: Any) -> Any:
        return os.path.abspath(os.path.expanduser(value)) if isinstance(value, str | os.PathLike) else value

    @field_validator("gpus", mode="before")
    @classmethod
    def _gpus(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if text is not None and not (isinstance(text, str) and re.fullmatch(r"([\w.-]+:)?[1-9]\d*", text)):
            raise ValueError("expected a number, or a kind of GPU and a number, such as a100:2.")
        return text

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if text is not None and not (isinstance(text, str) and TIME.fullmatch(text)):
            raise ValueError(
                "expected minutes, or a text such as '4:00:00' or '2-12:00:00' (days-hours:minutes:seconds)."
            )
        return text

    @field_validator("options")
    @classmethod
    def _options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if not word.startswith("-") or len(word.split()) != 1:
                raise ValueError(f"expected options of sbatch, each a word such as --constraint=skylake, not {word!r}.")
            if TAKEN.fullmatch(word):
                raise ValueError(f"{word}: the engine sets this itself, or has a field for it.")
        return value

    @classmethod
    def adopted(cls, value: Any) -> Slurm | None:
        """The settings of a Slurm engine that is there already."""
        from shardkit.engines.slurm import SlurmEngine

        return cls(client=value, root=value.root) if isinstance(value, SlurmEngine) else None

    def policy(self) -> Policy:
        """Many jobs are created in one call; Slurm's own queue decides which is next."""
        from shardkit.jobs.policy import Policy

        return Policy(
            creates_per_s=2.0,
            batch=1000,
            poll_s=self.poll_s,
            max_instances=self.max_jobs,
            retry_wait_s=max(10.0, self.poll_s),
            throttle_max_s=60.0,
            overlap_s=120.0,
            recheck_s=60 * self.poll_s,
            lost_s=60.0,
        )

    @property
    def look_every_s(self) -> float:
        """As often as the queue is looked at."""
        return self.poll_s

    def check_site(self) -> None:
        """Ask Slurm whether it would ever take such jobs; a controller that does not answer now is no hindrance."""
        from shardkit.engines.slurm_answers import cure_of
        from shardkit.engines.slurm_commands import try_out
        from shardkit.engines.slurm_words import sbatch_words

        of_jobs, of_merge = (sbatch_words(each.resources(1)["Resources"], 1) for each in (self, self.for_merge()))
        for name, words in (("engine", of_jobs), *((("engine.merge", of_merge),) if of_merge != of_jobs else ())):
            if said := try_out(words):
                raise PipelineError(f"{name}: Slurm takes no such jobs: {said}.", hint=cure_of(said))

    @classmethod
    def serving(cls, max_instances: int | None, root: str | None = None) -> tuple[Any, Policy]:
        """The engine, for the jobs of a queue."""
        settings = cls(max_jobs=max_instances, **({"root": root} if root else {}))
        return settings.client(), settings.policy()

    def own_folders(self) -> list[Path]:
        """Where the engine keeps its jobs."""
        return [Path(self.root)]

    def python_version(self) -> str | None:
        """The jobs run this very Python."""
        return None

    @property
    def vcpus(self) -> int:
        """The CPUs of an instance."""
        return self.cpus

    def resources(self, instances: int) -> dict[str, Any]:
        """What the job asks Slurm for."""
        names = ("partition", "account", "qos", "cpus", "memory_gb", "gpus", "time", "options")
        wanted = {name: getattr(self, name) for name in names}
        return {
            "ProcessingResources": {
                "ClusterConfig": {"InstanceCount": instances, "InstanceType": self.partition or "slurm"}
            },
            "Resources": {name: list(value) if name == "options" else value for name, value in wanted.items() if value},
        }

    def client(self) -> SlurmEngine:
        """The Slurm engine."""
        if self._client is None:
            from shardkit.engines.slurm import SlurmEngine

            self._client = self.own_client or SlurmEngine(self.root, isolation=self.isolation)
        engine: SlurmEngine = self._client
        return engine

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that a job has written so far."""
        from shardkit.engines.logs import log_of

        hint = f"The jobs are under {self.root}; was something removed there?"
        return log_of(job_name, lambda: self.client().log_lines(job_name), hint=hint)
