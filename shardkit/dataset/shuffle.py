"""Rows in a random order that depends on a seed and on the order in which they come, and on nothing else.

Each row gets a random number, and the order is that of the numbers. Rows are dealt out to files in the temporary folder
first, by ranges of the numbers, so that one range at a time is in memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from shardkit.storage.local import writing
from shardkit.tables.arrays import arrow, numpy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RANGE_BYTES = 64 << 20
RANGES_AT_MOST = 256  # each is an open file; beyond that, ranges get larger
PIECE_ROWS = 1 << 12
LARGEST = 1 << 62  # of the random numbers
NUMBER = "shardkit random number"


def shuffled(tables: Iterable[pa.Table], *, seed: int, size_bytes: int) -> Iterator[pa.Table]:
    """The rows of ``tables``, which have one schema, in a random order.

    ``size_bytes`` is about how large they are together; the order does not depend on it.

    Raises:
        StorageError: the temporary folder has no room for them.
    """
    random = np.random.default_rng(seed)
    ranges = min(RANGES_AT_MOST, 1 + size_bytes // RANGE_BYTES)
    numbered = (t.append_column(NUMBER, arrow(random.integers(LARGEST, size=len(t)))) for t in tables)
    if ranges == 1:
        yield from _in_order(list(numbered))
        return
    with tempfile.TemporaryDirectory(prefix="shardkit-shuffle-") as folder:
        for path in _dealt_out(numbered, Path(folder), ranges):
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                yield from _in_order([reader.read_all()])
            path.unlink()


def _dealt_out(tables: Iterable[pa.Table], folder: Path, ranges: int) -> list[Path]:
    """Write the rows to a file for each range of their numbers; returns the files that have any."""
    writers: dict[int, pa.RecordBatchWriter] = {}
    with contextlib.ExitStack() as stack, writing(folder):
        for table in tables:
            which = numpy(table[NUMBER]) // (LARGEST // ranges + 1)
            for number in np.unique(which).tolist():
                if number not in writers:
                    path = str(folder / str(number))
                    writers[number] = stack.enter_context(pa.ipc.new_stream(path, table.schema))
                writers[number].write_table(table.take(arrow(np.flatnonzero(which == number))))
    return [folder / str(number) for number in sorted(writers)]


def _in_order(tables: list[pa.Table]) -> Iterator[pa.Table]:
    if tables:
        table = pa.concat_tables(tables)
        order = np.argsort(numpy(table[NUMBER]), kind="stable")
        rows = table.drop_columns([NUMBER])
        for start in range(0, max(len(order), 1), PIECE_ROWS):
            yield rows.take(arrow(order[start : start + PIECE_ROWS]))
