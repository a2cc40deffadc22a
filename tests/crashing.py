"""Shared by the tests of crash safety: a user's project in a folder, its commands as processes, and their ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
import warm

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
TESTS = Path(__file__).resolve().parent
LEASE_S = 1.0  # of the commands that are paused
PATIENCE_S = 60.0  # far more than anything here takes; ends a test that hangs


def wait_for(
    condition: Callable[[], Any], *, timeout_s: float = PATIENCE_S, every_s: float = 0.005, what: str = ""
) -> Any:
    """Wait until ``condition`` returns something true, and return it; one that takes long is asked less often."""
    deadline = time.monotonic() + timeout_s
    while True:
        begun = time.monotonic()
        if value := condition():
            return value
        ended = time.monotonic()
        assert ended < deadline, f"waited {timeout_s:g} s in vain for {what or condition}"
        time.sleep(max(every_s, min(4 * (ended - begun), 0.1)))


@dataclass
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON object, which must be all that stdout holds."""
        assert len(self.stdout.splitlines()) == 1, self.stdout
        loaded: dict[str, Any] = json.loads(self.stdout)
        return loaded


@dataclass
class Command:
    """A command that runs as a process group of its own, its output going to files."""

    process: subprocess.Popen[bytes] | warm.Forked
    stdout: Path
    stderr: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def family(self) -> list[int]:
        """The process and all its descendants."""
        return [self.pid, *descendants(self.pid)]

    def signal_group(self, number: int) -> None:
        """Send a signal to every process of the group, as a terminal does with Ctrl-C."""
        os.killpg(self.pid, number)

    def kill_all(self) -> None:
        """Kill the whole tree, as by kill -9."""
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        wait_for(lambda: not any(map(is_alive, family)), what="the end of all processes")

    def wait(self, *, timeout_s: float = PATIENCE_S) -> Done:
        """Wait for its end. If it does not come, the error shows what every thread was doing."""
        try:
            code = self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(timeout=10)
            raise AssertionError(f"it has not ended within {timeout_s:g} s\n{self.stderr.read_text()}") from None
        return Done(code, self.stdout.read_text(), self.stderr.read_text())


class Project:
    """A user's folder: ``data/`` with one small file a record, a module ``work.py``, and ``out/``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.out = root / "out"
        self.data.mkdir(parents=True)
        self._commands = 0

    def write_records(self, contents: Mapping[str, str] | Iterable[str]) -> None:
        """Write the input: contents by key, or contents that are given keys in order."""
        by_key = contents if hasattr(contents, "items") else {f"r{i:03d}.txt": text for i, text in enumerate(contents)}
        for key, text in by_key.items():
            (self.data / key).write_text(text)

    def write_function(self, source: str) -> None:
        """Write ``work.py``, which holds the user's function ``features``."""
        (self.root / "work.py").write_text(source)

    def run(self, *, function: str = "work:features", **fields: Any) -> sk.Run:
        """Run the pipeline in this process."""
        fields = {"quiet": True, "source_dir": self.root} | fields
        return sk.run(function, self.data, self.out, **fields)

    def run_arguments(self, **options: Any) -> list[str]:
        """The command line that runs the pipeline."""
        options = {
            "function": "work:features",
            "source_dir": self.root,
            "input": self.data,
            "output": self.out,
        } | options
        pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
        return ["run", *(text for pair in pairs for text in pair)]

    def start(self, *arguments: object, code: str | None = None, **options: Any) -> Command:
        """Start a command of the program, or with ``code`` Python code that has the arguments in ``sys.argv``."""
        self._commands += 1
        stdout, stderr = (self.root / f"{name}-{self._commands}" for name in ("stdout", "stderr"))
        program = ["-m", "shardkit"] if code is None else ["-c", code]
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = warm.start(
                [*program, *map(str, arguments)],
                cwd=self.root,
                env=environment(),
                stdout=out,
                stderr=err,
                start_new_session=True,
                **options,
            )
        return Command(process, stdout, stderr)

    def command(self, *arguments: object, expect: int = 0, **options: Any) -> Done:
        """Run a command of the program to its end, which must have the exit code ``expect``."""
        done = self.start(*arguments, **options).wait()
        assert done.code == expect, f"exit code {done.code}\n{done.stdout}\n{done.stderr}"
        return done

    def rows(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """The rows of a run's dataset, in order."""
        return rows_of(sk.open_run(self.out, run_id))

    def data_files(self) -> list[str]:
        """The dataset's folder as any other program sees it: all files except shardkit's own."""
        paths = (p.relative_to(self.out) for p in self.out.rglob("*") if p.is_file())
        return sorted(str(p) for p in paths if p.parts[0] != "_shardkit")

    def run_folder(self) -> Path:
        """The folder of the only run."""
        (folder,) = (self.out / "_shardkit" / "runs").iterdir()
        return folder

    def markers(self) -> list[Path]:
        """The markers of the only run."""
        return sorted(self.run_folder().glob("markers/*/*.json"))


def rows_of(run: sk.Run) -> list[dict[str, Any]]:
    """The rows of a run's dataset, in order."""
    rows: list[dict[str, Any]] = run.dataset().to_table(use_threads=False).to_pylist()
    return rows


def folder_rows(output: Path) -> list[dict[str, Any]]:
    """The rows of all Parquet files in a dataset's folder, whoever wrote them."""
    files = sorted(p for p in output.rglob("*.parquet") if "_shardkit" not in p.parts)
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a command, without what describes the test runner's terminal."""
    return os.environ | {"COLUMNS": "120", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | extra


def check_ledger(run: sk.Run) -> sk.Summary:
    """Check that a finished run's ledger balances; returns its summary."""
    summary = run.summary()
    counts = summary.records
    assert counts["listed"] == counts["done"] + counts["quarantined"] + counts["skipped"]
    assert len(run.failures()) == counts["quarantined"]
    return summary


def descendants(pid: int) -> list[int]:
    """The descendants of ``pid``, according to /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            parents.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def _parent(entry: Path) -> int | None:
    with contextlib.suppress(OSError):
        state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        return int(parent) if state != "Z" else None
    return None


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    return _parent(Path(f"/proc/{pid}")) is not None


def start_pausing(project: Project, kind: str, step: int, *arguments: object) -> Command:
    """Start a command that stops itself before a step: see ``pausing.py``."""
    code = f"import runpy; runpy.run_path({str(TESTS / 'pausing.py')!r}, run_name='__main__')"
    return project.start(kind, step, project.root / "steps", *arguments, code=code)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:  # it has ended
        return False
    return text.rpartition(")")[2].split()[0] == "T"


def stops(command: Command) -> bool:
    """Wait until a command has stopped itself; False if it has ended before."""
    wait_for(lambda: is_stopped(command.pid) or command.process.poll() is not None, what="the pause")
    return command.process.poll() is None


def wait_until_paused(command: Command) -> bool:
    """The same; it is then paused for as long as a lease lasts."""
    if not stops(command):
        return False
    time.sleep(LEASE_S)
    return True


def go_on(command: Command) -> Done:
    """Let a command that is paused go on to its end."""
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.kill(command.pid, signal.SIGCONT)
    return command.wait()


@contextlib.contextmanager
def dying(command: Command) -> Iterator[Command]:
    """Make sure that nothing of a command outlives the block."""
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.kill_all()
