"""One piece of a file: what the plan says of it, and its files on this machine."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from shardkit.inside.rule import Inside, codec_of, plain_name
from shardkit.tables.arrays import numpy

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERS = pa.list_(
    pa.struct([(name, pa.int64() if name != "name" else pa.string()) for name in ("name", "start", "stored", "crc")])
)
COLUMNS: dict[str, pa.DataType] = {"start": pa.int64(), "end": pa.int64(), "object_bytes": pa.int64()}
MEMBER_COLUMNS: dict[str, pa.DataType] = {"members": MEMBERS, "main_member": pa.int32()}
NO_INDEX = -1


class Member(NamedTuple):
    """A file in an archive: its name, where it begins, how many bytes it takes there, and its checksum; -1 for none.

    In a zip archive, it begins with a header of its own, whose bytes are not counted.
    """

    name: str
    start: int
    stored: int
    crc: int = -1


class Piece(NamedTuple):
    """A record inside the object ``key``, which has ``object_bytes``.

    In an archive, it is some ``members``, which have these ``names``, and the number of the ``main`` one. ``start`` and
    ``end`` are bytes, or row groups of a Parquet file; both are 0 for a whole file. ``end`` is `NO_INDEX` where the
    plan has not been able to read what is in the object.
    """

    rule: Inside
    key: str
    start: int
    end: int
    object_bytes: int
    members: tuple[Member, ...] = ()
    names: tuple[str, ...] = ()
    main: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole object."""
        return self.start == self.end == 0 and not self.members

    @property
    def is_as_it_is(self) -> bool:
        """Whether the function gets the very object."""
        return self.is_whole and not (self.rule.has_lines and (codec_of(self.key) or not self.object_bytes))

    @property
    def extent(self) -> tuple[int, int] | None:
        """The bytes of the object around its members or lines; None if it is found otherwise."""
        if self.members:
            return min(m.start for m in self.members), max(m.start + m.stored for m in self.members)
        is_plain = self.rule.has_lines and codec_of(self.key) is None
        return (self.start, self.end) if is_plain and 0 <= self.start < self.end else None

    @property
    def is_exact(self) -> bool:
        """Whether the plan knows where its lines begin and end."""
        return self.is_whole or self.rule.is_scanned(self.key)

    @property
    def needs_header(self) -> bool:
        """Whether its lines are rows of CSV without the header that belongs to them."""
        return self.start > 0 and self.rule.header and self.rule.is_csv(self.key)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files on this machine; in folders, as in the input or the archive."""
        return self.names or (plain_name(self.key) if self.rule.has_lines else self.key,)

    @property
    def range(self) -> tuple[int, int] | None:
        """What the function is told of where it lies."""
        return None if self.is_whole or self.members else (self.start, self.end)


def columns_of(rule: Inside | None) -> dict[str, pa.DataType]:
    """The columns that tables of records have beside the usual ones, where records are inside files."""
    if rule is None:
        return {}
    return COLUMNS | (MEMBER_COLUMNS if rule.is_archive else {})


def pieces_of(table: pa.Table, rule: Inside | None) -> list[Piece | None]:
    """The pieces that the records of a table are; None where they are whole files."""
    if rule is None:
        return [None] * len(table)
    columns = [column.to_pylist() for column in table.select(["objects", *COLUMNS]).columns]
    if not rule.is_archive:
        return [Piece(rule, objects[0], start, end, size) for objects, start, end, size in zip(*columns, strict=True)]
    members = _members_of(table["members"].combine_chunks())
    mains = table["main_member"].to_pylist()
    return [
        Piece(rule, objects[0], start, end, size, some, names, main)
        for objects, start, end, size, (some, names), main in zip(*columns, members, mains, strict=True)
    ]


def _members_of(lists: pa.ListArray) -> Iterator[tuple[tuple[Member, ...], tuple[str, ...]]]:
    """The members of each record, and their names."""
    edges = numpy(lists.offsets)
    first, end = (int(edges[0]), int(edges[-1])) if len(edges) else (0, 0)  # of a table that may be a part of another
    columns = dict(zip(Member._fields, lists.values.slice(first, end - first).flatten(), strict=True))
    names = columns["name"].to_pylist()
    members = list(map(Member, names, *(columns[name].to_pylist() for name in Member._fields[1:])))
    for begin, end in itertools.pairwise((edges - first).tolist()):
        yield tuple(members[begin:end]), tuple(names[begin:end])
