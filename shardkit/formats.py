"""The file formats that a dataset can have. A file is written table by table, and closed durably."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from shardkit.errors import PipelineError
from shardkit.files import sync_file, writing
from shardkit.schema import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

DICTIONARY_SAMPLE_ROWS = 10_000
READ_BLOCK_BYTES = 32 << 20  # a row of text must fit in
SUFFIXES = {"parquet": ".parquet", "jsonl": ".jsonl", "csv": ".csv", "arrow": ".arrow"}


class FileWriter(Protocol):
    """A file on its way."""

    def write(self, table: pa.Table) -> None:
        """Append a table, as one row group where the format has these."""

    def tell(self) -> int:
        """How many bytes are written."""

    def close(self) -> None:
        """Finish the file and flush it to the disk."""


def reader_of(format: str, texts: Sequence[str]) -> Any:
    """What pyarrow reads files with: rows of several megabytes, line breaks in them, nulls that are no empty text.

    ``texts`` are the columns that stay text, also where they look like numbers; CSV does not tell.
    """
    import pyarrow.dataset as pads
    from pyarrow import csv

    if format == "jsonl":
        from pyarrow import json as arrow_json

        return pads.JsonFileFormat(read_options=arrow_json.ReadOptions(block_size=READ_BLOCK_BYTES))
    if format != "csv":
        return format
    return pads.CsvFileFormat(
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            column_types=dict.fromkeys(texts, pa.string()),
        ),
        read_options=csv.ReadOptions(block_size=READ_BLOCK_BYTES),
    )


def partitioning_of(names: Sequence[str], columns: Mapping[str, str]) -> Any:
    """What pyarrow reads partitions with: numbers as numbers, but only where they were numbers."""
    import pyarrow.dataset as pads

    plain = {"bool", "date32[day]", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
    kinds = [columns[name] if columns.get(name) in plain else "string" for name in names]
    return pads.partitioning(pa.schema(list(zip(names, kinds, strict=True))), flavor="hive")


def open_writer(path: Path, schema: pa.Schema, format: str) -> FileWriter:
    """Begin a file.

    Raises:
        PipelineError: the format cannot hold a column of ``schema``.
        StorageError: the file cannot be written.
    """
    kinds: dict[str, Callable[[Path, pa.Schema], FileWriter]] = {
        "parquet": _Parquet,
        "jsonl": _JsonLines,
        "csv": _Csv,
        "arrow": _ArrowIpc,
    }
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return kinds[format](path, schema)
        except pa.ArrowException as error:
            raise PipelineError(f"output.format: {format} cannot hold the columns: {error}.") from error


class _Base:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115  closed in close()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        with writing(self._path):
            self._end()
            self._file.close()
        sync_file(self._path)

    def _end(self) -> None:
        """Write what the format has at its end."""


class _Parquet(_Base):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._file = pa.OSFile(str(path), "wb")
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self._file,
                    self._schema,
                    compression="zstd",
                    compression_level=1,
                    use_dictionary=_repetitive(table) or False,
                )
            self._writer.write_table(table, row_group_size=max(len(table), 1))

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _repetitive(table: pa.Table) -> list[str]:
    """The columns that a dictionary makes smaller, judged by the first rows: all but texts that hardly repeat."""
    import pyarrow.compute as pc

    first = table.slice(0, DICTIONARY_SAMPLE_ROWS)
    texts = [f.name for f in table.schema if pt.is_string(f.type) or pt.is_large_string(f.type)]
    unique = {name for name in texts if pc.count_distinct(first[name]).as_py() > len(first) / 2}
    return [name for name in table.column_names if name not in unique]


class _ArrowIpc(_Base):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        super().__init__(path)
        self._writer = pa.ipc.new_file(self._file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            self._writer.write_table(table.combine_chunks())

    def _end(self) -> None:
        self._writer.close()


class _Csv(_Base):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        from pyarrow import csv

        nested = next((f for f in schema if pt.is_nested(f.type) or _is_binary(f.type)), None)
        if nested is not None:
            raise PipelineError(
                f"output.format: CSV cannot hold column {nested.name!r} ({nested.type}).",
                hint="Use parquet, arrow or jsonl.",
            )
        super().__init__(path)
        self._writer = csv.CSVWriter(self._file, schema)

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            self._writer.write_table(table)

    def _end(self) -> None:
        self._writer.close()


class _JsonLines(_Base):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        binary = next((f for f in schema if holds(f.type, _is_binary)), None)
        if binary is not None:
            raise PipelineError(
                f"output.format: JSON Lines cannot hold column {binary.name!r} ({binary.type}).",
                hint="Use parquet or arrow.",
            )
        super().__init__(path)

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            for batch in table.to_batches(max_chunksize=4096):
                lines = [
                    json.dumps(jsonable(row), ensure_ascii=False, separators=(",", ":")) for row in batch.to_pylist()
                ]
                self._file.write(("\n".join(lines) + "\n").encode())


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind))


def jsonable(value: Any) -> Any:
    """``value`` in JSON's own terms: NaN and infinities are null, times are ISO 8601, decimals are strings."""
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
