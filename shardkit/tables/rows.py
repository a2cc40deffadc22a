"""What the user's function returned, as Arrow tables.

Rows given as dicts are converted many records at once, which is several times faster than one by one; if that
fails, the batch is halved until the records that cannot be converted are alone, and only these are given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from shardkit.tables.frames import from_pandas, is_pandas
from shardkit.tables.plain_types import plain_column, plain_schema
from shardkit.tables.schema import conform, unknown_inside
from shardkit.tables.values import Mixed, family, has_empty_struct, kinds_of, to_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Row = dict[str, Any]
FIRST_LOOK = 8  # so many rows of a record are collected before their size is checked


class Large(Protocol):
    """Takes the rows of one record while its function is still yielding them, once they are many."""

    def look(self, rows: list[Row]) -> int:
        """Take the rows if they are many, and empty the list; returns at how many rows to look again."""

    def look_at(self, tables: list[pa.Table]) -> None:
        """Take the tables if they are large, and empty the list."""

    def finish(self, rest: Result) -> Result:
        """The record's rows; ``rest`` are those that have not been taken yet."""


@dataclass
class Result:
    """One record's rows: dicts that are not converted yet, tables, or parts that hold them already."""

    index: int
    key: str
    rows: list[Row] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)

    @property
    def row_count(self) -> int:
        """How many rows they are."""
        if self.rows:  # the other two are empty then; most records are small, and this should take no time
            return len(self.rows)
        return sum(len(table) for table in self.tables) + sum(int(part.rows) for part in self.parts)


@dataclass
class Batch:
    """A table of the rows of one or more records, and the record that first gave each column its type.

    ``records`` has the records' positions, in the order of their rows, and how many rows each has given. They are
    ``separable`` if any record that is not in ``origins`` could be left out without a change of types.
    """

    table: pa.Table
    origins: dict[str, dict[str, str]]
    records: list[tuple[int, int]]
    separable: bool = True


def collect(result: Any, index: int, key: str, large: Large | None = None) -> Result:
    """Collect all that the function returns for one record; ``large`` takes rows meanwhile, if they are many.

    Raises:
        TypeError: it cannot become rows.
        Exception: whatever the function raises while it yields.
    """
    if result is None:
        return Result(index, key)
    if type(result) is dict:
        return Result(index, key, rows=[result] if result else [])
    table = as_table(result, of_record=True)
    if table is not None:
        return Result(index, key, tables=[table])
    if isinstance(result, Mapping):
        return Result(index, key, rows=[dict(result)] if result else [])
    if isinstance(result, str | bytes) or not isinstance(result, Iterable) or is_pandas(result, "Series"):
        raise TypeError(
            f"the function returned {type(result).__name__}; it must return a DataFrame, a pyarrow Table, a dict, "
            "an iterable of dicts, or None"
        )
    return _collect_items(result, index, key, large)


def _collect_items(items: Iterable[Any], index: int, key: str, large: Large | None) -> Result:
    rows: list[Row] = []
    tables: list[pa.Table] = []
    next_look = FIRST_LOOK
    for item in items:
        if isinstance(item, Mapping):
            if item:  # a row without columns is no row: it would count only beside others
                rows.append(item if type(item) is dict else dict(item))
                if len(rows) >= next_look and large is not None:
                    next_look = large.look(rows)
        elif (table := as_table(item, of_record=True)) is not None:
            if rows:
                tables.append(table_of(rows))
                rows, next_look = [], FIRST_LOOK
            tables.append(table)
            if large is not None:
                large.look_at(tables)
        elif item is not None:
            raise TypeError(f"the function yielded {type(item).__name__}; it must yield dicts, DataFrames or Tables")
    if tables and rows:
        tables.append(table_of(rows))
        rows = []
    gathered = Result(index, key, rows=rows, tables=tables)
    return gathered if large is None else large.finish(gathered)


def as_table(value: Any, *, of_record: bool = False) -> pa.Table | None:
    """``value`` as a plain table, or None if it is no table, record batch or DataFrame of any library.

    In pandas, a column without values has floats. In a record's frame, its type is left to other records.
    """
    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    elif is_pandas(value, "DataFrame"):
        value = from_pandas(value, floats_for_nothing=not of_record)
    elif not isinstance(value, pa.Table):
        value = _from_others(value)
    if value is None:
        return None
    names = value.column_names
    if len(set(names)) != len(names):
        raise TypeError(f"two columns share the name {next(n for n in names if names.count(n) > 1)!r}")
    schema = plain_schema(value.schema)
    columns = [_plain(column, field) for column, field in zip(value.columns, schema, strict=True)]
    table = pa.table(columns, schema=pa.schema([pa.field(n, c.type) for n, c in zip(names, columns, strict=True)]))
    _check_storable(table.schema)
    return table


def _from_others(value: Any) -> pa.Table | None:
    """The table of another library's value, such as a frame of polars or a result of DuckDB; None if it is no table."""
    if (
        isinstance(value, pa.RecordBatchReader | pa.Array | pa.ChunkedArray)
        or is_pandas(value, "Series")
        or not (hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__"))
    ):
        return None
    try:
        return pa.table(value)
    except (pa.ArrowException, TypeError, ValueError):
        return None  # a single column, not a table


def _plain(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    """The column in a type that every reader knows, and without structs that have no fields."""
    try:
        column = plain_column(column, field.type)
    except pa.ArrowException as error:
        raise TypeError(f"column {field.name!r} cannot be stored as {field.type}: {error}") from error
    if has_empty_struct(column.type):
        return pa.chunked_array([to_array(column.to_pylist(), None, several=False)])
    return column


_storable: dict[pa.Schema, bool] = {}


def _check_storable(schema: pa.Schema) -> None:
    """Refuse a type that cannot be written to a Parquet file and read back, while the record is still known."""
    if schema in _storable:
        return
    for column in schema:
        try:
            sink = pa.BufferOutputStream()
            pq.ParquetWriter(sink, pa.schema([column])).close()
            pq.read_schema(pa.BufferReader(sink.getvalue()))
        except (pa.ArrowException, OSError) as error:
            raise TypeError(f"column {column.name!r} cannot be stored as {str(column.type)[:100]}: {error}") from error
    _storable[schema] = True


def table_of(rows: list[Row], hints: pa.Schema | None = None) -> pa.Table:
    """Rows as a table: the union of their keys as columns, in order of appearance.

    Raises:
        TypeError: a column's values have no common type that Parquet can hold.
    """
    return _table(_columns(rows), hints, several=False)


def _table(columns: dict[str, list[Any]], hints: pa.Schema | None, *, several: bool) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        if not isinstance(name, str):
            raise TypeError(f"a row has the key {name!r}, which is {type(name).__name__}; column names must be str")
        index = hints.get_field_index(name) if hints is not None else -1
        kind = hints.field(index).type if hints is not None and index >= 0 else None
        try:
            name.encode()
            arrays[name] = to_array(values, kind, several=several)
        except Mixed:
            raise
        except Exception as error:  # values of the user's own classes may raise anything
            raise TypeError(f"column {name!r} cannot be stored: {error}") from error
    table = pa.table(arrays) if arrays else pa.table({}).slice(0, 0)
    _check_storable(table.schema)
    return table


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    names = list(rows[0])
    try:  # Most functions give every row the same keys
        columns = {name: [row[name] for row in rows] for name in names}
        if sum(map(len, rows)) == len(names) * len(rows):
            return columns
    except KeyError:
        pass
    every: dict[str, None] = {}
    for row in rows:
        every.update(dict.fromkeys(row))
    return {name: [row.get(name) for row in rows] for name in every}


def to_batches(
    results: list[Result], schema: pa.Schema | None, give_up: Callable[[Result, Exception], None]
) -> Iterator[Batch]:
    """Convert the dict rows of some records, giving up only the records that cannot be converted."""
    try:
        batch = _joint(results, schema)
    except Exception as error:  # noqa: BLE001  whatever it is, it must cost no more than one record
        if len(results) == 1:
            give_up(results[0], error)
            return
    else:
        yield batch
        return
    half = len(results) // 2  # not in the handler: each error would keep those of the larger batches as its context
    yield from to_batches(results[:half], schema, give_up)
    yield from to_batches(results[half:], schema, give_up)


def _joint(results: list[Result], schema: pa.Schema | None) -> Batch:
    rows = [row for result in results for row in result.rows] if len(results) > 1 else results[0].rows
    columns = _columns(rows)
    table = _table(columns, schema, several=len(results) > 1)
    records = [(result.index, len(result.rows)) for result in results]
    if schema is not None:
        return Batch(fit(table, schema), {}, records)
    ends = np.cumsum([len(result.rows) for result in results]).tolist()
    origins, each_alone = {}, True
    for name, column in zip(table.column_names, table.columns, strict=True):
        origins[name], alone = _origins(name, columns[name], column.type, ends, results)
        each_alone = each_alone and alone
    return Batch(table, origins, records, each_alone)


def _origins(
    name: str, values: list[Any], kind: pa.DataType, ends: list[int], results: list[Result]
) -> tuple[dict[str, str], bool]:
    """For each type that a record alone would have given a column, the first record to do so.

    There is only one type, except with integers and floats: together they become floats, but a record with only
    integers would have given integers. The result must not depend on which records were converted together.

    Also returns whether these records alone decide the column's type, whatever the others have.
    """
    if pt.is_null(kind):
        first = next(result for result in results if any(name in row for row in result.rows))
        return {str(kind): first.key}, True
    origins: dict[str, str] = {}
    is_mixed = pt.is_floating(kind) and any(family(k) == "int" for k in kinds_of(values))
    start, alone = 0, True
    for end, result in zip(ends, results, strict=True):
        if families := {family(k) for k in kinds_of(values[start:end])}:
            if not origins and not _is_plain(kind):
                alone = len(results) == 1 or _type_of(values[start:end]) == kind
            origins.setdefault("int64" if is_mixed and families == {"int"} else str(kind), result.key)
            if len(origins) == 1 + is_mixed:
                break
        start = end
    return origins, alone


def _is_plain(kind: pa.DataType) -> bool:
    """Whether one value is enough to give a column this type, so that any record with a value gives the same."""
    return bool(pt.is_int64(kind) or pt.is_float64(kind) or pt.is_string(kind) or pt.is_boolean(kind))


def _type_of(values: list[Any]) -> pa.DataType | None:
    try:
        return to_array(values, None, several=False).type
    except Exception:  # noqa: BLE001  values of the user's own classes may raise anything
        return None


def fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with the columns and types of the pipeline's own schema.

    Raises:
        TypeError: it has a column that the schema does not name, or a value that does not fit.
    """
    extra = [name for name in table.column_names if schema.get_field_index(name) < 0]
    if extra:
        raise TypeError(f"column {extra[0]!r} is not in output.schema: add it there, or do not return it")
    for column in table.schema:
        if (inner := unknown_inside(column.type, schema.field(column.name).type)) is not None:
            raise TypeError(f"column {column.name!r} has a field {inner!r} that output.schema does not name")
    try:
        return conform(table, schema)
    except pa.ArrowException as error:
        raise TypeError(f"the rows do not fit output.schema: {error}") from error
