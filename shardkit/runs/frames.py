"""DataFrames of a run that notebooks show in a way of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from typing_extensions import Self


COLUMNS = ["key", "error", "message", "traceback", "seconds", "bytes", "signal", "peak_memory_bytes"]
COLUMNS += ["shard", "chunk", "attempt", "record", "run"]


class Failures(pd.DataFrame):
    """The records in quarantine. What is made from it, such as a selection, is a plain DataFrame."""

    @classmethod
    def of(cls, entries: list[dict[str, Any]]) -> Self:
        """A frame of these entries."""
        return cls(entries, columns=COLUMNS)

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        from shardkit.runs.views import failures_view

        entries: Any = self.astype(object).where(self.notna(), None).to_dict("records")
        return failures_view(entries)
