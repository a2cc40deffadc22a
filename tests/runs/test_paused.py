"""A process that was paused for longer than its locks last does no harm when it goes on, at whichever step it was."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from crashing import LINUX, Project, dying, wait_for
from emulators import s3_client

import shardkit as sk
from shardkit.dataset import next_state as building
from shardkit.dataset import switch as commit
from shardkit.dataset import switch_steps as switching
from shardkit.dataset.current import current_result
from shardkit.dataset.switch import COMMIT
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import REMOVED
from shardkit.storage import lease, locks
from shardkit.storage.base import STATE_DIR
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.open import folder as folder_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from shardkit.storage.base import Folder

WHOLE = pytest.mark.whole
WORK = """
import time
from pathlib import Path
ROOT = Path(__file__).parent

def features(record):
    version = (ROOT / "version").read_text()
    bad = ROOT / "bad"
    if bad.exists() and bad.read_text() in record.key:
        raise ValueError("bad")
    if (ROOT / "slow").exists():
        time.sleep(0.3)
    return [{"key": record.key, "version": version, "row": i} for i in range(2)]

def held(frame):
    import os, signal
    if (ROOT / "pause").exists():
        (ROOT / "pause").unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
    return frame
"""
RECORDS, FILES = 4, 2
# What a switch from two files to two others consists of.
STEPS = ["create", "confirm", *["publish"] * FILES, "result", "current", *["remove"] * FILES, "tidy", "forget"]


class Output:
    """A dataset on disk or in S3, with what the tests do to it without shardkit."""

    def __init__(self, project: Project, uri: str) -> None:
        self.project, self.uri = project, uri
        self.folder: Folder = folder_at(uri)

    def fields(self, run_id: str, **more: Any) -> dict[str, Any]:
        self.set_version(run_id)
        return {
            "source_dir": self.project.root,
            "workers": 1,
            "rows_per_file": RECORDS * 2 // FILES,
            "quiet": True,
            "run_id": run_id,
        } | more

    def set_version(self, version: str) -> None:
        (self.project.root / "version").write_text(version)

    def run(self, run_id: str, **more: Any) -> sk.Run:
        return sk.run("work:features", self.project.data, self.uri, name="paused", **self.fields(run_id, **more))

    def break_locks(self) -> None:
        """End the locks of a paused process, as leases end by themselves."""
        if isinstance(self.folder, LocalFolder):
            for path in self.folder.root.glob(f"{STATE_DIR}/**/*lock"):
                path.unlink()

    def files(self) -> list[str]:
        return [entry.key for entry in self.folder.entries() if not entry.key.startswith(f"{STATE_DIR}/")]

    def rows(self) -> Counter[tuple[str, str, int]]:
        tables = [pq.read_table(io.BytesIO(self.folder.read(key)), partitioning=None) for key in self.files()]
        rows = [row for table in tables for row in table.to_pylist()]
        return Counter((row["key"], row["version"], row["row"]) for row in rows)

    def check_is(self, version: str) -> None:
        """Check that the dataset is that version, for shardkit's readers and for all others."""
        sk.open_run(self.uri)  # what is half-done is finished by any command
        assert self.rows() == Counter((f"r{i:03d}.txt", version, row) for i in range(RECORDS) for row in range(2))
        result = current_result(self.folder)
        assert result is not None
        assert sorted(file["path"] for file in result["files"]) == sorted(self.files())
        assert not self.folder.exists(COMMIT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose output holds the first version."""
    project = Project(tmp_path_factory.mktemp("paused") / "project")
    project.write_function(WORK)
    project.write_records(["x"] * RECORDS)
    Output(project, str(project.out)).run("first")
    return project.root


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Output:
    root = tmp_path / "project"
    shutil.copytree(made, root)
    project = Project.__new__(Project)
    project.__dict__.update(root=root, data=root / "data", out=root / "out", _commands=0)
    if request.param == "disk":
        return Output(project, str(project.out))
    credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for variable, value in (credentials | {"AWS_ENDPOINT_URL": request.getfixturevalue("s3_url")}).items():
        monkeypatch.setenv(variable, value)
    name = f"paused-{os.getpid()}-{time.monotonic_ns()}"
    s3_client(request.getfixturevalue("s3_url"), "us-east-1").create_bucket(Bucket=name)
    there = folder_at(f"s3://{name}/out")
    for entry in LocalFolder(project.out).entries():
        there.put_file(project.out / entry.key, entry.key)
    shutil.rmtree(project.out)
    return Output(project, f"s3://{name}/out")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that end soon and are renewed only by their holder's own steps, as if it were paused."""
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    monkeypatch.setattr(lease, "LEASE_RENEWAL_S", 1000.0)


class Pause:
    """Pauses the switch of one process before its n-th step, while ``meanwhile`` goes by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, meanwhile: Callable[[], object]) -> None:
        self._step, self._meanwhile, self._one = step, meanwhile, threading.Lock()
        self.steps: list[str] = []
        self._within = self.over = False
        for where, name, step_name in (
            (commit, "note", "create"),
            (switching.Switch, "confirm", "confirm"),
            (switching, "_publish", "publish"),
            (switching.Switch, "_write_result", "result"),
            (switching, "note", "current"),
            (switching, "remove", "remove"),
            (switching, "_tidy", "tidy"),
            (switching.Switch, "forget", "forget"),
        ):
            monkeypatch.setattr(where, name, self._hooked(getattr(where, name), step_name))
        monkeypatch.setattr(building, "switch", self._switching(commit.switch))

    def _switching(self, switch: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            if self.over or self._within:
                return switch(*arguments, **options)
            self._within = True
            try:
                return switch(*arguments, **options)
            finally:
                self._within = False

        return instead

    def _hooked(self, do: Callable[..., Any], name: str) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            with self._one:
                reached = self._within and not self.over
                if reached:
                    self.steps.append(name)
                    self.over = len(self.steps) == self._step
            if reached and self.over:
                time.sleep(0.5)
                self._meanwhile()
            return do(*arguments, **options)

        return instead


def blinded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a machine that was stopped as a whole: no clock and no thread shows that time has passed."""
    for kind in (lease.Lease, locks.FileLock):
        monkeypatch.setattr(kind, "check", lambda *_, **__: None)
        monkeypatch.setattr(kind, "lost", None)


def meanwhile_of(output: Output, monkeypatch: pytest.MonkeyPatch, view: str, act: Callable[[], object]) -> Any:
    def meanwhile() -> None:
        output.break_locks()
        act()
        if view == "blind":
            blinded(monkeypatch)

    return meanwhile


def lost_or_done(run: Callable[[], object], *, done_is_fine: bool) -> None:
    """Check that a paused process ends with a clear message, unless it had done all that matters."""
    try:
        run()
    except sk.LockLost as lost:
        told = str(lost)
    else:
        told = "" if done_is_fine else "it ended as if nothing had been"
    assert not told or "paused" in told or "removed while it worked" in told


OFTEN = {("seeing", 1), ("seeing", 6), ("blind", 1), ("blind", 3)}
GRID = [
    pytest.param(view, step, marks=() if (view, step) in OFTEN else WHOLE, id=f"{view}-{step}-{STEPS[step - 1]}")
    for view in ("seeing", "blind")
    for step in range(1, len(STEPS) + 1)
]


@pytest.mark.whole
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("view", "step"), GRID)
def test_another_run_replaces_the_dataset_meanwhile(
    output: Output, view: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile = meanwhile_of(output, monkeypatch, view, lambda: output.run("third"))
    pause = Pause(monkeypatch, step, meanwhile)
    switched = step > STEPS.index("current") + 1  # then it had done its work before it was replaced
    lost_or_done(lambda: output.run("second"), done_is_fine=view == "blind" and switched)
    assert pause.over, pause.steps
    output.check_is("third")


@WHOLE
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("view", "step"), GRID)
def test_the_same_run_is_resumed_meanwhile(
    output: Output, view: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"output.rows_per_file": 3}
    act = lambda: sk.open_run(output.uri, "second").resume(quiet=True, **again)  # noqa: E731
    Pause(monkeypatch, step, meanwhile_of(output, monkeypatch, view, act))
    switched = step > STEPS.index("current") + 1
    lost_or_done(lambda: output.run("second"), done_is_fine=view == "blind" and switched)
    output.check_is("second")
    assert len(output.files()) == 3  # as the one that was not paused has made them


@pytest.mark.whole
def test_a_switch_has_these_steps(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Pause(monkeypatch, 99, lambda: None)
    output.run("second")
    output.check_is("second")
    steps = pause.steps
    after = STEPS.index("current") + 1
    assert [*steps[:after], *sorted(steps[after:-1]), steps[-1]] == STEPS


def start(output: Output, command: str, *arguments: str) -> Any:
    code = (
        "import sys, shardkit.storage.lease as l\n"
        "l.LEASE_S, l.LEASE_RENEWAL_S = 1.0, 0.2\n"
        "from shardkit.cli.app import main\n"
        "main(sys.argv[1:])"
    )
    return output.project.start(command, *arguments, code=code)


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


@pytest.mark.whole
@LINUX
def test_a_command_that_was_stopped_ends_with_a_clear_word(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    (output.project.root / "pause").touch()
    output.set_version("second")
    arguments = ["--function", "work:features", "--combine", "work:held", "--input", str(output.project.data)]
    arguments += ["--output", output.uri, "--run-id", "second", "--name", "paused", "--workers", "1", "--quiet"]
    with dying(start(output, "run", *arguments)) as command:
        wait_for(lambda: is_stopped(command.pid), what="the pause")
        time.sleep(1.0)  # as long as a lease lasts
        output.break_locks()
        output.run("third", combine="work:held")
        os.kill(command.pid, signal.SIGCONT)
        done = command.wait()
    assert done.code == 1
    assert "lost its l" in done.stderr
    assert "Traceback" not in done.stderr
    output.check_is("third")
    assert sk.open_run(output.uri, "second").summary().status == "failed"
    sk.open_run(output.uri, "second").resume(quiet=True)
    output.check_is("second")


@pytest.mark.whole
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("at", ["first", "second"])
def test_a_run_that_is_gone_on_with_while_clean_is_paused_keeps_its_folder(
    output: Output, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (output.project.root / "bad").touch()
    with pytest.raises(sk.BudgetExceeded):
        output.run("second", max_failures=0)
    (output.project.root / "bad").unlink()
    output.run("third")
    write, meanwhile = RunFolder.write, [lambda: sk.open_run(output.uri, "second").retry(quiet=True)]

    def paused(self: RunFolder, name: str, content: dict[str, Any]) -> bytes:
        if meanwhile and name == REMOVED and self.run_id == at:
            time.sleep(0.5)
            output.break_locks()
            output.set_version("second")
            meanwhile.pop()()
        return write(self, name, content)

    monkeypatch.setattr(RunFolder, "write", paused)
    lost = at == "second" or isinstance(output.folder, LocalFolder)  # otherwise nobody wanted the lock
    with pytest.raises(sk.LockLost) if lost else contextlib.nullcontext():
        sk.clean(output.uri, unfinished=True)
    assert not meanwhile
    assert sk.open_run(output.uri, "second").summary().status == "done"
    output.check_is("second")


@pytest.mark.whole
@LINUX
def test_a_driver_that_was_stopped_in_pass_1_ends_and_what_its_workers_wrote_counts_once(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    slow = output.project.root / "slow"
    slow.touch()
    output.set_version("second")
    arguments = ["--function", "work:features", "--input", str(output.project.data), "--output", output.uri]
    arguments += ["--run-id", "second", "--name", "paused", "--workers", "1", "--quiet", "--chunks", "dynamic"]
    with dying(start(output, "run", *arguments, "--rows-per-file", str(RECORDS * 2 // FILES))) as command:
        run = RunFolder(output.folder, "second")
        wait_for(run.markers, what="a marker")
        os.kill(command.pid, signal.SIGSTOP)
        time.sleep(1.0)
        output.break_locks()
        slow.unlink()
        sk.open_run(output.uri, "second").resume(quiet=True)
        os.kill(command.pid, signal.SIGCONT)
        done = command.wait()
    assert done.code == 1
    assert "lost its l" in done.stderr and "Traceback" not in done.stderr
    output.check_is("second")
    assert sk.open_run(output.uri, "second").summary().records["done"] == RECORDS


DAY_STEPS = ["create", "confirm", "publish", "result", "current", "remove", "tidy", "forget"]


@pytest.mark.whole
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("step", [2, *(pytest.param(step, marks=WHOLE) for step in (1, 3, 4, 5, 6, 7, 8))])
def test_a_day_is_made_anew_while_the_run_that_makes_it_is_paused(
    output: Output, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = output.project.root / "days"
    for day in ("2020-01-01", "2020-01-02"):
        (root / day).mkdir(parents=True)
        (root / day / "a.txt").write_text("x")
    output.uri += "-days"
    output.project.out = output.project.root / "out-days"
    output.folder = folder_at(output.uri)

    def make(run_id: str, *days: str) -> None:
        shards = {"by": "date", "path": "{Y}-{m}-{d}"}
        fields = output.fields(run_id, shards=shards, incremental=False, name="paused")
        quiet = {"run_id": fields.pop("run_id"), "quiet": fields.pop("quiet")}
        rows = fields.pop("rows_per_file")
        target = {"uri": output.uri, "rows_per_file": rows}
        sk.Pipeline(function="work:features", input=root, output=target, **fields).run(days=list(days) or None, **quiet)

    make("first")
    meanwhile = meanwhile_of(output, monkeypatch, "seeing", lambda: make("third", "2020-01-01", "2020-01-02"))
    pause = Pause(monkeypatch, step, meanwhile)
    with pytest.raises(sk.LockLost):
        make("second", "2020-01-01")
    assert pause.over, pause.steps
    sk.open_run(output.uri)
    expected = {(f"{day}/a.txt", "third", row) for day in ("2020-01-01", "2020-01-02") for row in range(2)}
    assert output.rows() == Counter(expected)
