"""The rows that records have given, as the parts of a run hold them; and the records that rows come from."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.dataset.accounts import spans_of
from shardkit.errors import RunFailed, RunNotFound
from shardkit.runfolder.ledger import DONE, SKIPPED, Ledger
from shardkit.runfolder.parts import record_rows
from shardkit.tables.number_text import numbers_of
from shardkit.tables.origin import COLUMNS
from shardkit.tables.spans import RecordRows, overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.document_types import Marker, Result
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart
    from shardkit.tables.spans import Spans

FOOTERS_KEPT = 64  # of parts: records that are looked at one after the other are often in the same
NOT_THERE = "Parts are removed by `shardkit clean` once nothing needs them; run the pipeline again to have them."


def makers(folder: RunFolder, result: Result) -> Iterator[RunFolder]:
    """The runs that have made the partitions of a dataset, each narrowed to those."""
    days: dict[str, list[str]] = {}
    for name, made in (result["partitions"] or {"": {"run": result["run_id"], "work": "", "merge": ""}}).items():
        days.setdefault(made["run"], []).append(name)
    for run_id, names in days.items():
        of_run = replace(folder, run_id=run_id, days=None, on_top=False)
        if of_run.exists():
            yield of_run.narrowed(names) if result["by_day"] else of_run


@dataclass(frozen=True)
class _Place:
    """Where the rows of a record are: a chunk's marker, and the record's position in that chunk."""

    marker: Marker
    position: int


class StoredRows:
    """The rows of a run's records in its parts."""

    def __init__(self, folder: RunFolder, ledger: Ledger | None = None) -> None:
        self.folder = folder
        self.ledger = ledger or Ledger(folder)
        self._opened: dict[str, tuple[pq.FileMetaData, RecordRows | None]] = {}

    @functools.cached_property
    def records(self) -> pa.Table:
        """The table of the run's records."""
        return self.folder.records()

    @functools.cached_property
    def done(self) -> np.ndarray:
        """The numbers of the records that are done."""
        return np.flatnonzero(np.isin(self.ledger.state, (DONE, SKIPPED)))

    def function_digest(self, record: int) -> str:
        """The digest of the function that a record was run with."""
        place = self._place(record)
        return place.marker.get("function_digest", self.folder.plan()["function_digest"])

    def of(self, record: int) -> pa.Table:
        """The rows of a record, without the columns of its origin.

        Raises:
            RunFailed: a part is gone, or does not say which rows are whose.
        """
        place = self._place(record)
        tables = []
        for part in self.ledger.parts_of(place.marker):
            footer, rows = self._footer(part, place.marker)
            wanted = rows.of({place.position})
            tables += [self._read(part, footer, span) for span in wanted]
        table = pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})
        return table.drop_columns([name for name in COLUMNS if name in table.column_names])

    def record_at(self, part: str, row: int) -> tuple[int, int]:
        """The record that a row of a part comes from, and the row's number among all rows of that record.

        Raises:
            RunNotFound: the run has no such part.
            RunFailed: the part is gone, or does not say it.
        """
        for marker, ids in self.ledger.settled():
            for committed in self.ledger.parts_of(marker):
                if committed.name == part:
                    position, within = self._footer(committed, marker)[1].at(row)
                    place = _positions(marker, ids).tolist().index(position)
                    return int(ids[place]), within + self._earlier(marker, part, position)
        raise RunNotFound(f"Run {self.folder.run_id} has no part {part}.", hint=NOT_THERE)

    def _earlier(self, marker: Marker, part: str, position: int) -> int:
        """How many rows of a record are in the parts before that one."""
        count = 0
        for committed in self.ledger.parts_of(marker):
            if committed.name == part:
                break
            count += sum(stop - start for start, stop in self._footer(committed, marker)[1].of({position}))
        return count

    def _place(self, record: int) -> _Place:
        markers, of_record, positions = self._places
        return _Place(markers[of_record[record]], int(positions[record]))

    @functools.cached_property
    def _places(self) -> tuple[list[Marker], np.ndarray, np.ndarray]:
        """The markers and, by the number of a record, which of them has it, and its position in that one's chunk."""
        settled = self.ledger.settled()
        of_record, positions = np.zeros((2, len(self.ledger.state)), np.int64)
        for number, (marker, ids) in enumerate(settled):
            of_record[ids], positions[ids] = number, _positions(marker, ids)
        return [marker for marker, _ in settled], of_record, positions

    def _footer(self, part: CommittedPart, marker: Marker) -> tuple[pq.FileMetaData, RecordRows]:
        if part.name not in self._opened:
            try:
                with part.file.open() as file:
                    footer = pq.read_metadata(file)
            except (OSError, pa.ArrowException) as error:
                raise RunFailed(f"The part {part.file} cannot be read: {error}.", hint=NOT_THERE) from error
            while len(self._opened) >= FOOTERS_KEPT:
                del self._opened[next(iter(self._opened))]
            self._opened[part.name] = footer, record_rows(footer) or _by_timings(marker)
        footer, rows = self._opened[part.name]
        if rows is None:
            raise RunFailed(
                f"The part {part.file} does not say which rows are whose; an earlier version has written it.",
                hint="Run the pipeline again, with incremental: false.",
            )
        return footer, rows

    def _read(self, part: CommittedPart, footer: pq.FileMetaData, span: tuple[int, int]) -> pa.Table:
        """Some rows of a part, of which only their row groups are read."""
        tables, begin = [], 0
        counted: Spans = spans_of(part)
        with part.file.open() as opened:
            file = pq.ParquetFile(opened)
            for group in range(footer.num_row_groups):
                end = begin + footer.row_group(group).num_rows
                for low, high in overlap((span,), begin, end):
                    for start, stop in overlap(counted, low, high):
                        tables.append(file.read_row_group(group).slice(start - begin, stop - start))
                begin = end
        return pa.concat_tables(tables).replace_schema_metadata(None) if tables else pa.table({})


def _positions(marker: Marker, ids: np.ndarray) -> np.ndarray:
    """The positions of a marker's records in the chunk as it was computed."""
    gone = marker.get("gone", [])
    positions: np.ndarray = np.delete(np.arange(len(ids) + len(gone)), gone)
    return positions


def _by_timings(marker: Marker) -> RecordRows | None:
    """Which rows of a chunk's only part are whose, by how many rows its records have given."""
    timings = marker.get("timings")
    if timings is None or len(marker["parts"]) != 1 or marker.get("piece"):
        return None
    rows = RecordRows()
    for position, count in enumerate(numbers_of(timings["rows"]).tolist()):
        if count:
            rows.add(position, count)
    return rows
