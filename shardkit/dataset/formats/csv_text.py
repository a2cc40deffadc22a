"""CSV, with a header."""

from __future__ import annotations

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


class Csv(Format):
    """Files of comma-separated values: line breaks in values are quoted, and nulls differ from empty text."""

    suffix: ClassVar[str] = ".csv"

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a file."""
        return _Writer(path, schema)

    def reader(self, columns: pa.Schema) -> Any:
        """What pyarrow reads the files with."""
        import pyarrow.dataset as pads
        from pyarrow import csv

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

    def read_as(self, schema: pa.Schema) -> pa.Schema:
        """Half precision is read as single."""
        return pa.schema([(f.name, pa.float32() if pt.is_float16(f.type) else f.type) for f in schema])

    def count_rows(self, file: Any) -> int:
        """The rows of a file, which is read to its end."""
        from pyarrow import csv

        header = csv.open_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
        names = header.schema.names
        file.seek(0)
        rows = csv.open_csv(
            file,
            read_options=csv.ReadOptions(block_size=READ_BLOCK_BYTES),
            # A row with only a null is an empty line.
            parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary())),
        )
        return sum(len(batch) for batch in rows)


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        from pyarrow import csv

        nested = next((f for f in schema if pt.is_nested(f.type) or is_binary(f.type)), None)
        if nested is not None:
            others = "parquet or arrow" if holds(nested.type, is_binary) else "parquet, arrow or jsonl"
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
