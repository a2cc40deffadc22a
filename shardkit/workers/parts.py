"""The parts that a chunk writes: its records' rows, in order, as they come.

A part holds one schema. Where a later record's rows widen it (a new column, a type for an all-null one), the next
part begins; where they contradict it, they go to a part of their own, and pass 2 judges. If there are many
contradictions, columns carry values of several types, whose original types are noted, so that there are still few
parts. A writer holds a few row groups in memory, never a chunk's rows.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.checksums import SummedFile
from shardkit.runfolder.parts import NOTHING_OF, ORIGINS_KEY, RECORDS_KEY, ROWS_KEY, Part
from shardkit.storage.local import sync_file, writing
from shardkit.tables.rowgroups import COMPRESSION, ROW_GROUP_BYTES, ROW_GROUP_ROWS, is_large, repetitive
from shardkit.tables.rows import Batch, Result, fit, to_batches
from shardkit.tables.schema import BY_TYPE_ALONE, TypeMismatch, Way, conform, fitted, unify_fields
from shardkit.tables.spans import RecordRows
from shardkit.tables.weight import weight_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shardkit.storage.base import Folder
    from shardkit.tables.origin import Origin

CONVERT_ROWS = 1 << 13
CONVERT_BYTES = 8 << 20
STREAMS_AT_MOST = 4  # of one chunk: where types contradict each other in many ways, columns carry several types
ABSENT_BYTES = 8  # about what a row takes in a column that its table does not have
# Numbers and texts of several types in one column; their original types are noted, and pass 2 judges by those.
CARRIED = Way(integers="decimal", unit="ns", text=True)


@dataclass
class _Stream:
    """The rows of one schema that will be written to a part."""

    schema: pa.Schema
    position: int
    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    written: int = 0
    writer: pq.ParquetWriter | None = None
    file: SummedFile | None = None
    path: Path | None = None
    name: str = ""
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    records: RecordRows = field(default_factory=RecordRows)
    separable: bool = True


class PartsWriter:
    """Writes the rows of one chunk's records to the parts ``<base>.parquet``, ``<base>.1.parquet``, ..."""

    def __init__(
        self,
        folder: Folder,
        base: str,
        *,
        schema: pa.Schema | None,
        give_up: Callable[[Result, Exception], None],
        only: tuple[int, str] | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._folder = folder
        self._base = base
        self._schema = schema
        self._give_up = give_up
        self._origin = origin
        self._only = only  # the position and the key of the record, if all rows are of one
        self._joint: pa.Schema | None = None
        self._pending: list[Result] = []
        self._pending_rows = self._pending_bytes = 0
        self._streams: list[_Stream] = []
        self._opened = 0
        self._positions = 0
        self._parts: list[tuple[int, Part]] = []
        self.rows = 0

    def add(self, result: Result) -> None:
        """Take one record's rows.

        Raises:
            StorageError: a row group could not be written.
        """
        if result.rows:
            self._pending.append(result)
            self._pending_rows += len(result.rows)
            self._pending_bytes += len(result.rows) * weight_of(result.rows[-1])
            if self._pending_rows >= CONVERT_ROWS or self._pending_bytes >= CONVERT_BYTES:
                self._convert()
        elif result.tables:
            self._convert()
            self._add_tables(result)
        elif result.parts:
            self.adopt(result.parts)

    def adopt(self, parts: list[Part]) -> None:
        """Append existing parts after the rows taken so far."""
        self._convert()
        self._finish_all()
        for part in parts:
            self._parts.append((self._next_position(), part))
            self.rows += part.rows

    def close(self) -> list[Part]:
        """Finish what is open, and return all parts in the order of their rows.

        Raises:
            StorageError: a part could not be written.
        """
        self._convert()
        self._finish_all()
        if self._joint is not None and self._only is not None:
            self._write_again(self._joint, *self._only)
        return [part for _, part in sorted(self._parts, key=lambda item: item[0])]

    def convert(self) -> None:
        """Convert the rows that are still dicts, to free their memory."""
        self._convert()

    def aside(self, index: int, key: str) -> PartsWriter:
        """A writer for the rows of one record, to parts of its own that will be adopted or dropped."""
        base = f"{self._base}-r{index}"
        return PartsWriter(
            self._folder, base, schema=self._schema, give_up=_give_up_at_once, only=(index, key), origin=self._origin
        )

    def drop(self) -> None:
        """Remove what has been written."""
        for stream in self._streams:
            if stream.file is not None and stream.path is not None:
                with contextlib.suppress(OSError):
                    stream.file.close()
                stream.path.unlink(missing_ok=True)
        for _, part in self._parts:
            self._folder.remove(part.name)
        self._streams, self._parts = [], []

    def _write_again(self, schema: pa.Schema, index: int, key: str) -> None:
        """Rewrite the parts of one record as one, because some have integers where others have floats."""
        parts, self._parts, self._joint, self.rows = self._parts, [], None, 0
        paths = [self._folder.begin(part.name) for _, part in sorted(parts, key=lambda item: item[0])]
        for path in paths:
            with pq.ParquetFile(path) as file:
                schema = _joint(schema, file.schema_arrow.remove_metadata())
        origins = {column.name: {str(column.type): key} for column in schema}
        for path in paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CONVERT_ROWS):
                    table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                    self._put(Batch(conform(table, schema), origins, [(index, len(table))]))
            path.unlink()
        self._finish_all()

    def _convert(self) -> None:
        pending, self._pending = self._pending, []
        self._pending_rows = self._pending_bytes = 0
        if pending:
            for batch in to_batches(pending, self._schema, self._give_up):
                self._put(batch)

    def _add_tables(self, result: Result) -> None:
        try:
            tables = [fit(t, self._schema) for t in result.tables] if self._schema is not None else result.tables
        except TypeError as error:
            self._give_up(result, error)
            return
        for table in tables:
            opened, origins = (table, {}) if self._schema is not None else _open_to_others(table, result.key)
            self._put(Batch(opened, origins, [(result.index, len(table))]))

    def _put(self, batch: Batch) -> None:
        if not len(batch.table) or not batch.table.num_columns:
            return
        stream, table = self._stream_for(self._origin.added_to(batch) if self._origin is not None else batch.table)
        for column, seen in batch.origins.items():
            origins = stream.origins.setdefault(column, {})
            for kind, record in seen.items():
                origins.setdefault(kind, record)
        stream.separable = stream.separable and batch.separable
        for position, rows in batch.records:
            stream.records.add(position, rows)
        stream.tables.append(table)
        stream.rows += len(table)
        absent = len(stream.schema) - table.num_columns
        stream.bytes += table.nbytes + absent * ABSENT_BYTES * len(table)
        self.rows += len(table)
        if stream.bytes >= ROW_GROUP_BYTES or stream.rows >= ROW_GROUP_ROWS:
            self._flush(stream)

    def _stream_for(self, table: pa.Table) -> tuple[_Stream, pa.Table]:
        """The stream for a table, with its schema widened if need be, and the table as it fits there."""
        ways = [BY_TYPE_ALONE] if len(self._streams) < STREAMS_AT_MOST else [BY_TYPE_ALONE, CARRIED]
        for way in ways:
            for i, stream in enumerate(self._streams):
                if stream.schema.equals(table.schema):
                    return stream, table
                try:
                    self._streams[i], joining = self._joined(stream, table, way)
                except (TypeMismatch, pa.ArrowException):
                    if self._only is None:
                        continue
                    self._joint = _joint(self._joint or stream.schema, table.schema)
                    self._finish_all()  # the rows from here on come after it
                    break
                return self._streams[i], joining
        if len(self._streams) >= STREAMS_AT_MOST:
            self._finish(self._streams.pop())
        self._streams.append(_Stream(table.schema, self._next_position()))
        return self._streams[-1], table

    def _joined(self, stream: _Stream, table: pa.Table, way: Way) -> tuple[_Stream, pa.Table]:
        """The stream, or one that continues it, with a schema wide enough for a table; and the table cast to it.

        Raises:
            TypeMismatch: their types contradict each other.
            pa.ArrowException: a value would be lost.
        """
        wider = pa.schema(unify_fields([stream.schema, table.schema], widen_ints=way is CARRIED, way=way))
        joining = fitted(table, wider)
        if wider.equals(stream.schema):
            return stream, joining
        if stream.writer is not None:
            self._finish(stream)
            return _Stream(wider, self._next_position()), joining
        if any(wider.field(field.name).type != field.type for field in stream.schema):
            stream.tables = [fitted(other, wider) for other in stream.tables]
        stream.schema = wider
        return stream, joining

    def _next_position(self) -> int:
        self._positions += 1
        return self._positions

    def _flush(self, stream: _Stream) -> None:
        if not stream.tables:
            return
        table = pa.concat_tables([conform(table, stream.schema) for table in stream.tables])
        if stream.writer is None:
            suffix = f".{self._opened}" if self._opened else ""
            self._opened += 1
            stream.name = f"{self._base}{suffix}.parquet"
            stream.path = self._folder.begin(stream.name)
            # Pass 2 copies the row groups of a large part as they are, and reads all of a small one.
            large = is_large(stream.rows, stream.bytes)
            with writing(stream.path):
                stream.file = SummedFile(stream.path)
                stream.writer = pq.ParquetWriter(
                    stream.file,
                    stream.schema,
                    write_statistics=large,
                    use_dictionary=repetitive(table) if large else True,
                    **COMPRESSION,
                )
        groups = max(1, round(stream.bytes / ROW_GROUP_BYTES), -(-len(table) // ROW_GROUP_ROWS))
        step = -(-len(table) // groups)
        with writing(stream.path or stream.name):
            for start in range(0, len(table), step):
                stream.writer.write_table(table.slice(start, step), row_group_size=step)
                if stream.file is not None:
                    stream.file.cut()
        stream.written += len(table)
        stream.tables, stream.rows, stream.bytes = [], 0, 0

    def _finish(self, stream: _Stream) -> None:
        self._flush(stream)
        if stream.writer is None or stream.path is None or stream.file is None:
            return
        with writing(stream.path):
            stream.writer.add_key_value_metadata({ORIGINS_KEY: json.dumps(stream.origins).encode()})
            named = RECORDS_KEY if stream.separable else ROWS_KEY
            stream.writer.add_key_value_metadata({named: stream.records.dump()})
            stream.writer.close()
            stream.file.cut()
            stream.file.close()
        sync_file(stream.path)
        part = Part(stream.name, stream.written, os.path.getsize(stream.path), stream.file.sums)
        self._folder.finish(stream.name, stream.path)
        self._parts.append((stream.position, part))

    def _finish_all(self) -> None:
        for stream in self._streams:
            self._finish(stream)
        self._streams = []


def _give_up_at_once(_: Result, error: Exception) -> None:
    raise error


def _joint(schema: pa.Schema, other: pa.Schema) -> pa.Schema:
    """The common schema of two pieces of one record, as if it had been converted as a whole.

    Raises:
        TypeError: there is none.
    """
    try:
        return pa.schema(unify_fields([schema, other], widen_ints=True))
    except TypeMismatch as error:
        raise TypeError(f"the record's rows cannot be stored together: {error}") from None


def _open_to_others(table: pa.Table, record: str) -> tuple[pa.Table, dict[str, dict[str, str]]]:
    """A record's table, in which columns without a value have no type yet, and the type that it gives each column."""
    empty = {c.name for c, column in zip(table.schema, table.columns, strict=True) if column.null_count == len(column)}
    empty -= {column.name for column in table.schema if pa.types.is_null(column.type)}
    origins = {c.name: {f"{c.type}{NOTHING_OF if c.name in empty else ''}": record} for c in table.schema}
    if empty:
        columns = [pa.nulls(len(table)) if name in empty else table.column(name) for name in table.column_names]
        table = pa.table(columns, names=table.column_names)
    return table, origins
