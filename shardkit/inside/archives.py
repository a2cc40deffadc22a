"""Members of tar and zip archives: found in the archive's index, and read one by one from where they lie."""

from __future__ import annotations

import bz2
import re
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shardkit.inside.blocks import SMALL_BYTES, read_small
from shardkit.inside.compressed import damage_named
from shardkit.inside.source import COPIED_AT_ONCE, HELD_BYTES, Made
from shardkit.inside.tar_index import found_in
from shardkit.tables.arrays import arrow, texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa

    from shardkit.inside.piece import Member
    from shardkit.inside.source import Source

ZIP_HEAD = 30  # bytes before the name, of which the last four are the lengths of the name and of what follows it
EXTRA_GUESS = 64
AT_FIRST = 1 << 20
ENCRYPTED = 1
NEAR = 4096  # members of one record that lie so close together are read at once


def index_of(source: Source, kind: str) -> Index:
    """The members of an archive that are files, in the order in which they lie there.

    As in folders, what has a name, or lies in a folder with a name, that begins with ``_`` or ``.`` is no input. Of
    several members of one name the last counts, as when the archive is unpacked.

    Raises:
        ObjectDamaged: it is no such archive, or one with members that cannot be read by themselves.
    """
    with damage_named(source, f"a {kind} archive"):
        members = _tar(source) if kind == "tar" else _zip(source)
        names = texts(list(members))
    numbers = np.array(list(members.values()), np.int64).reshape(-1, 3)
    order = np.argsort(numbers[:, 0], kind="stable")
    return Index(names.take(arrow(order)), *numbers[order].T)


class Index(NamedTuple):
    """Members of an archive: their names, where they begin, how many bytes they take there, and their checksums."""

    names: pa.StringArray
    start: np.ndarray
    stored: np.ndarray
    crc: np.ndarray


def _tar(source: Source) -> dict[str, tuple[int, int, int]]:
    """Where each member begins, how many bytes it takes, and -1; by its name."""
    members: dict[str, tuple[int, int, int]] = {}
    named: dict[str, tuple[int, int, int]] = {}
    for name, start, size, link in found_in(source):
        if not link:
            where = named[name] = (start, size, -1)
        elif (of_other := named.get(link)) is not None:
            where = named[name] = of_other
        else:
            continue
        if plain := _plain(name):
            members[plain] = where
    return members


def _zip(source: Source) -> dict[str, tuple[int, int, int]]:
    """Where each member begins, how many bytes it takes, and its checksum; by its name."""
    members: dict[str, tuple[int, int, int]] = {}
    with zipfile.ZipFile(source.opened()) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & ENCRYPTED:
                raise ValueError(f"{info.filename} is encrypted")
            if info.compress_type not in _INFLATE:
                raise ValueError(f"{info.filename} is compressed by method {info.compress_type}")
            if plain := _plain(info.filename):
                members[plain] = (info.header_offset, info.compress_size, info.CRC)
    return members


UNUSUAL = re.compile(r"(?:^|/)(?:[._/]|$)")


def _plain(name: str) -> str:
    """A member's name as one of an input; empty if it is none.

    Raises:
        ValueError: it leads out of the archive.
    """
    if not UNUSUAL.search(name):
        return name
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ValueError(f"{name} would lie outside of it")
    return "" if any(part.startswith(("_", ".")) for part in parts) else "/".join(parts)


def read_members(source: Source, members: Sequence[Member], kind: str, root: str) -> dict[str, bytes]:
    """Read members of an archive; returns the contents of small ones by their names.

    The others are made as files under ``root``, and so are all if together they are not small.

    Raises:
        ObjectDamaged: one is not what the index says.
    """
    if kind == "tar" and (end := _end(members)) - (begin := min(m.start for m in members)) <= HELD_BYTES:
        data = read_small(source, begin, end)
        return {m.name: data[m.start - begin : m.start - begin + m.stored] for m in members}
    held: dict[str, bytes] = {}
    left = HELD_BYTES if sum(member.stored for member in members) <= HELD_BYTES else 0
    with damage_named(source, f"a {kind} archive"):
        for member, content in (_of_tar if kind == "tar" else _of_zip)(source, members):
            with Made(f"{root}/{member.name}", held_bytes=left) as file:
                for data in content:
                    file.write(data)
            if file.content is not None:
                held[member.name] = file.content
                left -= len(file.content)
    return held


def _end(members: Iterable[Member]) -> int:
    return max(member.start + member.stored for member in members)


def _of_tar(source: Source, members: Sequence[Member]) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """The contents of members, small neighbours of which are read at once."""
    for together in _together(members):
        begin, end = together[0].start, _end(together)
        if end - begin > SMALL_BYTES:
            yield from ((member, _stored(source, member.start, member.stored)) for member in together)
        else:
            data = read_small(source, begin, end)
            yield from ((m, [data[m.start - begin : m.start - begin + m.stored]]) for m in together)


def _together(members: Sequence[Member]) -> Iterator[list[Member]]:
    """Members in the order in which they lie, those that are small and neighbours in one list."""
    near: list[Member] = []
    end = 0
    for member in sorted(members, key=lambda member: member.start):
        own_end = member.start + member.stored
        if near and (member.start - end > NEAR or own_end - near[0].start > SMALL_BYTES):
            yield near
            near = []
        near.append(member)
        end = max(end, own_end)
    yield near


def _of_zip(source: Source, members: Sequence[Member]) -> Iterator[tuple[Member, Iterable[bytes]]]:
    return ((member, _unzipped(source, member)) for member in members)


def _stored(source: Source, start: int, size: int) -> Iterator[bytes]:
    return (data for _, data in source.windows(start, start + size, COPIED_AT_ONCE))


class _Plain:
    """What is not compressed, as the others are decompressed."""

    eof = True

    def decompress(self, data: bytes) -> bytes:
        return data


_INFLATE: dict[int, Any] = {
    zipfile.ZIP_STORED: _Plain,
    zipfile.ZIP_DEFLATED: lambda: zlib.decompressobj(-zlib.MAX_WBITS),
    zipfile.ZIP_BZIP2: bz2.BZ2Decompressor,
}


def _unzipped(source: Source, member: Member) -> Iterator[bytes]:
    """The content of a member of a zip archive.

    Raises:
        ValueError: it is not what the index says.
    """
    name_bytes = len(member.name.encode())
    guess = ZIP_HEAD + name_bytes + EXTRA_GUESS + min(member.stored, AT_FIRST)
    opening = read_small(source, member.start, min(member.start + guess, source.size))
    head = opening[:ZIP_HEAD]
    if head[:4] != b"PK\x03\x04":
        raise ValueError(f"there is no header for {member.name}")
    begin = ZIP_HEAD + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    inflate = _INFLATE[int.from_bytes(head[8:10], "little")]()
    first = opening[begin : begin + member.stored]
    crc = 0
    rest = _stored(source, member.start + begin + len(first), member.stored - len(first))
    for data in (part for parts in ([first], rest) for part in parts):
        plain = inflate.decompress(data)
        crc = zlib.crc32(plain, crc)
        yield plain
    if not inflate.eof or crc != member.crc:
        raise ValueError(f"{member.name} does not match its checksum")
