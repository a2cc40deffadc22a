"""JSON Lines: a row a line."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
import math
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.types as pt

from shardkit.dataset.formats.base import Format, PlainWriter
from shardkit.dataset.formats.text import READ_BLOCK_BYTES, is_binary
from shardkit.errors import PipelineError
from shardkit.storage.local import writing
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from pathlib import Path


class JsonLines(Format):
    """Files of JSON Lines; types that JSON lacks become text or numbers."""

    suffix: ClassVar[str] = ".jsonl"

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a file."""
        return _Writer(path, schema)

    def reader(self, columns: pa.Schema) -> Any:
        """What pyarrow reads the files with: rows of several megabytes, too."""
        import pyarrow.dataset as pads
        from pyarrow import json as arrow_json

        return pads.JsonFileFormat(
            parse_options=arrow_json.ParseOptions(explicit_schema=columns),
            read_options=arrow_json.ReadOptions(block_size=READ_BLOCK_BYTES),
        )

    def read_as(self, schema: pa.Schema) -> pa.Schema:
        """The types with JSON's substitutes for those that it lacks."""
        return pa.schema([as_json(field) for field in schema])

    def count_rows(self, file: Any) -> int:
        """The rows of a file, which is read to its end."""
        return sum(chunk.count(b"\n") for chunk in iter(functools.partial(file.read, READ_BLOCK_BYTES), b""))


FROM_JSON = (
    (pt.is_date, pa.timestamp("s")),
    (pt.is_time, pa.string()),
    (pt.is_duration, pa.float64()),  # seconds
    (pt.is_float16, pa.float32()),
)


def as_json(field: pa.Field) -> pa.Field:
    """A column with the type in which it is read from JSON."""
    return pa.field(field.name, _from_json(field.type))


def _from_json(kind: pa.DataType) -> pa.DataType:
    if pt.is_map(kind) or pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(_from_json(_without_maps(kind).value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, _from_json(field.type)) for field in kind])
    return next((read for test, read in FROM_JSON if test(kind)), kind)


def _without_maps(kind: pa.DataType) -> pa.DataType:
    """The type with lists of pairs instead of maps, whose keys may be other than text in Arrow but not in JSON."""
    if pt.is_map(kind):
        key = pa.field("key", _without_maps(kind.key_type), nullable=False)
        return pa.list_(pa.struct([key, ("value", _without_maps(kind.item_type))]))
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(_without_maps(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, _without_maps(field.type)) for field in kind])
    return kind


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        binary = next((f for f in schema if holds(f.type, is_binary)), None)
        if binary is not None:
            raise PipelineError(
                f"output.format: JSON Lines cannot hold column {binary.name!r} ({binary.type}).",
                hint="Use parquet or arrow.",
            )
        super().__init__(path)

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            for batch in _with_lists_for_maps(table).to_batches(max_chunksize=4096):
                lines = [
                    json.dumps(jsonable(row), ensure_ascii=False, separators=(",", ":")) for row in batch.to_pylist()
                ]
                self._file.write(("\n".join(lines) + "\n").encode())


def _with_lists_for_maps(table: pa.Table) -> pa.Table:
    for i, field in enumerate(table.schema):
        if holds(field.type, pt.is_map):
            table = table.set_column(i, field.name, table.column(i).cast(_without_maps(field.type)))
    return table


def jsonable(value: Any) -> Any:
    """``value`` as JSON can hold it: NaN and infinities are null, times are ISO 8601, decimals are strings."""
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, decimal.Decimal | uuid.UUID) else value
