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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from crashing import LINUX, Project, dying, is_stopped, wait_for
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
    from collections.abc import Iterator
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
    """A dataset on disk, in S3 or in memory, with what the tests do to it without shardkit."""

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

    def switch_to(self, run_id: str) -> None:
        """Make the dataset that of another run, of which only the switch may be left to do."""
        if RunFolder(self.folder, run_id).exists():
            sk.open_run(self.uri, run_id).resume(quiet=True)
        else:
            self.run(run_id)

    def break_locks(self) -> None:
        """End the locks of a paused process. Leases end by themselves; nobody takes one as long as it is fresh."""
        if not isinstance(self.folder, LocalFolder):
            time.sleep(lease.LEASE_S * 1.1)
            return
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


class Stopped(Exception):
    """A run was stopped before its switch."""


@contextlib.contextmanager
def stopped_before_its_switch() -> Iterator[None]:
    """Stop the run of the block when it is about to switch the dataset."""

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(building, "switch", stop)
        with pytest.raises(Stopped):
            yield


Prepare = Callable[[Output], object]


class Worlds:
    """A project in one place, which runs keep in mind, as it is when it has been prepared in one way or another."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._project = folder, Project(folder / "project")
        self._copies: dict[Prepare, Path] = {}

    def make(self, prepare: Prepare) -> Project:
        """Bring the project back to what it is when it has been prepared so."""
        project = self._project
        shutil.rmtree(project.root)
        if prepare in self._copies:
            shutil.copytree(self._copies[prepare], project.root)
            return project
        project.data.mkdir(parents=True)
        project.write_function(WORK)
        project.write_records(["x"] * RECORDS)
        prepare(Output(project, str(project.out)))
        self._copies[prepare] = self._folder / prepare.__name__
        shutil.copytree(project.root, self._copies[prepare])
        return project


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    return Worlds(tmp_path_factory.mktemp("paused"))


def first(output: Output) -> None:
    """Make the first version."""
    output.run("first")


def ready(output: Output) -> None:
    """Have two further runs do all but their switch."""
    output.run("first")
    for run_id in ("second", "third"):
        with stopped_before_its_switch():
            output.run(run_id)


def unfinished(output: Output) -> None:
    """Have a run fail, and another one replace the first version."""
    output.run("first")
    (output.project.root / "bad").touch()
    with pytest.raises(sk.BudgetExceeded):
        output.run("second", max_failures=0)
    (output.project.root / "bad").unlink()
    output.run("third")


@pytest.fixture(params=["disk", "s3"])
def output(request: pytest.FixtureRequest, worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> Output:
    """An output that holds the first version, or one that is prepared otherwise: see ``at``."""
    place, prepare = request.param if isinstance(request.param, tuple) else (request.param, first)
    project = worlds.make(prepare)
    if place == "disk":
        return Output(project, str(project.out))
    name = f"paused-{os.getpid()}-{time.monotonic_ns()}"
    if place == "s3":
        url = request.getfixturevalue("s3_url")
        credentials = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for variable, value in (credentials | {"AWS_ENDPOINT_URL": url}).items():
            monkeypatch.setenv(variable, value)
        s3_client(url, "us-east-1").create_bucket(Bucket=name)
    uri = f"{place}://{name}/out"
    there = folder_at(uri)
    for entry in LocalFolder(project.out).entries():
        there.put_file(project.out / entry.key, entry.key)
    shutil.rmtree(project.out)
    return Output(project, uri)


def at(place: str, prepare: Prepare, *more: Any) -> Any:
    """A case with an output there that is prepared. The memory stands for S3: only the client is another one."""
    return pytest.param((place, prepare), *more, id="-".join(map(str, [place, *more])))


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


def cases(steps: dict[tuple[str, str], tuple[int, ...]]) -> list[Any]:
    """The cases of a sweep: where, whether the paused process can see that time has passed, and at which step.

    In S3 the runs begin anew. Elsewhere they are ready to switch.
    """
    return [
        pytest.param(
            (place, first if place == "s3" else ready), view, step, id=f"{place}-{view}-{step}-{STEPS[step - 1]}"
        )
        for (place, view), some in steps.items()
        for step in some
    ]


# Each kind of step. A process that sees it ends at the next look at its lock, which is the same wherever the output is;
# of one that is blind, the store has to refuse each write.
EACH = (1, 2, 3, 5, 6, 7, 9, 10)
REPLACED = {
    ("disk", "seeing"): EACH,
    ("disk", "blind"): (1, 2, 4, 5, 6, 8, 9, 10),  # the other one of its two files
    ("memory", "seeing"): (2, 6, 10),
    ("memory", "blind"): EACH,
    ("s3", "seeing"): (6,),
    ("s3", "blind"): (1, 3, 6, 10),  # those that only another client could do otherwise
}
# Here the result of the run and what it has staged are another process's, too.
RESUMED = {
    ("disk", "seeing"): (1, 6),
    ("disk", "blind"): EACH,
    ("memory", "seeing"): (7,),
    ("memory", "blind"): (1, 2, 4, 5, 6, 8, 9, 10),
    ("s3", "seeing"): (1,),
    ("s3", "blind"): (3, 5),
}


@pytest.mark.whole
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("output", "view", "step"), cases(REPLACED), indirect=["output"])
def test_another_run_replaces_the_dataset_meanwhile(
    output: Output, view: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile = meanwhile_of(output, monkeypatch, view, lambda: output.switch_to("third"))
    pause = Pause(monkeypatch, step, meanwhile)
    switched = step > STEPS.index("current") + 1  # then it had done its work before it was replaced
    lost_or_done(lambda: output.switch_to("second"), done_is_fine=view == "blind" and switched)
    assert pause.over, pause.steps
    output.check_is("third")


@pytest.mark.whole
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("output", "view", "step"), cases(RESUMED), indirect=["output"])
def test_the_same_run_is_resumed_meanwhile(
    output: Output, view: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {"output.rows_per_file": 3}
    act = lambda: sk.open_run(output.uri, "second").resume(quiet=True, **again)  # noqa: E731
    pause = Pause(monkeypatch, step, meanwhile_of(output, monkeypatch, view, act))
    switched = step > STEPS.index("current") + 1
    lost_or_done(lambda: output.switch_to("second"), done_is_fine=view == "blind" and switched)
    assert pause.over, pause.steps
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
@pytest.mark.parametrize(
    ("output", "of"),
    [at(place, unfinished, of) for place in ("disk", "s3") for of in ("first", "second")],
    indirect=["output"],
)
def test_a_run_that_is_gone_on_with_while_clean_is_paused_keeps_its_folder(
    output: Output, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, meanwhile = RunFolder.write, [lambda: sk.open_run(output.uri, "second").retry(quiet=True)]

    def paused(self: RunFolder, name: str, content: dict[str, Any]) -> bytes:
        if meanwhile and name == REMOVED and self.run_id == of:
            output.break_locks()
            output.set_version("second")
            meanwhile.pop()()
        return write(self, name, content)

    monkeypatch.setattr(RunFolder, "write", paused)
    lost = of == "second" or isinstance(output.folder, LocalFolder)  # otherwise nobody wanted the lock
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


def make_days(output: Output, run_id: str, *days: str) -> None:
    fields = output.fields(run_id, shards={"by": "date", "path": "{Y}-{m}-{d}"}, incremental=False, name="paused")
    quiet = {"run_id": fields.pop("run_id"), "quiet": fields.pop("quiet")}
    target = {"uri": output.uri, "rows_per_file": fields.pop("rows_per_file")}
    sk.Pipeline(function="work:features", input=output.project.data, output=target, **fields).run(
        days=list(days) or None, **quiet
    )


def of_days(output: Output) -> None:
    """Have a dataset of two days, and a run that has done all but the switch of one."""
    shutil.rmtree(output.project.data)
    for day in ("2020-01-01", "2020-01-02"):
        (output.project.data / day).mkdir(parents=True)
        (output.project.data / day / "a.txt").write_text("x")
    make_days(output, "first")
    with stopped_before_its_switch():
        make_days(output, "second", "2020-01-01")


@pytest.mark.whole
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("output", "step"),
    # In S3 only where what the dataset is confirmed to be, and is said to be, matters: the rest is as without days.
    [*(at("disk", of_days, step) for step in range(1, 9)), *(at("s3", of_days, step) for step in (2, 5))],
    indirect=["output"],
)
def test_a_day_is_made_anew_while_the_run_that_makes_it_is_paused(
    output: Output, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("2020-01-01", "2020-01-02")
    meanwhile = meanwhile_of(output, monkeypatch, "seeing", lambda: make_days(output, "third", *both))
    pause = Pause(monkeypatch, step, meanwhile)
    with pytest.raises(sk.LockLost):
        output.switch_to("second")
    assert pause.over, pause.steps
    until = DAY_STEPS[: min(step, DAY_STEPS.index("current") + 1)]  # from there on they go side by side
    assert pause.steps[: len(until)] == until
    sk.open_run(output.uri)
    assert output.rows() == Counter({(f"{day}/a.txt", "third", row) for day in both for row in range(2)})
