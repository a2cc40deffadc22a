"""The columns that say of each row which record and which run it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from shardkit.tables.rows import Batch

RECORD, RUN = "origin_record", "origin_run"
COLUMNS = {RECORD: "string", RUN: "string"}


@dataclass(frozen=True)
class Origin:
    """Adds the columns to rows: ``keys`` are the records' by their positions, ``run_id`` is the run."""

    keys: Sequence[str]
    run_id: str

    def added_to(self, batch: Batch) -> pa.Table:
        """The table of a batch, with the columns.

        Raises:
            PipelineError: the rows have a column of that name themselves.
        """
        import numpy as np
        import pyarrow as pa

        table = batch.table
        if taken := COLUMNS.keys() & set(table.column_names):
            raise PipelineError(
                f"The rows have a column {min(taken)!r}, which output.origin adds.",
                hint="Rename it in the function, or set output.origin: false; then start a new run.",
            )
        rows = [count for _, count in batch.records]
        of_record = pa.array(np.repeat(np.arange(len(rows)), rows))
        keys = pa.array([self.keys[position] for position, _ in batch.records], pa.string()).take(of_record)
        runs = pa.array([self.run_id], pa.string()).take(pa.array(np.zeros(len(table), np.int64)))
        return table.append_column(RECORD, keys).append_column(RUN, runs)
