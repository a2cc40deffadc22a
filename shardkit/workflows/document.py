"""What a workflow says, validated: its steps, and what differs between environments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from shardkit.engines.values import NoTruth
from shardkit.errors import PipelineError
from shardkit.spec.section import Section
from shardkit.spec.sections import Engine, Queue  # noqa: TC001  pydantic reads it
from shardkit.traits import Expected, Short
from shardkit.workflows.parts import Calendar, Machines, Notify, Parameter, Retries, Step, Webhook
from shardkit.workflows.problems import near
from shardkit.workflows.values import Name, Seconds, TemplateText, Text, VariableName  # noqa: TC001  pydantic reads them

if TYPE_CHECKING:
    from typing_extensions import Self

    from shardkit.spec.yaml import Lines

CALENDAR, WEBHOOK = "calendar", "webhook"
A_LENGTH = Expected("seconds, or a time such as 3h")
DEFAULTS = Expected("a mapping of names to defaults")
QUEUE = Expected("dynamodb, dynamodb://TABLE, or a mapping with its place")
TEXTS = Expected("a mapping of names to texts")
ENVIRONMENTS = Expected("a mapping of names to what differs")


class Shared(Section):
    """What a workflow says of all its environments, and an environment says of itself instead."""

    mode: Literal["workflow", "calendar", "webhook"] = "workflow"
    calendar: Annotated[Calendar | None, Expected("a mapping with its schedule or interval")] = None
    webhook: Annotated[Webhook | None, Expected("a mapping with its port and token")] = None
    namespace: Name | None = None
    params: Annotated[dict[VariableName, Parameter], DEFAULTS] = Field(default_factory=dict)
    variables: Annotated[dict[VariableName, Text], TEXTS] = Field(default_factory=dict)
    image: TemplateText | None = None
    output: TemplateText | None = None
    machines: Machines = Machines()
    notify: Notify = Notify()
    engine: Annotated[Engine, Short("kind")] = None
    queue: Annotated[Queue | None, QUEUE, Short("place")] = None
    retries: Retries = 0
    timeout: Annotated[Seconds | None, A_LENGTH] = None
    parallelism: Annotated[int | None, NoTruth] = Field(None, ge=1, le=1000)


class Environment(Shared):
    """What one environment has of its own."""


class Workflow(Shared):
    """A workflow; `read_workflow` reads one from its file.

    ``namespace``, ``params``, ``variables`` and all else of `Shared` may be said once, and again in an environment:
    single texts and numbers replace those above them; ``params``, ``variables``, ``machines`` and ``notify`` are
    joined, name by name. `of_environment` does that.

    ``timeout`` (seconds) and ``retries`` are of each step that has none of its own. ``parallelism`` is how many
    steps run at once; by default as many as can. ``image`` is that of the steps without one. ``output`` is the folder
    or URI in which each step that is no pipeline has its own folder, unless it has an ``output`` of its own.
    """

    name: Name
    steps: Annotated[tuple[Step, ...], Expected("a list of steps"), Field(min_length=1, max_length=500)]
    environments: Annotated[dict[Name, Environment], ENVIRONMENTS] = Field(default_factory=dict)

    _environment: str | None = PrivateAttr(None)
    _file: Path | None = PrivateAttr(None)
    _lines: Any = PrivateAttr(None)

    @property
    def environment(self) -> str | None:
        """The environment, of the workflow that `of_environment` makes; None if there are none."""
        return self._environment

    @property
    def file(self) -> Path | None:
        """The file that it was read from."""
        return self._file

    @property
    def lines(self) -> Lines:
        """The line of each field in the file, by its path."""
        return self._lines or {}

    @property
    def folder(self) -> Path:
        """The folder that relative paths count from: that of the file."""
        return self._file.resolve().parent if self._file is not None else Path.cwd()

    def path(self, text: str) -> str:
        """A path in the workflow as an absolute one; a URI as it is."""
        return text if "://" in text else os.path.normpath(self.folder / os.path.expanduser(text))

    def step(self, name: str) -> Step:
        """The step of that name, which there must be."""
        return next(step for step in self.steps if step.name == name)

    def of_environment(self, name: str | None = None) -> Self:
        """The workflow as it is in one environment: without ``environments``, and with what that one says instead.

        Each step has its own ``machines``, ``image``, ``retries`` and ``timeout`` then, where the workflow has some.

        Raises:
            PipelineError: there is no such environment, or there are several and none is named.
        """
        own = self._own(name)
        fields: dict[str, Any] = {field: getattr(self, field) for field in type(self).model_fields}
        fields |= {field: getattr(own, field) for field in own.model_fields_set} if own is not None else {}
        if own is not None:
            fields |= {field: getattr(self, field) | getattr(own, field) for field in ("params", "variables")}
            fields |= {field: getattr(own, field).over(getattr(self, field)) for field in ("machines", "notify")}
        fields |= {"environments": {}, "steps": tuple(_whole(step, fields) for step in self.steps)}
        merged = self.model_copy(update=fields)
        merged._environment = name  # noqa: SLF001  another of the same class
        return merged

    def _own(self, name: str | None) -> Environment | None:
        if name is None and not self.environments:
            return None
        if name in self.environments:
            return self.environments[str(name)]
        where = f"{self._file}: " if self._file else ""
        if not self.environments:
            raise PipelineError(f"{where}the workflow has no environments, and so no {name}.", hint="Leave out --env.")
        names = ", ".join(self.environments)
        if name is None:
            raise PipelineError(f"{where}the workflow has the environments {names}.", hint="Say which: --env NAME.")
        raise PipelineError(f"{where}there is no environment {name!r}; {near(name, self.environments)}")


def _whole(step: Step, shared: dict[str, Any]) -> Step:
    """A step with what the workflow says of all."""
    own = {
        "machines": step.machines.over(shared["machines"]),
        "image": step.image if step.image is not None else shared["image"],
        "retries": step.retries if step.retries is not None else shared["retries"],
        "timeout": step.timeout if step.timeout is not None else shared["timeout"],
    }
    return step.model_copy(update=own)
