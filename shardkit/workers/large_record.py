"""One record's rows, if they are too many to hold in memory: written as they come, to parts of the record's own.

The parts join those of the chunk if the record succeeds; otherwise they are removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError
from shardkit.tables.rows import FIRST_LOOK, Result
from shardkit.tables.weight import weight_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from shardkit.workers.parts import PartsWriter

LARGE_ROWS = 1 << 17  # a row group; a record of fewer dicts is held
LARGE_BYTES = 64 << 20  # of dicts, estimated from the last one
TABLES_BYTES = 32 << 20
PIECE_ROWS = 1 << 14
PIECE_BYTES = 8 << 20
LOOK_ROWS = 256


class LargeRecord:
    """Takes the rows that one record has given so far, once they are many."""

    def __init__(self, index: int, key: str, begin: Callable[[int, str], PartsWriter]) -> None:
        self._index = index
        self._key = key
        self._begin = begin
        self._writer: PartsWriter | None = None
        self.storage_error: StorageError | None = None

    def look(self, rows: list[dict[str, Any]]) -> int:
        """Take the rows, leaving none, if they are many; returns how many there should be at the next look."""
        most_rows, most_bytes = (LARGE_ROWS, LARGE_BYTES) if self._writer is None else (PIECE_ROWS, PIECE_BYTES)
        weight = max(weight_of(rows[-1]), 1)
        if len(rows) >= most_rows or weight * len(rows) >= most_bytes:
            self._write(Result(self._index, self._key, rows=rows[:]))
            rows.clear()
            return FIRST_LOOK
        left = (most_bytes - weight * len(rows)) // (2 * weight)
        return min(len(rows) + max(1, min(left, LOOK_ROWS)), most_rows)

    def look_at(self, tables: list[pa.Table]) -> None:
        """Take the tables, leaving none, if they are large."""
        if self._writer is not None or sum(table.nbytes for table in tables) >= TABLES_BYTES:
            self._write(Result(self._index, self._key, tables=tables[:]))
            tables.clear()

    def finish(self, rest: Result) -> Result:
        """The record's rows: ``rest`` alone, or for a large record the parts with all of its rows."""
        if self._writer is None:
            return rest
        self._write(rest)
        try:
            return Result(self._index, self._key, parts=self._writer.close())
        except StorageError as error:
            self.storage_error = error
            raise

    def drop(self) -> None:
        """Remove what has been written, because the record has failed."""
        if self._writer is not None:
            self._writer.drop()

    def _write(self, piece: Result) -> None:
        try:
            if self._writer is None:
                self._writer = self._begin(self._index, self._key)
            self._writer.add(piece)
            self._writer.convert()
        except StorageError as error:
            self.storage_error = error
            raise
