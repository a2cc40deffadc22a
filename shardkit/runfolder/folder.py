"""The run folder: everything that a run knows about itself.

`shardkit.runfolder.names` has the names of its files, and what each is for.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.errors import Damaged
from shardkit.runfolder import documents, heartbeats
from shardkit.runfolder.document_types import Marker, PlanDocument, Result, TakenOver
from shardkit.runfolder.files import RunFiles
from shardkit.runfolder.names import ALL_SHARDS, CURRENT, LATEST, RECORDS, part_base
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import pyarrow as pa

    from shardkit.runfolder.document_types import Heartbeat
    from shardkit.storage.base import Folder

KEPT_BYTES = 8 << 20  # of the records; more are read again when they are needed
NO_PLAN_HINT = "Without it the run cannot go on: start a new one. Delete the run's folder to be rid of this message."
NO_RECORDS_HINT = "Without it the run cannot go on, and nothing is taken over from it: start a new run."


@dataclass(frozen=True)
class RunFolder(RunFiles):
    """Reads and writes one run's files, in the folder of its output; keeps the contents of those that never change.

    With ``days`` the run is treated as if it had been planned only for these of its days; with ``on_top`` as if it had
    been planned on top of the present dataset, whatever other runs have made of that.
    """

    days: frozenset[str] | None = None
    on_top: bool = False

    def encrypted(self, plan: PlanDocument) -> RunFolder:
        """The same folder, which encrypts what is written with the key that the plan's engine names."""
        engine = plan["pipeline"].get("engine") or {}
        return replace(self, output=self.output.encrypted(engine.get("output_kms_key")))

    def narrowed(self, days: Collection[str]) -> RunFolder:
        """The same folder, as if the run had been planned only for these of its days."""
        return replace(self, days=frozenset(days))

    def plan(self) -> PlanDocument:
        """The plan, as it was written; if the folder is narrowed, only for those days.

        Raises:
            Damaged: it is not there, or not as it was written.
            WrittenByNewer: it is of a later format.
        """
        if "plan.json" not in self.kept:
            try:
                self.kept["plan.json"] = self.files.read("plan.json")
            except FileNotFoundError:
                raise self.missing("plan.json", NO_PLAN_HINT) from None
        plan = self.parse("plan.json", self.kept["plan.json"] or b"", PlanDocument, NO_PLAN_HINT)
        if self.days is not None:
            plan = _of_days(plan, self.days)
        return {**plan, "based_on": {}} if self.on_top else plan

    def write_plan(
        self,
        plan: Mapping[str, Any],
        records: pa.Table,
        pickled: Mapping[str, bytes | None] | None = None,
        taken_over: list[Marker] | None = None,
    ) -> None:
        """Write the immutable files, the plan last.

        ``pickled`` are the functions that travel by value. The plan names them: no other is ever taken.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(
            records,
            sink,
            compression="zstd",
            compression_level=1,
            write_statistics=False,
            write_page_checksum=True,
        )
        table = sink.getvalue().to_pybytes()
        taken = documents.dump({"markers": taken_over}) if taken_over else None
        sent = {name: data for name, data in (pickled or {}).items() if data is not None}
        together(
            [
                lambda: self.files.write(RECORDS, table),
                *(partial(self.write_pickled, name, data) for name, data in sent.items()),
                *([lambda: self.files.write("taken_over.json", taken)] if taken is not None else []),
                # Not after the plan: a run that dies before that leaves a pointer to nothing, and the runs are looked
                # through.
                self.note_as_latest,
            ]
        )
        noted = {
            "files": {RECORDS: {"bytes": len(table), "crc32": zlib.crc32(table)}},
            "pickles": {name: hashlib.sha256(data).hexdigest() for name, data in sent.items()},
        }
        self.kept["plan.json"] = self.write("plan.json", {**plan, **noted})
        self.kept["taken_over.json"] = taken
        if len(table) <= KEPT_BYTES:
            self.kept[RECORDS] = table

    def note_as_latest(self) -> None:
        """Make this the output's latest run, which commands use if no run is named."""
        self.output.write(LATEST, documents.dump({"run_id": self.run_id}))

    def records(self, columns: list[str] | None = None, *, if_there: Sequence[str] = ()) -> pa.Table:
        """The table of records; of ``columns``, and of those named ``if_there`` which it has.

        Raises:
            Damaged: there is none, or it is not as it was written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = self.kept.get(RECORDS)
        try:
            with pa.BufferReader(kept) if kept is not None else File(self.files, RECORDS).open() as file:
                if kept is None and file.size() <= KEPT_BYTES:
                    self.kept[RECORDS] = file.read()
                    file.seek(0)
                wanted = [*columns, *if_there] if columns is not None else None
                table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=wanted)
        except FileNotFoundError:
            raise self.missing(RECORDS, NO_RECORDS_HINT) from None
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(RECORDS, str(error), NO_RECORDS_HINT) from None
        if lacking := set(columns or ()) - set(table.column_names):
            raise self.damaged(RECORDS, f"it has no column {min(lacking)!r}", NO_RECORDS_HINT)
        return table

    def check_records(self) -> None:
        """Check that the table of records is as the plan notes it, if it has been read and kept.

        Raises:
            Damaged: it is not.
        """
        noted, kept = self.plan().get("files", {}).get(RECORDS), self.kept.get(RECORDS)
        if noted and kept is not None and (len(kept), zlib.crc32(kept)) != (noted["bytes"], noted["crc32"]):
            raise self.damaged(RECORDS, "it is not what was written with the plan", NO_RECORDS_HINT)

    def some_objects(self, count: int = 32) -> list[str]:
        """The keys of some objects of the input, from all over it; of a long table, from one piece."""
        import pyarrow.parquet as pq

        with File(self.files, RECORDS).open() as file:
            table = pq.ParquetFile(file)
            piece = table.read_row_group(table.num_row_groups // 2, columns=["objects"])
        step = max(len(piece) // count, 1)
        return [keys[0] for keys in piece["objects"].to_pylist()[::step] if keys]

    def write_pickled(self, name: str, pickled: bytes | None) -> None:
        """Keep a function that travels by value."""
        if pickled is not None:
            self.files.write(f"{name}.pkl", pickled)

    def pickled(self, name: str) -> bytes | None:
        """The function or the combine function, if the plan says that it travels by value.

        Raises:
            Damaged: it is not what the plan names.
        """
        plan = self.plan()
        if "pickles" not in plan:  # as it was written before these were named
            with contextlib.suppress(FileNotFoundError):
                return self.files.read(f"{name}.pkl")
            return None
        return self.sent(name, plan["pickles"].get(name))

    def sent(self, name: str, sha256: str | None) -> bytes | None:
        """The pickle of a function that travels by value; None if there is no ``sha256`` and so no such function.

        Raises:
            Damaged: the file is another one, which must not be unpickled.
        """
        if sha256 is None:
            return None
        hint = "Start a new run; or, in Python, pass the function again: open_run(...).retry(function=...)."
        try:
            data = self.files.read(f"{name}.pkl")
        except FileNotFoundError:
            raise self.missing(f"{name}.pkl", hint) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self.damaged(f"{name}.pkl", "it is not the function that was sent", hint)
        return data

    def write_marker(self, marker: Marker) -> None:
        """Commit a chunk: from here on it exists."""
        self.files.write(self.marker_name(marker), documents.dump(marker))

    def marker_name(self, marker: Marker) -> str:
        """The name of a marker's file."""
        piece, execution = marker.get("piece", 0), marker.get("execution", "")
        base = part_base(marker["chunk"], marker["attempt"], piece=piece, execution=execution)
        return f"{self.markers_of(marker['shard'])}/{base}.json"

    def remove_marker(self, marker: Marker) -> None:
        """Take a chunk back."""
        self.files.remove(self.marker_name(marker))

    def markers(self, shards: list[int] | None = None, *, damaged: list[str] | None = None) -> list[Marker]:
        """All markers, of all attempts; or those of some shards only.

        A chunk whose marker is damaged is not done. The names of such markers are added to ``damaged``.
        """
        folders = ["markers"] if shards is None else [self.markers_of(shard) for shard in shards]
        names = [entry.key for name in folders for entry in self.files.entries(name)]
        return self.read_markers(names, damaged)

    def read_markers(self, names: list[str], damaged: list[str] | None = None) -> list[Marker]:
        """The markers in these files."""
        return self.read_all(names, Marker, [] if damaged is None else damaged)

    def taken_over(self, shards: list[int] | None = None) -> list[Marker]:
        """The markers of chunks that earlier runs have done, as the plan took them over."""
        if "taken_over.json" not in self.kept:
            try:
                self.kept["taken_over.json"] = self.files.read("taken_over.json")
            except FileNotFoundError:
                self.kept["taken_over.json"] = None
        kept = self.kept["taken_over.json"]
        markers: list[Marker] = []
        if kept is not None:
            hint = "Start a new run, which computes again what this one had taken over."
            markers = self.parse("taken_over.json", kept, TakenOver, hint)["markers"]
        return [marker for marker in markers if shards is None or marker["shard"] in shards]

    def of(self, run_id: str) -> Folder:
        """Another run's own folder, of the same output."""
        return RunFolder(self.output, run_id).files

    def result(self) -> Result | None:
        """The result, if the run has one; if it is damaged, the dataset's own description, if that is of this run.

        Raises:
            Damaged: the result is damaged and cannot be read elsewhere.
        """
        try:
            return self.read_if_there("result.json", Result)
        except Damaged as error:
            with contextlib.suppress(FileNotFoundError, Damaged):
                current = documents.parse(self.output.read(CURRENT), Result, f"{self.output.uri}/{CURRENT}")
                if current["run_id"] == self.run_id:
                    return current
            raise Damaged(
                error.message,
                hint="The dataset of today is not this run's, and needs nothing of it. To make that of this run again, "
                "delete the file and resume the run.",
            ) from None

    def heartbeats(self) -> list[Heartbeat]:
        """The heartbeats of all attempts, the oldest attempt first; an unreadable one has the state ``unknown``."""
        names = [entry.key for entry in self.files.entries(heartbeats.FOLDER) if entry.key.endswith(".json")]
        beats = [
            heartbeats.parsed(self, name, data) for name, data in zip(names, self.files.read_many(names), strict=True)
        ]
        return sorted(beats, key=lambda beat: (int(beat["attempt"]), beat["started"]))

    def write_heartbeat(self, beat: Heartbeat) -> None:
        """Note how far an attempt is."""
        self.write(heartbeats.name_of(beat), beat)

    def claim_attempt(self, beat: Heartbeat) -> bool:
        """Take an attempt's number by its first heartbeat; whether nobody else has it."""
        return self.files.write_if(heartbeats.name_of(beat), documents.dump(beat, readable=True), {}) is not None

    def next_attempt(self, shard: int | str = ALL_SHARDS) -> int:
        """A number higher than that of any attempt before at the shard; by default, at any."""
        return heartbeats.next_attempt((entry.key for entry in self.files.entries(heartbeats.FOLDER)), shard)


def _of_days(plan: PlanDocument, days: Collection[str]) -> PlanDocument:
    """The plan for some of its days. What the run has dropped is gone, or has come back since."""
    partitions = {day: changes for day, changes in (plan["partitions"] or {}).items() if day in days}
    based_on = {day: run for day, run in plan["based_on"].items() if day in days}
    return {**plan, "partitions": partitions, "based_on": based_on, "dropped": []}
