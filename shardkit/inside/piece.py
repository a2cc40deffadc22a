"""One piece of a file: what the plan says of it, and its files on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from shardkit.inside.rule import Inside, codec_of, plain_name

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


@dataclass(frozen=True)
class Piece:
    """A record inside the object ``key``, which has ``object_bytes``.

    ``start`` and ``end`` are bytes, or row groups of a Parquet file; both are 0 for a whole file. ``end`` is `NO_INDEX`
    where the plan has not been able to read what is in the object.
    """

    rule: Inside
    key: str
    start: int
    end: int
    object_bytes: int
    members: tuple[Member, ...] = ()
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
        if self.members:
            return tuple(member.name for member in self.members)
        return (plain_name(self.key) if self.rule.has_lines else self.key,)

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
    columns = [column.to_pylist() for column in table.select(["objects", *columns_of(rule)]).columns]
    return [_piece(rule, *values) for values in zip(*columns, strict=True)]


def _piece(rule: Inside, objects: list[str], *values: Any) -> Piece:
    start, end, size, *of_archive = values
    if not of_archive:
        return Piece(rule, objects[0], start, end, size)
    members, main = of_archive
    named = tuple(Member(m["name"], m["start"], m["stored"], m["crc"]) for m in members or ())
    return Piece(rule, objects[0], start, end, size, named, main)
