"""The switch from one dataset to the next: whole or not at all, whoever dies in the middle of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import warm
from crashing import TESTS, Done, Project, dying, environment, folder_rows, rows_of, wait_for
from in_process import InProcess

import shardkit as sk
from shardkit.dataset import switch as commit
from shardkit.dataset.current import current_result
from shardkit.dataset.switch_steps import COMMIT, LockedDataset, Switch, note
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable

WORK = """
import time
from pathlib import Path
ROOT = Path(__file__).parent

def features(record):
    version = (ROOT / "version").read_text()
    while version == "held" and not (ROOT / "gate").exists():
        (ROOT / "is held").touch()
        time.sleep(0.005)
    return [{"key": record.key, "version": version, "row": i} for i in range(2)]
"""
WHOLE = pytest.mark.whole
RECORDS = 4
FIELDS: dict[str, Any] = {"workers": 1, "rows_per_file": 3}
# What a switch from three files to three others consists of; the old files and what was staged go side by side.
STEPS = ["note", *["publish"] * 3, "write", "note", *["remove"] * 3, "tidy", "unlink"]
KILLED = -signal.SIGKILL


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def make_project(root: Path) -> Project:
    made = Project(root)
    made.write_function(WORK)
    made.write_records(["x"] * RECORDS)
    return made


def run_version(project: Project, version: str, **fields: Any) -> sk.Run:
    """A run whose rows all hold that version."""
    (project.root / "version").write_text(version)
    return project.run(**(FIELDS | {"run_id": version} | fields))


def rows_of_version(version: str) -> list[dict[str, Any]]:
    return [{"key": f"r{i:03d}.txt", "version": version, "row": row} for i in range(RECORDS) for row in range(2)]


def switch_steps(project: Project, step: int, how: str, action: str, version: str) -> Done:
    """Run or open a run in a process that ends before that step of the switch."""
    (project.root / "version").write_text(version)
    arguments = [str(step), how, action, str(project.root), version]
    done = warm.run([TESTS / "switch_steps.py", *arguments], env=environment(), timeout_s=60)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def after_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose output holds the first version, beside files of the user's."""
    project = make_project(tmp_path_factory.mktemp("switch") / "project")
    run_version(project, "first")
    (project.out / "notes.txt").write_text("the user's")
    (project.out / "part-of-mine").mkdir()
    (project.out / "part-of-mine" / "part-00000-mine.csv").write_text("the user's")
    return project.root


@pytest.fixture(scope="module")
def before(after_first: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """What is left where a process is killed before a step of the switch to the second version, by the step's number.

    It is copied while one process makes the switch.
    """
    project = copy_of(after_first, tmp_path_factory.mktemp("switch") / "project")
    done = switch_steps(project, 0, "copy", "run", "second")
    steps = done.stdout.split()
    assert (done.code, [*steps[:6], *sorted(steps[6:10]), *steps[10:]]) == (0, STEPS)
    check_is(project, "second")
    return lambda step: project.root.with_name(f"project-before-{step}")


FOREIGN = ["notes.txt", "part-of-mine/part-00000-mine.csv"]


def copy_of(folder: Path, target: Path) -> Project:
    shutil.copytree(folder, target)
    project = Project.__new__(Project)
    project.__dict__.update(root=target, data=target / "data", out=target / "out", _commands=0)
    return project


def check_is(project: Project, version: str) -> None:
    """Check that the dataset is that version, for shardkit's readers and for all others."""
    assert rows_of(sk.open_run(project.out, version)) == rows_of_version(version)
    assert Counter(map(str, folder_rows(project.out))) == Counter(map(str, rows_of_version(version)))
    assert set(FOREIGN) < set(project.data_files())
    assert len(project.data_files()) == 3 + len(FOREIGN)


def readable(project: Project) -> list[dict[str, Any]]:
    """What a mere reader finds: the rows of the latest result's files."""
    result = current_result(LocalFolder(project.out))
    assert result is not None
    import pyarrow.parquet as pq

    return [row for file in result["files"] for row in pq.ParquetFile(project.out / file["path"]).read().to_pylist()]


@pytest.mark.whole
@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
def test_killed_before_any_step_the_dataset_is_the_old_or_the_new(
    before: Callable[[int], Path], tmp_path: Path, step: int
) -> None:
    project = copy_of(before(step), tmp_path / "project")
    switched = step > STEPS.index("note", 1) + 1
    assert readable(project) == rows_of_version("second" if switched else "first")
    # Any command finishes what had begun.
    begun = step > 1
    latest = sk.open_run(project.out)
    assert latest.run_id == "second"
    assert latest.summary().status == ("done" if begun else "interrupted")
    check_is(project, "second" if begun else "first")
    if begun:
        with pytest.raises(sk.RunNotFound, match="later run has replaced"):
            sk.open_run(project.out, "first").dataset()
    else:
        latest.resume(quiet=True)
        check_is(project, "second")
    assert not list(project.out.glob("_shardkit/commit.json"))


@pytest.mark.whole
@pytest.mark.parametrize("command", ["status", "resume", *(pytest.param(c, marks=WHOLE) for c in ("failures", "run"))])
def test_whichever_command_comes_next_finishes_the_switch(
    after_first: Path, before: Callable[[int], Path], tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "run":
        project = copy_of(after_first, tmp_path / "project")
        assert switch_steps(project, 4, "kill", "run", "second").code == KILLED
        (project.root / "version").write_text("third")
        project.command(*project.run_arguments(run_id="third", rows_per_file=3))
        check_is(project, "third")
        return
    project = copy_of(before(4), tmp_path / "project")
    InProcess(monkeypatch)(project.root, command, project.out)
    check_is(project, "second")


@WHOLE
def test_who_finishes_the_switch_may_die_as_well(before: Callable[[int], Path], tmp_path: Path) -> None:
    project = copy_of(before(3), tmp_path / "project")
    codes = [switch_steps(project, step, "kill", "open", "second").code for step in range(1, 12)]
    assert codes[0] == KILLED
    assert codes[-1] == 0
    check_is(project, "second")


@pytest.mark.whole
@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=WHOLE) for step in (1, 5, 7))])
def test_a_disk_that_is_full_in_the_middle_of_the_switch(
    before: Callable[[int], Path], tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copy_of(before(1), tmp_path / "project")
    done = switch_steps(project, step, "full", "resume", "second")
    assert done.code == 1
    assert "StorageError: Cannot write" in done.stderr
    assert readable(project) == rows_of_version("second" if step > 6 else "first")
    InProcess(monkeypatch)(project.root, "resume", project.out, "--run-id", "second")
    check_is(project, "second")


def test_who_was_overtaken_before_its_first_step_takes_none(
    after_first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copy_of(after_first, tmp_path / "project")
    note = commit.note
    state = project.out / "_shardkit"

    def paused(*arguments: Any, **options: Any) -> Any:  # for so long that its lock is another's
        monkeypatch.setattr(commit, "note", note)
        (state / "lock").unlink()
        run_version(project, "third")
        return note(*arguments, **options)

    monkeypatch.setattr(commit, "note", paused)
    with pytest.raises(sk.LockLost, match="Run second was paused|lost its lock"):
        run_version(project, "second")
    assert not (state / "commit.json").exists()
    assert not (state / "runs" / "second" / "result.json").exists()
    check_is(project, "third")


def test_a_switch_forgets_its_own_note_and_no_other(tmp_path: Path) -> None:
    output = LocalFolder(tmp_path)
    mine: Any = {"result": {"run_id": "mine", "generation": 1}, "gone": [], "index": ""}
    state = note(output, COMMIT, mine)
    assert state
    with output.lock("_shardkit/lock", "busy") as held:
        switch = Switch(LockedDataset(output, held), mine, state)
        output.write(COMMIT, b"of another, which was begun while this one was paused")
        switch.forget()
        assert output.exists(COMMIT)
        output.remove(COMMIT)
        switch = Switch(LockedDataset(output, held), mine, note(output, COMMIT, mine) or {})
        switch.forget()
    assert not output.exists(COMMIT)


def test_a_retry_replaces_its_own_runs_dataset(after_first: Path, tmp_path: Path) -> None:
    project = copy_of(after_first, tmp_path / "project")
    run = sk.open_run(project.out)
    before = set(project.data_files())
    run.resume(quiet=True, **{"output.rows_per_file": 4})
    assert set(project.data_files()) & before == set(FOREIGN)
    assert len(project.data_files()) == 2 + len(FOREIGN)
    assert rows_of(run) == rows_of_version("first")


def test_only_an_earlier_runs_own_files_and_empty_folders_go(project: Project) -> None:
    run_version(project, "first", partition_by=["key"])
    (project.out / "key=r001.txt" / "notes.txt").write_text("the user's")
    run_version(project, "second", partition_by=["version"])
    files = project.data_files()
    assert "key=r001.txt/notes.txt" in files
    assert {Path(file).parts[0] for file in files} == {"key=r001.txt", "version=second"}
    assert sorted(path.name for path in project.out.iterdir()) == ["_shardkit", "key=r001.txt", "version=second"]


@pytest.mark.whole
def test_another_pipelines_dataset_is_not_replaced(project: Project) -> None:
    run_version(project, "first", name="mine")
    (project.root / "version").write_text("second")
    refused = project.command(*project.run_arguments(name="yours"), expect=2)
    assert "pipeline 'mine' (run first), not of 'yours'" in refused.stderr
    assert len(list(project.out.glob("_shardkit/runs/*/plan.json"))) == 1
    assert rows_of(sk.open_run(project.out)) == rows_of_version("first")


def test_nor_if_both_had_begun_when_there_was_none(project: Project) -> None:
    (project.root / "version").write_text("held")
    with dying(project.start(*project.run_arguments(name="yours", run_id="held"))) as command:
        wait_for((project.root / "is held").exists)
        run_version(project, "first", name="mine", function="work:features")
        (project.root / "gate").touch()
        done = command.wait()
    assert done.code == 2
    assert "pipeline 'mine' (run first), not of 'yours'" in done.stderr
    assert rows_of(sk.open_run(project.out, "first")) == rows_of_version("first")
    # And to resume it is no way around.
    with pytest.raises(sk.PipelineError, match="pipeline 'mine'"):
        sk.open_run(project.out, "held").resume(quiet=True)
    assert len(project.data_files()) == 3


VERSIONS = """
import sys
import shardkit as sk
from pathlib import Path
root = Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    (root / "version").write_text(f"v{number}")
    sk.run("work:features", root / "data", root / "out", source_dir=root, rows_per_file=1, workers=1, quiet=True,
           run_id=f"v{number}")
"""


@WHOLE
def test_a_reader_never_sees_a_mixture(project: Project) -> None:
    run_version(project, "v")
    seen: Counter[str] = Counter()
    with dying(project.start(project.root, 6, code=VERSIONS)) as command:
        while command.process.poll() is None:
            seen[read_a_version(project)] += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.process.wait(0.02)
        assert command.wait().code == 0, command.stderr.read_text()
    assert read_a_version(project) == "v5"
    assert len(seen.keys() - {""}) > 3
    assert len(project.data_files()) == 8


def read_a_version(project: Project) -> str:
    """The version of all rows; none if the dataset was replaced while it was read, which raises an error."""
    result = current_result(LocalFolder(project.out))
    assert result is not None
    try:
        rows = rows_of(sk.open_run(project.out, result["run_id"]))
    except (sk.RunNotFound, FileNotFoundError):
        return ""
    (version,) = {row["version"] for row in rows}
    assert rows == rows_of_version(version)
    return str(version)


@pytest.mark.skipif(not hasattr(os, "link"), reason="hard links")
def test_without_hard_links_files_are_copied(
    after_first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = copy_of(after_first, tmp_path / "project")

    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    run_version(project, "second")
    check_is(project, "second")
