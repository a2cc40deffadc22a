"""Indexes of archives that this machine has read, kept by what the archives were when they were read.

A dry run, the run after it and the next increment so read the index of an archive once. It is in `shardkit.Cache`; if
that cannot be written, indexes are read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from typing import TYPE_CHECKING

import pyarrow as pa

from shardkit.cache import Cache
from shardkit.inside.archives import Index, index_of
from shardkit.tables.arrays import arrow, numpy, one_chunk

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.inside.source import Source

FORM = 1
LEAST_BYTES = 4 << 20  # an archive that is smaller is soon read
MOST = 2000  # indexes; those that were used longest ago make room


def kept_index(source: Source, kind: str) -> Index:
    """The members of an archive, as `index_of` gives them.

    Raises:
        ObjectDamaged: it is no such archive.
    """
    if source.size < LEAST_BYTES or not source.etag or source.folder.uri.startswith("memory:"):
        return index_of(source, kind)
    path = None
    with contextlib.suppress(OSError):
        path = Cache().path / "indexes" / f"{_name(source, kind)}.arrow"
        with contextlib.suppress(pa.ArrowInvalid, FileNotFoundError):
            index = _read(path)
            os.utime(path)
            return index
    index = index_of(source, kind)
    if path is not None:
        with contextlib.suppress(OSError):
            _write(path, index)
    return index


def _name(source: Source, kind: str) -> str:
    about = [FORM, kind, source.folder.uri, source.key, source.etag, source.size]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _read(path: Path) -> Index:
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        names, *numbers = (one_chunk(column) for column in reader.read_all().columns)
    return Index(names, *map(numpy, numbers))


def _write(path: Path, index: Index) -> None:
    path.parent.mkdir(exist_ok=True)
    making = path.with_name(f".{uuid.uuid4().hex}")
    table = pa.table([index.names, *map(arrow, index[1:])], Index._fields)
    try:
        with pa.OSFile(str(making), "wb") as file:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(file, table.schema, options=options) as writer:
                writer.write_table(table)
        making.rename(path)
    finally:
        making.unlink(missing_ok=True)
    used = sorted((entry.stat().st_mtime, entry.path) for entry in os.scandir(path.parent))
    for _, old in used[:-MOST]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(old)
