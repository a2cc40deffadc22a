"""Files with records inside, in forms that other tools write, and the records that are cut out of them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.inside.piece import Piece, pieces_of
from shardkit.inside.rule import Inside
from shardkit.plan.inside import Cutter
from shardkit.plan.records import build_records
from shardkit.storage.open import folder
from shardkit.storage.places import Places
from shardkit.workers.inputs import RemoteInputs, Wanted, record_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import shardkit as sk
    from shardkit.storage.base import Folder


def bgzip(data: bytes, block: int, level: int = 6) -> bytes:
    """Bytes as bgzip writes them: blocks with their length, and an empty one at the end."""
    blocks = [data[at : at + block] for at in range(0, len(data), block)]
    return b"".join(_block(part, level) for part in [*blocks, b""])


def _block(data: bytes, level: int) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = deflate.compress(data) + deflate.flush()
    length = len(body) + 25
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", length)
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def seekable_zstd(frames: Sequence[bytes]) -> bytes:
    """Frames of zstd with the table of a seekable file."""
    codec = pa.Codec("zstd")
    packed = [codec.compress(frame, asbytes=True) for frame in frames]
    entries = b"".join(struct.pack("<II", len(p), len(frame)) for p, frame in zip(packed, frames, strict=True))
    footer = struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return b"".join(packed) + struct.pack("<II", 0x184D2A5E, len(entries) + len(footer)) + entries + footer


@dataclass(frozen=True)
class Found:
    """A record that was cut out of a file, while its files are there; None for a piece without a line."""

    key: str
    piece: Piece
    record: sk.Record | None

    @property
    def text(self) -> bytes:
        return b"" if self.record is None else self.record.path.read_bytes()


def cut(source: Folder, scratch: Path, rule: Any, pattern: Sequence[str] = ("*",)) -> Iterator[Found]:
    """The records inside the files of a folder, in their order."""
    inside = Inside.of(rule)
    assert inside is not None
    places = Places.one(source.uri)
    table = build_records(source.objects(), records=Cutter(inside, places), pattern=pattern).table
    keys = table["key"].to_pylist()
    assert len(set(keys)) == len(keys)
    rows = zip(keys, pieces_of(table, inside), table["etags"].to_pylist(), table.to_pylist(), strict=True)
    for number, (key, piece, (etag,), row) in enumerate(rows):
        assert piece is not None
        inputs = RemoteInputs(places, scratch / str(number))
        inputs.expect([((0, 0, number), Wanted(row["objects"], [etag], row["bytes"], piece))])
        record = record_at(
            inputs.fetch((0, 0, number)),
            piece,
            key=key,
            objects=tuple(row["objects"]),
            main=row["main"],
            bytes=row["bytes"],
            by_stem=inside.by == "stem",
        )
        yield Found(key, piece, record)


def file_in(root: Path, name: str, data: bytes) -> Folder:
    """A folder of this machine with one file."""
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    return folder(str(root))
