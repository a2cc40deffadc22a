"""What became of records that were tried, as text and as notebooks show it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.errors import SchemaConflict
from shardkit.plan.chunks import record_costs
from shardkit.tables.schema import conform
from shardkit.tables.unify import Unifier
from shardkit.units import counted, human_bytes, human_seconds

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from shardkit.notes import Notes

ROWS_SHOWN = 10
VIEW_ROWS, VIEW_COLUMNS, FOLDED, VALUE_CHARACTERS = 5, 10, 5, 60
WIDTH = 120
LINES_SHOWN = 10
HEAD = ("record", "size", "seconds", "memory", "outcome")


@dataclass
class TriedRecord:
    """A record that was tried: its rows, or the error that it raised; and what it took.

    ``peak_memory_bytes`` is how much more memory the process has had for it than before it.
    """

    key: str
    bytes: int
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    rows: int = 0
    table: pa.Table | None = None
    error: BaseException | None = None
    message: str = ""
    traceback: str = ""
    notes: Notes | None = None


@dataclass(frozen=True)
class Everything:
    """All records of the input: their sizes, and how many workers there would be for them."""

    sizes: np.ndarray
    workers: int


@dataclass
class Tried:
    """Records that were tried. Of each record's rows at most the first 1,000 are kept.

    ``notes`` say what is different from a run, or from the run that is replayed; ``changes`` are those of files that
    have changed since they were listed. With ``widen_ints`` integers and
    floats of one column become floats, as in the pipeline.
    """

    records: list[TriedRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    everything: Everything | None = None
    widen_ints: bool = False

    @property
    def failed(self) -> list[TriedRecord]:
        """Those that raised an error."""
        return [record for record in self.records if record.error is not None]

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of all of them together."""
        import pandas as pd

        schema, tables = self._unified[0], self._tables
        frame: pd.DataFrame
        if schema is not None:
            frame = concatenated([conform(table, schema) for table in tables]).to_pandas()
        else:
            frame = pd.concat([table.to_pandas() for table in tables], ignore_index=True)
        return frame

    @property
    def types(self) -> dict[str, str]:
        """The type of each column; of one whose types contradict each other, all of them."""
        schema = self._unified[0]
        if schema is not None:
            return {column.name: str(column.type) for column in schema}
        kinds: dict[str, dict[str, None]] = {}
        for table in self._tables:
            for column in table.schema:
                kinds.setdefault(column.name, {})[str(column.type)] = None
        return {name: " or ".join(each) for name, each in kinds.items()}

    @property
    def conflict(self) -> str:
        """Why a run could not merge the rows of all of them; empty if it could."""
        return self._unified[1]

    @functools.cached_property
    def _unified(self) -> tuple[pa.Schema | None, str]:
        """The schema of all rows, as pass 2 finds it, or why there is none."""
        unifier = Unifier()
        for record in self.records:
            for column in record.table.schema if record.table is not None else ():
                unifier.add(column.name, column.type, record.key)
        try:
            return unifier.schema(self._fits, widen_ints=self.widen_ints), ""
        except SchemaConflict as error:
            return None, error.message

    def _fits(self, name: str, kind: pa.DataType) -> bool:
        import pyarrow as pa

        try:
            for table in self._tables:
                if name in table.column_names:
                    table[name].cast(kind)
        except pa.ArrowException:
            return False
        return True

    @property
    def _tables(self) -> list[pa.Table]:
        return [record.table for record in self.records if record.table is not None]

    @property
    def estimate(self) -> str:
        """What all records would take; empty if nothing is known of them, or nothing has succeeded."""
        good = [record for record in self.records if record.error is None]
        if self.everything is None or not good:
            return ""
        import numpy as np

        sizes, workers = self.everything.sizes, self.everything.workers
        mine = np.array([record.bytes for record in good], np.int64)
        scale = float(record_costs(sizes).sum() / record_costs(mine).sum())
        seconds = sum(record.seconds for record in good) * scale / workers
        rows = int(sum(record.rows for record in good) * scale)
        return (
            f"All {counted(len(sizes), 'record')} of {human_bytes(float(sizes.sum()))} would take about "
            f"{human_seconds(seconds)} with {counted(workers, 'worker')}, and give about {counted(rows, 'row')}."
        )

    def lines(self) -> list[tuple[str, str, str, str, str]]:
        """The records as texts: key, size, seconds, memory, and rows or the error."""
        return [
            (
                record.key,
                human_bytes(record.bytes),
                _short(record.seconds),
                human_bytes(record.peak_memory_bytes),
                record.message or counted(record.rows, "row"),
            )
            for record in self.records
        ]

    @property
    def counts(self) -> dict[str, float]:
        """The sums of what the function has counted in those that have not failed."""
        sums = dict[str, float]()
        for record in self.records:
            if record.error is None and record.notes is not None:
                for name, amount in record.notes.sums.items():
                    sums[name] = sums.get(name, 0) + amount
        return sums

    @property
    def log(self) -> list[tuple[str, str]]:
        """The first lines that the function has logged, each with its record's key."""
        lines = [(r.key, line) for r in self.records if r.notes is not None for line in r.notes.lines]
        return lines[:LINES_SHOWN]

    def __str__(self) -> str:
        lines = [HEAD, *self.lines()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        blocks = [
            "\n".join(
                "  ".join([key.ljust(widths[0]), *map(str.rjust, numbers, widths[1:4]), outcome])
                for key, *numbers, outcome in lines
            )
        ]
        blocks += [record.traceback.rstrip() for record in self.failed if record.traceback]
        noted = [f"counted {name}: {amount:,}" for name, amount in self.counts.items()]
        noted += [f"{key} logged: {line}" for key, line in self.log]
        if types := self.types:
            blocks.append("\n".join(f"{name}: {kind}" for name, kind in types.items()))
            blocks.append(self.rows.to_string(max_rows=ROWS_SHOWN, line_width=WIDTH, max_colwidth=40))
        blocks += ["\n".join(noted), self.conflict, self.estimate, "\n".join(self.notes)]
        return "\n\n".join(filter(None, blocks))

    def _repr_pretty_(self, printer: Any, _: bool) -> None:  # noqa: FBT001  IPython passes it so
        printer.text(str(self))

    def _repr_html_(self) -> str:
        from shardkit.pages.view import View

        failed = len(self.failed)
        view = View(f"{counted(len(self.records), 'record')} tried" + (f", {failed:,} failed" if failed else ""))
        if len(self.records) > 1:
            view.add_text("Seconds by record:")
            view.add_bars([(f"{record.key}: {_short(record.seconds)}", record.seconds) for record in self.records])
        view.add_table(HEAD, self.lines())
        for record in self.failed[:FOLDED]:
            if record.traceback:
                view.add_folded(f"traceback of {record.key}", record.traceback)
        types, rows = self.types, self.rows
        if types:
            names = list(types)[:VIEW_COLUMNS]
            first = rows[names].head(VIEW_ROWS).astype(str).itertuples(index=False, name=None)
            shown = [tuple(value[:VALUE_CHARACTERS] for value in row) for row in first]
            view.add_table(names, [[types[name] for name in names], *shown], more=max(len(rows) - VIEW_ROWS, 0))
            view.add_text(", ".join(f"{name}: {kind}" for name, kind in list(types.items())[VIEW_COLUMNS:]))
        view.add_facts([("counted", f"{name}: {amount:,}") for name, amount in self.counts.items()])
        view.add_facts([("logged", f"{key}: {line}") for key, line in self.log])
        for text in (self.conflict, self.estimate, *self.notes):
            view.add_text(text)
        return view.to_html()


def concatenated(tables: list[pa.Table]) -> pa.Table:
    """The tables one below the other."""
    import pyarrow as pa

    return pa.concat_tables(tables) if tables else pa.table({})


def _short(seconds: float) -> str:
    """Seconds, with milliseconds where these are few: most records take little."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else human_seconds(seconds)
