"""The sections of a pipeline: the values that each field may have, and the short forms of these."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shardkit.clusters.kinds import known_backend
from shardkit.dataset.formats.kinds import format_of, known_format
from shardkit.engines.environment import as_text
from shardkit.engines.kinds import EngineSettings
from shardkit.engines.values import Names, NoTruth
from shardkit.errors import PipelineError
from shardkit.inside.rule import Inside
from shardkit.masking import is_secret
from shardkit.spec.schedule import Schedule
from shardkit.spec.section import Section, Uri, path_text
from shardkit.storage.base import absolute_uri, is_remote, scheme_of
from shardkit.times import interval
from shardkit.traits import Expected, IsPath, MayChange

if TYPE_CHECKING:
    from shardkit.dataset.iceberg.tables import IcebergTable

UNITS = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", 1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}

# What each way of cutting takes, with an example.
SHARD_FIELDS = {
    "directory": {"depth": "1", "max_jobs": "100"},
    "date": {"path": "{Y}/{m}/{d}", "column": "modified", "max_jobs": "100", "zone": "Europe/Paris"},
    "size": {"count": "10", "target": "10GB"},
    "s3key": {"instances": "4"},
}
RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|min|h)\s*")
PERIODS_S = {"s": 1, "min": 60, "h": 3600}
MOST_CALLS = 10_000  # of one worker at once
MOST_GPUS = 64  # of one worker
MAX_INSTANCES = 100  # of one Processing job


def parse_bytes(value: Any) -> Any:
    """``"128MB"`` or ``"1 GiB"`` as a number of bytes; a number stays as it is."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\d+)?)\s*([a-zA-Z]*)\s*", value)
    if not match or match[2].lower() not in UNITS:
        raise ValueError("expected a number of bytes, or one with a unit such as 128MB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def _rate(value: Any) -> Any:
    """A rate as text; a number is so many calls a second."""
    text = f"{value:g}/s" if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not RATE.fullmatch(text) or not per_second(text) > 0:
        raise ValueError("expected calls and a time, such as 50/s, 3000/min or 100/h")
    return text.replace(" ", "")


def per_second(rate: str) -> float:
    """How many calls a second a rate such as ``3000/min`` is."""
    match = RATE.fullmatch(rate)
    return float(match[1]) / PERIODS_S[match[2]] if match else 0.0


def _whole_or_part(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("expected a whole number of GPUs, or a part of one, such as 0.5")
    return value


Rate = Annotated[str, BeforeValidator(_rate)]
Gpus = Annotated[float, NoTruth, Field(ge=0.01, le=MOST_GPUS), AfterValidator(_whole_or_part)]
Bytes = Annotated[int, NoTruth, BeforeValidator(parse_bytes), Field(ge=1)]


class Parallel(Section):
    """What the chunks of a run are handed to: the workers of this machine, or a cluster that joblib reaches."""

    backend: Annotated[str, AfterValidator(known_backend)]
    n_jobs: Annotated[int, NoTruth, Field(ge=-1)] = -1
    address: Annotated[str, Field(min_length=1)] | None = None

    @field_validator("n_jobs")
    @classmethod
    def _some_jobs(cls, value: int) -> int:
        if value == 0:
            raise ValueError("expected a number of 1 or more, or -1 for as many as the cluster has CPUs")
        return value


class Shards(Section):
    """How records are dealt to jobs: by folder or date, whose groups stay whole, by size, or object by object."""

    by: Literal["directory", "date", "size", "s3key"] = "directory"
    depth: Annotated[int, NoTruth, Field(ge=1, le=1000)] | None = None
    path: Annotated[str, Field(min_length=1)] | None = None
    column: Literal["modified"] | None = None
    max_jobs: Annotated[int, NoTruth, Field(ge=1)] | None = None
    count: Annotated[int, NoTruth, Field(ge=1)] | None = None
    target: Bytes | None = None
    instances: Annotated[int, NoTruth, Field(ge=1, le=MAX_INSTANCES)] | None = None
    zone: Annotated[str, Field(min_length=1)] | None = None
    steal: Annotated[bool, Expected("true or false"), MayChange(), Field(strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_depth(cls, given: Any) -> Any:
        by_directory = isinstance(given, Mapping) and given.get("by", "directory") == "directory"
        return {**given, "depth": 1} if by_directory and given.get("depth") is None else given

    @field_validator("depth", "path", "column", "max_jobs", "count", "target", "instances", "zone", mode="before")
    @classmethod
    def _belongs(cls, value: Any, info: ValidationInfo) -> Any:
        by, name = info.data.get("by"), str(info.field_name)
        if value is not None and by is not None and name not in SHARD_FIELDS[by]:
            homes = [f"by: {kind}" for kind, fields in SHARD_FIELDS.items() if name in fields]
            takes = " or ".join(SHARD_FIELDS[by]).replace(" or ", ", ", len(SHARD_FIELDS[by]) - 2)
            raise ValueError(f"this field is for {' and '.join(homes)}; by: {by} takes {takes}.")
        return value

    @field_validator("path")
    @classmethod
    def _dated(cls, value: str | None) -> str | None:
        from shardkit.times import date_expression

        if value is not None:
            date_expression(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> Shards:
        needed = {"date": ("path", "column"), "size": ("count", "target"), "s3key": ("instances",)}.get(self.by, ())
        given = [name for name in needed if getattr(self, name) is not None]
        if needed and not given:
            examples = " or ".join(f"{name} (such as {SHARD_FIELDS[self.by][name]})" for name in needed)
            raise ValueError(f"by: {self.by} needs {examples}.")
        if len(given) > 1:
            raise ValueError(f"by: {self.by} takes {' or '.join(given)}, not both.")
        return self

    @model_serializer
    def _given(self) -> dict[str, Any]:
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


# What each way of cutting files takes.
INSIDE_FIELDS = {
    "lines": ("target_bytes", "header", "quoted_newlines"),
    "csv": ("target_bytes", "header", "quoted_newlines"),
    "tar": ("by", "pattern"),
    "zip": ("by", "pattern"),
    "parquet": ("target_bytes",),
}


class InsideFiles(Section):
    """How records are cut out of files: by lines or row groups of about so many bytes, or member by member."""

    inside: Literal["lines", "csv", "tar", "zip", "parquet"]
    target_bytes: Bytes | None = None
    header: Annotated[bool, Expected("true or false"), Field(strict=True)] | None = None
    quoted_newlines: Annotated[bool, Expected("true or false"), Field(strict=True)] | None = None
    by: Literal["member", "stem"] | None = None
    pattern: Annotated[Names, Expected("a glob or a list of globs"), Field(min_length=1)] | None = None

    @field_validator("target_bytes", "header", "quoted_newlines", "by", "pattern", mode="before")
    @classmethod
    def _belongs(cls, value: Any, info: ValidationInfo) -> Any:
        kind, name = info.data.get("inside"), str(info.field_name)
        if value is not None and kind is not None and name not in INSIDE_FIELDS[kind]:
            homes = [f"inside: {kind}" for kind, fields in INSIDE_FIELDS.items() if name in fields]
            takes = " and ".join(INSIDE_FIELDS[kind])
            raise ValueError(f"this field is for {' and '.join(homes)}; inside: {kind} takes {takes}.")
        return value

    @property
    def rule(self) -> Inside:
        """The rule, with the defaults of its kind."""
        given = {name: value for name in INSIDE_FIELDS[self.inside] if (value := getattr(self, name)) is not None}
        return Inside(self.inside, **({"by": "stem"} if self.inside == "tar" else {}) | given)

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        rule = dataclasses.asdict(self.rule)
        return {"inside": self.inside} | {name: rule[name] for name in INSIDE_FIELDS[self.inside]}


def as_records(value: Any) -> Any:
    """What ``records`` may be; the name of a way of cutting files stands for the section with its defaults."""
    if isinstance(value, str) and value in INSIDE_FIELDS:
        return InsideFiles(inside=value)  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return InsideFiles(**value)
    if not isinstance(value, str | InsideFiles) and not callable(value):
        raise PydanticCustomError("records", "no rule for records")
    return value


MOST_ROWS = 10**15  # of a file
ROWS_PER_FILE = 1 << 20


class Output(Section):
    """Where the dataset goes, and how it is cut into files."""

    uri: Annotated[Uri, IsPath()]
    format: Annotated[str, BeforeValidator(known_format)] = "parquet"
    rows_per_file: Annotated[int | None, NoTruth] = Field(ROWS_PER_FILE, ge=1, le=MOST_ROWS)
    target_bytes: Bytes | None = None
    partition_by: Annotated[Names, Expected("a column or a list of columns")] = ()
    columns: Annotated[dict[str, str] | None, Expected("a mapping of columns to types")] = Field(None, alias="schema")
    widen_ints: Annotated[bool, Expected("true or false")] = False
    origin: Annotated[bool, Expected("true or false")] = False
    shuffle: Annotated[int | None, NoTruth, Expected("a number, the seed of the rows' order")] = Field(None, ge=0)

    @model_validator(mode="after")
    def _can_be_written(self) -> Output:
        if self.format != "parquet":  # which can be anywhere, and takes longer to load than all else of a pipeline
            format_of(self.format).check_output(self.uri, self.partition_by)
        return self

    @property
    def largest_bytes(self) -> int | None:
        """About how large a file may grow: as the format would have it, where the pipeline leaves the size open."""
        if self.target_bytes is None and self.rows_per_file == ROWS_PER_FILE:
            return format_of(self.format).target_bytes
        return self.target_bytes

    @field_validator("columns")
    @classmethod
    def _known_types(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        from shardkit.tables.schema import parse_schema

        if value:
            try:
                parse_schema(value)
            except PipelineError as error:
                raise ValueError(str(error).removeprefix("output.schema: ")) from None
        return value


class Glue(Section):
    """A table of the AWS Glue catalogue, and how Athena is asked: its workgroup, and the place for its answers."""

    database: Annotated[str, Field(min_length=1)]
    table: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    workgroup: Annotated[str, Field(min_length=1)] | None = None
    results: Uri | None = None


CONFIGURED = "the variable PYICEBERG_CATALOG__<NAME>__<SETTING>, or in pyiceberg's own file"


def _texts(value: Any) -> Any:
    """Settings as pyiceberg takes them: YAML reads some as numbers or truth values."""
    if not isinstance(value, Mapping):
        return value
    return {name: str(item).lower() if isinstance(item, bool) else as_text(item) for name, item in value.items()}


class Iceberg(Section):
    """A table of an Iceberg catalogue, pyiceberg's settings of the catalogue, and how long replaced snapshots stay."""

    table: Annotated[str, Field(pattern=r"^\w+(\.\w+)+$"), Expected("a namespace and a name, such as features.ads")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")] = "shardkit"
    properties: Annotated[dict[str, str], BeforeValidator(_texts)] = Field(default_factory=dict)
    keep: str = "5d"

    @field_validator("properties")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if is_secret(name, text):
                raise ValueError(f"{name} looks like a secret, which plans would show: set it in {CONFIGURED}.")
        return value

    @field_validator("keep")
    @classmethod
    def _length_of_time(cls, value: str) -> str:
        if interval(value) is None:
            raise ValueError(f"{value!r} is no length of time: write 12h, 5d or 2w.")
        return value

    def as_table(self) -> IcebergTable:
        """The table, as pass 2 has it."""
        from shardkit.dataset.iceberg.tables import IcebergTable

        return IcebergTable(**self.model_dump())


def check_place(uri: str) -> None:
    """Check that a dataset there can be an Iceberg table.

    Raises:
        ValueError: it cannot.
    """
    if is_remote(uri) and not uri.startswith("s3://"):
        raise ValueError(f"an Iceberg table is for datasets on this machine or on S3; output.uri is {uri}.")
    if odd := next((sign for sign in "#?%" if sign in absolute_uri(uri)), None):
        raise ValueError(f"an Iceberg table cannot lie where a folder's name has {odd!r}; output.uri is {uri}.")


class Catalog(Section):
    """Where the dataset is a table once it is made: in Glue for Athena, or in Iceberg."""

    glue: Annotated[Glue | None, Expected("a mapping with its database and table")] = None
    iceberg: Annotated[Iceberg | None, Expected("a mapping with its table")] = None

    @model_validator(mode="after")
    def _one(self) -> Catalog:
        if (self.glue is None) == (self.iceberg is None):
            raise ValueError(
                "expected either glue or iceberg: readers of a Glue table would see Iceberg's older files."
            )
        return self

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of this package that pass 2 needs."""
        return ("athena",) if self.glue is not None else ("iceberg",)


DYNAMODB = "dynamodb"


def _place_of_jobs(value: Any) -> Any:
    """A place of jobs; ``dynamodb`` alone means the table that the template makes by default."""
    if value == DYNAMODB:
        return f"{DYNAMODB}://shardkit-jobs"
    if isinstance(value, str) and "://" in value and not value.startswith(f"{DYNAMODB}://"):
        from shardkit.jobs.open import JOB_STORES  # which takes as long to load as all else of a pipeline

        if scheme_of(value) not in JOB_STORES:
            raise ValueError("expected dynamodb, dynamodb://TABLE, or the path of a SQLite file")
    return path_text(value)


def _known_targets(value: tuple[str, ...]) -> tuple[str, ...]:
    from shardkit.jobs import JobError
    from shardkit.jobs.targets import check_target

    for target in value:
        try:
            check_target(target)
        except JobError as error:
            raise ValueError(str(error)) from None
    return value


Targets = Annotated[Names, AfterValidator(_known_targets)]


class Queue(Section):
    """A queue of jobs that somebody else serves: its place, the jobs' owner, and who is notified when the run ends."""

    place: Annotated[str, IsPath(words=(DYNAMODB,)), BeforeValidator(_place_of_jobs), Field(min_length=1)]
    owner: Annotated[str, Field(min_length=1)] | None = None
    notify: Targets = ()


Engine = EngineSettings
WhenDue = Schedule | None
