"""What a pipeline says, validated, and the values that follow from it."""

from __future__ import annotations

import dataclasses
import os  # noqa: TC003  pydantic reads it
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from shardkit.clusters.kinds import HERE
from shardkit.dataset.formats.kinds import format_of
from shardkit.engines.environment import refuse_secrets
from shardkit.engines.values import NoTruth
from shardkit.errors import PipelineError
from shardkit.explain import explain, unknown_field
from shardkit.functions import FunctionRef, reference
from shardkit.plan.sizes import CHUNK_RECORDS
from shardkit.spec.checks import Checks, fits_output
from shardkit.spec.cost import MaxCost  # noqa: TC001  pydantic reads it
from shardkit.spec.fields import flat_fields, name_of_function, plain_data
from shardkit.spec.input import Input, InputPart  # noqa: TC001  pydantic reads it
from shardkit.spec.section import Section, path_text
from shardkit.spec.sections import (
    MOST_CALLS,
    MOST_ROWS,
    Bytes,
    Catalog,
    Engine,
    Gpus,
    InsideFiles,
    Output,
    Parallel,
    Queue,
    Rate,
    Shards,
    WhenDue,
    as_records,
    check_place,
    per_second,
)
from shardkit.storage.base import Access, absolute_uri
from shardkit.storage.open import folder
from shardkit.storage.places import Place, Places
from shardkit.times import DAY_COLUMN, parse_days
from shardkit.traits import DecidesWork, Expected, Flat, IsPath, MayChange, Short, fields_with

if TYPE_CHECKING:
    from typing_extensions import Self

    from shardkit.dataset.merge import Merge
    from shardkit.inside.rule import Inside
    from shardkit.runfolder.limits import WorkLimits
    from shardkit.spec.schedule import Schedule
    from shardkit.storage.base import Folder
    from shardkit.workers.tasks import Calling

A_FOLDER = Expected("a folder, or a mapping with its uri")
AN_INPUT = Expected("a folder, a mapping with its uri or a manifest, or a list of these")
RECORDS = Expected("file, stem, directory, module:callable, or a mapping such as {inside: lines, target_bytes: 64MB}")
WORKERS = Expected("'auto' or a number of 1 or more")
MEMORY = Expected("'auto', or the most that all workers of a machine may hold together, such as 12GB")
FAILURES = Expected("a count such as 10, or a share such as 1%")
QUEUE = Expected("dynamodb, dynamodb://TABLE, or a mapping with its place")
A_FUNCTION = Expected("module:callable, or a function")
PARALLEL = Expected("dask, ray, spark or loky, or a mapping such as {backend: dask, n_jobs: 64}")
RATE = Expected("calls and a time, such as 50/s, 3000/min or 100/h")
GPUS = Expected("a number of GPUs, such as 1, or a part of one, such as 0.5")
CHECKS = Expected("a mapping such as {rows_within: 20%, unique: id}")
SHARDS = Expected("a mapping such as {by: directory, depth: 1}")
CATALOG = Expected("a mapping such as {glue: {database: features, table: ads}}")
COSTS = Expected("US dollars such as 50, or a mapping such as {usd: 50, prices: aws, sample: 20}")
SCHEDULE = Expected("a time such as 3h, a cron expression, or a mapping such as {every: 3h, since: 2d}")


class Spec(Section):
    """What a pipeline says, validated; `Pipeline` adds what can be done with it.

    Everything else about a field is in its annotation, as traits.

    Raises:
        PipelineError: a field is unknown, mistyped or missing.
    """

    model_config = ConfigDict(defer_build=True)  # most programs have pipelines only

    name: str = ""
    input: Annotated[Input, AN_INPUT, Short("uri", several="parts"), Flat(), DecidesWork()]
    function: Annotated[str | Callable[..., Any], A_FUNCTION, DecidesWork()]
    source_dir: Annotated[str | None, IsPath(), MayChange(), BeforeValidator(path_text)] = None
    records: Annotated[
        str | Callable[[str], str | None] | InsideFiles, BeforeValidator(as_records), RECORDS, DecidesWork()
    ] = "file"
    shards: Annotated[Shards | None, SHARDS, DecidesWork()] = None
    workers: Annotated[int | Literal["auto"], NoTruth, WORKERS, MayChange()] = "auto"
    memory: Annotated[Bytes | Literal["auto"], MEMORY, MayChange()] = "auto"
    chunks: Annotated[Literal["dynamic", "balanced", "even"], DecidesWork()] = "dynamic"
    batch: Annotated[int | None, NoTruth, MayChange()] = Field(None, ge=1, le=CHUNK_RECORDS)
    concurrency: Annotated[int | None, NoTruth, MayChange()] = Field(None, ge=1, le=MOST_CALLS)
    rate: Annotated[Rate | None, RATE, MayChange()] = None
    gpus: Annotated[Gpus | None, GPUS, MayChange()] = None
    timeout: Annotated[float | None, NoTruth, MayChange()] = Field(3600.0, gt=0, allow_inf_nan=False)
    max_failures: Annotated[int | str, NoTruth, FAILURES, MayChange()] = "1%"
    allow_empty: Annotated[bool, MayChange()] = False
    output: Annotated[Output, A_FOLDER, Short("uri"), Flat(), MayChange(but=("uri", "origin"))]
    combine: Annotated[str | Callable[..., Any] | None, A_FUNCTION, MayChange()] = None
    checks: Annotated[Checks | None, CHECKS, MayChange(), AfterValidator(fits_output)] = None
    catalog: Annotated[Catalog | None, CATALOG, MayChange()] = None
    incremental: bool | None = None
    schedule: Annotated[WhenDue, SCHEDULE] = None
    engine: Annotated[Engine, Short("kind"), MayChange()] = None
    parallel: Annotated[Parallel | None, PARALLEL, Short("backend"), MayChange()] = None
    queue: Annotated[Queue | None, QUEUE, Short("place")] = None
    max_cost: Annotated[MaxCost | None, COSTS, Short("usd", numbers=True), MayChange()] = None
    input_mode: Annotated[Literal["stream", "download"], MayChange()] = "stream"
    requirements: Annotated[str | None, IsPath(), MayChange(), BeforeValidator(path_text)] = None
    requirements_mode: Annotated[Literal["install", "bundle", "none"], MayChange()] = "install"

    def __init__(self, **fields: Any) -> None:
        for section, short in fields_with(type(self), Short).items():
            if section in fields:
                fields[section] = short.section(fields[section])
        refuse_secrets(fields)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise PipelineError(explain(error, type(self))) from error

    @field_validator("max_failures")
    @classmethod
    def _share_or_count(cls, value: int | str) -> int | str:
        if isinstance(value, str):
            if value.strip().isdigit():
                return int(value)
            if not re.fullmatch(r"\s*\d+(\.\d+)?\s*%\s*", value) or float(value.strip("% ")) > 100:
                raise ValueError("expected a count such as 10, or a share such as 1%")
        elif value < 0:
            raise ValueError("expected a count of 0 or more, or a share such as 1%")
        return value

    @field_validator("catalog")
    @classmethod
    def _can_be_registered(cls, value: Catalog | None, info: ValidationInfo) -> Catalog | None:
        output = info.data.get("output")
        if value is None or output is None:
            return value
        kind = "a Glue catalogue" if value.glue is not None else "an Iceberg table"
        if not format_of(output.format).in_catalogs:
            raise ValueError(f"{kind} needs output.format: parquet, not {output.format}.")
        if value.iceberg is not None:
            check_place(output.uri)
            return value
        if not output.uri.startswith("s3://"):
            raise ValueError(f"a Glue catalogue is for datasets on S3; output.uri is {output.uri}.")
        from shardkit.dataset.glue_types import check_names

        check_names([*output.partition_by, *(output.columns or {})], output.columns or {})
        return value

    @field_validator("workers")
    @classmethod
    def _some_workers(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected 'auto' or a number of 1 or more")
        return value

    @field_validator("parallel")
    @classmethod
    def _for_this_machine(cls, value: Parallel | None, info: ValidationInfo) -> Parallel | None:
        if value is not None and value.backend != HERE:
            if info.data.get("engine") is not None:
                raise ValueError("the jobs of an engine use their own machines: leave out parallel, or engine.")
            if info.data.get("workers", "auto") != "auto":
                raise ValueError("on a cluster, n_jobs says how many chunks run at once: leave out workers.")
            if info.data.get("gpus") is not None:
                raise ValueError("gpus are dealt to workers of this machine, or of an engine's jobs: leave out one.")
        return value

    @field_validator("schedule")
    @classmethod
    def _days_to_redo(cls, value: Schedule | None, info: ValidationInfo) -> Schedule | None:
        shards = info.data.get("shards")
        if value is not None and value.since is not None and (shards is None or shards.by != "date"):
            raise ValueError("since is for a pipeline with days: set shards: {by: date, ...} too.")
        return value

    @field_validator("shards")
    @classmethod
    def _of_whole_objects(cls, value: Shards | None, info: ValidationInfo) -> Shards | None:
        if value is not None and value.by == "s3key" and isinstance(info.data.get("records"), InsideFiles):
            raise ValueError("by: s3key deals out whole objects, and records are inside of them: use by: size.")
        return value

    @field_validator("input_mode")
    @classmethod
    def _of_whole_objects_too(cls, value: str, info: ValidationInfo) -> str:
        if value == "download" and isinstance(info.data.get("records"), InsideFiles):
            raise ValueError("records inside of files are read by ranges: leave input_mode at stream.")
        return value

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], *, overrides: Mapping[str, Any] | None = None) -> Self:
        """Read a pipeline from a YAML file; relative paths count from its folder.

        ``overrides`` are fields by their dotted names, for instance ``{"input.uri": "other/"}``; relative paths in
        these count from the current directory.
        """
        from shardkit.spec.yaml import load_yaml

        return load_yaml(cls, Path(path), dict(overrides or {}))

    @classmethod
    def flat(
        cls,
        function: str | Callable[..., Any],
        input: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any],
        output: str | os.PathLike[str],
        **fields: Any,
    ) -> Self:
        """A pipeline from flat fields, among which those of its input and output have their own names."""
        homes = flat_fields(cls)
        for name in fields:
            if name not in cls.model_fields and name not in homes:
                raise PipelineError(f"{name}: {unknown_field(name, [*cls.model_fields, *homes])}")
        given = fields_with(cls, Short)["input"].section(input)
        sections: dict[str, dict[str, Any]] = {"input": dict(given), "output": {"uri": output}}
        for name in homes.keys() & fields.keys():
            sections[homes[name]][name] = fields.pop(name)
        return cls(function=function, **sections, **fields)

    def replace(self, **fields: Any) -> Self:
        """A copy with other values; ``input`` and ``output`` may be given in part."""
        content: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        for name, value in fields.items():
            if name in fields_with(type(self), Flat) and isinstance(value, Mapping):
                value = content[name].model_dump(by_alias=True) | dict(value)  # noqa: PLW2901
            content[name] = value
        return type(self)(**{name: _plain(value) for name, value in content.items()})

    def chosen_days(self, days: Iterable[str] | None) -> tuple[str, ...] | None:
        """Days and ranges of days as single days; None for all.

        Raises:
            PipelineError: one is no date, or the pipeline has no days.
        """
        if days is None:
            return None
        if not self.by_day:
            raise PipelineError("The pipeline has no days to choose.", hint="Set shards: {by: date, ...} in it.")
        return parse_days([days] if isinstance(days, str) else days)

    def function_ref(self) -> FunctionRef:
        """The function in the form in which workers get it."""
        return reference(self.function, source_dir=self.source_dir)

    @property
    def inside(self) -> Inside | None:
        """How records are cut out of files, if they are."""
        return self.records.rule if isinstance(self.records, InsideFiles) else None

    @property
    def by_stem(self) -> bool:
        """Whether the files of a record have one stem."""
        return self.records == "stem" or (self.inside is not None and self.inside.by == "stem")

    @property
    def by_day(self) -> bool:
        """Whether the dataset has a partition for each day, or for whatever the dates in its shards are."""
        return self.shards is not None and self.shards.by == "date"

    @property
    def is_incremental(self) -> bool:
        """Whether work of earlier runs is taken over; by default only if there are days."""
        return self.by_day if self.incremental is None else self.incremental

    def pipeline_name(self) -> str:
        """The pipeline's name; by default the function's."""
        return self.name or name_of_function(self.function).rpartition(":")[2]

    def places(self, *, as_user: bool = False) -> Places:
        """Where the input is, as workers are told it; ``as_user`` with the session of the engine's settings.

        Raises:
            PipelineError: only a manifest says so; `shardkit.runs.listing.with_roots` reads it.
        """
        places = []
        for part in self.input.places():
            if part.uri is None:
                raise PipelineError(
                    f"Only the manifest {part.manifest} says where its files lie.",
                    hint="Give input.uri, the folder or bucket that holds them.",
                )
            access = self.input_access(part) if as_user else part.access()
            places.append(Place(str(getattr(part, "name", "")), absolute_uri(part.uri), access))
        return Places(tuple(places))

    def input_folders(self) -> list[Folder]:
        """The folders of the input, but for those that only a manifest names."""
        parts = [(part.uri, part) for part in self.input.places()]
        return [folder(uri, self.input_access(part)) for uri, part in parts if uri is not None]

    def input_access(self, part: Input | InputPart) -> Access:
        """How one of the input's places is entered, with the session of the engine's settings."""
        return dataclasses.replace(part.access(), session=self._session())

    def output_folder(self) -> Folder:
        """The output's folder."""
        key = self.engine.output_key if self.engine is not None else None
        return folder(self.output.uri, Access(self._session(), key))

    def _session(self) -> Any:
        """The session in the engine's settings, which then serves the storage as well."""
        return self.engine.storage_session() if self.engine is not None else None

    def worker_count(self) -> int:
        """How many workers there are; by default one for each CPU of this process, or of a job's instance."""
        if self.workers != "auto":
            return int(self.workers)
        if self.engine is not None:
            return self.engine.vcpus
        if self.parallel is not None and self.parallel.n_jobs > 0:
            return self.parallel.n_jobs
        if self.gpus is not None:
            from shardkit.workers.devices import devices_here

            return max(devices_here().places(self.gpus), 1)
        import joblib

        return int(joblib.cpu_count())

    def calling(self, ref: FunctionRef) -> Calling:
        """How the function is called."""
        from shardkit.workers.tasks import Calling

        rate_per_s = per_second(self.rate) if self.rate is not None else None
        return Calling(self.batch, self.concurrency, rate_per_s, self.timeout, awaits=ref.awaits)

    def limits(self) -> WorkLimits:
        """The limits of pass 1."""
        from shardkit.runfolder.limits import WorkLimits

        return WorkLimits(self.worker_count(), self.timeout, self.max_failures)

    def merge(self) -> Merge:
        """What pass 2 makes of the parts."""
        from shardkit.dataset.merge import Merge
        from shardkit.dataset.writer import Layout
        from shardkit.tables.origin import COLUMNS as ORIGIN_COLUMNS

        out = self.output
        combine = reference(self.combine, source_dir=self.source_dir) if self.combine is not None else None
        layout = Layout(
            out.format,
            out.rows_per_file or MOST_ROWS,
            out.largest_bytes,
            out.partition_by,
            day_column=DAY_COLUMN if self.by_day else None,
        )
        schema = out.columns | ORIGIN_COLUMNS if out.columns and out.origin else out.columns
        catalog = self.catalog or Catalog.model_construct()
        checks = self.checks.model_dump() if self.checks is not None else None
        return Merge(
            layout,
            schema,
            out.widen_ints,
            combine,
            glue=catalog.glue.model_dump() if catalog.glue is not None else None,
            iceberg=catalog.iceberg.as_table() if catalog.iceberg is not None else None,
            shuffle=out.shuffle,
            allow_empty=self.allow_empty,
            checks=checks,
            failures_counted=isinstance(self.max_failures, int),
        )

    def to_dict(self) -> dict[str, Any]:
        """The pipeline as plain data, with absolute paths and named functions."""
        content = plain_data(self.model_dump(mode="python", by_alias=True, exclude={"engine"}), type(self))
        content["name"] = self.pipeline_name()
        content["engine"] = self.engine.to_dict() if self.engine is not None else None
        return content


def _plain(value: Any) -> Any:
    """A section as a mapping, which is validated again; anything else as it is."""
    return value.model_dump(by_alias=True) if isinstance(value, Section) else value
