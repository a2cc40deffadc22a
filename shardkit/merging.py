"""Parts read back as one stream: their schemas unified, their rows in order, a few megabytes at a time."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.errors import Damaged, PipelineError, SchemaConflict
from shardkit.partfiles import PartFiles
from shardkit.parts import origins_of
from shardkit.rowgroups import Stretch, copied_groups, size_of, stretches
from shardkit.rows import as_table
from shardkit.schema import TypeMismatch, conform, parse_type, unify_types
from shardkit.spans import clip, overlap, row_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future

    from shardkit.spans import Spans
    from shardkit.storage import File

    _Opening = tuple[int, Callable[[], Any]]  # the number of a part, and what opens it

# Rows are read in pieces of about this size: small parts several at a time, large ones bit by bit.
PIECE_ROWS = 1 << 15
PIECE_BYTES = 8 << 20
# Large ones are decoded in smaller steps, for memory that was just used is faster than new; a few chunks are no slower
# to write than one.
STEP_BYTES = 2 << 20
FEW_CHUNKS = 8
# Pieces read ahead by all readers together: memory is the same whether one file is written or several at once.
READ_AHEAD = 4
# Small parts are decoded so many rows, or bytes, at a time, by two threads where only one file is written.
DECODED_ROWS = 1 << 12
DECODED_BYTES = 1 << 20
DECODERS = 2
UNREADABLE_HINT = "Is it a whole Parquet file?"


@dataclass(frozen=True)
class Source:
    """Parts in the order of their rows, and the schema that all of them fit; ``read`` counts rows as they are read.

    ``spans`` are the rows of each part that count, ``sizes`` its rows and its bytes before compression.
    """

    files: PartFiles
    spans: tuple[Spans, ...]
    sizes: tuple[tuple[int, int], ...]
    schema: pa.Schema
    read: list[int] = field(default_factory=list)

    @functools.cached_property
    def rows(self) -> tuple[int, ...]:
        """The rows of each part."""
        return tuple(map(row_count, self.spans))

    @property
    def num_rows(self) -> int:
        """The rows of all parts together."""
        return sum(self.rows)

    def where(self, start: int, stop: int) -> Iterator[tuple[int, Spans]]:
        """The numbers of the parts that the rows from ``start`` up to ``stop`` are in, and which of their rows."""
        ends = np.cumsum(self.rows, dtype=np.int64)
        begins = ends - self.rows
        for i in range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(begins, stop, "left"))):
            if spans := clip(self.spans[i], start - int(begins[i]), stop - int(begins[i])):
                yield i, spans

    def tables(self) -> Iterator[pa.Table]:
        """All rows, read ahead by other threads.

        Raises:
            SchemaConflict: a value does not fit its column.
            StorageError: a part cannot be read.
        """
        return self.pieces(0, self.num_rows)

    def pieces(self, start: int, stop: int, *, readers: int = 1, copying: bool = False) -> Iterator[pa.Table | Stretch]:
        """The rows from ``start`` up to ``stop``, read ahead by other threads; ``readers`` is how many do so at once.

        With ``copying``, large row groups of Parquet that fit come as their bytes.

        Raises:
            SchemaConflict: a value does not fit its column.
            StorageError: a part cannot be read.
        """
        pieces = self._pieces(self._slices(start, stop, readers, copying=copying))
        with ThreadPoolExecutor(1, thread_name_prefix="shardkit-read") as reader:
            ahead = deque(reader.submit(next, pieces, None) for _ in range(max(1, READ_AHEAD // readers)))
            while (piece := ahead.popleft().result()) is not None:
                ahead.append(reader.submit(next, pieces, None))
                yield piece

    def _pieces(self, slices: Iterable[pa.Table | Stretch]) -> Iterator[pa.Table | Stretch]:
        held: list[pa.Table] = []
        rows = size = 0
        for item in slices:
            if not isinstance(item, Stretch):
                held.append(item)
                rows, size = rows + len(item), size + item.nbytes
            if held and (rows >= PIECE_ROWS or size >= PIECE_BYTES or isinstance(item, Stretch)):
                yield _put_together(held)
                held, rows, size = [], 0, 0
            if isinstance(item, Stretch):
                yield item
        if held:
            yield _put_together(held)

    def _slices(self, start: int, stop: int, readers: int, *, copying: bool) -> Iterator[pa.Table | Stretch]:
        """The rows from ``start`` up to ``stop``, part by part; small parts are decoded side by side."""
        wanted = dict(self.where(start, stop))
        decoders = max(1, DECODERS // readers)
        ahead: deque[Future[list[pa.Table]]] = deque()
        with ThreadPoolExecutor(decoders, thread_name_prefix="shardkit-decode") as threads:
            for parts in self._together(self.files.each(wanted, readers=readers)):
                first, opening = parts[0]
                if self._is_small(first):
                    ahead.append(threads.submit(self._whole, parts, wanted))
                    if len(ahead) > decoders:
                        yield from ahead.popleft().result()
                    continue
                while ahead:
                    yield from ahead.popleft().result()
                yield from self._bit_by_bit(first, opening, wanted[first], copying=copying, alone=readers == 1)
            while ahead:
                yield from ahead.popleft().result()

    def _is_small(self, i: int) -> bool:
        rows, size = self.sizes[i]
        return rows <= PIECE_ROWS and size <= PIECE_BYTES

    def _together(self, parts: Iterable[_Opening]) -> Iterator[list[_Opening]]:
        """The parts in their order, those that are small several at a time, the others alone."""
        held: list[_Opening] = []
        rows = size = 0
        for part in parts:
            more_rows, more_bytes = self.sizes[part[0]]
            if held and (rows + more_rows > DECODED_ROWS or size + more_bytes > DECODED_BYTES):
                yield held
                held, rows, size = [], 0, 0
            held.append(part)
            rows, size = rows + more_rows, size + more_bytes
        if held:
            yield held

    def _whole(self, parts: list[_Opening], wanted: dict[int, Spans]) -> list[pa.Table]:
        """The rows of small parts."""
        tables = []
        for i, opening in parts:
            with reading(self.files.parts[i]), opening() as opened:
                table = pq.ParquetFile(opened, page_checksum_verification=True).read(use_threads=False)
            tables.append(self._fit(i, _only(table, wanted[i])))
        return tables

    def _bit_by_bit(
        self, i: int, opening: Callable[[], Any], spans: Spans, *, copying: bool, alone: bool
    ) -> Iterator[pa.Table | Stretch]:
        """The rows of a large part; where nobody else reads, Arrow's threads decode its columns side by side."""
        part = self.files.parts[i]
        with reading(part), opening() as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            copied = copied_groups(file.metadata, self.schema) if copying else [None] * file.num_row_groups
            begin = 0
            for number, group in enumerate(copied):
                rows = file.metadata.row_group(number).num_rows
                some = overlap(spans, begin, begin + rows)
                if group is not None and some == ((begin, begin + rows),):
                    yield from stretches(opened, group, PIECE_BYTES, part.sums)
                    self.read.append(rows)
                elif some:
                    yield from self._group(i, file, number, begin, some, alone=alone)
                begin += rows

    def _group(
        self, i: int, file: pq.ParquetFile, group: int, begin: int, spans: Spans, *, alone: bool
    ) -> Iterator[pa.Table]:
        footer = file.metadata.row_group(group)
        step = max(1, min(PIECE_ROWS, STEP_BYTES * footer.num_rows // max(footer.total_byte_size, 1)))
        for batch in file.iter_batches(step, row_groups=[group], use_threads=alone):
            if some := overlap(spans, begin, begin + len(batch)):
                table = pa.Table.from_batches([batch])
                yield self._fit(i, _only(table, [(low - begin, high - begin) for low, high in some]))
            begin += len(batch)

    def _fit(self, i: int, table: pa.Table) -> pa.Table:
        self.read.append(len(table))
        try:
            return conform(table.replace_schema_metadata(None), self.schema)
        except pa.ArrowException as error:
            raise SchemaConflict(
                f"The rows of {_origin(self.files.parts[i])} do not fit the dataset's schema: {error}.",
                hint="Correct the type in output.schema, then resume the run.",
            ) from error


@contextlib.contextmanager
def reading(part: File) -> Iterator[None]:
    """Turn what is wrong with a part into an error that says which one it is.

    Raises:
        DamagedPart: it cannot be read, or is not as it was written.
    """
    try:
        yield
    except Damaged as error:
        raise DamagedPart(error.message, part, hint=UNREADABLE_HINT) from error
    except (OSError, pa.ArrowException) as error:
        raise DamagedPart(f"Cannot read the part {part}: {error}.", part, hint=UNREADABLE_HINT) from error


class DamagedPart(Damaged):
    """A part that is not as it was written."""

    def __init__(self, message: str, part: File, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.part = part


def _put_together(tables: list[pa.Table]) -> pa.Table:
    """One table; many chunks are made one, which is written faster than a hundred."""
    table = pa.concat_tables(tables)
    return table.combine_chunks() if len(tables) > FEW_CHUNKS else table


def _only(table: pa.Table, spans: Iterable[tuple[int, int]]) -> pa.Table:
    return pa.concat_tables([table.slice(start, stop - start) for start, stop in spans])


def read_source(
    parts: Iterable[File],
    *,
    spans: Iterable[Spans | None] = (),
    schema: dict[str, str] | None,
    widen_ints: bool,
) -> Source:
    """Read the footers of parts and unify their schemas; ``schema`` (column: type), if given, is taken instead.

    ``spans`` are the rows of each part that count, where these are not all.

    Raises:
        SchemaConflict: two parts give a column types that have nothing in common.
        StorageError: a part cannot be read.
    """
    files = PartFiles(tuple(parts))
    unifier = _Unifier(widen_ints=widen_ints)
    counting: list[Spans] = []
    sizes: list[tuple[int, int]] = []
    known = dict(enumerate(spans))
    for i, opening in files.each(range(len(files.parts))):
        part = files.parts[i]
        with reading(part):
            opened = opening()
            footer = pq.read_metadata(opened)
            files.keep_or_close(i, opened)
        whole = ((0, footer.num_rows),) if footer.num_rows else ()
        counting.append(whole if (some := known.get(i)) is None else some)
        sizes.append(size_of(footer))
        if schema is None:
            unifier.add(part, footer)
        else:
            _check_covered(part, footer, schema)
    fields = unifier.fields() if schema is None else [pa.field(n, parse_type(t)) for n, t in schema.items()]
    return Source(files, tuple(counting), tuple(sizes), pa.schema(fields))


def one_schema(schemas: Mapping[str, pa.Schema], *, widen_ints: bool) -> pa.Schema:
    """The schema that holds all of several, which are given by what to call them in a message.

    Raises:
        SchemaConflict: two give a column types that have nothing in common.
    """
    types: dict[str, tuple[pa.DataType, str]] = {}
    for name, schema in schemas.items():
        for column in schema:
            known, where = types.get(column.name, (column.type, name))
            try:
                types[column.name] = (unify_types(known, column.type, widen_ints=widen_ints, column=column.name), where)
            except TypeMismatch as mismatch:
                raise SchemaConflict(
                    f"Column {mismatch.column!r} is {mismatch.left} in {where} and {mismatch.right} in {name}.",
                    hint=_cure(mismatch),
                ) from None
    return pa.schema([pa.field(name, kind) for name, (kind, _) in types.items()])


class _Unifier:
    def __init__(self, *, widen_ints: bool) -> None:
        self._widen_ints = widen_ints
        self._types: dict[str, pa.DataType] = {}
        self._seen: dict[tuple[str, str], str] = {}
        self._known: set[pa.Schema] = set()

    def add(self, part: File, footer: pq.FileMetaData) -> None:
        """Take in one part's columns."""
        schema = footer.schema.to_arrow_schema().remove_metadata()
        origins = {name: _telling(seen) for name, seen in origins_of(footer).items()}
        if schema in self._known and not any("int64" in seen and len(seen) > 1 for seen in origins.values()):
            return
        self._known.add(schema)
        for column in schema:
            seen = origins.get(column.name) or {str(column.type): "/".join(part.key.split("/")[-2:])}
            for kind, record in seen.items():
                # A float column may hold records that, alone, would have made it one of integers.
                observed = pa.int64() if kind == "int64" and pa.types.is_floating(column.type) else column.type
                self._merge(column.name, observed, record)

    def _merge(self, name: str, kind: pa.DataType, record: str) -> None:
        known = self._types.get(name)
        try:
            self._types[name] = (
                kind if known is None else unify_types(known, kind, widen_ints=self._widen_ints, column=name)
            )
        except TypeMismatch as mismatch:
            other = self._seen.get((name, str(known)), "another record")
            raise SchemaConflict(
                f"Column {mismatch.column!r} is {mismatch.left} in {other} and {mismatch.right} in {record}.",
                hint=_cure(mismatch),
            ) from None
        self._seen.setdefault((name, str(self._types[name])), record)

    def fields(self) -> list[pa.Field]:
        return [pa.field(name, kind) for name, kind in self._types.items()]


def _cure(mismatch: TypeMismatch) -> str:
    kinds = {mismatch.left, mismatch.right}
    column = mismatch.column.split(".")[0].removesuffix("[]")
    if any(map(pa.types.is_integer, kinds)) and any(map(pa.types.is_floating, kinds)):
        return "To make it a float everywhere, resume with --set output.widen_ints=true."
    return (
        f"Have the function return one type, and start a new run; or say which with "
        f"--set output.schema='{{{column}: string, ...}}' (all columns), and resume."
    )


def _check_covered(part: File, footer: pq.FileMetaData, schema: dict[str, str]) -> None:
    extra = [name for name in footer.schema.to_arrow_schema().names if name not in schema]
    if extra:
        raise SchemaConflict(
            f"The rows of {_origin(part)} have the column {extra[0]!r}, which is not in output.schema.",
            hint="Add it there, then resume the run.",
        )


def _telling(seen: dict[str, str]) -> dict[str, str]:
    """Without the record that gave a column nothing but nulls, where others gave it a type."""
    return {kind: record for kind, record in seen.items() if kind != "null" or len(seen) == 1}


def _footer(part: File) -> pq.FileMetaData:
    with part.open() as file:
        return pq.read_metadata(file)


def _origin(part: File) -> str:
    """A record whose rows a part holds, or the part itself."""
    for seen in origins_of(_footer(part)).values():
        return f"the part that begins with {next(iter(seen.values()))}"
    return str(part)


class Batches:
    """What ``combine`` is given: all rows as record batches, which may be gone through more than once.

    >>> def combine(batches):
    ...     total = sum(batch.num_rows for batch in batches)    # a first time, for what must be known beforehand
    ...     for batch in batches:                               # and again, for the rows
    ...         yield batch.append_column("share", pa.array([1 / total] * batch.num_rows))
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def schema(self) -> pa.Schema:
        """The schema of all batches."""
        return self._source.schema

    @property
    def num_rows(self) -> int:
        """The rows of all batches together."""
        return self._source.num_rows

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for table in self._source.tables():
            yield from table.combine_chunks().to_batches()


def combined(source: Source, function: Callable[[Batches], Any], name: str) -> Iterator[pa.Table]:
    """What the user's ``combine`` yields, as tables of one schema.

    That is the schema of the first one with rows: of none, the types are often not those of others. Tables without rows
    are passed over, but for one where there is no other.
    """
    must = "It must yield record batches, Tables or DataFrames."
    schema: pa.Schema | None = None
    empty: pa.Table | None = None
    produced = function(Batches(source))
    if as_table(produced) is not None:
        produced = [produced]
    if isinstance(produced, str | bytes) or not isinstance(produced, Iterable):
        raise PipelineError(f"combine: {name} returned {type(produced).__name__}.", hint=must)
    for item in produced:
        table = as_table(item)
        if table is None:
            raise PipelineError(f"combine: {name} yielded {type(item).__name__}.", hint=must)
        if not len(table):
            empty = table if empty is None else empty
            continue
        schema = table.schema if schema is None else schema
        new = next((column for column in table.column_names if column not in schema.names), None)
        try:
            if new is not None:
                raise pa.ArrowInvalid(f"column {new!r} is not in the first one")
            yield conform(table, schema)
        except pa.ArrowException as error:
            raise SchemaConflict(f"combine: {name} yielded batches that differ: {error}.") from error
    if schema is None and empty is not None:
        yield empty
