"""Chunks of an earlier run, taken over record by record: only those rows of its parts count that are still right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.checksums import as_sums
from shardkit.errors import Damaged
from shardkit.runfolder.parts import rows_of
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together
from shardkit.tables.arrays import arrow
from shardkit.tables.spans import as_spans, row_count, subtract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.document_types import MarkedPart, Marker, QuarantineEntry
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger


@dataclass(frozen=True)
class _Candidate:
    """A chunk of an earlier run, some of whose records have not changed.

    ``ids`` are the row numbers of its records in the earlier run, ``positions`` theirs in the chunk as it was
    computed, and ``kept`` is a mask of those that have not changed. ``parts`` say in which run's folder they lie.
    """

    marker: Marker
    ids: np.ndarray
    positions: np.ndarray
    kept: np.ndarray
    parts: list[MarkedPart]

    @classmethod
    def of(cls, folder: RunFolder, marker: Marker, ids: np.ndarray, same: np.ndarray) -> _Candidate:
        gone = marker.get("gone", [])
        positions = np.delete(np.arange(len(ids) + len(gone)), gone)
        at = folder.parts_of(marker["shard"])
        return cls(
            marker, ids, positions, same[ids], [{"run": folder.run_id, "at": at, **part} for part in marker["parts"]]
        )

    def left_out(self, keys: pa.ChunkedArray) -> dict[int, str]:
        """The keys of the records that have changed, by their positions in the chunk."""
        lost = np.flatnonzero(~self.kept)
        return dict(zip(self.positions[lost].tolist(), keys.take(arrow(self.ids[lost])).to_pylist(), strict=True))


class TakenOver(NamedTuple):
    """A chunk of an earlier run that is taken over, in whole or in part.

    ``rows`` are the rows of the new listing that are taken over with it. ``rows_at`` is, for each position in the chunk
    as it was computed, the row that is there, or -1.
    """

    marker: Marker
    rows_at: np.ndarray
    rows: np.ndarray


def take_over(ledger: Ledger, before: pa.Table, position: np.ndarray, same: np.ndarray) -> Iterator[TakenOver]:
    """Take over the records that have not changed, chunk by chunk, if every part is still there.

    If other records of a chunk have changed, their rows are left out. Entries of the quarantine get the row numbers of
    the new listing.

    Args:
        ledger: the earlier run's.
        before: the earlier run's records.
        position: for each of them, its row in the new listing, or -1.
        same: for each of them, whether it has not changed.

    Yields:
        What is taken over; of a chunk and a retry of it, the retry comes later and has the last word.
    """
    folder = ledger.folder
    settled = [_Candidate.of(folder, marker, ids, same) for marker, ids in ledger.settled() if same[ids].any()]
    there = _parts_there(folder, [part for candidate in settled for part in candidate.parts])
    whole = [c for c in settled if all(there.get(_location(part)) == part["bytes"] for part in c.parts)]
    for candidate, parts in zip(whole, _parts_kept(folder, whole, before["key"]), strict=True):
        ids = candidate.ids[candidate.kept]
        rows = position[ids]
        if parts is None or (np.diff(rows) < 0).any():
            continue
        new_ids = dict(zip(ids.tolist(), rows.tolist(), strict=True))
        rows_at = np.full(candidate.positions.max(initial=-1) + 1, -1)
        rows_at[candidate.positions[candidate.kept]] = rows
        marker: Marker = {
            **candidate.marker,
            "attempt": 0,
            "ids": None,
            "seconds": 0.0,
            "rows": sum(part["rows"] for part in parts),
            "parts": parts,
            "quarantine": [_moved(entry, new_ids) for entry in ledger.quarantine_of(ids)],
            "taken_over": True,
        }
        marker.pop("timings", None)  # of the run that has computed it
        marker.pop("notes", None)
        yield TakenOver(marker, rows_at, rows)


def _parts_kept(
    folder: RunFolder, candidates: list[_Candidate], keys: pa.ChunkedArray
) -> list[list[MarkedPart] | None]:
    """For each chunk, its parts with the rows that stay; None if the whole chunk must be computed again."""
    partly = [candidate for candidate in candidates if not candidate.kept.all()]
    wanted = {_location(part): as_sums(part.get("sums", ())) for candidate in partly for part in candidate.parts}
    files = [File(folder.of(run), key, sums) for (run, key), sums in wanted.items()]
    footers = dict(zip(wanted, together([partial(_footer, file) for file in files]), strict=True))
    kept: list[list[MarkedPart] | None] = []
    for candidate in candidates:
        if candidate.kept.all():
            kept.append(candidate.parts)
            continue
        if candidate.marker.get("piece") and "gone" not in candidate.marker:
            kept.append(None)  # earlier versions did not note where in the chunk such a piece begins
            continue
        lost = candidate.left_out(keys)
        parts = [_cut(part, footers[_location(part)], lost) for part in candidate.parts]
        kept.append(None if None in parts else [part for part in parts if part and part["rows"]])
    return kept


def _footer(part: File) -> pq.FileMetaData | None:
    try:
        with part.open() as file:
            return pq.read_metadata(file)
    except (OSError, pa.ArrowException, Damaged):
        return None  # reading it raises the error


def _cut(part: MarkedPart, footer: pq.FileMetaData | None, lost: dict[int, str]) -> MarkedPart | None:
    """A part without the rows of the ``lost`` records; None if these rows cannot be left out."""
    if footer is None or (gone := rows_of(footer, lost)) is None:
        return None
    spans = subtract(as_spans(part.get("spans", [(0, footer.num_rows)])), gone)
    return {**part, "spans": [list(span) for span in spans], "rows": row_count(spans)}


def _moved(entry: QuarantineEntry, new_ids: dict[int, int]) -> QuarantineEntry:
    moved: QuarantineEntry = {**entry, "record": new_ids[entry["record"]]}
    moved.pop("shard", None)
    moved.pop("chunk", None)
    return moved


def _location(part: MarkedPart) -> tuple[str, str]:
    """Where a part lies: the run, and the key in its folder."""
    return part["run"], f"{part['at']}/{part['name']}"


def _parts_there(folder: RunFolder, parts: list[MarkedPart]) -> dict[tuple[str, str], int]:
    """The sizes of all parts in the folders of the runs that these parts are of, in bytes, by their locations."""
    runs = {part["run"] for part in parts}
    listed = together([partial(folder.of(run).entries, "parts") for run in sorted(runs)])
    return {(run, e.key): e.bytes for run, entries in zip(sorted(runs), listed, strict=True) for e in entries}
