"""Parts read back as one stream: with one schema, their rows in order, a few megabytes at a time."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.dataset.part_files import PartFiles
from shardkit.errors import Damaged, PipelineError, SchemaConflict
from shardkit.runfolder.parts import NOTHING_OF, origins_of
from shardkit.tables.plain_types import plain_schema, plain_type
from shardkit.tables.rowgroups import Stretch, copied_groups, is_large, size_of, stretches
from shardkit.tables.schema import conform, parse_schema
from shardkit.tables.spans import clip, overlap, row_count
from shardkit.tables.type_text import printed_type
from shardkit.tables.unify import Unifier, cure_as_text, holds_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future

    from shardkit.storage.base import File
    from shardkit.tables.spans import Spans
    from shardkit.tables.unify import Fits

    _Opening = tuple[int, Callable[[], Any]]  # the number of a part, and what opens it

# Rows are read in pieces of about this size: several small parts at a time, or a large one bit by bit.
PIECE_ROWS = 1 << 15
PIECE_BYTES = 8 << 20
# Large parts are decoded in smaller steps, because memory that was just used is faster than new memory; writing a few
# chunks is no slower than writing one.
STEP_BYTES = 2 << 20
FEW_CHUNKS = 8
# Pieces read ahead by all readers together, so that several files at once take no more memory than one.
READ_AHEAD = 4
# So many rows, or bytes, of small parts are decoded at a time, by two threads if only one file is written.
DECODED_ROWS = 1 << 12
DECODED_BYTES = 1 << 20
DECODERS = 2
UNREADABLE_HINT = "Is it a whole Parquet file?"


@dataclass(frozen=True)
class Source:
    """Parts in the order of their rows, and the schema that all of them fit; ``read`` counts rows as they are read.

    ``spans`` are the rows of each part that count, ``sizes`` its rows and its bytes before compression. The schema may
    be the user's own: then ``schema_is_given``.
    """

    files: PartFiles
    spans: tuple[Spans, ...]
    sizes: tuple[tuple[int, int], ...]
    schema: pa.Schema
    schema_is_given: bool = False
    read: list[int] = field(default_factory=list)

    @functools.cached_property
    def rows(self) -> tuple[int, ...]:
        """How many rows of each part count."""
        return tuple(map(row_count, self.spans))

    @property
    def num_rows(self) -> int:
        """How many rows there are in all parts together."""
        return sum(self.rows)

    def where(self, start: int, stop: int) -> Iterator[tuple[int, Spans]]:
        """The numbers of the parts with the rows from ``start`` up to ``stop``, and which of their rows these are."""
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
        """The rows from ``start`` up to ``stop``, read ahead by other threads.

        ``readers`` is how many callers do this at once. With ``copying``, large row groups that a Parquet file takes as
        they are come as their bytes.

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
            for parts in self._grouped(self.files.each(wanted, readers=readers)):
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
        return rows <= PIECE_ROWS and size <= PIECE_BYTES and not is_large(rows, size)

    def _grouped(self, parts: Iterable[_Opening]) -> Iterator[list[_Opening]]:
        """The parts in their order: several small ones at a time, the others alone."""
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
        """The rows of small parts, which are read whole."""
        tables = []
        for i, opening in parts:
            with reading(self.files.parts[i]), opening() as opened:
                table = pq.ParquetFile(opened, page_checksum_verification=True).read(use_threads=False)
            tables.append(self._fit(i, _only(table, wanted[i])))
        return tables

    def _bit_by_bit(
        self, i: int, opening: Callable[[], Any], spans: Spans, *, copying: bool, alone: bool
    ) -> Iterator[pa.Table | Stretch]:
        """The rows of a large part; without other readers, Arrow's threads decode its columns side by side."""
        part = self.files.parts[i]
        with reading(part), opening() as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            copied = copied_groups(file.metadata, self.schema) if copying else [None] * file.num_row_groups
            begin = 0
            for number, group in enumerate(copied):
                rows = file.metadata.row_group(number).num_rows
                wanted = overlap(spans, begin, begin + rows)
                if group is not None and wanted == ((begin, begin + rows),):
                    yield from stretches(opened, group, self.files.copied_bytes, part.sums)
                    self.read.append(rows)
                elif wanted:
                    yield from self._group(i, file, number, begin, wanted, alone=alone)
                begin += rows

    def _group(
        self, i: int, file: pq.ParquetFile, group: int, begin: int, spans: Spans, *, alone: bool
    ) -> Iterator[pa.Table]:
        footer = file.metadata.row_group(group)
        step = max(1, min(PIECE_ROWS, STEP_BYTES * footer.num_rows // max(footer.total_byte_size, 1)))
        for batch in file.iter_batches(step, row_groups=[group], use_threads=alone):
            if wanted := overlap(spans, begin, begin + len(batch)):
                table = pa.Table.from_batches([batch])
                yield self._fit(i, _only(table, [(low - begin, high - begin) for low, high in wanted]))
            begin += len(batch)

    def _fit(self, i: int, table: pa.Table) -> pa.Table:
        self.read.append(len(table))
        try:
            return conform(table.replace_schema_metadata(None), self.schema)
        except pa.ArrowException as error:
            raise SchemaConflict(
                f"The rows of {_origin(self.files.parts[i])} do not fit the dataset's schema: {error}.",
                hint=self._cure(table, str(error)),
            ) from error

    def _cure(self, table: pa.Table, said: str) -> str:
        if self.schema_is_given:
            return "Correct the type in output.schema, then resume the run."
        name = next((name for name in table.column_names if said.startswith(f"column {name!r}")), "")
        return cure_as_text(name, [table.schema.field(name).type, self.schema.field(name).type] if name else [])

    def fits(self, name: str, kind: pa.DataType) -> bool:
        """Whether all values of a column fit a type; only parts that have the column in another type are read."""
        schema = pa.schema([(name, kind)])
        for i, opening in self.files.each(range(len(self.files.parts))):
            with reading(self.files.parts[i]), opening() as opened:
                file = pq.ParquetFile(opened)
                index = file.schema_arrow.get_field_index(name)
                if index < 0 or holds_all(file.schema_arrow.field(index).type, kind):
                    continue
                begin = 0
                for batch in file.iter_batches(PIECE_ROWS, columns=None if "." in name else [name], use_threads=False):
                    counting = overlap(self.spans[i], begin, begin + len(batch))
                    table = pa.Table.from_batches([batch]).select([name])
                    begin += len(batch)
                    try:
                        for low, high in counting:
                            conform(table.slice(low - begin + len(batch), high - low), schema)
                    except pa.ArrowException:
                        return False
        return True


@contextlib.contextmanager
def reading(part: File) -> Iterator[None]:
    """Turn any failure to read a part into an error that names the part.

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
    """The tables as one; many chunks are copied into one, which is faster to write."""
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
    """Read the footers of parts and unify their schemas, unless ``schema`` (column: type) is given.

    ``spans`` are the rows of each part that count, if not all do.

    Raises:
        SchemaConflict: two parts give a column types that have nothing in common.
        StorageError: a part cannot be read.
    """
    files = PartFiles(tuple(parts))
    unifier = Unifier()
    counting: list[Spans] = []
    sizes: list[tuple[int, int]] = []
    given_spans = dict(enumerate(spans))
    for i, opening in files.each(range(len(files.parts))):
        part = files.parts[i]
        with reading(part):
            opened = opening()
            footer = pq.read_metadata(opened)
            files.keep_or_close(i, opened)
        whole = ((0, footer.num_rows),) if footer.num_rows else ()
        counting.append(whole if (given := given_spans.get(i)) is None else given)
        sizes.append(size_of(footer))
        if schema is None:
            _note_columns(unifier, part, footer)
        else:
            _check_covered(part, footer, schema)
    source = Source(
        files, tuple(counting), tuple(sizes), parse_schema(schema or {}), schema_is_given=schema is not None
    )
    return source if schema is not None else replace(source, schema=unifier.schema(source.fits, widen_ints=widen_ints))


def one_schema(schemas: Mapping[str, pa.Schema], *, widen_ints: bool, fits: Fits | None = None) -> pa.Schema:
    """The schema that holds all of the given ones; the keys are what messages call them.

    ``fits`` says whether all values of a column fit a type; by default, all possible values must.

    Raises:
        SchemaConflict: two give a column types that have nothing in common.
    """

    def hold(name: str, kind: pa.DataType) -> bool:
        return all(holds_all(schema.field(name).type, kind) for schema in schemas.values() if name in schema.names)

    unifier = Unifier()
    for name, schema in schemas.items():
        for column in schema:
            unifier.add(column.name, column.type, name)
    return unifier.schema(fits or hold, widen_ints=widen_ints)


def _note_columns(unifier: Unifier, part: File, footer: pq.FileMetaData) -> None:
    """Add a part's columns, with the types that its records would have given them one by one."""
    origins = origins_of(footer)
    try:
        columns = plain_schema(footer.schema.to_arrow_schema())
    except TypeError as error:
        raise SchemaConflict(f"The part {part} cannot be merged: {error}.") from None
    for column in columns:
        seen = _without_nulls(origins.get(column.name) or {str(column.type): "/".join(part.key.split("/")[-2:])})
        for kind, record in seen.items():
            if kind.endswith(NOTHING_OF):
                with contextlib.suppress(PipelineError):
                    unifier.add_empty(column.name, printed_type(kind.removesuffix(NOTHING_OF)), record)
            else:
                unifier.add(column.name, _type_of(kind, column.type), record)


def _type_of(text: str, carried_as: pa.DataType) -> pa.DataType:
    """The type that a record alone would have given a column; in the part, the column may have a wider one."""
    if pa.types.is_nested(carried_as) or text == str(carried_as):
        return carried_as
    try:
        return plain_type(printed_type(text))
    except (PipelineError, TypeError):
        return carried_as


def _check_covered(part: File, footer: pq.FileMetaData, schema: dict[str, str]) -> None:
    extra = [name for name in footer.schema.to_arrow_schema().names if name not in schema]
    if extra:
        raise SchemaConflict(
            f"The rows of {_origin(part)} have the column {extra[0]!r}, which is not in output.schema.",
            hint="Add it there, then resume the run.",
        )


def _without_nulls(seen: dict[str, str]) -> dict[str, str]:
    """The types of a column, without that of nulls if there are others."""
    return {kind: record for kind, record in seen.items() if kind != "null"} or seen


def _footer(part: File) -> pq.FileMetaData:
    with part.open() as file:
        return pq.read_metadata(file)


def _origin(part: File) -> str:
    """A record whose rows a part holds, or the part itself."""
    for seen in origins_of(_footer(part)).values():
        return f"the part that begins with {next(iter(seen.values()))}"
    return str(part)
