"""Writes rows to the files of a dataset: cut by rows or bytes, and into Hive partitions."""

from __future__ import annotations

import os
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.dataset.formats.kinds import format_of, open_writer
from shardkit.errors import PipelineError, StorageError
from shardkit.tables.arrays import arrow
from shardkit.tables.rowgroups import ROW_GROUP_BYTES, ROW_GROUP_ROWS, Stretch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from shardkit.dataset.formats.base import CopyingWriter, FileWriter, Format
    from shardkit.dataset.source import Source
    from shardkit.storage.base import Folder

WRITERS_AT_MOST = 8  # each holds a row group
# The most that all partitions together hold in memory, and the most files that they have open at once.
PARTITIONS_BYTES = 64 << 20
PARTITIONS_OPEN = 64  # a Parquet writer keeps a megabyte or two
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Layout:
    """How a dataset is cut into files; ``day_column`` is the name of the partition of days, if there are days."""

    format: str
    rows_per_file: int
    target_bytes: int | None
    partition_by: tuple[str, ...]
    day_column: str | None = None
    day: str | None = None

    @property
    def kind(self) -> Format:
        """The format of the files."""
        return format_of(self.format)

    @property
    def cuts_by_rows(self) -> bool:
        """Whether only the number of rows decides which of them go into which file."""
        return not (self.partition_by or self.target_bytes)

    @property
    def prefix(self) -> str:
        """The folder of the day, with its trailing slash; empty if there are no days."""
        if self.kind.folder:
            return self.kind.folder
        return f"{quote(self.day_column, safe='')}={_folder(self.day)}/" if self.day_column and self.day else ""

    def form(self, shards: dict[str, Any] | None) -> dict[str, Any]:
        """What all days of a dataset must have in common; ``shards`` is the pipeline's section, as plain data."""
        rule = {n: v for n, v in (shards or {}).items() if n in {"path", "column", "zone"}} if self.day_column else None
        return {"days": rule, "format": self.format, "partition_by": list(self.partition_by)}


@dataclass(frozen=True)
class DataFile:
    """A file of the dataset; ``path`` is relative to its folder.

    ``nulls`` are how many each column has, those without any left out; None if that is not known.
    """

    path: str
    rows: int
    bytes: int
    nulls: dict[str, int] | None = None


class _Building:
    """One file that is being written: rows are held until they make a row group."""

    def __init__(self, folder: Folder, path: str, schema: pa.Schema, layout: Layout, *, threads: int) -> None:
        self.path = path
        self.rows = 0
        self.held_bytes = 0
        self._folder = folder
        self._file = folder.begin(path)
        self._schema = schema
        self._layout = layout
        self._threads = threads
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._writer: FileWriter | None = None
        self._groups = 0
        # The size of a file is only known after each row group, so a file should have about four of them.
        self._group_bytes = min(ROW_GROUP_BYTES, max(1, (layout.target_bytes or 4 * ROW_GROUP_BYTES) // 4))

    @property
    def is_full(self) -> bool:
        """Whether the file has reached its size."""
        if self.rows >= self._layout.rows_per_file:
            return True
        target = self._layout.target_bytes
        if target is None or self._writer is None:
            return False
        written = self._writer.tell()
        return written + written / self._groups / 2 >= target

    @property
    def is_open(self) -> bool:
        """Whether the file is open because some of its rows are written."""
        return self._writer is not None

    def append(self, table: pa.Table) -> pa.Table:
        """Take as many rows as the file has room for; returns the rest."""
        room = self._layout.rows_per_file - self.rows
        if self._layout.target_bytes is not None:
            room = min(room, max(1, self._group_bytes * len(table) // max(table.nbytes, 1)))
        taken = table.slice(0, room)
        self._held.append(taken)
        self._held_rows += len(taken)
        self.held_bytes += taken.nbytes
        self.rows += len(taken)
        if self._held_rows >= ROW_GROUP_ROWS or self.held_bytes >= self._group_bytes:
            self.flush()
        return table.slice(len(taken))

    def copy(self, stretch: Stretch) -> None:
        """Append some of the bytes of a Parquet row group; the file has room for its rows."""
        self.flush()
        cast("CopyingWriter", self._opened()).copy(stretch)
        if stretch.group is not None:
            self.rows += stretch.group.rows

    def compact(self) -> None:
        """Copy the rows held, so that they no longer keep the larger tables in memory that they are slices of."""
        if self._held:
            table = pa.concat_tables(self._held)
            self._held = [table.take(arrow(np.arange(len(table))))]

    def flush(self) -> None:
        """Write the rows held, in row groups of the right size."""
        if not self._held:
            return
        writer = self._opened()
        table = pa.concat_tables(self._held)
        groups = max(-(-self._held_rows // ROW_GROUP_ROWS), self.held_bytes // max(self._group_bytes, 1), 1)
        step = -(-len(table) // min(groups, len(table) or 1))
        for start in range(0, len(table), max(step, 1)):
            writer.write(table.slice(start, step))
            self._groups += 1
        self._held, self._held_rows, self.held_bytes = [], 0, 0
        del table
        pa.default_memory_pool().release_unused()  # otherwise the allocator keeps about as much again

    def _opened(self) -> FileWriter:
        if self._writer is None:
            self._writer = open_writer(self._file, self._schema, self._layout.format, threads=self._threads)
        return self._writer

    def close(self) -> DataFile:
        """Finish the file."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        done = DataFile(self.path, self.rows, os.path.getsize(self._file), self._checked_nulls())
        self._folder.finish(self.path, self._file)
        return done

    def _checked_nulls(self) -> dict[str, int] | None:
        """Check that the file itself says that it has the rows that it was given; returns how many nulls it says.

        Text files say no number.
        """
        nulls = None
        if self._writer is not None and self._layout.kind.describes_itself:
            with pa.OSFile(str(self._file)) as file:
                rows_in_file, nulls = self._layout.kind.counts(file)
            if rows_in_file != self.rows:
                raise StorageError(
                    f"{self._file} has {rows_in_file:,} rows, and {self.rows:,} were written to it.",
                    hint="The dataset stays as it was; resume the run.",
                )
        return nulls


def write_dataset(
    folder: Folder,
    source: Source,
    layout: Layout,
    *,
    token: str,
    threads: int | None,
    numbers_taken: Collection[int] = (),
) -> list[DataFile]:
    """Write all rows of ``source`` under ``folder``; file names carry ``token``.

    ``threads`` is how many may write at once; None means one for each CPU that this process may use. If files are cut
    by rows alone, none has one of the ``numbers_taken`` in its name.

    Raises:
        PipelineError: a partition column does not exist, or the format cannot hold a column.
        StorageError: a file cannot be written.
    """
    if threads is None:
        threads = _cpus() if source.num_rows > ROW_GROUP_ROWS else 1
    if not layout.cuts_by_rows:
        return write_stream(folder, source.tables(), layout, token=token, threads=threads)
    ranges = [
        (s, min(s + layout.rows_per_file, source.num_rows)) for s in range(0, source.num_rows, layout.rows_per_file)
    ]
    numbers = [n for n in range(len(ranges) + len(numbers_taken)) if n not in numbers_taken]
    at_once = max(1, min(threads, len(ranges), WRITERS_AT_MOST))
    encoders = max(1, threads // at_once)

    def write(i: int) -> DataFile:
        path = layout.prefix + _name(numbers[i], token, layout)
        file = _Building(folder, path, source.schema, layout, threads=encoders)
        for piece in source.pieces(*ranges[i], readers=at_once, copying=layout.kind.like_parts):
            if isinstance(piece, Stretch):
                file.copy(piece)
            else:
                file.append(piece)
        return file.close()

    # It is known beforehand where each file begins, so they are written side by side.
    with ThreadPoolExecutor(at_once, thread_name_prefix="shardkit-write") as pool:
        return list(pool.map(write, range(len(ranges))))


def _cpus() -> int:
    from joblib import cpu_count

    return int(cpu_count())


def write_stream(
    folder: Folder, tables: Iterable[pa.Table], layout: Layout, *, token: str, threads: int
) -> list[DataFile]:
    """Write tables as they arrive, each partition's rows to its own files; ``threads`` encode them."""
    writer = _PartitionedWriter(folder, layout, token, threads=threads)
    for table in tables:
        writer.append(table)
    return writer.close()


def write_file(folder: Folder, path: str, tables: Iterable[pa.Table], schema: pa.Schema, format: str) -> DataFile:
    """Write tables of one schema to one file."""
    file = _Building(folder, path, schema, Layout(format, sys.maxsize, None, ()), threads=1)
    file.append(schema.empty_table())  # so that there is a file even without rows
    for table in tables:
        file.append(table)
    return file.close()


class _PartitionedWriter:
    """Writes each partition's rows to its files, and holds them back until they are worth a row group.

    The rows held are slices of the tables that they came in, and keep these whole in memory. So from time to time the
    rows of the largest partitions are written, and those of the others are copied.
    """

    def __init__(self, folder: Folder, layout: Layout, token: str, *, threads: int) -> None:
        self._folder = folder
        self._layout = layout
        self._token = token
        self._threads = threads
        self._building: dict[str, _Building] = {}
        self._opened: dict[str, None] = {}  # the partitions with an open file, the last used last
        self._numbers: dict[str, int] = {}
        self._files: list[DataFile] = []
        self._pinned_bytes = 0
        self._most_open = min(PARTITIONS_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def append(self, table: pa.Table) -> None:
        for prefix, rows in _split(table, self._layout.partition_by):
            self._append(prefix, rows)
        self._pinned_bytes += table.nbytes
        if self._pinned_bytes > PARTITIONS_BYTES:
            self._relieve()

    def _append(self, prefix: str, rows: pa.Table) -> None:
        while len(rows):
            file = self._building.get(prefix) or self._begin(prefix, rows.schema)
            rows = file.append(rows)
            if file.is_full:
                self._finish(prefix)
            elif file.is_open:
                self._keep_few_open(prefix)

    def _begin(self, prefix: str, schema: pa.Schema) -> _Building:
        number = self._numbers[prefix] = self._numbers.get(prefix, -1) + 1
        path = self._layout.prefix + prefix + _name(number, self._token, self._layout)
        file = _Building(self._folder, path, schema, self._layout, threads=self._threads)
        self._building[prefix] = file
        return file

    def _finish(self, prefix: str) -> None:
        self._opened.pop(prefix, None)
        self._files.append(self._building.pop(prefix).close())

    def _keep_few_open(self, used: str) -> None:
        self._opened.pop(used, None)
        self._opened[used] = None
        if len(self._opened) > self._most_open:
            self._finish(next(iter(self._opened)))

    def _relieve(self) -> None:
        largest_first = sorted(self._building.items(), key=lambda item: -item[1].held_bytes)
        sizes = [file.held_bytes for _, file in largest_first]
        held = sum(sizes)
        for (prefix, file), size in zip(largest_first, sizes, strict=True):
            if prefix not in self._building:  # just finished, to keep few files open
                held -= size
            elif held > PARTITIONS_BYTES // 2:
                held -= size
                file.flush()
                self._keep_few_open(prefix)
            else:
                file.compact()
        self._pinned_bytes = held

    def close(self) -> list[DataFile]:
        for prefix in list(self._building):
            self._finish(prefix)
        return sorted(self._files, key=lambda file: file.path)


def _name(number: int, token: str, layout: Layout) -> str:
    day = f"{_folder(layout.day)}-" if layout.kind.folder and layout.day else ""
    return f"part-{number:05d}-{day}{token}{layout.kind.suffix}"


def _split(table: pa.Table, columns: tuple[str, ...]) -> Iterator[tuple[str, pa.Table]]:
    """Each partition's folder, with its trailing slash, and its rows in their order, without the partition columns."""
    if not columns:
        yield "", table
        return
    if not len(table):
        return
    missing = next((c for c in columns if c not in table.column_names), None)
    if missing is not None:
        raise PipelineError(
            f"output.partition_by: there is no column {missing!r}.", hint=f"There are {', '.join(table.column_names)}."
        )
    if len(columns) == table.num_columns:
        raise PipelineError("output.partition_by: every column is a partition.", hint="Leave one for the files.")
    nested = next((c for c in columns if pa.types.is_nested(table.schema.field(c).type)), None)
    if nested is not None:
        kind = table.schema.field(nested).type
        raise PipelineError(f"output.partition_by: column {nested!r} is {kind}, which cannot name a folder.")
    code = np.zeros(len(table), np.int64)
    for name in columns:
        encoded = pc.dictionary_encode(table[name].combine_chunks(), null_encoding="encode")
        code = code * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy()
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(code[order]) != 0])
    ordered = table.take(arrow(order))
    rest = ordered.drop_columns(list(columns))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        values = [ordered[name][int(start)].as_py() for name in columns]
        yield (
            "".join(f"{quote(n, safe='')}={_folder(v)}/" for n, v in zip(columns, values, strict=True)),
            rest.slice(int(start), int(stop - start)),
        )


def _folder(value: object) -> str:
    if value is None:
        return NULL_PARTITION
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return quote(text, safe=" :,+@()") or NULL_PARTITION
