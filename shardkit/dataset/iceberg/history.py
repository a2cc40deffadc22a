"""A dataset as an earlier run has left it, from the snapshot of that run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from shardkit.dataset.iceberg.snapshots import data_files_of, run_of
from shardkit.dataset.iceberg.tables import check_installed, path_of, tables_of
from shardkit.errors import PipelineError, QueryError, RunNotFound
from shardkit.tables.type_text import schema_to_text

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

NAMED_AT_MOST = 10  # runs that a message names


def result_as_of(output: Folder, run_id: str, present: Result) -> Result:
    """The dataset as a run has left it, described like the ``present`` one.

    Raises:
        PipelineError: the dataset is in no Iceberg table.
        RunNotFound: there is no snapshot of the run, or no more.
        CatalogError: the table cannot be looked at.
    """
    tables = tables_of(output)
    if not tables:
        raise PipelineError(
            f"{output.uri} is in no Iceberg table, which would keep what earlier runs have made.",
            hint="Set catalog: {iceberg: {table: NAMESPACE.NAME}} in its pipeline: later runs can be asked about.",
        )
    check_installed()
    runs = []
    for table in tables:
        with table.reporting(f"The Iceberg table {table.table} of {output.uri} cannot be read."):
            existing = table.load(table.open(output))
            snapshots = sorted(existing.snapshots(), key=lambda one: -one.timestamp_ms) if existing is not None else []
            for snapshot in snapshots:
                if run_of(snapshot) == run_id and existing is not None:
                    return _described(output, existing, snapshot, present)
            runs += [run for run in map(run_of, snapshots) if run]
    named = ", ".join(list(dict.fromkeys(runs))[:NAMED_AT_MOST])
    raise RunNotFound(
        f"{tables[0].table} has no snapshot of run {run_id}, or it has expired.",
        hint=f"It has those of {named}." if named else "",
    )


def _described(output: Folder, existing: Table, snapshot: Snapshot, present: Result) -> Result:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    files: list[dict[str, Any]] = []
    for uri, file in data_files_of(existing, [snapshot]).items():
        path = path_of(output, uri)
        if path is None:
            raise QueryError(f"{uri} is not in {output.uri}.", hint="Ask another engine that reads Iceberg.")
        files.append({"path": path, "rows": file.record_count, "bytes": file.file_size_in_bytes, "partition": ""})
    schema = schema_to_pyarrow(existing.schemas()[snapshot.schema_id or 0], include_field_ids=False)
    described = {
        "run_id": run_of(snapshot),
        "rows": sum(file["rows"] for file in files),
        "files": sorted(files, key=lambda file: file["path"]),
        "columns": {field.name: str(field.type) for field in schema},
        "schema": schema_to_text(schema),
    }
    return cast("Result", {**present, **described})
