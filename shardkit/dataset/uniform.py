"""One schema for all files of a dataset of days: those that lack a column, or have a narrower type, are rewritten.

A run makes some days and leaves the others. Readers that know nothing of the dataset's own list (pandas, pyarrow,
Spark) take the schema of one file for that of all, so that a column which appears later would be lost to them.
"""

from __future__ import annotations

import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa

from shardkit.dataset.checks import kept_days
from shardkit.dataset.formats.kinds import format_of
from shardkit.dataset.kept_files import CONTENTS, Contents, noted_by
from shardkit.dataset.read import FOOTERS_AT_ONCE, open_dataset
from shardkit.dataset.source import one_schema
from shardkit.dataset.writer import write_file
from shardkit.errors import SchemaConflict, StorageError
from shardkit.hints import Hint
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together
from shardkit.tables.schema import conform
from shardkit.tables.type_text import schema_of, schema_to_text
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shardkit.dataset.build import Build
    from shardkit.runfolder.document_types import Result, ResultFile
    from shardkit.runfolder.folder import RunFolder
    from shardkit.storage.base import Folder

Files: TypeAlias = "dict[str, ResultFile]"
WRITTEN_AT_ONCE = 4  # each holds a row group


def make_uniform(folder: RunFolder, build: Build, old: Result | None) -> Files:
    """Give all files of the next state of a dataset of days one schema; the caller holds the dataset lock.

    Files with another schema are rewritten to where the build's other files are staged, unless a catalogue's readers
    know how to read them.

    Args:
        folder: of the run that makes the next state.
        build: what it has made. Its files, too, may lack a column: a combine gives other columns for each day, or
            another run has brought one meanwhile.
        old: the result that describes the dataset as it is.

    Returns:
        The entries of the rewritten files, by their old paths.

    Raises:
        SchemaConflict: a column has types that have nothing in common, or values that do not fit its type.
        StorageError: a file cannot be read or written.
    """
    result, days = build.result, set(kept_days(folder.plan(), old))
    staying = _staying(folder.output, old, days) if old is not None else []
    result["uniform"] = staying is not None
    if old is None or not staying:
        return {}
    own = schema_of(result, without=result["partition_by"])
    staged = [file for file in result["files"] if file["path"] not in build.kept]
    files = [*staying, *(_Rewriting(build.home_of(file["path"]), file, own, result["format"]) for file in staged)]
    schema = build.merge.stored(_common_schema(build, own, staying))
    others = [file for file in files if not _same(file.columns, schema)]
    rewritten = _rewrite([file for file in others if not build.merge.reads_as(file.columns, schema)], build, schema)
    result["uniform"] = len(rewritten) == len(others)
    result["files"] = [rewritten.get(file["path"], file) for file in result["files"]]
    _describe_columns(result, schema)
    if rewritten:
        together(
            [partial(build.home_of(file["path"]).remove, file["path"]) for file in staged if file["path"] in rewritten]
        )
        _note(folder, old, rewritten, schema)
    return rewritten


@dataclass(frozen=True)
class _Rewriting:
    """A file of the dataset, or a staged one, and the columns that it has."""

    folder: Folder
    file: ResultFile
    columns: pa.Schema
    format: str

    def write(self, target: Folder, schema: pa.Schema, token: str) -> ResultFile:
        """Write its rows, in their order, to a file of another schema in the same folder of the dataset."""
        path, rows = self.file["path"], self.file["rows"]
        number = re.search(r"part-\d+(?=-[^/]*$)", path)
        name = f"{number[0] if number else 'part-00000'}-{token}{posixpath.splitext(path)[1]}"
        new_path = posixpath.join(posixpath.dirname(path), name)
        written = write_file(target, new_path, self._tables(schema), schema, self.format)
        if written.rows != rows:
            raise StorageError(
                f"{File(self.folder, path)} has {written.rows:,} rows where {rows:,} were written.",
                hint=Hint(
                    f"Make its day again: days=[{self.file['partition']!r}], incremental=False.",
                    f"Make its day again: --date {self.file['partition']} --set incremental=false.",
                ),
            )
        return {**self.file, "path": written.path, "bytes": written.bytes}

    def _tables(self, schema: pa.Schema) -> Iterator[pa.Table]:
        description = {
            "format": self.format,
            "partition_by": [],
            "columns": {field.name: str(field.type) for field in self.columns},
            "schema": schema_to_text(self.columns),
            "files": [self.file],
        }
        for batch in open_dataset(self.folder, description).to_batches():
            try:
                yield conform(pa.Table.from_batches([batch]), schema)
            except pa.ArrowInvalid as error:
                raise SchemaConflict(
                    f"The rows of {File(self.folder, self.file['path'])}, of a day that stays, do not fit the schema: "
                    f"{error}.",
                    hint=Hint("Run all days once, without days.", "Run all days once, without --date and --since."),
                ) from error


def _rewrite(files: Sequence[_Rewriting], build: Build, schema: pa.Schema) -> Files:
    if files:
        build.say(f"{counted(len(files), 'file')} of other days get the columns and types that the dataset has now.")
    write = partial(_Rewriting.write, target=build.staging, schema=schema, token=f"{build.token}-w")
    with ThreadPoolExecutor(WRITTEN_AT_ONCE, thread_name_prefix="shardkit-uniform") as pool:
        return dict(zip([rewriting.file["path"] for rewriting in files], pool.map(write, files), strict=True))


def _staying(output: Folder, old: Result, days: set[str]) -> list[_Rewriting] | None:
    """The files of the days that stay, and their columns; None if the columns are unknown."""
    files, kind = [file for file in old["files"] if file["partition"] in days], old["format"]
    if old.get("uniform"):
        columns = schema_of(old, without=old["partition_by"])
        return [_Rewriting(output, file, columns, kind) for file in files]
    if not (format_of(kind).describes_itself and format_of(kind).tabular):
        return None
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:  # each is a request or two where the files are objects
        schemas = list(pool.map(partial(_schema_of_file, output, kind), [file["path"] for file in files]))
    return [_Rewriting(output, file, schema, kind) for file, schema in zip(files, schemas, strict=True)]


def _schema_of_file(output: Folder, kind: str, path: str) -> pa.Schema:
    import pyarrow.dataset as pads

    filesystem, base = output.arrow()
    reader = format_of(kind).reader(pa.schema([]))
    try:
        return pads.dataset(f"{base}/{path}", filesystem=filesystem, format=reader).schema.remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"Cannot read {File(output, path)}: {error}.", hint="Make its day again.") from error


def _common_schema(build: Build, own: pa.Schema, staying: Sequence[_Rewriting]) -> pa.Schema:
    """The schema that holds all columns, with the pipeline's types for those that it names."""
    distinct = {build.merge.stored(file.columns): f"{file.file['partition']} (which stays)" for file in staying}
    if build.merge.schema is not None:
        fields = {field.name: field for schema in (*distinct, own) for field in schema}
        return pa.schema(list(fields.values()))
    named = {name: schema for schema, name in distinct.items()}
    return one_schema(named | {"the days that are made": own}, widen_ints=build.merge.widen_ints)


def _same(left: pa.Schema, right: pa.Schema) -> bool:
    return {field.name: field.type for field in left} == {field.name: field.type for field in right}


def _describe_columns(result: Result, schema: pa.Schema) -> None:
    whole = pa.schema([*schema, *(field for field in schema_of(result) if field.name not in schema.names)])
    result |= {"columns": {field.name: str(field.type) for field in whole}, "schema": schema_to_text(whole)}


def _note(folder: RunFolder, old: Result, rewritten: Files, schema: pa.Schema) -> None:
    """Note what the rewritten files hold, from the notes on the old ones; the next run reads it."""
    own = Contents.of_run(folder.output, folder.run_id)
    days = {file["partition"] for file in rewritten.values()}
    runs = sorted({noted_by(made) for day, made in old["partitions"].items() if day in days})
    for contents in [own, *together([partial(Contents.of_run, folder.output, run) for run in runs])]:
        own.files |= {rewritten[path]["path"]: contents.files[path] for path in rewritten if path in contents.files}
    own.columns |= {day: [[field.name, str(field.type)] for field in schema] for day in days}
    own.files = {path: pieces for path, pieces in own.files.items() if path not in rewritten}
    if own.files:
        folder.write(CONTENTS, own.dump())
