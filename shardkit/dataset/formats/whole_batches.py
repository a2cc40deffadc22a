"""Rows in batches that do not depend on how the rows arrive, so that the same rows make the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from shardkit.dataset.formats.text import is_binary
from shardkit.tables.arrays import arrow
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Iterator

# The rows of a batch: of those with bytes, which may be images, fewer.
BATCH_ROWS = 1000
BATCH_ROWS_WITH_BYTES = 100


class WholeBatches:
    """Takes tables of one schema, and gives batches of as many rows each, but the last."""

    def __init__(self, schema: pa.Schema) -> None:
        binary = any(holds(field.type, is_binary) for field in schema)
        self.rows = BATCH_ROWS_WITH_BYTES if binary else BATCH_ROWS
        self._held = schema.empty_table()

    @property
    def held_bytes(self) -> int:
        """How large the rows are that wait for a whole batch."""
        return int(self._held.nbytes)

    def add(self, table: pa.Table) -> Iterator[pa.Table]:
        """Take a table; the batches that are whole with it."""
        table = pa.concat_tables([self._held, table])
        whole = len(table) // self.rows * self.rows
        for start in range(0, whole, self.rows):
            yield _copied(table.slice(start, self.rows))
        self._held = table.slice(whole)

    def rest(self) -> Iterator[pa.Table]:
        """The last batch, if any rows are left."""
        if len(self._held):
            yield _copied(self._held)


def _copied(table: pa.Table) -> pa.Table:
    """The same rows in memory of their own: a stream of slices has bits of the rows beside them, too."""
    return table.take(arrow(np.arange(len(table))))
