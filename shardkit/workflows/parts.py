"""The parts of a workflow: its steps, when it runs, on what machines, and who is told of its end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from shardkit.engines.values import Names, NoTruth
from shardkit.spec.schedule import Cron, Schedule, Time, Zone
from shardkit.spec.section import Section
from shardkit.spec.sections import Bytes, Targets  # noqa: TC001  pydantic reads it
from shardkit.traits import Expected
from shardkit.workflows.expressions import parse
from shardkit.workflows.values import (
    Name,
    Quantity,
    Seconds,
    SecretPlace,
    TemplateText,
    Text,
    VariableName,
    secret_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

A_PARAMETER = Expected("a text, or a mapping such as {default: a, pattern: '[a-z]+'}")
LONGEST_VALUE = 1000  # characters of a parameter
MOST_RETRIES = 20
USUAL_JOBS, MOST_JOBS = 200, 1000  # of a pipeline on Kubernetes, as in shardkit.runs.prepare
USUAL_JOBS_AT_ONCE = 50
Retries = Annotated[int, NoTruth, Field(ge=0, le=MOST_RETRIES)]


def texts_in(value: Any) -> Iterator[str]:
    """The texts in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)


class Calendar(Section):
    """When the workflow runs: by a cron line, ``schedule``, in a zone; or every ``interval``. ``schedule`` wins."""

    schedule: Cron | None = None
    interval: Time | None = None
    zone: Zone | None = None

    @model_validator(mode="after")
    def _some_time(self) -> Calendar:
        if self.schedule is None and self.interval is None:
            raise ValueError("expected schedule, such as '0 5 * * *', or interval, such as 30m.")
        return self

    def when(self) -> Schedule:
        """The same as a schedule, which says the next times."""
        if self.schedule is not None:
            return Schedule(cron=self.schedule, zone=self.zone)
        return Schedule(every=self.interval, zone=self.zone)


class Webhook(Section):
    """Where a POST begins a run: ``port`` of ``host``, and ``path``, for who knows the token.

    ``runs: one`` refuses a call while a run is in progress, ``queue`` lets it wait. The body is a JSON object of
    parameters, of at most ``max_body`` bytes.
    """

    port: Annotated[int, NoTruth, Field(ge=0, le=65535)]
    token: SecretPlace
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    path: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]*$")] = "/"
    runs: Literal["one", "queue"] = "one"
    max_body: Bytes = 64_000

    @property
    def token_name(self) -> str:
        """The name of the variable that holds the token."""
        return secret_name(self.token) or ""


class Machines(Section):
    """What a step's machines are: an instance type, spot or not and for how much (US dollars an hour), and a volume."""

    instance_type: Annotated[str, Field(min_length=1)] | None = None
    spot: Annotated[bool, Expected("true or false"), Field(strict=True)] | None = None
    spot_price: Annotated[float, NoTruth, Field(gt=0, allow_inf_nan=False)] | None = None
    volume: Quantity | None = None

    def over(self, base: Machines | None) -> Machines:
        """These, and what they leave out from others."""
        given = self.model_dump(exclude_none=True)
        return Machines(**((base.model_dump(exclude_none=True) if base is not None else {}) | given))


class Resources(Section):
    """What a step needs of its machine."""

    cpu: Annotated[float, NoTruth, Field(gt=0, allow_inf_nan=False)] | None = None
    memory: Quantity | None = None
    gpu: Annotated[int, NoTruth, Field(ge=0)] | None = None


class Notify(Section):
    """Who is told that a run has ended, by how it did."""

    completed: Targets = ()
    failed: Targets = ()
    stopped: Targets = ()

    def all(self) -> tuple[str, ...]:
        """Everybody who is told of anything."""
        return tuple(dict.fromkeys((*self.completed, *self.failed, *self.stopped)))

    def over(self, base: Notify | None) -> Notify:
        """These, and what they leave out from others."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return Notify(**((base.model_dump() if base is not None else {}) | given))


class Parameter(Section):
    """What a run may be given: its ``default``, without which it is needed, and a ``pattern`` for the whole value."""

    default: Text | None = None
    pattern: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"default": given}

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression: {error}.") from None
        return value

    @model_validator(mode="after")
    def _default_fits(self) -> Parameter:
        if self.default is not None and (why := self.refusal(self.default)):
            raise ValueError(f"default: {why}")
        return self

    def refusal(self, value: str) -> str:
        """Why a value will not do; empty if it will."""
        if len(value) > LONGEST_VALUE:
            return f"it has more than {LONGEST_VALUE:,} characters."
        if not value.isprintable():
            return "it has characters that control a terminal, such as line breaks."
        if "{{" in value:
            return "it has an expression, and values are not looked into."
        if self.pattern is not None:
            return "" if re.fullmatch(self.pattern, value) else f"{value!r} does not match {self.pattern}."
        return _risk(value)


def _risk(value: str) -> str:
    """What a value could do to a command that does not expect it; nothing of what is known."""
    if value.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", value):
        return f"{value!r} begins with -, so that a command would take it for an option; allow it by a pattern."
    if re.search(r"(?:^|/)\.\.(?:/|$)", value):
        return f"{value!r} leads out of a folder; allow it by a pattern."
    return ""


class Step(Section):
    """One step: a pipeline of shardkit, or a command, in an image or not.

    ``after`` names the steps that must have ended well before it begins. ``set`` has fields of the pipeline, by their
    dotted names. A value ``env:NAME`` of ``env`` is a secret: the variable of that name where the workflow is run.
    On Kubernetes a pipeline becomes ``max_jobs`` jobs at most, of which ``jobs_at_once`` run at the same time.
    """

    name: Name
    after: Annotated[Names, Expected("a step or a list of steps")] = ()
    pipeline: Annotated[str, Field(min_length=1)] | None = None
    settings: Annotated[dict[str, Any], Expected("a mapping of the pipeline's fields")] = Field(
        default_factory=dict, alias="set"
    )
    image: TemplateText | None = None
    command: Annotated[tuple[TemplateText, ...], Expected("a list of words")] = ()
    env: Annotated[dict[VariableName, TemplateText], Expected("a mapping of names to texts")] = Field(
        default_factory=dict
    )
    output: TemplateText | None = None
    resources: Resources = Resources()
    machines: Machines = Machines()
    retries: Retries | None = None
    timeout: Annotated[Seconds | None, Expected("seconds, or a time such as 3h")] = None
    max_jobs: Annotated[int, NoTruth] = Field(USUAL_JOBS, ge=1, le=MOST_JOBS)
    jobs_at_once: Annotated[int, NoTruth] = Field(USUAL_JOBS_AT_ONCE, ge=1, le=MOST_JOBS)

    @field_validator("settings")
    @classmethod
    def _templates(cls, value: dict[str, Any]) -> dict[str, Any]:
        for text in texts_in(value):
            parse(text)
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        if self.pipeline is not None and self.command:
            raise ValueError("a step has a pipeline or a command, not both; make two steps of it.")
        if self.pipeline is None and not self.command and self.image is None:
            raise ValueError("this step does nothing: give it a pipeline, a command or an image.")
        if self.pipeline is None and self.settings:
            raise ValueError("set is for the fields of a pipeline, and this step has none.")
        if self.pipeline is not None and self.output is not None:
            raise ValueError("a pipeline names its output itself; to have another, set: {output.uri: ...}.")
        return self

    @property
    def secrets(self) -> dict[str, str]:
        """The variables of the step that hold secrets, and the variables that these are taken from."""
        return {name: place for name, value in self.env.items() if (place := secret_name(value))}

    @property
    def plain_env(self) -> dict[str, str]:
        """The variables of the step that hold no secrets, as templates."""
        return {name: value for name, value in self.env.items() if not secret_name(value)}
