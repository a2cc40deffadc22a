"""Shared by the tests of runs on an engine: a user's project whose passes are jobs of the local engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

from crashing import Command, Project, wait_for

import shardkit as sk
from shardkit.engines.jobfiles import JobFiles

if TYPE_CHECKING:
    from pathlib import Path

# Notes each call; a record whose file says so waits for a file named gate, or fails until one named mended is there.
TRACED = """
import os, time
from pathlib import Path
ROOT = Path({root!r})

def features(record):
    (ROOT / "calls" / f"{{record.key.replace('/', '+')}} {{os.getpid()}} {{time.monotonic_ns()}}").touch()
    text = Path(record).read_text()
    while text.startswith("wait") and not (ROOT / "gate").exists():
        time.sleep(0.005)
    if text.startswith("bad") and not (ROOT / "mended").exists():
        raise ValueError(f"cannot make sense of {{record.key}}")
    if text.startswith("slow"):
        time.sleep(0.05)
    return [{{"key": record.key, "row": i, "text": text}} for i in range(2)]
"""
RUN = """
import sys, json
import shardkit as sk
root, fields = sys.argv[1], json.loads(sys.argv[2])
sk.Pipeline(**fields).run(sk.Local(root=root, max_instances=4), quiet=True)
"""


class JobProject(Project):
    """A project with records in folders ``a``, ``b`` and ``c``, and an engine of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (root / "calls").mkdir()
        self.engine_root = root / "engine"
        self.code = root / "code"
        self.code.mkdir()
        self.write_function(TRACED.format(root=str(root)))

    def write_function(self, source: str) -> None:
        (self.code / "work.py").write_text(source)

    def write_groups(self, *texts: str, groups: str = "abc") -> None:
        """Write the same records into each group."""
        for group in groups:
            (self.data / group).mkdir(exist_ok=True)
            for i, text in enumerate(texts):
                (self.data / group / f"r{i}.txt").write_text(text)

    def local(self, **settings: Any) -> sk.Local:
        return sk.Local(**{"root": self.engine_root, "max_instances": 4} | settings)

    def fields(self, **fields: Any) -> dict[str, Any]:
        return {
            "function": "work:features",
            "source_dir": str(self.code),
            "input": str(self.data),
            "output": str(self.out),
            "name": "work",
            "shards": {"by": "directory"},
            "requirements_mode": "none",
        } | fields

    def run_jobs(self, *, run_id: str | None = None, wait: bool = True, engine: Any = None, **fields: Any) -> sk.Run:
        """Run the pipeline as jobs."""
        pipeline = sk.Pipeline(**self.fields(**fields))
        return pipeline.run(engine or self.local(), run_id=run_id, quiet=True, wait=wait)

    def start_driver(self, *, before: str = "", **fields: Any) -> Command:
        """Run the pipeline as jobs from another process, which first runs the code ``before``."""
        return self.start(self.engine_root, json.dumps(self.fields(**fields)), code=before + RUN)

    def calls(self) -> list[str]:
        """The keys of the records with which the function has been called so far."""
        return [path.name.split()[0].replace("+", "/") for path in (self.root / "calls").iterdir()]

    def forget_calls(self) -> None:
        for path in (self.root / "calls").iterdir():
            path.unlink()

    def wait_for_calls(self, *keys: str) -> None:
        wait_for(lambda: set(keys) <= set(self.calls()), what=f"calls with {keys}")

    def wait_for_run(self) -> sk.Run:
        """Wait until a run is planned."""
        wait_for(lambda: list(self.out.glob("_shardkit/runs/*/plan.json")), what="a plan")
        return sk.open_run(self.out)

    def expected(self) -> list[tuple[str, int]]:
        """The keys in the dataset's rows, if all records are good."""
        keys = sorted(p.relative_to(self.data).as_posix() for p in self.data.rglob("*.txt"))
        return [(key, i) for key in keys for i in range(2)]

    def keys_and_rows(self, run: sk.Run | None = None) -> list[tuple[str, int]]:
        table = (run or sk.open_run(self.out)).dataset().to_table(columns=["key", "row"])
        return sorted((row["key"], row["row"]) for row in table.to_pylist())

    def open_gate(self) -> None:
        (self.root / "gate").touch()

    def mend(self) -> None:
        (self.root / "mended").touch()

    def supervisors(self) -> dict[str, int]:
        """The supervisor processes of the running jobs, by the jobs' names."""
        pids = {}
        for root in (self.engine_root, self.engine_root / "training"):
            live = root / "live"
            names = sorted(path.name for path in live.iterdir()) if live.is_dir() else []
            pids |= {name: JobFiles(str(root), name).supervisor() for name in names}
        return {name: pid for name, pid in pids.items() if pid}

    def end(self) -> None:
        """End all jobs, so that none outlives the test."""
        for pid in self.supervisors().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def files_with(self, text: str) -> list[Path]:
        """The files of the output and of the engine that hold a text."""
        paths = [path for top in (self.out, self.engine_root) for path in top.rglob("*") if path.is_file()]
        return [path for path in paths if text.encode() in path.read_bytes()]
