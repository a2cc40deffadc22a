"""The snapshots of a dataset's Iceberg tables, and the dataset as an earlier run has left it."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from shardkit.dataset.iceberg.snapshots import data_files_of, run_of
from shardkit.dataset.iceberg.tables import check_installed, path_of, tables_of
from shardkit.errors import PipelineError, QueryError, RunNotFound
from shardkit.tables.type_text import schema_to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from shardkit.dataset.iceberg.tables import IcebergTable
    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

NAMED_AT_MOST = 10  # runs that a message names
COLUMNS = ["made", "run_id", "rows", "files", "snapshot_id", "table", "is_present"]


@dataclass(frozen=True)
class TableSnapshot:
    """A snapshot of a table.

    Attributes:
        made: when, in UTC.
        run_id: the run that made it; empty if another program did, such as a compaction.
        rows: how many rows the table had then.
        files: how many data files.
        snapshot_id: its number, which other engines take.
        table: the table's namespace and name.
        is_present: whether the table is this now.
    """

    made: datetime.datetime
    run_id: str
    rows: int
    files: int
    snapshot_id: int
    table: str
    is_present: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"made": self.made.isoformat()}


def snapshots_of(output: Folder) -> list[TableSnapshot]:
    """All snapshots that are left of a dataset's tables, the newest first.

    Raises:
        PipelineError: the dataset is in no Iceberg table.
        CatalogError: a table cannot be looked at.
    """
    return [
        _told(snapshot, table.table, existing)
        for table, existing in _tables(output)
        for snapshot in _newest_first(existing)
    ]


def _told(snapshot: Snapshot, table: str, existing: Table) -> TableSnapshot:
    noted = snapshot.summary.additional_properties if snapshot.summary is not None else {}
    return TableSnapshot(
        datetime.datetime.fromtimestamp(snapshot.timestamp_ms / 1000, datetime.timezone.utc),
        run_of(snapshot),
        int(noted.get("total-records", 0)),
        int(noted.get("total-data-files", 0)),
        snapshot.snapshot_id,
        table,
        is_present=snapshot.snapshot_id == existing.metadata.current_snapshot_id,
    )


def _newest_first(existing: Table) -> list[Snapshot]:
    return sorted(existing.snapshots(), key=lambda one: -one.timestamp_ms)


def _tables(output: Folder) -> Iterator[tuple[IcebergTable, Table]]:
    """The tables of a dataset, as their catalogues have them now.

    Raises:
        PipelineError: it is in none.
        CatalogError: one cannot be looked at.
    """
    tables = tables_of(output)
    if not tables:
        raise PipelineError(
            f"{output.uri} is in no Iceberg table, which would keep what earlier runs have made.",
            hint="Set catalog: {iceberg: {table: NAMESPACE.NAME}} in its pipeline: later runs can be asked about.",
        )
    check_installed()
    for table in tables:
        with table.reporting(f"The Iceberg table {table.table} of {output.uri} cannot be read."):
            existing = table.load(table.open(output))
        if existing is not None:
            yield table, existing


def result_as_of(output: Folder, run_id: str, present: Result) -> Result:
    """The dataset as a run has left it, described like the ``present`` one.

    Raises:
        PipelineError: the dataset is in no Iceberg table.
        RunNotFound: there is no snapshot of the run, or no more.
        CatalogError: the table cannot be looked at.
    """
    runs: list[str] = []
    for table, existing in _tables(output):
        for snapshot in _newest_first(existing):
            if run_of(snapshot) == run_id:
                with table.reporting(f"The Iceberg table {table.table} of {output.uri} cannot be read."):
                    return _described(output, existing, snapshot, present)
            runs.append(run_of(snapshot))
    named = ", ".join(list(dict.fromkeys(run for run in runs if run))[:NAMED_AT_MOST])
    raise RunNotFound(
        f"{tables_of(output)[0].table} has no snapshot of run {run_id}, or it has expired.",
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
