"""Pass 2: parts to the dataset.

As a program it works alone on plain directories, as the macro/micro-sharding pattern's second script does:

    python -m shardkit.pass2_combine --input OUT... --output DATASET
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow.types import is_floating, is_integer

from shardkit.clock import now
from shardkit.dataset.accounts import Account, check_parts, rows_of_parts
from shardkit.dataset.build import switching
from shardkit.dataset.catalog import keep_registered
from shardkit.dataset.combine import combined
from shardkit.dataset.day_notes import DayMerge, basis_of, day_merges
from shardkit.dataset.kept_files import CONTENTS, Keeper
from shardkit.dataset.part_folders import check_inputs, ledgers_of, noted_of, parquet_files
from shardkit.dataset.source import DamagedPart, one_schema, read_source
from shardkit.dataset.switch import check_owner, current_result, kept_days
from shardkit.dataset.switch_steps import staging
from shardkit.dataset.writer import DataFile, Layout, write_dataset, write_stream
from shardkit.errors import CombineError, NothingMade, PipelineError, ShardkitError
from shardkit.pass1_preprocessing import check_made
from shardkit.runfolder.display import RowMeter, counted
from shardkit.runfolder.folder import RunFolder, run_folder
from shardkit.runfolder.ledger import WHOLE
from shardkit.storage.base import File
from shardkit.storage.base import folder as folder_at
from shardkit.tables.arrays import arrow
from shardkit.tables.type_text import schema_of
from shardkit.tables.unify import holds_all
from shardkit.tracebacks import user_traceback

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Sequence

    from shardkit.dataset.source import Source
    from shardkit.functions import FunctionRef
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.ledger import CommittedPart, Ledger
    from shardkit.runs.handle import Run
    from shardkit.storage.base import Folder


@dataclass(frozen=True)
class Merge:
    """What pass 2 shall make of the parts."""

    layout: Layout
    schema: dict[str, str] | None = None
    widen_ints: bool = False
    combine: FunctionRef | None = None
    glue: dict[str, Any] | None = None  # the table to register the dataset as
    allow_empty: bool = False
    failures_counted: bool = False  # whether max_failures is a number of records, which may be all of them

    def digest(self) -> str:
        """Tells whether the same would be made of the same rows, but for how they are cut into files."""
        combine = [self.combine.name, self.combine.digest] if self.combine is not None else None
        return hashlib.sha256(json.dumps([combine, self.widen_ints]).encode()).hexdigest()


def write_merged(
    folder: Folder,
    source: Source,
    merge: Merge,
    *,
    token: str,
    threads: int | None,
    numbers_taken: Collection[int] = (),
) -> tuple[list[DataFile], pa.Schema]:
    """Write the parts of ``source`` as dataset files under ``folder``, their names carrying ``token``.

    Returns the files, and the schema of the dataset with its partition columns. The last three arguments are as for
    `write_dataset`.

    Raises:
        SchemaConflict: a value does not fit its column.
        CombineError: the user's function raised.
        StorageError: something could not be read or written.
    """
    if merge.combine is None:
        files = write_dataset(folder, source, merge.layout, token=token, threads=threads, numbers_taken=numbers_taken)
        return files, source.schema
    function = merge.combine.load()
    schemas: list[pa.Schema] = []

    def tables() -> Iterator[pa.Table]:
        for table in combined(source, function, merge.combine.name if merge.combine else ""):
            schemas[:] = [table.schema]
            yield table

    try:
        files = write_stream(folder, tables(), merge.layout, token=token, threads=threads or 1)
        return files, schemas[0] if schemas else pa.schema([])
    except ShardkitError:
        raise
    except Exception as error:
        raise CombineError(
            f"combine: {merge.combine.name} raised {type(error).__name__}: {error}\n{user_traceback(error)}",
            hint="Mend it, then resume the run; pass 1 is not done again.",
        ) from error


def run_pass2(
    ledger: Ledger, merge: Merge, attempt: Attempt, *, name: str, threads: int, fresh: bool = False
) -> dict[str, Any]:
    """Merge a run's parts and switch the dataset to them; returns the result.

    ``fresh`` says that nobody can have tried that before.

    Raises:
        LedgerError: records or parts are missing.
        NothingMade: no record is done, or there is no row.
        SchemaConflict: parts give a column types that cannot be unified.
        RunBusy: another run is switching the same dataset.
        CatalogError: the dataset is made, but could not be registered.
    """
    ledger.check()
    folder, parts = ledger.folder, ledger.partitions()
    recipe = _Recipe.of(folder, merge)
    merged = _merged_by_jobs(folder, parts, recipe)
    staged = {file.path for day in merged.values() for file in day.files}
    with undoing(ledger), switching(folder, attempt, name=name, fresh=fresh, staged=staged) as build:
        build.made_with, build.form = recipe.made_with, recipe.form
        build.columns, build.widen_ints = merge.schema, merge.widen_ints
        build.by_day, build.quarantined = folder.plan()["by_day"], ledger.quarantined_by_partition()
        rows = sum(part.rows for partition in parts.values() for part in partition)
        may_be_empty = merge.allow_empty or recipe.has_given_rows(folder, build.current)
        nothing_to_lose = merge.failures_counted and not (build.current and build.current["rows"])
        check_made(ledger, rows, allow_empty=may_be_empty, all_may_fail=nothing_to_lose)
        keeper = recipe.keeper(folder, build.current)
        sources = _sources(folder, parts, merge, build.current, merged)
        written = dict(_merged(build.staging, keeper, sources, merge, attempt, token=build.token, threads=threads))
        build.accounts = {name: Account.of(parts[name], combined=merge.combine is not None) for name in parts}
        build.contents = keeper.contents
        for partition in parts:
            if (day := merged.get(partition)) is not None:
                keeper.contents.take_in(day.contents)
                build.add(partition, day.files, day.kept, day.written)
            else:
                build.add(partition, *written[partition])
        if merged:
            attempt.progress.note(
                f"{counted(len(merged), 'day')} merged by their own jobs, {len(written):,} by this one."
            )
        attempt.check()
        if keeper.contents.columns:
            folder.write(CONTENTS, keeper.contents.dump())
        build.describe(merge.layout, records=ledger.counts(), bytes_in=ledger.total_bytes)
        if merge.combine is not None:
            check_made(ledger, build.result["rows"], allow_empty=may_be_empty, combine=merge.combine.name)
    keep_registered(merge.glue, folder.output, changed=True)
    return build.result


@contextlib.contextmanager
def undoing(ledger: Ledger) -> Iterator[None]:
    """Where a part turns out to be damaged, have its chunk be computed again when the run is resumed."""
    try:
        yield
    except DamagedPart as error:
        raise DamagedPart(error.message, error.part, hint=ledger.undo(error.part)) from None


def merge_days(ledger: Ledger, merge: Merge, attempt: Attempt, *, threads: int) -> int:
    """Merge the days of a job, whose records are all settled, for pass 2 to take; returns how many.

    Raises:
        LedgerError: records or parts are missing.
        SchemaConflict, CombineError, StorageError: as pass 2, which will try it again.
    """
    ledger.check()
    folder, current = ledger.folder, current_result(ledger.folder.output)
    sources = {day: (parts, _source(parts, merge)) for day, parts in ledger.partitions().items()}
    if any(merge.layout.day_column in source.schema.names for _, source in sources.values()):
        return 0  # pass 2 will tell what is wrong with that
    recipe = _Recipe.of(folder, merge)
    keeper = recipe.keeper(folder, current)
    token = f"{folder.run_id}-{secrets.token_hex(4)}"  # another attempt's files have other names
    home = staging(folder)
    for day, (files, kept, schema) in _merged(home, keeper, sources, merge, attempt, token=token, threads=threads):
        parts, source = sources[day]
        contents = keeper.contents.of(day, [file.path for file in (*kept, *files)])
        DayMerge(day, recipe.basis(day, parts, current), source.schema, schema, files, kept, contents).note(folder)
    return len(sources)


def _merged_by_jobs(folder: RunFolder, parts: dict[str, list[CommittedPart]], recipe: _Recipe) -> dict[str, DayMerge]:
    """The days that jobs have merged as they would be here."""
    plan = folder.plan()
    if not (plan["by_day"] and plan["pipeline"].get("engine")):
        return {}
    merged = day_merges(folder)
    current = current_result(folder.output) if merged else None
    known = {day: merged[day] for day in parts if day in merged}
    return {day: merge for day, merge in known.items() if merge.basis == recipe.basis(day, parts[day], current)}


@dataclass(frozen=True)
class _Recipe:
    """What decides what is made of the same rows: in whole, and as the result of a run notes it."""

    merge: Merge
    made_with: dict[str, str]
    form: dict[str, Any]

    @classmethod
    def of(cls, folder: RunFolder, merge: Merge) -> _Recipe:
        plan = folder.plan()
        # A combine that was sent by value has no digest here, but the plan has.
        sent = merge.combine is not None and not merge.combine.digest
        made_with = {"work": plan["work"], "merge": plan["merge_digest"] if sent else merge.digest()}
        return cls(merge, made_with, merge.layout.form(plan["form"]["days"]))

    def basis(self, day: str, parts: list[CommittedPart], current: dict[str, Any] | None) -> str:
        how = [self.made_with, self.form, asdict(self.merge.layout), self.merge.schema]
        return basis_of(parts, how=how, base=(current or {}).get("partitions", {}).get(day, {}).get("run"))

    def has_given_rows(self, folder: RunFolder, current: dict[str, Any] | None) -> bool:
        """Whether days that stay have rows that were made in the same way, so that a day without any may be right."""
        if current is None:
            return False
        made = current.get("partitions", {})
        same = {day for day in kept_days(folder.plan(), current) if self.made_with.items() <= made.get(day, {}).items()}
        return any(file["rows"] for file in current["files"] if file["partition"] in same)

    def keeper(self, folder: RunFolder, current: dict[str, Any] | None) -> Keeper:
        by_rows = self.merge.combine is None and self.merge.layout.cuts_by_rows
        return Keeper(
            folder.output,
            current,
            run_id=folder.run_id,
            rows_per_file=self.merge.layout.rows_per_file if by_rows else None,
            made_with=self.made_with,
            form=self.form,
        )


def _merged(
    home: Folder,
    keeper: Keeper,
    sources: dict[str, tuple[list[CommittedPart], Source]],
    merge: Merge,
    attempt: Attempt,
    *,
    token: str,
    threads: int,
) -> Iterator[tuple[str, tuple[list[DataFile], list[DataFile], pa.Schema]]]:
    """Write each partition's rows in ``home``: gives its new files, those of before that are kept, and the schema."""
    keeper.look_up(sources)
    work = {partition: keeper.keep(partition, *found) for partition, found in sources.items()}
    rows, read = sum(k.rest.num_rows for k in work.values()), lambda: sum(sum(k.rest.read) for k in work.values())
    with attempt.pass2(RowMeter(rows, read)):
        for partition, kept in work.items():
            attempt.check()
            files, schema = write_merged(
                home,
                kept.rest,
                replace(merge, layout=replace(merge.layout, day=partition or None)),
                token=token,
                threads=threads,
                numbers_taken=kept.numbers,
            )
            keeper.note(partition, kept, files)
            yield partition, (files, kept.files, schema)


def _sources(
    folder: RunFolder,
    parts: dict[str, list[CommittedPart]],
    merge: Merge,
    current: dict[str, Any] | None,
    merged: dict[str, DayMerge],
) -> dict[str, tuple[list[CommittedPart], Source]]:
    """The parts and rows of each partition that is to be merged, of one schema for all.

    Days that jobs have merged of rows of another schema are taken out of ``merged``.

    Raises:
        SchemaConflict: the partitions, or those that stay as they are, give a column types that cannot be unified.
        PipelineError: the rows have a column that is named as days are.
    """
    sources = {name: _source(parts[name], merge) for name in parts if name not in merged}
    day = merge.layout.day_column
    if day is not None and any(day in source.schema.names for source in sources.values()):
        raise PipelineError(
            f"The rows have a column {day!r}, which is what the dataset's days are named by.",
            hint="Rename it in the function, then start a new run.",
        )
    if day is not None and merge.schema is None:
        known = {}
        if merge.combine is None and (kept := kept_days(folder.plan(), current)) and current is not None:
            known = {f"the days that stay, such as {kept[-1]}": schema_of(current, without=current["partition_by"])}
        told = {name: merged[name].schema if name in merged else sources[name].schema for name in parts}

        def fits(column: str, kind: pa.DataType) -> bool:
            stay = [schema.field(column).type for schema in known.values() if column in schema.names]
            stay = [one for one in stay if not (is_integer(one) and is_floating(kind))]  # only asked about for a hint
            again = {name: sources.get(name) or _source(parts[name], merge) for name in parts}
            return all(holds_all(one, kind) for one in stay) and all(one.fits(column, kind) for one in again.values())

        schema = one_schema(known | told, widen_ints=merge.widen_ints, fits=fits)
        for name in [name for name in merged if _columns(merged[name].schema) != _columns(schema)]:
            del merged[name]
            sources[name] = _source(parts[name], merge)
        sources = {name: replace(source, schema=schema) for name, source in sources.items()}
    return {name: (parts[name], source) for name, source in sources.items()}


def _columns(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {column.name: column.type for column in schema}


def _source(parts: list[CommittedPart], merge: Merge) -> Source:
    files, spans = [part.file for part in parts], [part.spans for part in parts]
    source = read_source(files, spans=spans, schema=merge.schema, widen_ints=merge.widen_ints)
    check_parts(parts, [rows for rows, _ in source.sizes])
    return source


def publish_parts(ledger: Ledger, attempt: Attempt, *, name: str, allow_empty: bool) -> dict[str, Any]:
    """Make a run's parts the dataset as they are, which is what pass 1 alone leaves; returns the result.

    Raises:
        LedgerError: records or parts are missing.
        NothingMade: no record is done, or there is no row.
    """
    ledger.check()
    check_made(ledger, sum(part.rows for part in ledger.parts()), allow_empty=allow_empty)
    with switching(ledger.folder, attempt, name=name) as build:
        parts = ledger.parts()
        check_parts(parts, rows_of_parts(parts))
        build.accounts[WHOLE] = Account.of(parts, combined=False)
        for part in parts:
            shard, name = part.file.key.split("/")[1:]
            path = f"part-{shard}-{name.removesuffix('.parquet')}-{build.token}.parquet"
            part.file.folder.place(part.file.key, File(build.staging, path))
            build.add(WHOLE, [DataFile(path, part.rows, part.bytes)], [], build.schema)
        build.describe(Layout("parquet", 1, None, ()), records=ledger.counts(), bytes_in=ledger.total_bytes)
    return build.result


def combine_folders(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    merge: Merge,
    *,
    name: str = "pass2",
    quiet: bool = False,
) -> Run:
    """Pass 2 alone: the Parquet files of some folders, in order of their names, to one dataset.

    Args:
        inputs: folders, for instance those that pass 1 wrote. Of one that holds runs, the latest must be finished.
        output: the folder of the dataset.
        merge: what to make of the parts.
        name: only a pipeline of the same name may later replace the dataset.
        quiet: show no progress.

    Raises:
        InputError: an input holds no Parquet files, or its run is not finished.
        SchemaConflict, CombineError, StorageError: as for a run.
    """
    from shardkit.clock import new_run_id
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.display import make_progress
    from shardkit.runs.handle import Run, naming

    target = folder_at(output)
    check_owner(target, name)
    roots = [folder_at(place) for place in inputs]
    found = [item for root in roots for item in parquet_files(root)]
    parts = [part for part, _ in found]
    noted = {File(root, path): rows for root in roots for path, rows in noted_of(root).items()}
    folder = run_folder(target, new_run_id())
    attempt = Attempt(folder, make_progress(quiet=quiet), begun=time.monotonic(), command="pass2")
    no_records = pa.table({name: arrow(np.zeros(0, np.int64)) for name in ("key", "shard", "chunk", "bytes")})
    with naming(Run(folder)), folder.lock() as held, attempt.holding(held):
        folder.write_plan({"created": now(), "merge_of": [root.uri for root in roots]}, no_records, None)
        with switching(folder, attempt, name=name) as build:
            source = read_source(parts, schema=merge.schema, widen_ints=merge.widen_ints)
            check_inputs(noted, dict(zip(parts, (rows for rows, _ in source.sizes), strict=True)))
            build.accounts[WHOLE] = Account(None if merge.combine is not None else source.num_rows, None)
            with attempt.pass2(RowMeter(source.num_rows, lambda: sum(source.read))):
                files, schema = write_merged(build.staging, source, merge, token=build.token, threads=None)
                build.add(WHOLE, files, [], schema)
            size = sum(size for _, size in found)
            build.describe(merge.layout, records=ledgers_of(roots), bytes_in=size)
            if not (build.result["rows"] or merge.allow_empty):
                raise NothingMade(
                    f"{counted(len(roots), 'folder')} of parts gave no row, so there is nothing to make a dataset of; "
                    "what was there stays.",
                    hint="If there is to be no row, set allow_empty: true (--allow-empty).",
                )
    return Run(folder)


if __name__ == "__main__":
    from shardkit.cli.app import main

    main(["pass2", *sys.argv[1:]])
