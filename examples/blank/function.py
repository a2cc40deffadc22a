"""The function that the pipeline calls on every file. Make it yours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import shardkit


def rows(record: shardkit.Record) -> dict[str, Any]:
    """One row a file: its name, its size in bytes, its number of lines."""
    # open(record) opens the file; so does everything that takes a path: pandas.read_csv(record), ...
    # record.paths are all files of a record, if several belong together (see `records` in pipeline.yaml).
    with open(record, "rb") as lines:
        n_lines = sum(1 for _ in lines)

    # Return a dict (one row), a list of dicts or a generator of them, a pandas DataFrame, a pyarrow Table, or None
    # for no row at all. Keys are the columns: give each of them the same type in every row, or None.
    # An exception puts this file in quarantine with its traceback, and the run goes on.
    return {"key": record.key, "bytes": record.bytes, "n_lines": n_lines}
