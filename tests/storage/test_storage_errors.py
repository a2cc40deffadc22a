"""Full disks and outputs that cannot be written: the message is one clear line, and no committed work is lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from crashing import Done, Project, check_ledger, rows_of

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WHOLE = pytest.mark.whole
MB = 1 << 20
LIMIT = 64 << 10

# 10 kB a record, once it is compressed.
BULKY = """
import random
from pathlib import Path

def features(record):
    (Path(__file__).parent / "calls" / record.key).open("a").write("x")
    chance = random.Random(record.key)
    return [{"key": record.key, "row": i, "noise": chance.randbytes(5_000).hex()} for i in range(2)]
"""
RECORDS = 60


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return made_in(tmp_path)


def made_in(root: Path) -> Project:
    made = Project(root)
    made.write_function(BULKY)
    made.write_records([f"{i}" for i in range(RECORDS)])
    (root / "calls").mkdir()
    return made


@pytest.fixture(scope="module")
def done_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = made_in(tmp_path_factory.mktemp("done"))
    made.run(workers=1)
    return made


@pytest.fixture
def done(done_once: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the output of a run, a copy for each test."""
    shutil.copytree(done_once.out, tmp_path / "out")
    monkeypatch.setattr(done_once, "out", tmp_path / "out")
    return done_once


def calls(project: Project) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (project.root / "calls").iterdir()}


def committed(project: Project) -> set[str]:
    """The records that count as done."""
    ledger = sk.open_run(project.out).summary().records
    assert ledger["done"] + ledger["quarantined"] <= ledger["listed"]
    markers = project.markers()
    return {f"{path.parent.name}/{path.name}" for path in markers}


def check_complete(project: Project, records: int = RECORDS) -> None:
    run = sk.open_run(project.out)
    assert check_ledger(run).status == "done"
    counts = Counter(row["key"] for row in rows_of(run))
    assert counts == {f"r{i:03d}.txt": 2 for i in range(records)}


def check_one_line(done: Done, *tells: str) -> None:
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    for text in tells:
        assert text in line


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes; called again, it gets another size."""
    folder = tmp_path / "disk"

    def make(size: int) -> Path:
        if folder.exists():
            mount("-o", f"remount,size={size}", folder)
        else:
            folder.mkdir()
            mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@WHOLE
def test_a_disk_that_fills_up_while_parts_are_written(project: Project, disk: Callable[[int], Path]) -> None:
    project.out = disk(MB // 2) / "out"  # which the parts alone would take
    arguments = project.run_arguments(workers=2)
    check_one_line(project.command(*arguments, "--quiet", expect=1), "No space left on device", "Free some space")
    assert sk.open_run(project.out).summary().status in {"failed", "interrupted"}
    before, called = committed(project), calls(project)
    assert before
    check_one_line(project.command("resume", project.out, "--quiet", expect=1), "No space left on device")
    disk(8 * MB)
    project.command("resume", project.out)
    assert before <= committed(project)
    check_complete(project)
    again = [key for key, times in calls(project).items() if times > called.get(key, 0) and called.get(key)]
    assert len(again) < RECORDS / 2


@pytest.mark.whole
def test_a_disk_that_fills_up_while_the_dataset_is_written(project: Project, disk: Callable[[int], Path]) -> None:
    project.out = disk(MB) / "out"  # the parts alone fit
    done = project.command(
        *project.run_arguments(workers=2, chunks="even", rows_per_file=10), "--json", "--quiet", expect=1
    )
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.summary["records"]["done"] == RECORDS
    assert project.data_files() == []  # a dataset is there as a whole, or not
    disk(8 * MB)
    project.command("resume", project.out)
    check_complete(project)
    assert set(calls(project).values()) == {1}  # pass 1 was not done again


@WHOLE
def test_a_disk_that_is_full_from_the_start(project: Project, disk: Callable[[int], Path]) -> None:
    folder = disk(MB)
    with pytest.raises(OSError, match="No space left"):
        (folder / "other people's").write_bytes(bytes(2 * MB))
    project.out = folder / "out"
    check_one_line(
        project.command(*project.run_arguments(), "--quiet", expect=1), "No space left on device", str(folder)
    )
    (folder / "other people's").unlink()
    disk(8 * MB)
    project.command(*project.run_arguments())
    check_complete(project)


@WHOLE
def test_an_earlier_dataset_outlives_a_full_disk(project: Project, disk: Callable[[int], Path]) -> None:
    project.out = disk(3 * MB // 2) / "out"
    project.command(*project.run_arguments(chunks="even", run_id="first"))
    files = project.data_files()
    rows = project.rows()
    (project.root / "data/r060.txt").write_text("another")
    project.command(*project.run_arguments(chunks="even", run_id="second"), expect=1)
    assert project.data_files() == files
    assert project.rows("first") == rows
    disk(16 * MB)
    project.command("resume", project.out)
    assert len(project.rows()) == len(rows) + 2
    assert not set(files) & set(project.data_files())


LIMITED = f"""
import resource, sys
from shardkit.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
main(sys.argv[1:])
"""


def limited(project: Project, *arguments: object, expect: int) -> Done:
    """A command that may write no file of more than LIMIT bytes, which looks much like a full disk; its workers may."""
    return project.command(*arguments, expect=expect, code=LIMITED)


@pytest.mark.whole
def test_parts_that_cannot_be_written(project: Project) -> None:
    arguments = project.run_arguments(workers=2, chunks="even")  # two parts of 600 kB
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))  # noqa: E731
    done = project.command(*arguments, "--quiet", expect=1, preexec_fn=limit)  # and so its workers may not either
    check_one_line(done, "Cannot write", "parts", "File too large")
    assert sk.open_run(project.out).summary().status == "failed"
    assert committed(project) == set()
    project.command("resume", project.out)
    check_complete(project)


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["parquet", *(pytest.param(k, marks=WHOLE) for k in ("jsonl", "csv", "arrow"))])
def test_a_dataset_that_cannot_be_written(project: Project, kind: str) -> None:
    for path in sorted(project.data.iterdir())[15:]:
        path.unlink()
    arguments = project.run_arguments(workers=2, format=kind)  # small parts, and one large file
    check_one_line(limited(project, *arguments, "--quiet", expect=1), "Cannot write", "File too large")
    assert len(committed(project)) > 10
    assert project.data_files() == []
    project.command("resume", project.out)
    assert set(calls(project).values()) == {1}
    check_complete(project, 15)


@pytest.mark.whole
@pytest.mark.parametrize("where", ["out", "out/below", "out/far/below"])
def test_an_output_that_is_a_file(project: Project, where: str) -> None:
    (project.root / "out").write_text("the user's own")
    project.out = project.root / where
    done = project.command(*project.run_arguments(), "--quiet", expect=2)
    check_one_line(done, str(project.root / "out"), "is a file")
    assert (project.root / "out").read_text() == "the user's own"


@pytest.mark.whole
def test_an_output_that_is_read_only(project: Project) -> None:
    project.out.mkdir()
    mount("--bind", project.out, project.out)
    try:
        mount("-o", "remount,bind,ro", project.out)
        done = project.command(*project.run_arguments(), "--quiet", expect=1)
        check_one_line(done, str(project.out), "Read-only file system", "not mounted read-only")
    finally:
        subprocess.run(["umount", project.out], check=True)
    assert list(project.out.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_an_output_without_permission(project: Project) -> None:
    project.out.mkdir(mode=0o500)
    done = project.command(*project.run_arguments(), "--quiet", expect=1)
    check_one_line(done, str(project.out), "Permission denied", "write permission")


def test_a_part_that_has_gone_is_named(done: Project) -> None:
    run = sk.open_run(done.out)
    part = min(done.run_folder().glob("parts/*/*.parquet"))
    part.unlink()
    with pytest.raises(sk.LedgerError, match=rf"{part.name}.*missing.*Delete the marker"):
        run.resume(quiet=True, **{"output.rows_per_file": 7})
    assert len(rows_of(run)) == 2 * RECORDS  # the dataset is as it was
    (done.run_folder() / "markers" / part.parent.name / f"{part.stem}.json").unlink()
    run.resume(quiet=True)
    check_complete(done)


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_part_that_is_damaged_is_named(done: Project, damage: str) -> None:
    run = sk.open_run(done.out)
    part = min(done.run_folder().glob("parts/*/*.parquet"))
    size = part.stat().st_size
    part.write_bytes(part.read_bytes()[: size // 2] if damage == "truncated" else bytes(size))
    settings: dict[str, Any] = {"output.rows_per_file": 7}
    with pytest.raises(sk.RunFailed, match=part.name):
        run.resume(quiet=True, **settings)
    assert len(rows_of(run)) == 2 * RECORDS
