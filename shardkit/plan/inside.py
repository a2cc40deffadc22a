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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError, ObjectChanged, ObjectDamaged, StorageError
from shardkit.inside.archives import index_of
from shardkit.inside.compressed import frame_starts, is_blocked
from shardkit.inside.csv_rows import row_ends
from shardkit.inside.piece import MEMBER_COLUMNS, NO_INDEX, columns_of
from shardkit.inside.row_groups import cut_groups
from shardkit.inside.rule import codec_of
from shardkit.inside.source import Source
from shardkit.plan.globs import matches
from shardkit.plan.meta import META
from shardkit.tables.arrays import arrow, numpy, texts
from shardkit.tables.spill import Spill, batches_of, filtered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardkit.inside.piece import Member
    from shardkit.inside.rule import Inside
    from shardkit.storage.places import Places

READERS = 16
LOOKS_LIKE_A_RANGE = r":[0-9]+-[0-9]+$"


class Cut(NamedTuple):
    """A record of an object: where it begins and ends, its size in bytes; and in an archive, its name and members."""

    start: int
    end: int
    bytes: int
    name: str = ""
    members: Sequence[Member] = ()
    main: int = 0


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
        keys, sizes = batch["key"].cast(pa.string()), numpy(batch["bytes"].cast(pa.int64()))
        cuts = self._cuts(keys, batch["etag"], sizes)
        counts = np.maximum(-(-sizes // self.rule.target_bytes), 1) if self.rule.has_lines else np.ones_like(sizes)
        for object_row, of_object in cuts.items():
            counts[object_row] = len(of_object)
        row: np.ndarray = np.repeat(np.arange(len(sizes)), counts)
        first = np.r_[0, np.cumsum(counts)]
        number = np.arange(len(row)) - first[row]
        start, end = number * sizes[row] // counts[row], (number + 1) * sizes[row] // counts[row]
        size = end - start
        start[counts[row] == 1] = end[counts[row] == 1] = 0  # whole objects
        names: dict[int, str] = {}
        members: list[Sequence[Member]] = [()] * len(row) if self.rule.is_archive else []
        main = np.zeros(len(members), np.int32)
        for object_row, of_object in cuts.items():
            for at, cut in enumerate(of_object, int(first[object_row])):
                start[at], end[at], size[at] = cut[:3]
                if members:
                    members[at], main[at] = cut.members, cut.main
                    names[at] = cut.name
        objects = keys.take(arrow(row))
        modified = numpy(batch["modified"].cast(pa.int64()))[row] if "modified" in schema.names else row
        columns: dict[str, pa.Array] = {
            "key": _named(objects, names) if members else _ranged(objects, start, end),
            "objects": _alone(objects),
            "etags": _alone(batch["etag"].cast(pa.string()).take(arrow(row))),
            "main": arrow(np.zeros(len(row), np.int32)),
            "bytes": arrow(size),
            "modified": arrow(modified),
            "start": arrow(start),
            "end": arrow(end),
            "object_bytes": arrow(sizes[row]),
            "main_member": arrow(main),
            "members": pa.array([[m._asdict() for m in some] for some in members], MEMBER_COLUMNS["members"]),
        }
        if META in schema.names:
            columns[META] = batch[META].take(arrow(row))
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)

    def _cuts(self, keys: pa.Array, etags: pa.Array, sizes: np.ndarray) -> dict[int, list[Cut]]:
        """The records of the objects for which sizes alone do not say what they are, by the objects' rows."""
        rows = np.arange(len(sizes)) if self.rule.is_archive else np.flatnonzero(sizes > self.rule.target_bytes)
        asked = []
        for row in rows.tolist():
            source = Source(*self.places.at(keys[row].as_py()), etags[row].as_py() or None, int(sizes[row]))
            if (cut := self._cut_of(source.key)) is not None:
                asked.append((row, source, cut))
        if not asked:
            return {}
        with ThreadPoolExecutor(min(READERS, len(asked)), thread_name_prefix="shardkit-index") as pool:
            cuts = list(pool.map(lambda each: _cut_or_fail(each[1], each[2]), asked))
        refusals = [cut for cut in cuts if isinstance(cut, StorageError)]
        if len(refusals) == len(cuts):  # it is not for single objects that nothing can be read
            raise refusals[0]
        return {
            row: _cannot_cut(source) if isinstance(cut, StorageError) else cut
            for (row, source, _), cut in zip(asked, cuts, strict=True)
        }

    def _cut_of(self, key: str) -> Callable[[Source], list[Cut]] | None:
        """What cuts an object of that name; None if its size says enough."""
        if self.rule.is_archive:
            return self._members
        if self.rule.kind == "parquet":
            return self._row_groups
        codec = codec_of(key)
        if codec is not None:
            return {"gzip": self._blocks, "zstd": self._frames}.get(codec, _whole)
        return self._rows if self.rule.is_scanned(key) else None

    def _members(self, source: Source) -> list[Cut]:
        """The records of an archive, in the order in which their first members lie there."""
        index = index_of(source, self.rule.kind)
        may_be_main = numpy(matches(texts([member.name for member in index]), self.rule.pattern))
        mains = {index[at].name for at in np.flatnonzero(may_be_main).tolist()}
        groups: dict[str, list[Member]] = {}
        for member in index:
            groups.setdefault(_stem(member.name) if self.rule.by == "stem" else member.name, []).append(member)
        cuts = []
        for name, group in groups.items():
            members = sorted(group, key=lambda member: member.name)
            main = next((at for at, member in enumerate(members) if member.name in mains), None)
            if main is not None:
                cuts.append(Cut(0, 0, sum(member.stored for member in members), name, members, main))
        return cuts

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


def _cut_or_fail(source: Source, cut: Callable[[Source], list[Cut]]) -> list[Cut] | StorageError:
    """The records of an object, or why the store does not give it."""
    try:
        return cut(source)
    except (ObjectDamaged, ObjectChanged, FileNotFoundError):
        return _cannot_cut(source)
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


def _stem(name: str) -> str:
    """The name of a member up to the first dot in its last part, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _alone(values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(arrow(np.arange(len(values) + 1, dtype=np.int32)), values)


def _ranged(objects: pa.Array, start: np.ndarray, end: np.ndarray) -> pa.Array:
    """The key of each record: that of its object, and the range if it is not the whole of it."""
    text = [arrow(edge).cast(pa.string()) for edge in (start, end)]
    ranged = pc.binary_join_element_wise(objects, pc.binary_join_element_wise(*text, "-"), ":")
    return pc.if_else(arrow(end > 0), ranged, objects)


def _named(objects: pa.Array, names: dict[int, str]) -> pa.Array:
    """The key of each record of archives; one that stands for an archive that cannot be read has that one's."""
    keys = (f"{key}/{names[at]}" if names.get(at) else key for at, key in enumerate(objects.to_pylist()))
    return pa.array(keys, pa.string())


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
