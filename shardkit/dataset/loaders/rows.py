"""The rows of a run's files, file by file, in whatever process a loader of training data needs them."""

from __future__ import annotations

import difflib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.dataset.formats.base import Format
from shardkit.dataset.formats.kinds import format_of
from shardkit.dataset.formats.parquet import Parquet
from shardkit.dataset.read import known_schema, open_dataset, partition_of, partition_schema
from shardkit.errors import PipelineError, StorageError
from shardkit.tables.type_text import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow.dataset as pads

    from shardkit.storage.base import Folder

BATCH_ROWS = 1 << 13
# Arrow's file system for S3 keeps the credentials that there were when it was opened.
OPEN_FOR_S = 600.0


@dataclass(frozen=True)
class Piece:
    """Rows of one file that are read together: a row group of Parquet, or the whole file of another format."""

    file: int
    rows: int
    group: int | None = None


class Rows:
    """The files of a run, and some of their columns; what has been opened does not go to other processes with it.

    Raises:
        PipelineError: there is no column of a name, or only another library reads files of the format.
    """

    def __init__(self, folder: Folder, result: Mapping[str, Any], columns: Sequence[str] | None = None) -> None:
        self._folder = folder
        self._result = result
        self.format = format_of(result["format"])
        if not self.format.tabular and type(self.format).batches is Format.batches:
            self.format.reader(pa.schema([]))  # which says what reads such files
        self.paths: list[str] = [file["path"] for file in result["files"]]
        self.counts: list[int] = [file["rows"] for file in result["files"]]
        self.sizes: list[int] = [file["bytes"] for file in result["files"]]
        self._opened: tuple[int, float, list[Any]] | None = None
        whole = known_schema(result)
        self.whole = whole if whole is not None else self._schema_of_files()
        self.schema = _chosen(self.whole, columns)

    def __getstate__(self) -> dict[str, Any]:
        if getattr(self._folder, "session", None) is not None:
            raise PipelineError(
                "A boto3 session does not go to other processes.",
                hint="Open the run without boto_session, with AWS_PROFILE or the keys in the environment.",
            )
        return self.__dict__ | {"_opened": None}

    @property
    def run_id(self) -> str:
        """The run that has made the files."""
        return str(self._result["run_id"])

    @property
    def columns_with_nulls(self) -> set[str]:
        """Those that are known to have nulls."""
        return {name for file in self._result["files"] for name in file.get("nulls", ())}

    @property
    def uri(self) -> str:
        """The folder of the files."""
        return self._folder.uri

    def pieces(self, file: int) -> list[Piece]:
        """What a file is read in, in its order: a request or two where it is an object of Parquet."""
        if not isinstance(self.format, Parquet):
            return [Piece(file, self.counts[file])]
        groups = self._reading(file, lambda: self._fragments()[file].row_groups)
        return [Piece(file, group.num_rows, group.id) for group in groups]

    def batches(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The rows of a piece in their order, a few thousand or fewer at a time, with the columns of ``schema``.

        Raises:
            StorageError: the file cannot be read.
        """
        source = self._tabular(piece) if self.format.tabular else self._others(piece)
        while True:
            batch = self._reading(piece.file, lambda: next(source, None))
            if batch is None:
                return
            for start in range(0, len(batch), BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)

    def _tabular(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        fragment = self._fragments()[piece.file]
        if piece.group is not None:
            fragment = fragment.subset(row_group_ids=[piece.group])
        names = self.schema.names
        batches = fragment.to_batches(
            schema=self.whole,
            columns=names,
            batch_size=BATCH_ROWS,
            batch_readahead=1,
            fragment_readahead=1,
            use_threads=False,
        )
        return iter(batches)

    def _others(self, piece: Piece) -> Iterator[pa.RecordBatch]:
        """The rows of a file that pyarrow does not read as a table, with the columns in the names of its folders."""
        path = self.paths[piece.file]
        partition = partition_of(self._result, path)
        columns = schema_of(self._result, without=self._result["partition_by"])
        with self._open(path) as file:
            for batch in self.format.batches(file, self.format.read_as(columns)):
                yield self.whole_batch(batch, partition)

    def whole_batch(self, batch: pa.RecordBatch, partition: Mapping[str, Any]) -> pa.RecordBatch:
        """A batch with the columns of ``schema``, each of its type: a file may be of a day that had others."""
        arrays = []
        for field in self.schema:
            if field.name in partition:
                arrays.append(pa.repeat(pa.scalar(partition[field.name], field.type), len(batch)))
            elif field.name in batch.schema.names:
                column = batch.column(field.name)
                arrays.append(column if column.type == field.type else column.cast(field.type))
            else:
                arrays.append(pa.nulls(len(batch), field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _open(self, path: str) -> Any:
        filesystem, base = self._folder.arrow()
        if filesystem is None:
            return pa.memory_map(f"{base}/{path}")
        return filesystem.open_input_file(f"{base}/{path}")

    def _fragments(self) -> list[pads.Fragment]:
        """The files as pyarrow reads them, opened by the process that reads: clients of S3 do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid() or time.monotonic() > self._opened[1]:
            dataset = open_dataset(self._folder, self._result)
            self._opened = os.getpid(), time.monotonic() + OPEN_FOR_S, list(dataset.get_fragments())
        return self._opened[2]

    def _reading(self, file: int, read: Any) -> Any:
        try:
            return read()
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"Cannot read {self._folder.uri}/{self.paths[file]}: {error}.",
                hint="Has a later run replaced this dataset? Open it again with shardkit.open_run.",
            ) from error

    def _schema_of_files(self) -> pa.Schema:
        """The columns of a dataset whose result does not say them all."""
        if self.format.tabular:
            return open_dataset(self._folder, self._result).schema
        columns = self.format.read_as(schema_of(self._result, without=self._result["partition_by"]))
        return pa.schema([*columns, *partition_schema(self._result)])


def _chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    """The fields of some columns, in the order of these.

    Raises:
        PipelineError: there is none of a name.
    """
    if columns is None:
        return schema
    if isinstance(columns, str):
        raise PipelineError(f"columns: expected a list of columns, not {columns!r}.")
    for name in columns:
        if name not in schema.names:
            near = difflib.get_close_matches(str(name), schema.names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(schema.names)}."
            raise PipelineError(f"The dataset has no column {name!r}.", hint=hint)
    return pa.schema([schema.field(name) for name in columns])
