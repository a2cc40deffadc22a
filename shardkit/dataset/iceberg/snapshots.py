"""Brings an Iceberg table up to date with its dataset: one snapshot for each switch.

The switch comes first, and is what counts: the snapshot is what ``current.json`` says. If a process is killed between
the two, the table is as it was until the run is resumed or another one ends. A snapshot notes its run and the number of
the switch, so that none is made twice.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.dataset.current import current_result
from shardkit.dataset.iceberg.files import data_files
from shardkit.dataset.iceberg.tables import HOME, OWNER, note_table, uri_of
from shardkit.dataset.iceberg.types import stored_schema
from shardkit.dataset.read import partition_schema
from shardkit.dataset.switch import dataset_lock
from shardkit.errors import CatalogError
from shardkit.tables.type_text import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction
    from pyiceberg.table.snapshots import Snapshot

    from shardkit.dataset.iceberg.tables import IcebergTable
    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

SWITCH_PATIENCE_S = 600.0
TRIES = 10
WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
RUN, PIPELINE, SWITCH = "shardkit.run-id", "shardkit.pipeline", "shardkit.switch"
NEW_TABLE = {  # old versions of the metadata file, of which each commit writes one, are removed
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
}
DROP_HINT = "Drop the table, which drops no data, and resume the run, which makes it again; or choose another table."


def columns_of(result: Mapping[str, Any]) -> pa.Schema:
    """The columns of the table: those of the files, and those in the names of their folders.

    Raises:
        SchemaConflict: Iceberg has no type for one.
    """
    partitions = stored_schema(partition_schema(result))
    return pa.schema([*stored_schema(schema_of(result, without=partitions.names)), *partitions])


def check_fits(table: IcebergTable, output: Folder, result: Mapping[str, Any]) -> None:
    """Check, before a switch, that the table can hold what the dataset will be.

    Raises:
        SchemaConflict: Iceberg has no type for a column.
        CatalogError: the table is another dataset's, has other partitions or types, or cannot be looked at.
    """
    columns = columns_of(result)
    with table.reporting(
        f"The dataset in {output.uri} stays as it was: the Iceberg table {table.table} cannot take it."
    ):
        existing = table.load(table.open(output))
        if existing is not None:
            _check(existing, output, result)
            _evolve(existing.transaction(), columns)


def register(table: IcebergTable, output: Folder) -> None:
    """Make the table what the dataset in ``output`` is.

    Raises:
        CatalogError: it could not be done; the dataset is whole, and a resumption tries again.
    """
    done = f"The dataset in {output.uri} is complete, but the Iceberg table {table.table} is not up to date."
    # One at a time: several runs may end at once, each with other days. Others may still change the table.
    with dataset_lock(output, patience_s=SWITCH_PATIENCE_S), table.reporting(done):
        catalog = table.open(output)
        for attempt in range(TRIES):
            result = current_result(output)
            if result is None or not len(columns := columns_of(result)) or _is_registered(table.load(catalog), result):
                return
            _check_stored(result)
            note_table(table, output)
            try:
                _commit(table, catalog, output, result, columns)
            except Exception as error:
                if not _is_conflict(error) or attempt == TRIES - 1:
                    raise
                time.sleep(min(LONGEST_WAIT_S, WAIT_S * 2**attempt) * random.uniform(0.5, 1.5))  # noqa: S311


def _is_conflict(error: Exception) -> bool:
    """Whether somebody else has changed the table meanwhile, so that another attempt may succeed."""
    from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError, ValidationException

    return isinstance(error, CommitFailedException | TableAlreadyExistsError | ValidationException)


def _is_registered(existing: Table | None, result: Result) -> bool:
    """Whether the latest of our snapshots is that of this switch; others may have rewritten its files since."""
    ours = next(our_snapshots(existing), None) if existing is not None else None
    return ours is not None and _key(ours) == (result["run_id"], str(result["switched"]))


def _key(snapshot: Snapshot) -> tuple[str | None, str | None]:
    noted = snapshot.summary.additional_properties if snapshot.summary is not None else {}
    return noted.get(RUN), noted.get(SWITCH)


def our_snapshots(existing: Table) -> Iterator[Snapshot]:
    """The snapshots that runs have made, from the present one back."""
    from pyiceberg.table.snapshots import ancestors_of

    return (s for s in ancestors_of(existing.current_snapshot(), existing.metadata) if _key(s)[0] is not None)


def run_of(snapshot: Snapshot) -> str:
    """The run that has made a snapshot of ours."""
    return _key(snapshot)[0] or ""


def _check_stored(result: Result) -> None:
    """Check that the files have the types that Iceberg reads.

    Raises:
        CatalogError: they were made before the pipeline had a table.
    """
    schema = schema_of(result, without=result["partition_by"])
    if (stored := stored_schema(schema)) != schema:
        name = next(
            field.name for field in schema if field.name not in stored.names or field != stored.field(field.name)
        )
        raise CatalogError(
            f"Column {name!r} of its files is {schema.field(name).type}, which Iceberg does not read.",
            hint="Make the dataset again, with incremental: false.",
        )


def _check(existing: Table, output: Folder, result: Mapping[str, Any]) -> None:
    owner = existing.properties.get(OWNER)
    if owner != output.uri:
        raise CatalogError(
            f"That table stands for {f'the dataset in {owner}' if owner else 'data of others'}.",
            hint="Choose another table in the pipeline.",
        )
    names = {field.source_id: existing.schema().find_column_name(field.source_id) for field in existing.spec().fields}
    by = [names[field.source_id] for field in existing.spec().fields]
    if by != result["partition_by"]:
        raise CatalogError(
            f"It is partitioned by {', '.join(map(str, by)) or 'nothing'}, the dataset by "
            f"{', '.join(result['partition_by']) or 'nothing'}.",
            hint=DROP_HINT,
        )


def _evolve(transaction: Transaction, columns: pa.Schema) -> None:
    """Add the columns that the table lacks, and widen its types.

    Raises:
        CatalogError: a type there does not become that of the dataset.
    """
    if (error := _refusal(transaction, columns)) is None:
        return
    for field in columns:  # which is it?
        if (of_column := _refusal(transaction, pa.schema([field]))) is not None:
            raise CatalogError(
                f"Column {field.name!r} is {field.type} in the dataset, which its type in the table cannot become: "
                f"{' '.join(str(of_column).split())}.",
                hint=f"Name the type that it had in output.schema. {DROP_HINT}",
            )
    raise error


def _refusal(transaction: Transaction, columns: pa.Schema) -> Exception | None:
    """Why the table cannot have these columns; None if it has them now."""
    from pyiceberg.exceptions import ResolveError, ValidationError

    try:
        with transaction.update_schema() as update:
            update.union_by_name(columns)
    except (ValidationError, ResolveError, ValueError, TypeError) as error:
        return error
    return None


def _commit(table: IcebergTable, catalog: Catalog, output: Folder, result: Result, columns: pa.Schema) -> None:
    """Make one snapshot that has the dataset's files, and no others."""
    existing = table.load(catalog)
    if existing is None:
        transaction = _create(table, catalog, output, result, columns)
        live: dict[str, DataFile] = {}
    else:
        _check(existing, output, result)
        transaction = existing.transaction()
        _evolve(transaction, columns)
        live = data_files_of(existing, [existing.current_snapshot()])
    files = {uri_of(output, file["path"]): file for file in result["files"]}
    new = [file for uri, file in files.items() if uri not in live]
    partitions = pa.schema([columns.field(name) for name in result["partition_by"]])
    noted = {RUN: result["run_id"], PIPELINE: result["name"], SWITCH: str(result["switched"])}
    with transaction.update_snapshot(snapshot_properties=noted).overwrite() as snapshot:
        for data_file in data_files(output, new, transaction.table_metadata, partitions):
            snapshot.append_data_file(data_file)
        for uri, data_file in live.items():
            if uri not in files:
                snapshot.delete_data_file(data_file)
    transaction.commit_transaction()


def _create(table: IcebergTable, catalog: Catalog, output: Folder, result: Result, columns: pa.Schema) -> Transaction:
    """The transaction that makes the table, which appears together with its first snapshot."""
    from pyiceberg.table import TableProperties

    catalog.create_namespace_if_not_exists(table.table.rpartition(".")[0])
    transaction = catalog.create_table_transaction(
        table.table,
        schema=columns,
        location=uri_of(output, f"{HOME}/{table.table}"),
        properties={**NEW_TABLE, OWNER: output.uri},
    )
    if result["partition_by"]:
        with transaction.update_spec() as spec:
            for name in result["partition_by"]:
                spec.add_identity(name)
    # The files have no ids of columns: their names say which is which.
    mapping = transaction.table_metadata.schema().name_mapping.model_dump_json()
    transaction.set_properties({TableProperties.DEFAULT_NAME_MAPPING: mapping})
    return transaction


def data_files_of(existing: Table, snapshots: Iterable[Snapshot | None]) -> dict[str, DataFile]:
    """The data files of some snapshots, by their URIs."""
    from pyiceberg.manifest import DataFileContent

    # Snapshots share most of their manifests.
    manifests = {m.manifest_path: m for s in snapshots if s is not None for m in s.manifests(existing.io)}
    files = (
        entry.data_file
        for manifest in manifests.values()
        for entry in manifest.fetch_manifest_entry(existing.io, discard_deleted=True)
    )
    return {file.file_path: file for file in files if file.content == DataFileContent.DATA}
