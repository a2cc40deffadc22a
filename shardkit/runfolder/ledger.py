"""The ledger of a run: what became of every record, according to the markers.

records listed = done + quarantined + skipped        (once the run is complete)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from shardkit.checksums import as_sums
from shardkit.errors import LedgerError
from shardkit.runfolder.heartbeats import attempt_of
from shardkit.runfolder.marked_notes import LINES_OF_RUN, merged
from shardkit.runfolder.names import WHOLE
from shardkit.runfolder.steps import advice
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together
from shardkit.tables.arrays import numpy, one_chunk
from shardkit.tables.spans import as_spans

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.runfolder.document_types import LedgerCounts, MarkedNotes, MarkedPart, Marker, QuarantineEntry
    from shardkit.runfolder.folder import RunFolder
    from shardkit.tables.spans import Spans

OPEN, DONE, QUARANTINED, ELSEWHERE, SKIPPED = range(5)


@dataclass(frozen=True)
class CommittedPart:
    """A part whose chunk is committed.

    ``name`` is unique among all parts of all runs; ``spans`` are the rows that count, if not all do.
    """

    file: File
    name: str
    rows: int
    bytes: int
    spans: Spans | None


class Ledger:
    """The markers of a run, put together.

    The latest marker of a record decides: a retry overrules the chunk that quarantined it. Two markers for the
    same planned records (a duplicate attempt) count once. With ``shards`` it is the ledger of these alone: the records
    of others do not count. ``fresh`` means that nobody can have committed anything yet.
    """

    def __init__(self, folder: RunFolder, shards: list[int] | None = None, *, fresh: bool = False) -> None:
        self.folder = folder
        self.shards = shards
        self.damaged: list[str] = []  # markers; their chunks are not done
        table = folder.records(["shard", "chunk", "bytes"])
        self.shard = numpy(table["shard"])
        self.chunk = numpy(table["chunk"])
        self.bytes = numpy(table["bytes"])
        self.planned = len(table)
        self.state = np.full(self.planned, OPEN, np.int8)
        if shards is not None:
            self.state[~np.isin(self.shard, shards)] = ELSEWHERE
        self.markers: list[Marker] = []
        self._entries: dict[int, QuarantineEntry] = {}
        self._members = _members(self.shard, self.chunk)
        self._next_chunk = int(self.chunk.max(initial=-1)) + 1
        self._ids: dict[int, np.ndarray] = {}
        readers = [lambda: folder.taken_over(shards)]
        if not fresh:
            readers.append(lambda: folder.markers(shards, damaged=self.damaged))
        markers = [marker for markers in together(readers) for marker in markers if self._is_of_records(marker)]
        self.names = {folder.marker_name(marker) for marker in markers} if shards is not None else set()
        self._take(markers)

        if folder.days is not None:
            self._keep_days(folder.days)

    def _keep_days(self, days: frozenset[str]) -> None:
        """Narrow the ledger to these days."""
        group = self._days()
        if group is not None:
            mine = np.array([day in days for day in group.dictionary.to_pylist()], bool)
            self.keep(mine[numpy(group.indices)])
            self.markers = [marker for marker, ids in self.settled() if self.state[ids[0]] != ELSEWHERE]

    def _is_of_records(self, marker: Marker) -> bool:
        """Whether all records of a marker exist."""
        last = max([*(marker["ids"] or ()), *(entry["record"] for entry in marker["quarantine"])], default=-1)
        if last < self.planned:
            return True
        self.damaged.append(
            f"{self.folder.markers_of(marker['shard'])}/{marker['chunk']:06d}-{marker['attempt']:04d}.json"
        )
        return False

    def _take(self, markers: list[Marker]) -> None:
        covered = np.zeros(self.planned, bool)
        # Of overlapping markers, take the one that covers most, and among equals the one of the latest attempt: that
        # attempt ends before the merge, while one that was given up may go on and write its marker when the dataset is
        # made. Retries have higher chunk numbers than what they retry, even under another shard of a job whose objects
        # are dealt out.
        for marker in sorted(markers, key=lambda m: (m["chunk"], m["shard"], -m["records"]["listed"], -m["attempt"])):
            shard, chunk = marker["shard"], marker["chunk"]
            planned = self._members.get((shard, chunk))
            self._next_chunk = max(self._next_chunk, chunk + 1)
            ids = self.records_of(marker)
            if not len(ids):
                continue
            # A retry covers only records that are not done, so a marker with done records is a late duplicate.
            if (covered[ids] if planned is not None else np.isin(self.state[ids], (DONE, SKIPPED))).any():
                continue
            covered[ids] = True
            self._settle(ids, marker)
            self.markers.append(marker)
        self.markers.sort(key=lambda m: (m["shard"], m["chunk"], m["ids"][0] if m["ids"] else -1))

    def records_of(self, marker: Marker) -> np.ndarray:
        """The ids of a marker's records; none, if it is of a whole chunk that was not planned."""
        if marker["ids"] is not None:
            return np.array(marker["ids"], np.int64)
        return self._members.get((marker["shard"], marker["chunk"]), np.zeros(0, np.int64))

    def planned_chunks(self, shard: int) -> dict[int, np.ndarray]:
        """The chunks that were planned for a shard, with the ids of their records."""
        return {chunk: ids for (of, chunk), ids in self._members.items() if of == shard}

    def _settle(self, ids: np.ndarray, marker: Marker) -> None:
        self._ids[id(marker)] = ids
        self.state[ids] = SKIPPED if marker.get("taken_over") else DONE
        for entry in marker["quarantine"]:
            self._entries[entry["record"]] = {"shard": marker["shard"], "chunk": marker["chunk"], **entry}
            self.state[entry["record"]] = QUARANTINED

    def keep(self, mine: np.ndarray) -> None:
        """Narrow the ledger to the records of this mask, whichever shard they are committed under."""
        self.state[~mine] = ELSEWHERE

    @property
    def listed(self) -> int:
        """How many records there are."""
        return int((self.state != ELSEWHERE).sum())

    @property
    def done(self) -> int:
        """How many records are done."""
        return int((self.state == DONE).sum())

    @property
    def skipped(self) -> int:
        """How many records need not be computed, because an earlier run has done so."""
        return int((self.state == SKIPPED).sum())

    @property
    def quarantined(self) -> int:
        """How many records failed for good."""
        return int((self.state == QUARANTINED).sum())

    @property
    def open(self) -> int:
        """How many records are neither done, skipped nor in quarantine."""
        return int((self.state == OPEN).sum())

    @property
    def total_bytes(self) -> int:
        """The size of all records."""
        return int(self.bytes[self.state != ELSEWHERE].sum())

    @property
    def rows(self) -> int:
        """How many rows the committed parts hold."""
        return sum(marker["rows"] for marker in self.markers)

    def notes(self) -> MarkedNotes:
        """What the function has noted about the records that the run has computed."""
        return merged((marker["notes"] for marker in self.markers if "notes" in marker), lines=LINES_OF_RUN)

    def is_settled(self) -> np.ndarray:
        """Which records are done, skipped or in quarantine, as a mask."""
        settled: np.ndarray = (self.state != OPEN) & (self.state != ELSEWHERE)
        return settled

    def quarantine(self) -> list[QuarantineEntry]:
        """The entries of the quarantined records, in the order of the records."""
        ids = np.flatnonzero(self.state == QUARANTINED).tolist()
        return [self._entries[i] for i in ids]

    def settled(self) -> list[tuple[Marker, np.ndarray]]:
        """The markers that count, each with the ids of its records."""
        return [(marker, self._ids[id(marker)]) for marker in self.markers]

    def stolen(self) -> dict[str, dict[str, int]]:
        """How many records of a shard were done by jobs of other shards: by the shard, and by that of the job."""
        stolen: dict[str, dict[str, int]] = {}
        for marker, ids in self.settled():
            shard, job = str(marker["shard"]), attempt_of(marker.get("by", ""))[0]
            if job not in {"", shard} and not marker.get("taken_over"):
                of_shard = stolen.setdefault(shard, {})
                of_shard[job] = of_shard.get(job, 0) + len(ids)
        return stolen

    def quarantine_of(self, ids: np.ndarray) -> list[QuarantineEntry]:
        """The entries of those of these records that are in quarantine."""
        return [self._entries[i] for i in ids[self.state[ids] == QUARANTINED].tolist()]

    def counts(self) -> LedgerCounts:
        """The ledger in numbers."""
        return {"listed": self.listed, "done": self.done, "quarantined": self.quarantined, "skipped": self.skipped}

    def quarantined_by_partition(self) -> dict[str, int]:
        """How many records are in quarantine, by partition of the dataset; only those with any."""
        mine = self.state == QUARANTINED
        group = self._days() if mine.any() else None
        if group is None:
            return {WHOLE: self.quarantined} if mine.any() else {}
        counts = np.bincount(numpy(group.indices)[mine], minlength=len(group.dictionary)).tolist()
        return {day: count for day, count in zip(group.dictionary.to_pylist(), counts, strict=True) if count}

    def parts(self) -> list[CommittedPart]:
        """All committed parts, in the order of their rows in the dataset."""
        return [part for marker in self.markers for part in self.parts_of(marker)]

    def parts_of(self, marker: Marker) -> list[CommittedPart]:
        """The parts that a marker has committed."""
        return [self._part(marker["shard"], part) for part in marker["parts"]]

    def _part(self, shard: int, part: MarkedPart) -> CommittedPart:
        run, at = part.get("run", self.folder.run_id), part.get("at", self.folder.parts_of(shard))
        files = self.folder.of(run) if "run" in part else self.folder.files
        key = f"{at}/{part['name']}"
        spans = as_spans(part["spans"]) if "spans" in part else None
        file = File(files, key, as_sums(part.get("sums", ())))
        return CommittedPart(file, f"{run}/{key}", part["rows"], part["bytes"], spans)

    def undo(self, part: File) -> str:
        """Mark the chunk of a damaged part as not done; returns what to do next."""
        for marker in self.markers:
            if any(part == committed.file for committed in self.parts_of(marker)):
                if part.folder != self.folder.files:
                    return "It is of an earlier run: start a new run with incremental: false."
                self.folder.remove_marker(marker)
                return advice(self.folder, lambda step: f"Its chunk is not done any more; go on: {step('resume')}")
        return "Delete it, and start a new run."

    def partitions(self) -> dict[str, list[CommittedPart]]:
        """The committed parts of each partition with records of this ledger, in the order of the partitions' names."""
        group = self._days()
        if group is None:
            return {WHOLE: self.parts()}
        names, codes = group.dictionary.to_pylist(), numpy(group.indices)
        own = np.flatnonzero(np.bincount(codes[self.state != ELSEWHERE])).tolist()
        parts: dict[str, list[CommittedPart]] = {name: [] for name in sorted(names[code] for code in own)}
        for marker, ids in self.settled():
            if self.state[ids[0]] != ELSEWHERE:
                parts[names[int(codes[ids[0]])]] += self.parts_of(marker)
        return parts

    def _days(self) -> pa.DictionaryArray | None:
        """Each record's day, if the dataset is partitioned by day; else None."""
        if not self.folder.plan()["by_day"]:
            return None
        return one_chunk(self.folder.records(["group"])["group"])

    def apart(self, ids: np.ndarray, shards: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Group records by shard and by partition of the dataset: no chunk may have records of two partitions."""
        units = shards.astype(np.int64) << 32
        if len(ids) and (group := self._days()) is not None:
            units = units | numpy(group.indices)[ids]
        return [(unit >> 32, ids[units == unit]) for unit in np.unique(units).tolist()]

    def to_do(self) -> list[tuple[int, int, np.ndarray, bool]]:
        """The open work: (shard, chunk, record ids, whether these are only some of the planned chunk's)."""
        work = []
        for (shard, chunk), ids in self._members.items():
            rest = ids[self.state[ids] == OPEN]
            if len(rest):
                work.append((shard, chunk, rest, len(rest) < len(ids)))
        return work

    def free_chunk(self) -> int:
        """A chunk number that no shard has used, for a retry."""
        self._next_chunk += 1
        return self._next_chunk - 1

    def check(self) -> None:
        """Check that the ledger balances and that every part it counts on is there.

        Raises:
            LedgerError: naming what is missing.
            Damaged: the records are not those that were planned.
        """
        self.folder.check_records()
        if self.open:
            first = int(np.flatnonzero(self.state == OPEN)[0])
            key = self.folder.records(["key"])["key"][first].as_py()
            raise LedgerError(
                f"Run {self.folder.run_id}: {self.open:,} of {self.listed:,} records are neither done nor quarantined; "
                f"the first is {key} (shard {self.shard[first]}, chunk {self.chunk[first]}).",
                hint="Resume the run.",
            )
        there: dict[File, int] = {}
        folders = list({part.file.folder: None for part in self.parts()})
        for files, entries in zip(folders, together([partial(f.entries, "parts") for f in folders]), strict=True):
            there |= {File(files, entry.key): entry.bytes for entry in entries}
        by_marker = [(marker, part) for marker in self.markers for part in self.parts_of(marker)]
        for marker, part in by_marker:
            if there.get(part.file) != part.bytes:
                if part.file.folder != self.folder.files:
                    raise LedgerError(
                        f"Run {self.folder.run_id}: {part.file}, of an earlier run, is missing or not of its "
                        f"{part.bytes:,} bytes.",
                        hint="Start a new run with incremental: false.",
                    )
                name = self.folder.marker_name(marker).removeprefix("markers/").removesuffix(".json")
                raise LedgerError(
                    f"Run {self.folder.run_id}: the committed part {part.file} is missing or not of its "
                    f"{part.bytes:,} bytes.",
                    hint=f"Delete the marker {name} under {self.folder.uri}/markers, then resume the run.",
                )


def _members(shard: np.ndarray, chunk: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """The record ids of each planned chunk, in key order."""
    order = np.lexsort((np.arange(len(shard)), chunk, shard))
    changes = (np.diff(shard[order]) != 0) | (np.diff(chunk[order]) != 0)
    pieces = np.split(order, np.flatnonzero(changes) + 1)
    return {(int(shard[p[0]]), int(chunk[p[0]])): p for p in pieces if len(p)}
