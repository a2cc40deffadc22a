"""The run folder: everything that a run knows about itself.

    <output>/_shardkit/runs/<run id>/
        plan.json                                  immutable: the pipeline, its digests, the shards
        records.parquet                            immutable: every record with its shard and chunk
        function.pkl, combine.pkl                  the functions, where they travel by value
        taken_over.json                            markers of chunks that earlier runs have done
        parts/<shard>/<chunk>-<attempt>.parquet    rows
        markers/<shard>/<chunk>-<attempt>.json     commits a chunk: parts, rows, bytes, seconds, records, quarantine
        progress/<shard>-<attempt>.json            heartbeat of an attempt at a shard ("all": of every shard)
        dataset/generation-<number>/               files that are to be the dataset's; those of jobs are beside that
        lock                                       held by the process that works on the run
        jobs.sqlite, jobs.json                     with an engine: the queue of its jobs, and a copy of it
        manifests/, settings/, stop.json           likewise: lists of objects, settings of a resumption, a wish to stop
        merged/<day>.json                          what a job has made of a day, for pass 2 to take
        contents.json                              which rows of which parts the dataset's files hold
        result.json                                written last, by pass 2

    <output>/_shardkit/
        latest.json                                which run was planned, or retried, last
        current.json                               the result of the run that the dataset is of now
        commit.json                                the dataset's switch in progress
        days/<run id>.json, days/lock              the days that a run is making; held while one takes its days

Status, report, retry and resume are functions of these files alone.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
import shlex
import zlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.errors import Damaged, PipelineError, RunNotFound, WrittenByNewer
from shardkit.runfolder import documents
from shardkit.storage.base import STATE_DIR as STATE
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    import pyarrow as pa

    from shardkit.storage.base import Folder
    from shardkit.storage.locks import Held

STATE_DIR = STATE
STOP = "stop.json"  # in a run folder: the latest generation of jobs is to be stopped
ALL_SHARDS = "all"
RUNS = f"{STATE_DIR}/runs"
LATEST = f"{STATE_DIR}/latest.json"
CURRENT = f"{STATE_DIR}/current.json"
RECORDS = "records.parquet"
LOCK = "lock"
KEPT_BYTES = 8 << 20  # of the records; more are read again when they are needed
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
UNKNOWN = "unknown"  # the state that a heartbeat tells which cannot be read
NO_PLAN_HINT = "Without it the run cannot go on: start a new one. Delete the run's folder to be rid of this message."
NO_RECORDS_HINT = "Without it the run cannot go on, and nothing is taken over from it: start a new run."


def part_base(chunk: int, attempt: int, *, piece: int = 0, alone: int | None = None) -> str:
    """The name, without suffix, of a chunk's parts.

    ``piece`` numbers what one attempt has committed of the chunk bit by bit; ``alone`` marks the parts of one record
    that was run by itself.
    """
    of_piece = f"p{piece}" if piece else ""
    return f"{chunk:06d}-{attempt:04d}{of_piece}" + (f"-{alone}" if alone is not None else "")


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run's files, in the folder of its output; keeps of those what never changes.

    With ``days`` the run is looked at as if it had been planned for these of its days alone; with ``on_top`` as if it
    had been planned upon the dataset as it is now, whatever other runs have made of it.
    """

    output: Folder
    run_id: str
    days: frozenset[str] | None = None
    on_top: bool = False
    _kept: dict[str, bytes | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def files(self) -> Folder:
        """The run's own folder."""
        return self.output.child(f"{RUNS}/{self.run_id}")

    @property
    def path(self) -> Path:
        """Where the run's own folder lies on this machine.

        Raises:
            PipelineError: it does not.
        """
        return self.files.path

    @property
    def uri(self) -> str:
        """Names the run's own folder."""
        return self.files.uri

    @property
    def arguments(self) -> str:
        """How the run is named on the command line."""
        return f"{shlex.quote(self.output.uri)} --run-id {self.run_id}"

    @staticmethod
    def parts_of(shard: int) -> str:
        """The folder of one shard's parts, in the run's own."""
        return f"parts/{shard:05d}"

    @staticmethod
    def markers_of(shard: int) -> str:
        """The folder of one shard's markers, in the run's own."""
        return f"markers/{shard:05d}"

    def exists(self) -> bool:
        """Whether the run was planned to the end: without a plan there is no run."""
        return self.files.exists("plan.json")

    def encrypted(self, plan: dict[str, Any]) -> RunFolder:
        """The same folder, but what is written there is encrypted with the key that the plan's engine names."""
        engine = plan.get("pipeline", {}).get("engine") or {}
        return replace(self, output=self.output.encrypted(engine.get("output_kms_key")))

    def narrowed(self, days: Collection[str]) -> RunFolder:
        """The same folder, looked at for these of its days alone."""
        return replace(self, days=frozenset(days))

    def plan(self) -> dict[str, Any]:
        """The plan, as it was written; of some days alone where the folder is looked at for these.

        Raises:
            Damaged: it is not there, or not as it was written.
            WrittenByNewer: it is of a later format.
        """
        if "plan.json" not in self._kept:
            try:
                self._kept["plan.json"] = self.files.read("plan.json")
            except FileNotFoundError:
                raise self._missing("plan.json", NO_PLAN_HINT) from None
        plan = self._parse("plan.json", self._kept["plan.json"] or b"", {"created": str}, NO_PLAN_HINT)
        shape = documents.MERGE_PLAN if "merge_of" in plan else documents.PLAN
        if wrong := documents.misfit(plan, shape):
            raise self._damaged("plan.json", wrong, NO_PLAN_HINT)
        plan = plan if self.days is None else plan | _of_days(plan, self.days)
        return plan | {"based_on": {}} if self.on_top else plan

    def write_plan(
        self,
        plan: dict[str, Any],
        records: pa.Table,
        pickled: Mapping[str, bytes | None] | None = None,
        taken_over: list[dict[str, Any]] | None = None,
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
        self._kept["plan.json"] = self.write("plan.json", plan | noted)
        self._kept["taken_over.json"] = taken
        if len(table) <= KEPT_BYTES:
            self._kept[RECORDS] = table

    def note_as_latest(self) -> None:
        """Have the output's latest run be this one, which is what is meant where no run is named."""
        self.output.write(LATEST, json.dumps({"run_id": self.run_id}).encode())

    def records(self, columns: list[str] | None = None) -> pa.Table:
        """The table of records.

        Raises:
            Damaged: there is none, or it is not as it was written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = self._kept.get(RECORDS)
        try:
            with pa.BufferReader(kept) if kept is not None else File(self.files, RECORDS).open() as file:
                if kept is None and file.size() <= KEPT_BYTES:
                    self._kept[RECORDS] = file.read()
                    file.seek(0)
                table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=columns)
        except FileNotFoundError:
            raise self._missing(RECORDS, NO_RECORDS_HINT) from None
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(RECORDS, str(error), NO_RECORDS_HINT) from None
        if lacking := set(columns or ()) - set(table.column_names):
            raise self._damaged(RECORDS, f"it has no column {min(lacking)!r}", NO_RECORDS_HINT)
        return table

    def check_records(self) -> None:
        """See that the table of records is as the plan notes it, where it has been read and kept.

        Raises:
            Damaged: it is not.
        """
        noted, kept = self.plan().get("files", {}).get(RECORDS), self._kept.get(RECORDS)
        if noted and kept is not None and (len(kept), zlib.crc32(kept)) != (noted["bytes"], noted["crc32"]):
            raise self._damaged(RECORDS, "it is not what was written with the plan", NO_RECORDS_HINT)

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
        """The function or the combine function, where the plan says that it travels by value.

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
        """A function that travels by value, of which the sha256 is known; None where there is none to be known.

        Raises:
            Damaged: the file is another one, which must not be unpickled.
        """
        if sha256 is None:
            return None
        hint = "Start a new run; or, in Python, give the function anew: open_run(...).retry(function=...)."
        try:
            data = self.files.read(f"{name}.pkl")
        except FileNotFoundError:
            raise self._missing(f"{name}.pkl", hint) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(f"{name}.pkl", "it is not the function that was sent", hint)
        return data

    def write_marker(self, marker: dict[str, Any]) -> None:
        """Commit a chunk: from here on it exists."""
        self.files.write(self._name_of(marker), documents.dump(marker))

    def _name_of(self, marker: dict[str, Any]) -> str:
        name = part_base(marker["chunk"], marker["attempt"], piece=marker.get("piece", 0)) + ".json"
        return f"{self.markers_of(marker['shard'])}/{name}"

    def remove_marker(self, marker: dict[str, Any]) -> None:
        """Take a chunk back."""
        self.files.remove(self._name_of(marker))

    def markers(self, shards: list[int] | None = None, *, damaged: list[str] | None = None) -> list[dict[str, Any]]:
        """All markers, of all attempts; or those of some shards only.

        A chunk whose marker is damaged is not done. The names of such markers are added to ``damaged``.
        """
        folders = ["markers"] if shards is None else [self.markers_of(shard) for shard in shards]
        names = [entry.key for name in folders for entry in self.files.entries(name)]
        return self._read_all(names, documents.MARKER, [] if damaged is None else damaged)

    def taken_over(self, shards: list[int] | None = None) -> list[dict[str, Any]]:
        """The markers of chunks that earlier runs have done, as the plan took them over."""
        if "taken_over.json" not in self._kept:
            try:
                self._kept["taken_over.json"] = self.files.read("taken_over.json")
            except FileNotFoundError:
                self._kept["taken_over.json"] = None
        kept, markers = self._kept["taken_over.json"], []
        if kept is not None:
            hint = "Start a new run, which computes again what this one had taken over."
            markers = self._parse("taken_over.json", kept, documents.TAKEN_OVER, hint)["markers"]
        return [marker for marker in markers if shards is None or marker["shard"] in shards]

    def of(self, run_id: str) -> Folder:
        """Another run's own folder, of the same output."""
        return RunFolder(self.output, run_id).files

    def result(self) -> dict[str, Any] | None:
        """The result, if the run has one; where it is damaged, from what describes the dataset, if that is the run's.

        Raises:
            Damaged: nothing else tells it.
        """
        try:
            return self._read_if_there("result.json", documents.RESULT)
        except Damaged as error:
            with contextlib.suppress(FileNotFoundError, Damaged):
                current = documents.parse(self.output.read(CURRENT), documents.RESULT)
                if current["run_id"] == self.run_id:
                    return current
            raise Damaged(
                error.message,
                hint="The dataset of today is not this run's, and needs nothing of it. To make that of this run again, "
                "delete the file and resume the run.",
            ) from None

    def heartbeats(self) -> list[dict[str, Any]]:
        """The heartbeats of all attempts, the oldest attempt first; those that cannot be read have no known state."""
        names = [entry.key for entry in self.files.entries("progress") if entry.key.endswith(".json")]
        beats = [self._beat(name, data) for name, data in zip(names, self.files.read_many(names), strict=True)]
        return sorted(beats, key=lambda beat: (int(beat["attempt"]), beat["started"]))

    @staticmethod
    def _beat(name: str, data: bytes) -> dict[str, Any]:
        try:
            beat = documents.parse(data, documents.BEAT)
            if all(datetime.datetime.fromisoformat(beat[time]).tzinfo for time in ("started", "at")):
                return beat
        except (Damaged, ValueError):
            pass
        shard, _, attempt = name.partition("/")[2].removesuffix(".json").rpartition("-")
        time = datetime.datetime.fromtimestamp(0, datetime.timezone.utc).isoformat()
        number = int(attempt) if attempt.isdecimal() else 0
        return {
            "shard": shard,
            "attempt": number,
            "state": UNKNOWN,
            "message": None,
            "started": time,
            "at": time,
        }

    def write_heartbeat(self, beat: dict[str, Any]) -> None:
        """Note how far an attempt is."""
        self.write(self._beat_key(beat), beat)

    def claim_attempt(self, beat: dict[str, Any]) -> bool:
        """Take an attempt's number by its first heartbeat; whether nobody else has it."""
        return self.files.write_if(self._beat_key(beat), documents.dump(beat, readable=True), {}) is not None

    @staticmethod
    def _beat_key(beat: dict[str, Any]) -> str:
        return f"progress/{beat['shard']}-{beat['attempt']:04d}.json"

    def next_attempt(self, shard: int | str = ALL_SHARDS) -> int:
        """A number higher than that of any attempt before at the shard; by default, at any."""
        names = [entry.key.partition("/")[2].removesuffix(".json") for entry in self.files.entries("progress")]
        attempts = [name.rsplit("-", 1) for name in names]
        mine = {str(shard), ALL_SHARDS}
        numbers = ((of, n) for of, n in (name for name in attempts if len(name) == 2) if n.isdecimal())
        return 1 + max((int(n) for of, n in numbers if shard == ALL_SHARDS or of in mine), default=0)

    def write(self, name: str, content: dict[str, Any]) -> bytes:
        """Write one of the JSON files, atomically; returns what it holds."""
        data = documents.dump(content, readable=True)
        self.files.write(name, data)
        return data

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files.

        Raises:
            Damaged: it is not there, or not as it was written.
        """
        content = self._read_if_there(name, {})
        if content is None:
            raise self._missing(name, "Start a new run.")
        return content

    def _missing(self, name: str, hint: str) -> Damaged:
        return Damaged(f"Run {self.run_id}: {self.uri}/{name} is not there.", hint=hint)

    def _damaged(self, name: str, why: str, hint: str) -> Damaged:
        return Damaged(f"Run {self.run_id}: {self.uri}/{name} is damaged: {why.rstrip('.')}.", hint=hint)

    def _read_if_there(self, name: str, shape: Any) -> dict[str, Any] | None:
        try:
            return self._parse(name, self.files.read(name), shape, "Start a new run.")
        except FileNotFoundError:
            return None

    def _read_all(self, names: list[str], shape: Any, damaged: list[str]) -> list[dict[str, Any]]:
        """The documents of these names, but for those that are damaged, whose names are added to those."""
        names = [name for name in names if name.endswith(".json")]
        found = []
        for name, data in zip(names, self.files.read_many(names), strict=True):
            try:
                found.append(self._parse(name, data, shape, ""))
            except Damaged:
                damaged.append(name)
        return found

    def _parse(self, name: str, data: bytes, shape: Any, hint: str) -> dict[str, Any]:
        try:
            return documents.parse(data, shape)
        except Damaged as error:
            raise self._damaged(name, error.message, hint) from None
        except WrittenByNewer as error:
            raise WrittenByNewer(
                f"Run {self.run_id}: {self.uri}/{name}: {error.message}.",
                hint="Use a version of shardkit that is at least as new as the one that wrote it.",
            ) from None

    def lock(self, busy: str = "") -> AbstractContextManager[Held]:
        """Keep other processes from working on the run; let go however the process ends.

        ``busy`` is what to say if another process holds it, where that is more than that it does.

        Raises:
            RunBusy: another process holds it.
        """
        return self.files.lock(LOCK, busy or f"Run {self.run_id} is being worked on by another process.")

    def is_locked(self) -> bool:
        """Whether a process works on the run now."""
        return self.files.is_locked(LOCK)


def _of_days(plan: dict[str, Any], days: Collection[str]) -> dict[str, Any]:
    """What is different in a plan for some of its days. What the run has dropped is gone, or has come back since."""
    of = {name: plan.get(name) or {} for name in ("partitions", "based_on")}
    some = {name: {day: told for day, told in known.items() if day in days} for name, known in of.items()}
    return some | {"dropped": []}


def runs_of(output: Folder) -> list[RunFolder]:
    """All runs of an output, the newest last."""
    folders = [RunFolder(output, name) for name in output.children(RUNS)]
    return sorted((f for f in folders if f.exists()), key=lambda f: (_created(f), f.run_id))


def _created(folder: RunFolder) -> str:
    """When a run was planned; nothing where its plan cannot be read, which does not keep others from being found."""
    with contextlib.suppress(Damaged, WrittenByNewer):
        return str(folder.plan()["created"])
    return ""


def run_folder(output: Folder, run_id: str) -> RunFolder:
    """The folder of a run, which may not exist yet.

    Raises:
        PipelineError: ``run_id`` cannot be a folder's name.
    """
    if not RUN_ID.fullmatch(run_id):
        raise PipelineError(
            f"run id {run_id!r} is not allowed.", hint="Use letters, digits, '.', '_' and '-', 63 characters at most."
        )
    return RunFolder(output, run_id)


def find_run(output: Folder, run_id: str | None = None) -> RunFolder:
    """The run with that id, or the output's latest.

    Raises:
        RunNotFound: there is none.
    """
    if run_id is not None and RUN_ID.fullmatch(run_id) and RunFolder(output, run_id).exists():
        return RunFolder(output, run_id)
    latest = latest_run(output)
    if latest is None:
        raise RunNotFound(
            f"{output.uri} holds no run of shardkit.", hint="Give the output of the pipeline, as in its YAML."
        )
    if run_id is None:
        return latest
    import difflib

    names = output.children(RUNS)
    near = difflib.get_close_matches(run_id, names, n=1)
    if run_id in names:
        raise RunNotFound(
            f"{output.uri} holds only remains of run {run_id}: it was cleaned away, or never planned to the end.",
            hint=f"Its rows cannot be had back but by a new run. The latest is {latest.run_id}.",
        )
    raise RunNotFound(
        f"{output.uri} holds no run {run_id}.",
        hint=f"Did you mean {near[0]}?" if near else f"Its latest is {latest.run_id}.",
    )


def latest_run(output: Folder) -> RunFolder | None:
    """The run that was planned, or retried, last; only where no note tells of it are all looked through."""
    try:
        name = documents.parse(output.read(LATEST), {"run_id": str})["run_id"]
        if RUN_ID.fullmatch(name) and (noted := RunFolder(output, name)).exists():
            return noted
    except (FileNotFoundError, Damaged):
        pass
    runs = runs_of(output)
    return runs[-1] if runs else None
