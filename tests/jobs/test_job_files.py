"""A file of jobs that is locked, read-only, full or damaged: the message is one line with the cure; no job is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from shardkit.cli.app import cli
from shardkit.jobs import SQLiteStore, StoreError, Submission, sqlite_file, sqlite_schema
from shardkit.jobs.errors import StoreDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUEST = {"ProcessingResources": {"ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}}}
NOBODY = 65534
COMMANDS = ("list", "submit", "stop", "serve")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one job."""
    made = tmp_path / "store" / "jobs.sqlite"
    made.parent.mkdir()
    with SQLiteStore(made) as store:
        store.submit_many([Submission("kept", REQUEST)])
    return made


def command(name: str, path: Path) -> tuple[int, str]:
    """Run a command on the store; returns its exit code and its output."""
    request = path.parent.parent / "request.json"
    if name == "submit" and not request.exists():
        request.write_text(json.dumps(REQUEST))
    words = {
        "list": ["list"],
        "submit": ["submit", "--request", str(request)],
        "stop": ["stop", "kept"],
        "serve": ["serve", "--engine", "local", "--until-ended"],
    }[name]
    done = CliRunner().invoke(cli, ["jobs", *words, "--store", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def check_told(name: str, path: Path, cure: str) -> None:
    code, text = command(name, path)
    assert code == 1, text
    text = text.removeprefix(f"Serving the jobs of {path}. Ctrl-C ends it; the jobs go on.\n")
    assert len(text.splitlines()) == 1, text
    assert str(path) in text
    assert cure in text


def check_kept(path: Path) -> None:
    with SQLiteStore(path) as store:
        assert [(job.job_id, job.status) for job in store.jobs()] == [("kept", "New")]


@contextmanager
def held(path: Path, *statements: str) -> Iterator[None]:
    """The file, locked by another program."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sqlite_file, sqlite_schema):
        monkeypatch.setattr(module, "WAIT_FOR_LOCK_S", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", COMMANDS)
def test_who_waits_in_vain_for_another_program_is_told_so(path: Path, name: str) -> None:
    with held(path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        check_told(name, path, "Another program holds it")
        with pytest.raises(StoreError, match="Another program holds it"):
            SQLiteStore(path)
    check_kept(path)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["submit", "stop"])
def test_a_reader_does_not_mind_a_writer_and_a_second_writer_is_told(path: Path, name: str) -> None:
    with held(path, "BEGIN IMMEDIATE"):
        assert command("list", path)[0] == 0
        check_told(name, path, "Another program holds it")
    check_kept(path)


@contextmanager
def without_rights() -> Iterator[None]:
    """Run as a user to whom permissions apply, even if the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def own_path(path: Path) -> Iterator[Path]:
    """The store in a folder that a user without rights can reach."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "store"
        shutil.copytree(path.parent, folder)
        (Path(top) / "request.json").write_text(json.dumps(REQUEST))
        Path(top).chmod(0o755)
        if not os.geteuid():
            for each in (folder, *folder.iterdir()):
                os.chown(each, NOBODY, NOBODY)
        yield folder / path.name
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["submit", "stop"])
@pytest.mark.parametrize("what", ["file", "folder", "both"])
def test_what_may_only_be_read_is_not_written(own_path: Path, what: str, name: str) -> None:
    if what != "folder":
        own_path.chmod(0o444)
    if what != "file":
        own_path.parent.chmod(0o555)
    with without_rights():
        check_told(name, own_path, "write permission")
        with pytest.raises(StoreError, match="write permission"), SQLiteStore(own_path) as store:
            store.submit_many([Submission("more", REQUEST)])
    own_path.parent.chmod(0o755)
    own_path.chmod(0o644)
    check_kept(own_path)


@pytest.fixture
def full_disk(path: Path) -> Iterator[Path]:
    """The store on a full disk."""
    with tempfile.TemporaryDirectory() as top:
        disk = Path(top) / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False, stderr=-3)
        if mounted.returncode:
            pytest.skip("a disk of its own takes root")
        try:
            shutil.copy(path, disk)
            with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):  # no space is left
                while True:
                    file.write(b"x" * 4096)
            yield disk / path.name
        finally:
            subprocess.run(["umount", disk], check=True)


def test_a_full_disk_keeps_what_was_written(full_disk: Path) -> None:
    for name in ("submit", "stop"):
        check_told(name, full_disk, "Free some space")
    with pytest.raises(StoreError, match="Free some space"), SQLiteStore(full_disk) as store:
        store.submit_many([Submission("more", REQUEST)])
    (full_disk.parent / "filler").unlink()
    check_kept(full_disk)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 1000)


def middle(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:4096] + b"\xff" * (len(good) - 4096))


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE jobs (title TEXT)")
        db.execute("INSERT INTO jobs VALUES ('of another program')")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("damage", [cut, garbage, middle, foreign])
def test_a_damaged_store_is_told_with_its_cure(path: Path, damage: Callable[[Path], None], name: str) -> None:
    damage(path)
    before = path.read_bytes()
    check_told(name, path, "Put it back from a copy")
    with pytest.raises(StoreDamaged), SQLiteStore(path) as store:
        store.jobs()
    if damage is not foreign:
        assert path.read_bytes() == before


def test_a_database_of_another_program_stays_as_it_is(path: Path) -> None:
    foreign(path)
    for name in COMMANDS:
        command(name, path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("jobs",)]
        assert db.execute("SELECT * FROM jobs").fetchall() == [("of another program",)]
