"""The file formats that a dataset can have. A file is written table by table, and closed durably."""

from __future__ import annotations

import datetime
import decimal
import functools
import json
import math
import uuid
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.types as pt

from shardkit.errors import PipelineError
from shardkit.storage.local import sync_file, writing
from shardkit.tables.rowgroups import RowGroupsFile, repetitive
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from shardkit.tables.rowgroups import Stretch

READ_BLOCK_BYTES = 32 << 20  # a row of text must fit in
SUFFIXES = {"parquet": ".parquet", "jsonl": ".jsonl", "csv": ".csv", "arrow": ".arrow"}


class FileWriter(Protocol):
    """A file on its way."""

    def write(self, table: pa.Table) -> None:
        """Append a table, as one row group where the format has these."""

    def copy(self, stretch: Stretch) -> None:
        """Append some of the bytes of a row group; only Parquet has these."""

    def tell(self) -> int:
        """How many bytes are written."""

    def close(self) -> None:
        """Finish the file and flush it to the disk."""


def reader_of(format: str, columns: pa.Schema) -> Any:
    """What pyarrow reads files with: rows of several megabytes, line breaks in them, nulls that are no empty text.

    ``columns`` are those of the files as far as they are known; text alone does not tell their types.
    """
    import pyarrow.dataset as pads
    from pyarrow import csv

    if format == "jsonl":
        from pyarrow import json as arrow_json

        return pads.JsonFileFormat(
            parse_options=arrow_json.ParseOptions(explicit_schema=columns),
            read_options=arrow_json.ReadOptions(block_size=READ_BLOCK_BYTES),
        )
    if format != "csv":
        return format
    return pads.CsvFileFormat(
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            column_types=columns,
        ),
        read_options=csv.ReadOptions(block_size=READ_BLOCK_BYTES),
    )


def read_back(schema: pa.Schema, format: str) -> pa.Schema:
    """The types in which a format's files are read, which for those of text are not all that there are."""
    kinds: dict[str, Callable[[pa.DataType], pa.DataType]] = {"jsonl": _from_json, "csv": _from_csv}
    if format not in kinds:
        return schema
    return pa.schema([(field.name, kinds[format](field.type)) for field in schema])


FROM_JSON = (
    (pt.is_date, pa.timestamp("s")),
    (pt.is_time, pa.string()),
    (pt.is_duration, pa.float64()),  # seconds
    (pt.is_float16, pa.float32()),
)


def _from_json(kind: pa.DataType) -> pa.DataType:
    if pt.is_map(kind) or pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(_from_json(_without_maps(kind).value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, _from_json(field.type)) for field in kind])
    return next((read for test, read in FROM_JSON if test(kind)), kind)


def _from_csv(kind: pa.DataType) -> pa.DataType:
    return pa.float32() if pt.is_float16(kind) else kind


def _without_maps(kind: pa.DataType) -> pa.DataType:
    """The type with lists for maps, as JSON has them: their keys may be no texts."""
    if pt.is_map(kind):
        key = pa.field("key", _without_maps(kind.key_type), nullable=False)
        return pa.list_(pa.struct([key, ("value", _without_maps(kind.item_type))]))
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(_without_maps(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, _without_maps(field.type)) for field in kind])
    return kind


def count_rows(file: Any, format: str) -> int:
    """The rows of an open file, as it tells itself; a text is read to its end.

    Raises:
        OSError, ValueError, pa.ArrowException: it cannot be read, or is of another format.
    """
    if format == "parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)
    if format == "arrow":
        import pyarrow.dataset as pads

        return int(pads.IpcFileFormat().make_fragment(file).count_rows())
    if format == "jsonl":
        return sum(chunk.count(b"\n") for chunk in iter(functools.partial(file.read, READ_BLOCK_BYTES), b""))
    return _rows_of_csv(file)


def _rows_of_csv(file: Any) -> int:
    from pyarrow import csv

    header = csv.open_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
    names = header.schema.names
    file.seek(0)
    rows = csv.open_csv(
        file,
        read_options=csv.ReadOptions(block_size=READ_BLOCK_BYTES),
        # A row of nothing but a null is an empty line.
        parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary())),
    )
    return sum(len(batch) for batch in rows)


def partitioning_of(names: Sequence[str], columns: Mapping[str, str]) -> Any:
    """What pyarrow reads partitions with: numbers as numbers, but only where they were numbers."""
    import pyarrow.dataset as pads

    plain = {"bool", "date32[day]", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
    kinds = [columns[name] if columns.get(name) in plain else "string" for name in names]
    return pads.partitioning(pa.schema(list(zip(names, kinds, strict=True))), flavor="hive")


def open_writer(path: Path, schema: pa.Schema, format: str, *, threads: int) -> FileWriter:
    """Begin a file; ``threads`` is how many may encode it.

    Raises:
        PipelineError: the format cannot hold a column of ``schema``.
        StorageError: the file cannot be written.
    """
    kinds: dict[str, Callable[[Path, pa.Schema], FileWriter]] = {
        "parquet": functools.partial(_Parquet, threads=threads),
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

    def copy(self, stretch: Stretch) -> None:
        raise NotImplementedError

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
    def __init__(self, path: Path, schema: pa.Schema, *, threads: int) -> None:
        self._path = path
        self._file = pa.OSFile(str(path), "wb")
        self._groups = RowGroupsFile(self._file, schema, threads=threads)
        self._use_dictionary: list[str] | None = None

    def write(self, table: pa.Table) -> None:
        if self._use_dictionary is None:
            self._use_dictionary = repetitive(table)
        with writing(self._path):
            self._groups.encode(table, use_dictionary=self._use_dictionary)

    def copy(self, stretch: Stretch) -> None:
        with writing(self._path):
            self._groups.copy(stretch)

    def _end(self) -> None:
        self._groups.close()


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
            others = "parquet or arrow" if holds(nested.type, _is_binary) else "parquet, arrow or jsonl"
            raise PipelineError(
                f"output.format: CSV cannot hold column {nested.name!r} ({nested.type}).", hint=f"Use {others}."
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
