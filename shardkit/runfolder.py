"""The run folder: everything that a run knows about itself.

    <output>/_shardkit/runs/<run id>/
        plan.json                                  immutable: the pipeline, its digests, the shards
        records.parquet                            immutable: every record with its shard and chunk
        function.pkl, combine.pkl                  the functions, where they travel by value
        parts/<shard>/<chunk>-<attempt>.parquet    rows
        markers/<shard>/<chunk>-<attempt>.json     commits a chunk: parts, rows, bytes, seconds, records, quarantine
        progress/<shard>-<attempt>.json            heartbeat of an attempt at a shard ("all": of every shard)
        lock                                       held by the process that works on the run
        commit.json                                the dataset's switch in progress
        result.json                                written last, by pass 2

Status, report, retry and resume are functions of these files alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, RunBusy, RunNotFound, StorageError
from shardkit.storage import write_bytes, writing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

STATE_DIR = "_shardkit"
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def part_base(chunk: int, attempt: int, *, alone: int | None = None) -> str:
    """The name, without suffix, of a chunk's parts; ``alone`` marks those of one record run by itself."""
    return f"{chunk:06d}-{attempt:04d}" + (f"-{alone}" if alone is not None else "")


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run's files; has no state of its own."""

    path: Path

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def output(self) -> Path:
        """The folder of the dataset."""
        return self.path.parent.parent.parent

    @property
    def arguments(self) -> str:
        """How the run is named on the command line."""
        return f"{shlex.quote(str(self.output))} --run-id {self.run_id}"

    def parts_of(self, shard: int) -> Path:
        """The folder of one shard's parts."""
        return self.path / "parts" / f"{shard:05d}"

    def markers_of(self, shard: int) -> Path:
        """The folder of one shard's markers."""
        return self.path / "markers" / f"{shard:05d}"

    def exists(self) -> bool:
        """Whether the run was planned to the end: without a plan there is no run."""
        return (self.path / "plan.json").is_file()

    def plan(self) -> dict[str, Any]:
        """The plan, as it was written."""
        return self.read("plan.json")

    def write_plan(self, plan: dict[str, Any], records: pa.Table, pickled: bytes | None) -> None:
        """Write the immutable files, the plan last."""
        import pyarrow.parquet as pq

        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = self.path / ".records.parquet"
            pq.write_table(records, temporary, compression="zstd", compression_level=1, write_statistics=False)
            os.replace(temporary, self.path / "records.parquet")
        self.write_pickled("function", pickled)
        self.write("plan.json", plan)

    def records(self, columns: list[str] | None = None) -> pa.Table:
        """The table of records."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.path / "records.parquet").read(columns=columns)

    def write_pickled(self, name: str, pickled: bytes | None) -> None:
        """Keep a function that travels by value."""
        if pickled is not None:
            write_bytes(self.path / f"{name}.pkl", pickled)

    def pickled(self, name: str) -> bytes | None:
        """The function or the combine function, where it travels by value."""
        path = self.path / f"{name}.pkl"
        return path.read_bytes() if path.exists() else None

    def write_marker(self, marker: dict[str, Any]) -> None:
        """Commit a chunk: from here on it exists."""
        name = part_base(marker["chunk"], marker["attempt"]) + ".json"
        write_bytes(self.markers_of(marker["shard"]) / name, json.dumps(marker).encode())

    def markers(self) -> list[dict[str, Any]]:
        """All markers, of all attempts."""
        paths = sorted((self.path / "markers").glob("*/*.json"))
        return [self.read(os.path.relpath(path, self.path)) for path in paths if not path.name.startswith(".")]

    def result(self) -> dict[str, Any] | None:
        """The result, if the run has one."""
        return self.read("result.json") if (self.path / "result.json").exists() else None

    def heartbeats(self) -> list[dict[str, Any]]:
        """The heartbeats of all attempts, the oldest attempt first."""
        beats = [self.read(os.path.relpath(p, self.path)) for p in (self.path / "progress").glob("*.json")]
        return sorted(beats, key=lambda beat: int(beat["attempt"]))

    def write_heartbeat(self, beat: dict[str, Any]) -> None:
        """Note how far an attempt is."""
        self.write(f"progress/{beat['shard']}-{beat['attempt']:04d}.json", beat)

    def next_attempt(self) -> int:
        """A number higher than that of any attempt before."""
        return 1 + max((int(beat["attempt"]) for beat in self.heartbeats()), default=0)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write one of the JSON files, atomically."""
        write_bytes(self.path / name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files."""
        path = self.path / name
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"Run {self.run_id}: cannot read {path}: {error}.") from error
        return content

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes of this machine from working on the run; let go however the process ends.

        Raises:
            RunBusy: another process holds it.
        """
        with lock_file(self.path / "lock", f"Run {self.run_id} is being worked on by another process."):
            yield

    def is_locked(self) -> bool:
        """Whether a process of this machine works on the run now."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


@contextlib.contextmanager
def lock_file(path: Path, busy: str) -> Iterator[None]:
    """Hold an advisory lock on ``path``; the system lets go of it when the process ends, however it ends."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, busy)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, busy: str) -> None:
    # Whoever only looks whether it is locked holds it too, for a moment.
    for patience_s in (0.02, 0.05, 0.1, 0.0):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(patience_s)
        else:
            return
    raise RunBusy(busy, hint="Wait for it to end, or stop it first.")


def runs_of(output: Path) -> list[RunFolder]:
    """All runs of an output, the newest last."""
    folders = [RunFolder(p) for p in (output / STATE_DIR / "runs").glob("*")]
    return sorted((f for f in folders if f.exists()), key=lambda f: (f.plan()["created"], f.run_id))


def run_folder(output: Path, run_id: str) -> RunFolder:
    """The folder of a run, which may not exist yet.

    Raises:
        PipelineError: ``run_id`` cannot be a folder's name.
    """
    if not RUN_ID.fullmatch(run_id):
        raise PipelineError(
            f"run id {run_id!r} is not allowed.", hint="Use letters, digits, '.', '_' and '-', 63 characters at most."
        )
    return RunFolder(output / STATE_DIR / "runs" / run_id)


def find_run(output: Path, run_id: str | None = None) -> RunFolder:
    """The run with that id, or the output's latest.

    Raises:
        RunNotFound: there is none.
    """
    runs = runs_of(output)
    if not runs:
        raise RunNotFound(
            f"{output} holds no run of shardkit.", hint="Give the output of the pipeline, as in its YAML."
        )
    if run_id is None:
        return runs[-1]
    found = next((run for run in runs if run.run_id == run_id), None)
    if found is None:
        import difflib

        near = difflib.get_close_matches(run_id, [run.run_id for run in runs], n=1)
        raise RunNotFound(
            f"{output} holds no run {run_id}.",
            hint=f"Did you mean {near[0]}?" if near else f"Its latest is {runs[-1].run_id}.",
        )
    return found
