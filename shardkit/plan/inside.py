"""Objects to records inside of them, batch by batch.

How large the objects are decides how they are cut, as far as that is possible: pieces of lines find their ends when
they are read. What cannot be known from sizes is read when the plan is made, and no more: the indexes of archives, the
footers of Parquet files larger than a piece, the beginnings or ends of compressed files, and CSV files whose values may
hold newlines.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError, ObjectChanged, ObjectDamaged, StorageError
from shardkit.inside.compressed import frame_starts, is_blocked
from shardkit.inside.csv_rows import row_ends
from shardkit.inside.kept import kept_index
from shardkit.inside.piece import NO_INDEX, columns_of
from shardkit.inside.row_groups import cut_groups
from shardkit.inside.rule import codec_of
from shardkit.inside.source import Source
from shardkit.plan.members import not_cut, records_of, together
from shardkit.plan.meta import META
from shardkit.tables.arrays import arrow, numpy, scalar
from shardkit.tables.spill import Spill, batches_of, filtered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardkit.inside.rule import Inside
    from shardkit.plan.members import MemberRecords
    from shardkit.storage.places import Places

T = TypeVar("T")
READERS = 16
LOOKS_LIKE_A_RANGE = r":[0-9]+-[0-9]+$"


class Cut(NamedTuple):
    """A record of an object: where it begins and ends, and its size in bytes."""

    start: int
    end: int
    bytes: int


@dataclass(frozen=True)
class Cutter:
    """Cuts the objects of an input by a rule."""

    rule: Inside
    places: Places

    @property
    def columns(self) -> list[str]:
        """The columns that its records have beside the usual ones."""
        return list(columns_of(self.rule))

    def records(self, objects: pa.Table, used: np.ndarray, numbers: Sequence[str]) -> pa.Table:
        """The records inside of the objects that are used, in the order of these.

        Raises:
            InputError: an object has the name that a record inside of another would have.
            StorageError: an object cannot be read.
        """
        if self.rule.has_lines or self.rule.kind == "parquet":
            _check_names(objects)
        objects = filtered(objects, used)
        schema = self._schema(objects, numbers)
        spill = Spill(schema)
        kept = [spill.keep(self._batch(batch, schema)) for batch in batches_of(objects)]
        return spill.table(kept)

    def _schema(self, objects: pa.Table, numbers: Sequence[str]) -> pa.Schema:
        several = pa.list_(pa.string())
        fields: list[tuple[str, pa.DataType]] = [("key", pa.string()), ("objects", several), ("etags", several)]
        fields += [("main", pa.int32()), *((name, pa.int64()) for name in numbers)]
        meta = [(META, objects.schema.field(META).type)] if META in objects.column_names else []
        return pa.schema([*fields, *meta, *columns_of(self.rule).items()])

    def _batch(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        sizes = numpy(batch["bytes"].cast(pa.int64()))
        row, columns = (self._members if self.rule.is_archive else self._ranges)(batch, sizes)
        taken = arrow(row)
        columns |= {
            "objects": _alone(batch["key"].cast(pa.string()).take(taken)),
            "etags": _alone(batch["etag"].cast(pa.string()).take(taken)),
            "main": arrow(np.zeros(len(row), np.int32)),
            "object_bytes": arrow(sizes[row]),
        }
        if "modified" in schema.names:
            columns["modified"] = arrow(numpy(batch["modified"].cast(pa.int64()))[row])
        if META in schema.names:
            columns[META] = batch[META].take(taken)
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _ranges(self, batch: pa.RecordBatch, sizes: np.ndarray) -> tuple[np.ndarray, dict[str, pa.Array]]:
        """Pieces of files: the row of each one's object, and its own columns."""
        rows = np.flatnonzero(sizes > self.rule.target_bytes)
        cuts = self._asked(batch, rows, sizes, lambda source: self._cut_of(source.key), _cannot_cut)
        counts = np.maximum(-(-sizes // self.rule.target_bytes), 1) if self.rule.has_lines else np.ones_like(sizes)
        for object_row, of_object in cuts.items():
            counts[object_row] = len(of_object)
        row: np.ndarray = np.repeat(np.arange(len(sizes)), counts)
        first = np.r_[0, np.cumsum(counts)]
        number = np.arange(len(row)) - first[row]
        start, end = number * sizes[row] // counts[row], (number + 1) * sizes[row] // counts[row]
        size = end - start
        start[counts[row] == 1] = end[counts[row] == 1] = 0  # whole objects
        for object_row, of_object in cuts.items():
            for at, cut in enumerate(of_object, int(first[object_row])):
                start[at], end[at], size[at] = cut
        key = _ranged(batch["key"].cast(pa.string()).take(arrow(row)), start, end)
        return row, {"key": key, "bytes": arrow(size), "start": arrow(start), "end": arrow(end)}

    def _members(self, batch: pa.RecordBatch, sizes: np.ndarray) -> tuple[np.ndarray, dict[str, pa.Array]]:
        """Records of archives: the row of each one's object, and its own columns."""
        found = self._asked(batch, np.arange(len(sizes)), sizes, lambda _: self._members_of, lambda s: not_cut(s.size))
        records = together([found[object_row] for object_row in range(len(sizes))])
        row = np.repeat(np.arange(len(sizes)), [len(found[object_row].names) for object_row in range(len(sizes))])
        zero, is_cut = np.zeros_like(row), numpy(pc.not_equal(records.names, scalar("")))
        objects = batch["key"].cast(pa.string()).take(arrow(row))
        key = pc.if_else(arrow(is_cut), pc.binary_join_element_wise(objects, records.names, "/"), objects)
        columns = {"key": key, "bytes": arrow(records.bytes), "start": arrow(zero)}
        columns["end"] = arrow(np.where(is_cut, zero, NO_INDEX))
        return row, columns | {"members": records.members, "main_member": arrow(records.main)}

    def _members_of(self, source: Source) -> MemberRecords:
        return records_of(kept_index(source, self.rule.kind), self.rule)

    def _asked(
        self,
        batch: pa.RecordBatch,
        rows: np.ndarray,
        sizes: np.ndarray,
        how: Callable[[Source], Callable[[Source], T] | None],
        cannot: Callable[[Source], T],
    ) -> dict[int, T]:
        """What is found in the objects at ``rows`` for which sizes alone do not say what they are, by these rows.

        ``how`` says what finds it, and ``cannot`` what stands for an object that cannot be read.
        """
        asked = []
        for row in rows.tolist():
            place, key = self.places.at(batch["key"][row].as_py())
            source = Source(place, key, batch["etag"][row].as_py() or None, int(sizes[row]))
            if (find := how(source)) is not None:
                asked.append((row, source, find))
        if not asked:
            return {}
        with ThreadPoolExecutor(min(READERS, len(asked)), thread_name_prefix="shardkit-index") as pool:
            found = list(pool.map(lambda each: _found_or_error(each[1], each[2], cannot), asked))
        refusals = [each for each in found if isinstance(each, StorageError)]
        if len(refusals) == len(found):  # it is not for single objects that nothing can be read
            raise refusals[0]
        return {
            row: cannot(source) if isinstance(each, StorageError) else each
            for (row, source, _), each in zip(asked, found, strict=True)
        }

    def _cut_of(self, key: str) -> Callable[[Source], list[Cut]] | None:
        """What cuts an object of that name; None if its size says enough."""
        if self.rule.kind == "parquet":
            return self._row_groups
        codec = codec_of(key)
        if codec is not None:
            return {"gzip": self._blocks, "zstd": self._frames}.get(codec, _whole)
        return self._rows if self.rule.is_scanned(key) else None

    def _row_groups(self, source: Source) -> list[Cut]:
        pieces = cut_groups(source, self.rule.target_bytes)
        return [Cut(*piece) for piece in pieces] if len(pieces) > 1 else _whole(source)

    def _rows(self, source: Source) -> list[Cut]:
        count = -(-source.size // self.rule.target_bytes)
        ends = row_ends(source, [number * source.size // count for number in range(1, count)])
        return _cut_at(source, ends)

    def _blocks(self, source: Source) -> list[Cut]:
        if not self._may_cut(source.key) or not is_blocked(source):
            return _whole(source)
        count = -(-source.size // self.rule.target_bytes)
        return _cut_at(source, [number * source.size // count for number in range(1, count)])

    def _frames(self, source: Source) -> list[Cut]:
        starts = frame_starts(source) if self._may_cut(source.key) else None
        if starts is None:
            return _whole(source)
        count = -(-source.size // self.rule.target_bytes)
        wanted = np.arange(1, count) * source.size // count
        return _cut_at(source, starts[np.searchsorted(starts, wanted).clip(max=len(starts) - 1)].tolist())

    def _may_cut(self, key: str) -> bool:
        """Whether a compressed file can be cut: one of CSV only if no newline is in a value."""
        return not (self.rule.is_csv(key) and self.rule.quoted_newlines)


def _found_or_error(source: Source, find: Callable[[Source], T], cannot: Callable[[Source], T]) -> T | StorageError:
    """What is found in an object, or why the store does not give it."""
    try:
        return find(source)
    except (ObjectDamaged, ObjectChanged, FileNotFoundError):
        return cannot(source)
    except StorageError as error:
        return error


def _cannot_cut(source: Source) -> list[Cut]:
    """A record that will fail for the reason for which the object cannot be cut."""
    return [Cut(0, NO_INDEX, source.size)]


def _whole(source: Source) -> list[Cut]:
    return [Cut(0, 0, source.size)]


def _cut_at(source: Source, positions: list[int]) -> list[Cut]:
    edges = [0, *sorted({position for position in positions if 0 < position < source.size}), source.size]
    if len(edges) == 2:
        return _whole(source)
    return [Cut(start, end, end - start) for start, end in itertools.pairwise(edges)]


def _alone(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(arrow(np.arange(len(values) + 1, dtype=np.int32)), values)


def _ranged(objects: pa.Array, start: np.ndarray, end: np.ndarray) -> pa.Array:
    """The key of each record: that of its object, and the range if it is not the whole of it."""
    text = [arrow(edge).cast(pa.string()) for edge in (start, end)]
    ranged = pc.binary_join_element_wise(objects, pc.binary_join_element_wise(*text, "-"), ":")
    return pc.if_else(arrow(end > 0), ranged, objects)


def _check_names(objects: pa.Table) -> None:
    """See that no object has a name that looks as if it were a piece of another.

    Raises:
        InputError: one has.
    """
    for batch in batches_of(objects.select(["key"])):
        alike = batch["key"].filter(pc.match_substring_regex(batch["key"], LOOKS_LIKE_A_RANGE))
        if len(alike):
            raise InputError(
                f"The file {alike[0]} has a name as a piece of a file would have it.",
                hint="Rename it, or leave it out with input.exclude.",
            )
