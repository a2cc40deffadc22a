"""Row groups of Parquet files taken as they are: their bytes are copied, and only the footer is new.

What would be written of the same rows is the same but for its place in the file, so that rows of large parts need be
neither decoded nor encoded again. In the same way a row group is put together of columns that several threads encode.

Source: the Parquet project's definition of the footer, parquet.thrift, whose fields have the numbers below.
"""

from __future__ import annotations

import functools
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.checksums import begin_of
from shardkit.tables.packing import longest_first
from shardkit.tables.thrift import I64, LIST, STRUCT, Field, Struct, read_struct, write_struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.checksums import Sums

MAGIC = b"PAR1"
TAIL_BYTES = 8  # after the footer of a file: the footer's length, and the magic bytes
# How pages are written: compressed, each with a checksum.
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "write_page_checksum": True}
ROW_GROUP_ROWS = 1 << 17
ROW_GROUP_BYTES = 32 << 20
WIDE_ROW_BYTES, WIDE_GROUP_BYTES = 1 << 10, 3 << 20
DICTIONARY_SAMPLE_ROWS = 10_000
SEVERAL_THREADS_BYTES = 1 << 20  # of a row group, before it is encoded

# FileMetaData
SCHEMA, NUM_ROWS, ROW_GROUPS, CREATED_BY, ENCRYPTION = 2, 3, 4, 6, 8
# RowGroup
COLUMNS, GROUP_BYTES, GROUP_ROWS, GROUP_OFFSET, GROUP_COMPRESSED_BYTES, ORDINAL = 1, 2, 3, 5, 6, 7
# ColumnChunk: indexes that lie outside the chunk's pages are not copied.
FILE_PATH, CHUNK_OFFSET, CHUNK, CRYPTO = 1, 2, 3, 8
INDEXES = (4, 5, 6, 7)
# ColumnMetaData
PATH, CODEC, COMPRESSED_BYTES, DATA_OFFSET, INDEX_OFFSET, DICTIONARY_OFFSET, STATISTICS = 3, 4, 7, 9, 10, 11, 12
BLOOM_FILTER = (14, 15)
ZSTD = 6


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file: its bytes are those from ``start`` up to ``stop``, and ``entry`` describes it."""

    start: int
    stop: int
    rows: int
    entry: Struct


def _moved_column(column: Struct, by: int) -> Struct:
    chunk = {number: held for number, held in column[CHUNK].value.items() if number not in BLOOM_FILTER}
    for number in (DATA_OFFSET, INDEX_OFFSET, DICTIONARY_OFFSET):
        if number in chunk and chunk[number].value > 0:
            chunk[number] = Field(I64, chunk[number].value + by)
    moved = {number: held for number, held in column.items() if number not in INDEXES}
    # CHUNK_OFFSET pointed to a second copy of the chunk's metadata, which is no longer written: 0 means none.
    return moved | {CHUNK: Field(STRUCT, chunk), CHUNK_OFFSET: Field(I64, 0)}


@dataclass(frozen=True)
class Stretch:
    """Some of the bytes of a row group that is copied; the last of them come with the ``group``."""

    data: bytes
    group: RowGroup | None = None


def stretches(file: Any, group: RowGroup, step_bytes: int, sums: Sums = ()) -> Iterator[Stretch]:
    """The bytes of a row group of an open file, checked against the ``sums`` of the file.

    Raises:
        OSError: they cannot be read, or are not as they were written.
    """
    expected = dict(sums).get(group.stop)
    crc = zlib.crc32(MAGIC) if begin_of(sums, group.stop) == 0 else 0
    for start in range(group.start, group.stop, step_bytes):
        stop = min(start + step_bytes, group.stop)
        file.seek(start)
        data = file.read(stop - start)
        if len(data) != stop - start:
            raise OSError(f"the file ends at byte {start + len(data):,}, in the middle of a row group")
        if expected is not None:
            crc = zlib.crc32(data, crc)
            if stop == group.stop and crc != expected:
                raise OSError(f"its bytes up to {stop:,} do not match their checksum")
        yield Stretch(data, group if stop == group.stop else None)


def is_large(rows: int, size_bytes: int) -> bool:
    """Whether so many rows are worth a row group of their own: of wide rows, such as embeddings, fewer bytes are."""
    wide = size_bytes >= WIDE_GROUP_BYTES and size_bytes >= rows * WIDE_ROW_BYTES
    return wide or rows >= ROW_GROUP_ROWS // 2 or size_bytes >= ROW_GROUP_BYTES // 2


def size_of(footer: pq.FileMetaData) -> tuple[int, int]:
    """How many rows a file has, and how many bytes before compression."""
    return footer.num_rows, sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))


def repetitive(table: pa.Table) -> list[str]:
    """The columns that a dictionary makes smaller, judged by the first rows: all except texts that rarely repeat."""
    import pyarrow.compute as pc

    first = table.slice(0, DICTIONARY_SAMPLE_ROWS)
    texts = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    unique = {name for name in texts if pc.count_distinct(first[name]).as_py() > len(first) / 2}
    return [name for name in table.column_names if name not in unique]


def copied_groups(footer: pq.FileMetaData, schema: pa.Schema) -> list[RowGroup | None]:
    """For each row group of a file, what is copied of it to files of ``schema``; None if it must be encoded again.

    A row group is copied if it is like those that are written here: of the same schema, compressed, with statistics,
    large enough and not too large.
    """
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    fitting = [
        is_large(rows, size) and rows <= ROW_GROUP_ROWS and size <= 2 * ROW_GROUP_BYTES
        for rows, size in ((group.num_rows, group.total_byte_size) for group in groups)
    ]
    if not any(fitting) or footer.schema.to_arrow_schema().remove_metadata() != schema:
        return [None] * len(groups)
    content, ours = _read(footer), _empty(schema)
    if content is None or ENCRYPTION in content or content[SCHEMA] != ours[SCHEMA] or not _is_arrows(content):
        return [None] * len(groups)
    return [_copied(entry) if fits else None for entry, fits in zip(content[ROW_GROUPS].value[1], fitting, strict=True)]


def _is_arrows(content: Struct) -> bool:
    """Whether pyarrow has written a file: for files of other libraries, readers may work around known bugs."""
    writer: bytes = content[CREATED_BY].value if CREATED_BY in content else b""
    return writer.startswith(b"parquet-cpp-arrow")


def _copied(entry: Struct) -> RowGroup | None:
    columns = entry[COLUMNS].value[1]
    if any(FILE_PATH in column or CRYPTO in column or CHUNK not in column for column in columns):
        return None
    chunks = [column[CHUNK].value for column in columns]
    if any(chunk[CODEC].value != ZSTD or STATISTICS not in chunk for chunk in chunks):
        return None
    extent = _extent(entry)
    return RowGroup(*extent, entry[GROUP_ROWS].value, entry) if extent else None


def _extent(entry: Struct) -> tuple[int, int] | None:
    """Where the bytes of a row group begin and end; None if there are other bytes between its columns."""
    start = stop = _first(entry)
    for chunk in (column[CHUNK].value for column in entry[COLUMNS].value[1]):
        if _start(chunk) != stop:
            return None
        stop += chunk[COMPRESSED_BYTES].value
    return start, stop


def _first(entry: Struct) -> int:
    """Where the bytes of a row group begin."""
    return min(_start(column[CHUNK].value) for column in entry[COLUMNS].value[1])


def _start(chunk: Struct) -> int:
    offsets = [chunk[number].value for number in (DICTIONARY_OFFSET, DATA_OFFSET) if number in chunk]
    start: int = min(offset for offset in offsets if offset > 0)
    return start


def _footer(file: pa.Buffer) -> Struct:
    """The footer of a whole file."""
    length = int.from_bytes(file.slice(file.size - TAIL_BYTES, 4), "little")
    return read_struct(file.slice(file.size - TAIL_BYTES - length).to_pybytes())


def _read(footer: pq.FileMetaData) -> Struct | None:
    sink = pa.BufferOutputStream()
    footer.write_metadata_file(sink)
    try:
        return _footer(sink.getvalue())
    except ValueError:
        return None


@dataclass(frozen=True)
class Footer:
    """The footer of any Parquet file, from which that of a file with some of its row groups is made."""

    content: Struct

    @classmethod
    def of(cls, data: bytes) -> Footer:
        """The footer that is written in these bytes.

        Raises:
            ValueError: there is none, or its file is encrypted, or in several files.
        """
        content = read_struct(data)
        footer = cls(content)
        columns = [column for group in footer._groups for column in group[COLUMNS].value[1]]
        if ENCRYPTION in content or any(FILE_PATH in c or CRYPTO in c or CHUNK not in c for c in columns):
            raise ValueError("it is encrypted, or its columns are in other files")
        return footer

    @property
    def _groups(self) -> list[Struct]:
        groups: list[Struct] = self.content[ROW_GROUPS].value[1]
        return groups

    def group_bytes(self) -> list[int]:
        """How many bytes of the file each row group takes."""
        return [sum(chunk[COMPRESSED_BYTES].value for chunk in _chunks_of(group)) for group in self._groups]

    def extent(self, first: int, end: int) -> tuple[int, int]:
        """Where the row groups from ``first`` up to ``end`` begin and end in the file."""
        chunks = [chunk for group in self._groups[first:end] for chunk in _chunks_of(group)]
        return min(map(_start, chunks)), max(_start(chunk) + chunk[COMPRESSED_BYTES].value for chunk in chunks)

    def of_groups(self, first: int, end: int, *, moved_by: int) -> bytes:
        """The end of a file with these row groups alone, which lie so many bytes after their place in this one."""
        entries = []
        for number, group in enumerate(self._groups[first:end]):
            columns = [_moved_column(column, moved_by) for column in group[COLUMNS].value[1]]
            moved = group | {COLUMNS: Field(LIST, (STRUCT, columns))}
            if GROUP_OFFSET in group:
                moved[GROUP_OFFSET] = Field(I64, min(_start(column[CHUNK].value) for column in columns))
            if ORDINAL in group:
                moved[ORDINAL] = Field(group[ORDINAL].kind, number)
            entries.append(moved)
        rows = sum(group[GROUP_ROWS].value for group in entries)
        groups = Field(LIST, (STRUCT, entries))
        data = write_struct(self.content | {NUM_ROWS: Field(I64, rows), ROW_GROUPS: groups})
        return data + len(data).to_bytes(4, "little") + MAGIC


def _chunks_of(group: Struct) -> list[Struct]:
    return [column[CHUNK].value for column in group[COLUMNS].value[1]]


@dataclass(frozen=True)
class _Encoded:
    """Some columns of a table as a file of their own: its bytes, and the entry for its one row group."""

    data: pa.Buffer
    entry: Struct

    @classmethod
    def of(cls, table: pa.Table, use_dictionary: list[str]) -> _Encoded:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, table.schema, use_dictionary=use_dictionary, **COMPRESSION) as writer:
            writer.write_table(table, row_group_size=len(table))
        data = sink.getvalue()
        (entry,) = _footer(data)[ROW_GROUPS].value[1]
        return cls(data, entry)

    def chunks(self) -> Iterator[tuple[str, Struct, pa.Buffer]]:
        """For each column chunk: the name of its column, its metadata, and its bytes."""
        for column in self.entry[COLUMNS].value[1]:
            chunk = column[CHUNK].value
            (first, *_) = chunk[PATH].value[1]
            yield first.decode(), column, self.data.slice(_start(chunk), chunk[COMPRESSED_BYTES].value)


def _encoded(table: pa.Table, use_dictionary: list[str], threads: int) -> list[_Encoded]:
    """The columns of a table, in as many files as threads have encoded them."""
    if threads < 2 or table.num_columns < 2 or table.nbytes < SEVERAL_THREADS_BYTES:
        return [_Encoded.of(table, use_dictionary)]
    shares = _shares(table, min(threads, table.num_columns))
    with ThreadPoolExecutor(len(shares), thread_name_prefix="shardkit-encode") as pool:
        encode = lambda names: _Encoded.of(table.select(names), [n for n in use_dictionary if n in names])  # noqa: E731
        return list(pool.map(encode, shares))


def _shares(table: pa.Table, count: int) -> list[list[str]]:
    """The names of the columns in ``count`` groups of about the same size."""
    sizes = np.array([column.nbytes for column in table.columns], np.int64) + table.num_rows
    group = longest_first(sizes, bins=count)
    return [[name for name, g in zip(table.column_names, group, strict=True) if g == i] for i in sorted(set(group))]


class RowGroupsFile:
    """A Parquet file that is being written row group by row group: some are encoded, others copied.

    Args:
        file: an open file, empty yet.
        schema: the columns of all row groups.
        threads: how many encode the columns of a row group side by side.
    """

    def __init__(self, file: Any, schema: pa.Schema, *, threads: int) -> None:
        self._file = file
        self._schema = schema
        self._threads = threads
        self._entries: list[bytes] = []
        self._rows = 0
        self._copying_from: int | None = None
        file.write(MAGIC)

    def encode(self, table: pa.Table, *, use_dictionary: list[str]) -> None:
        """Append a table as a row group.

        Raises:
            OSError: the file cannot be written.
        """
        encoded = _encoded(table, use_dictionary, self._threads)
        chunks: dict[str, list[tuple[Struct, pa.Buffer]]] = {}
        for name, column, data in (chunk for some in encoded for chunk in some.chunks()):
            chunks.setdefault(name, []).append((column, data))
        offset = self._file.tell()
        columns = []
        for column, data in (chunk for name in table.column_names for chunk in chunks[name]):
            columns.append(_moved_column(column, offset - _start(column[CHUNK].value)))
            self._file.write(data)
            offset += data.size
        sums = {n: sum(some.entry[n].value for some in encoded) for n in (GROUP_BYTES, GROUP_COMPRESSED_BYTES)}
        self._add(encoded[0].entry | {n: Field(I64, size) for n, size in sums.items()}, columns, len(table))

    def copy(self, stretch: Stretch) -> None:
        """Append some of the bytes of a row group.

        Raises:
            OSError: the file cannot be written.
        """
        if self._copying_from is None:
            self._copying_from = self._file.tell()
        self._file.write(stretch.data)
        if (group := stretch.group) is not None:
            by = self._copying_from - group.start
            columns = [_moved_column(column, by) for column in group.entry[COLUMNS].value[1]]
            self._add(group.entry, columns, group.rows)
            self._copying_from = None

    def _add(self, entry: Struct, columns: list[Struct], rows: int) -> None:
        """Add the entry for a row group, whose columns already have their offsets in this file."""
        begin = Field(I64, min(_start(column[CHUNK].value) for column in columns))
        moved = entry | {COLUMNS: Field(LIST, (STRUCT, columns)), GROUP_OFFSET: begin}
        if ORDINAL in entry:
            moved[ORDINAL] = Field(entry[ORDINAL].kind, len(self._entries))
        self._entries.append(write_struct(moved))
        self._rows += rows

    def close(self) -> None:
        """Write the footer.

        Raises:
            OSError: the file cannot be written.
        """
        groups = Field(LIST, (STRUCT, self._entries))
        footer = write_struct(_empty(self._schema) | {NUM_ROWS: Field(I64, self._rows), ROW_GROUPS: groups})
        self._file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)


@functools.lru_cache(8)
def _empty(schema: pa.Schema) -> Struct:
    """The footer of a file without rows."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema, **COMPRESSION).close()  # writing an empty table would load pandas
    return _footer(sink.getvalue())
