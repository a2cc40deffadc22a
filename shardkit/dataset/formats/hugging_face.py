"""Arrow streams as Hugging Face's `datasets` maps them into memory, written by that library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from shardkit.dataset.formats.base import LoaderFormat, PlainWriter
from shardkit.dataset.formats.whole_batches import WholeBatches
from shardkit.errors import PipelineError
from shardkit.storage.local import writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class HuggingFace(LoaderFormat):
    """Shards that `datasets` opens where they lie, without a conversion.

    They are Arrow's streams; pyarrow.dataset reads Arrow's files alone.
    """

    suffix: ClassVar[str] = ".hf.arrow"
    refusal: ClassVar[str] = "A dataset of format hf is for the library datasets."
    cure: ClassVar[str] = "Open it with run.hf(), or run with output.format: parquet or arrow for queries."
    library: ClassVar[str] = "datasets"
    extra: ClassVar[str] = "hf"

    def writer(self, path: Path, schema: pa.Schema, *, threads: int) -> _Writer:
        """Begin a shard.

        Raises:
            PipelineError: datasets has no type for a column.
        """
        return _Writer(path, schema)

    def count_rows(self, file: Any) -> int:
        """The rows of a shard, which is read to its end."""
        return sum(map(len, self.batches(file, pa.schema([]))))

    def batches(self, file: Any, columns: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows of a shard, in the batches in which they are written."""
        with pa.ipc.open_stream(file) as stream:
            yield from stream


class _Writer(PlainWriter):
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        from datasets.arrow_writer import ArrowWriter

        check_types(schema, "output.format: hf")
        super().__init__(path)
        self._batches = WholeBatches(schema)
        self._stream = ArrowWriter(schema=schema, stream=self._file, writer_batch_size=self._batches.rows)

    def write(self, table: pa.Table) -> None:
        with writing(self._path):
            for batch in self._batches.add(table):
                self._stream.write_table(batch)

    def tell(self) -> int:
        """How many bytes there are, with the rows that wait for a whole batch."""
        return super().tell() + self._batches.held_bytes

    def _end(self) -> None:
        for batch in self._batches.rest():
            self._stream.write_table(batch)
        self._stream.finalize(close_stream=False)


def check_types(schema: pa.Schema, what: str) -> None:
    """Check that `datasets` has a type for each column.

    Raises:
        PipelineError: it has none for one.
    """
    from datasets import Features

    for field in schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except (ValueError, TypeError, NotImplementedError):
            raise PipelineError(
                f"{what} cannot hold column {field.name!r} ({field.type}): datasets has no such type.",
                hint="Give another type for it in output.schema, or use parquet.",
            ) from None
