"""The AWS Glue catalogue: datasets as tables for Athena. The calls go through awswrangler, an optional extra.

A table only ever gains: columns that appear later are added, and no column, partition or file is taken away. Each
registration covers the whole dataset as it is after the switch, so the next one makes up for one that failed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.types as pt

from shardkit.dataset.current import current_result
from shardkit.dataset.glue_types import can_be_named, glue_type
from shardkit.dataset.read import open_dataset
from shardkit.dataset.switch import dataset_lock
from shardkit.errors import CatalogError, PipelineError, QueryError
from shardkit.runfolder.names import GLUE
from shardkit.storage.aws_locations import session_of
from shardkit.storage.base import STATE_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

SWITCH_PATIENCE_S = 600.0
OWNER = "shardkit_pipeline"  # the parameter of a table that names its owner
INTEGERS = ("tinyint", "smallint", "int", "bigint")
FLOATS = ("float", "double")
PARTITIONS_A_CALL = 100
DROP_HINT = "Drop the table, which drops no data, and resume the run: it is registered again."


def registered(output: Folder) -> dict[str, Any] | None:
    """The settings with which the dataset is in a Glue catalogue; None if it is in none."""
    try:
        glue: dict[str, Any] = json.loads(output.read(GLUE))
    except FileNotFoundError:
        return None
    return glue


def check_installed() -> None:
    """Check that awswrangler is installed, before a run rather than after it.

    Raises:
        PipelineError: it is not.
    """
    if importlib.util.find_spec("awswrangler") is None:
        raise PipelineError(
            "catalog: a Glue catalogue needs awswrangler, which is not installed.",
            hint="Install it with: pip install 'shardkit[athena]'",
        )


@dataclass(frozen=True)
class Table:
    """What is to be registered: columns and partition columns with their types, and each partition's values."""

    database: str
    name: str
    uri: str
    columns: dict[str, str]
    keys: dict[str, str]
    partitions: dict[str, list[str]]  # by the URI of their folders, which end with a slash

    @classmethod
    def of(cls, glue: Mapping[str, Any], output: Folder, result: Result) -> Table:
        """The table that a result describes.

        Raises:
            CatalogError: a column has a name or a type that the catalogue cannot hold.
        """
        by = result["partition_by"]
        types: dict[str, str] = {}
        for field in open_dataset(output, result).schema:
            if pt.is_null(field.type):
                continue  # it is registered once it holds something
            name = field.name.lower()
            if not can_be_named(name) or name in types:
                reason = "twice, in upper and lower case" if name in types else "which Athena cannot name"
                raise CatalogError(
                    f"The dataset has the column {field.name!r} {reason}.",
                    hint="Let the function give it another name.",
                )
            try:
                types[name] = glue_type(field.type)
            except ValueError as error:
                raise CatalogError(
                    f"Column {field.name!r}: {error}.", hint="Let the function give it another name, or another type."
                ) from None
        keys = {name.lower(): types.pop(name.lower(), "string") for name in by}
        uri = f"{output.uri}/"
        return cls(
            glue["database"].lower(), glue["table"].lower(), uri, types, keys, _partitions(uri, result) if by else {}
        )


def _partitions(uri: str, result: Result) -> dict[str, list[str]]:
    partitions: dict[str, list[str]] = {}
    for file in result["files"]:
        folder, _, _ = file["path"].rpartition("/")
        partitions[f"{uri}{folder}/"] = [unquote(step.partition("=")[2]) for step in folder.split("/")]
    return partitions


def register(glue: Mapping[str, Any], output: Folder, *, session: Any = None) -> None:
    """Bring the catalogue up to date with the dataset in ``output``.

    Raises:
        CatalogError: it could not be done; the dataset is whole, and a resumption tries again.
    """
    check_installed()
    # One at a time: several runs may end at once, each with other days, and two updates of a table would race.
    with dataset_lock(output, patience_s=SWITCH_PATIENCE_S), _calling(glue, output):
        result = current_result(output)
        if result is not None and result["files"]:
            table = Table.of(glue, output, result)
            _Catalogue(table, _session(output, session)).bring_up_to_date(result["name"])
            output.write(GLUE, json.dumps(dict(glue)).encode())


def keep_registered(glue: Mapping[str, Any], output: Folder, *, changed: bool) -> None:
    """Make sure that the catalogue has the dataset; ``changed``: the dataset is not as it was.

    Raises:
        CatalogError: as for `register`.
    """
    if changed or registered(output) != dict(glue):
        register(glue, output)


@contextlib.contextmanager
def _calling(glue: Mapping[str, Any], output: Folder) -> Iterator[None]:
    """Turn the catalogue's refusals into our error, which says how far the run has come."""
    name = f"{glue['database']}.{glue['table']}"
    done = f"The dataset in {output.uri} is complete, but the Glue table {name} is not up to date."
    try:
        yield
    except CatalogError as error:
        raise CatalogError(f"{done} {error.message}", hint=error.hint) from error
    except Exception as error:  # botocore's and awswrangler's own have no common base
        if not type(error).__module__.startswith(("botocore", "awswrangler")):
            raise
        raise CatalogError(f"{done} {_said(error)}", hint="Fix that, then resume the run.") from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]


def _session(output: Folder, session: Any) -> Any:
    session = session or session_of(output, "The Glue catalogue")
    if session.region_name is None:
        raise PipelineError(
            "catalog: no AWS region is set for the catalogue.",
            hint="Set AWS_DEFAULT_REGION, or the region of a profile.",
        )
    return session


class _Catalogue:
    """One table of the catalogue, which is brought up to date with ``table``."""

    def __init__(self, table: Table, session: Any) -> None:
        import awswrangler

        self._catalog = awswrangler.catalog
        self._session = session
        self._client = session.client("glue")
        self._table = table
        self._at = {"database": table.database, "table": table.name, "boto3_session": session}

    def bring_up_to_date(self, pipeline: str) -> None:
        """Create the table or add its new columns, then the partitions."""
        table, columns = self._table, self._table.columns
        existing = self._existing()
        if existing is None:
            self._catalog.create_database(table.database, exist_ok=True, boto3_session=self._session)
        else:
            columns = self._checked(existing)
        self._catalog.create_parquet_table(
            **self._at,
            path=table.uri,
            columns_types=columns,
            partitions_types=table.keys,
            parameters={OWNER: pipeline},
            compression="zstd",
            mode="append",
        )
        if table.keys:
            self._sync_partitions(_column_types(self._existing()))

    def _existing(self) -> Any:
        """The table as it is in the catalogue; None if there is none."""
        try:
            return self._client.get_table(DatabaseName=self._table.database, Name=self._table.name)["Table"]
        except self._client.exceptions.EntityNotFoundException:
            return None

    def _checked(self, existing: Mapping[str, Any]) -> dict[str, str]:
        """The columns for the existing table, which keeps its wider types.

        Raises:
            CatalogError: the table is another dataset's, has other partitions, or a type that does not fit.
        """
        table = self._table
        location = existing["StorageDescriptor"].get("Location", "")
        if location.rstrip("/") != table.uri.rstrip("/"):
            raise CatalogError(
                f"That table stands for the files in {location or 'no folder'}.",
                hint="Choose another table in the pipeline.",
            )
        keys = [key["Name"] for key in existing.get("PartitionKeys", [])]
        if keys != list(table.keys):
            raise CatalogError(
                f"It is partitioned by {', '.join(keys) or 'nothing'}, the dataset by {', '.join(table.keys)}.",
                hint=DROP_HINT,
            )
        types = _column_types(existing)
        for name, kind in table.columns.items():
            if not _holds(types.get(name, kind), kind):
                raise CatalogError(
                    f"Column {name!r} is {types[name]} there, and {kind} in the dataset.", hint=DROP_HINT
                )
        return {name: types.get(name, kind) for name, kind in table.columns.items()}

    def _sync_partitions(self, columns: dict[str, str]) -> None:
        """Add the missing partitions, and give each one all columns: those that a file lacks read as null."""
        registered = {tuple(partition["Values"]): partition for partition in self._partitions()}
        new = {uri: values for uri, values in self._table.partitions.items() if tuple(values) not in registered}
        if new:
            self._catalog.add_parquet_partitions(
                **self._at, partitions_values=new, columns_types=columns, compression="zstd"
            )
        wanted = [{"Name": name, "Type": kind} for name, kind in columns.items()]
        stale = []
        for uri, values in self._table.partitions.items():
            partition = registered.get(tuple(values))
            if partition is not None and (
                _columns(partition) != wanted or partition["StorageDescriptor"].get("Location") != uri
            ):
                storage = partition["StorageDescriptor"] | {"Columns": wanted, "Location": uri}
                changed = {
                    "Values": values,
                    "StorageDescriptor": storage,
                    "Parameters": partition.get("Parameters", {}),
                }
                stale.append({"PartitionValueList": values, "PartitionInput": changed})
        for i in range(0, len(stale), PARTITIONS_A_CALL):
            answer = self._client.batch_update_partition(
                DatabaseName=self._table.database, TableName=self._table.name, Entries=stale[i : i + PARTITIONS_A_CALL]
            )
            if answer.get("Errors"):
                raise CatalogError(f"Partitions were refused: {answer['Errors'][0]}.", hint="Resume the run.")

    def _partitions(self) -> Iterator[Any]:
        pages = self._client.get_paginator("get_partitions")
        for page in pages.paginate(DatabaseName=self._table.database, TableName=self._table.name):
            yield from page["Partitions"]


def _column_types(table: Mapping[str, Any]) -> dict[str, str]:
    return {column["Name"]: column["Type"] for column in table["StorageDescriptor"]["Columns"]}


def _columns(partition: Mapping[str, Any]) -> list[dict[str, str]]:
    listed = partition["StorageDescriptor"].get("Columns", [])
    return [{"Name": column["Name"], "Type": column["Type"]} for column in listed]


def _holds(wider: str, kind: str) -> bool:
    """Whether Athena reads a file's ``kind`` as the table's type, the same or a ``wider`` one."""
    return wider == kind or any(
        wider in row and kind in row and row.index(wider) > row.index(kind) for row in (INTEGERS, FLOATS)
    )


# ---- Athena ------------------------------------------------------------------------------------------------------


def ask_athena(
    query: str, tables: Mapping[str, tuple[str, str]], *, glue: Mapping[str, Any], output: str, session: Any = None
) -> pa.Table:
    """The answer of Athena, with the same names for datasets as in other queries.

    Args:
        query: one statement.
        tables: database and table by the name that the query may use.
        glue: the settings of the first dataset, whose database and workgroup are used.
        output: where that dataset is; the answer passes through its state folder, unless the settings say otherwise.
        session: a boto3 session.

    Raises:
        QueryError: Athena refuses the query or fails.
    """
    check_installed()
    import awswrangler

    try:
        frame = awswrangler.athena.read_sql_query(
            with_names(query, tables, database=glue["database"]),
            database=glue["database"],
            ctas_approach=False,
            workgroup=glue.get("workgroup") or "primary",
            s3_output=f"{(glue.get('results') or f'{output}/{STATE_DIR}/queries').rstrip('/')}/",
            keep_files=False,
            boto3_session=session,
        )
    except Exception as error:  # botocore's and awswrangler's own have no common base
        if not type(error).__module__.startswith(("botocore", "awswrangler")):
            raise
        raise QueryError(f"Athena cannot answer the query: {_said(error)}") from error
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def with_names(query: str, tables: Mapping[str, tuple[str, str]], *, database: str) -> str:
    """The query with a common table expression for each name in it that Athena does not know."""
    # Names in comments and string literals do no harm: an expression that nothing refers to is not evaluated.
    used = {
        name: f'"{name}" AS (SELECT * FROM "{home}"."{table}")'  # noqa: S608  names of the user's own
        for name, (home, table) in tables.items()
        if (home, table) != (database, name.lower())
        and re.search(rf'(?<![\w."]){re.escape(name)}(?!\w)|"{re.escape(name)}"', query, re.IGNORECASE)
    }
    begin = re.match(
        r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(with\s+recursive|with|select)\b", query, re.IGNORECASE | re.DOTALL
    )
    if not used or begin is None:
        return query
    named = ", ".join(used.values())
    if begin[1].lower() == "select":
        return f"WITH {named} {query}"
    return f"{query[: begin.end()]} {named},{query[begin.end() :]}"
