"""The files of a dataset as one table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt

from shardkit.dataset.formats.kinds import format_of
from shardkit.errors import SchemaConflict
from shardkit.tables.schema import TypeMismatch, unify_types
from shardkit.tables.type_text import schema_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow.dataset as pads

    from shardkit.storage.base import Folder

FOOTERS_AT_ONCE = 32


def open_dataset(files: Folder, result: Mapping[str, Any]) -> pads.Dataset:
    """The files that a result lists as one table, which has every column that any of them has.

    If the result has the schema, no file is opened to learn it.

    Raises:
        SchemaConflict: files give one column types that cannot be read as one.
    """
    import pyarrow.dataset as pads

    columns, by = result["columns"], result["partition_by"]
    partitioning = _partitioning(by, columns) if by else None
    kind = format_of(result["format"])
    in_files = kind.read_as(schema_of(result, without=by))
    schema = _schema_in(result, in_files, list(partitioning.schema) if partitioning is not None else [])
    if not result["files"]:
        return pads.dataset([], schema=schema or schema_of(result), format="parquet")
    filesystem, base = files.arrow()
    dataset = pads.dataset(
        [f"{base}/{file['path']}" for file in result["files"]],
        schema=schema,
        filesystem=filesystem,
        format=kind.reader(in_files),
        partitioning=partitioning,
        partition_base_dir=base if by else None,
    )
    if schema is not None or (columns and not result.get("by_day")):  # one run has written all files, with one schema
        return dataset
    return dataset.replace_schema(_unified(dataset, files.uri))


def known_schema(result: Mapping[str, Any]) -> pa.Schema | None:
    """The columns of a dataset as it is read, those in the names of folders last; None if only its files say them."""
    in_files = format_of(result["format"]).read_as(schema_of(result, without=result["partition_by"]))
    return _schema_in(result, in_files, list(partition_schema(result)))


def partition_schema(result: Mapping[str, Any]) -> pa.Schema:
    """The columns in the names of a dataset's folders."""
    by = result["partition_by"]
    return _partitioning(by, result["columns"]).schema if by else pa.schema([])


def partition_of(result: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values that the folders of a file are named after, by column; ``path`` is that in the result."""
    import pyarrow.dataset as pads

    by = result["partition_by"]
    return dict(pads.get_partition_keys(_partitioning(by, result["columns"]).parse(path))) if by else {}


def _partitioning(names: Sequence[str], columns: Mapping[str, str]) -> Any:
    """How pyarrow reads partitions: as numbers only if the values were numbers."""
    import pyarrow.dataset as pads

    plain = {"bool", "date32[day]", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
    kinds = [columns[name] if columns.get(name) in plain else "string" for name in names]
    return pads.partitioning(pa.schema(list(zip(names, kinds, strict=True))), flavor="hive")


def _schema_in(result: Mapping[str, Any], columns: pa.Schema, partitions: list[pa.Field]) -> pa.Schema | None:
    """The schema in the result, which saves opening files; None if only the files have all of it."""
    whole = len(columns) + len(partitions) == len(result["columns"]) and len(columns) > 0
    return pa.schema([*columns, *partitions]) if whole else None


def _unified(dataset: pads.Dataset, uri: str) -> pa.Schema:
    """The schema that has all columns of all files, each of a type that holds the values of all."""
    fragments = list(dataset.get_fragments())
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:  # each is a request or two where the files are objects
        schemas = list(pool.map(lambda fragment: fragment.physical_schema, fragments))
    kinds: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            kinds[field.name] = _common(kinds.get(field.name, field.type), field.type, field.name, uri)
    # The partition columns are in no file.
    return pa.schema(list((kinds | {f.name: f.type for f in dataset.schema if f.name not in kinds}).items()))


def _common(left: pa.DataType, right: pa.DataType, column: str, uri: str) -> pa.DataType:
    """The type that both are read as: one that loses nothing if there is one, else text."""
    try:
        return unify_types(left, right, widen_ints=True, column=column)
    except TypeMismatch as error:
        if any(pt.is_nested(kind) for kind in (left, right)):
            raise SchemaConflict(
                f"{uri}: {error}, which no query can read as one.",
                hint="Run the days of one of them again, with the type of the column in output.schema.",
            ) from None
        return pa.string()
