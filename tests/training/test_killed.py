"""Datasets in formats for training are whole and the same, whoever dies while they are written or switched."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import warm
from crashing import TESTS, Project, environment
from test_switch import KILLED, STEPS, WORK, copy_of, rows_of_version

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = ("hf", "webdataset")
KILLED_WHILE_WRITING = """
import os, signal, sys
import shardkit as sk
from shardkit.dataset import writer

closed = []
close = writer._Building.close

def closing(file):
    if closed:
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    closed.append(file.path)
    return close(file)

writer._Building.close = closing
root, kind = sys.argv[1:]
how = {"source_dir": root, "workers": 1, "rows_per_file": 3, "run_id": "second", "format": kind, "quiet": True}
sk.run("work:features", f"{root}/data", f"{root}/out", **how)
"""


@pytest.fixture(params=FORMATS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def project(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose output holds the first version."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    made = Project(tmp_path / "project")
    made.write_function(WORK)
    made.write_records(["x"] * 4)
    (made.root / "version").write_text("first")
    made.run(workers=1, rows_per_file=3, run_id="first", format=kind)
    (made.root / "version").write_text("second")
    return made


def content_of(run: sk.Run) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a dataset, and digests of its files."""
    digests = []
    for path in run.files():
        with open(path, "rb") as file:
            digests.append(hashlib.sha256(file.read()).hexdigest())
    return run.hf().to_list(), digests


def test_killed_within_the_switch(project: Project, tmp_path: Path, kind: str) -> None:
    undisturbed = copy_of(project.root, tmp_path / "undisturbed")
    undisturbed.run(workers=1, rows_per_file=3, run_id="second", format=kind)
    whole = content_of(sk.open_run(undisturbed.out))
    assert whole[0] == rows_of_version("second")
    for step in (1, 3, STEPS.index("write") + 1, STEPS.index("remove") + 1):
        root = tmp_path / "killed"
        shutil.rmtree(root, ignore_errors=True)
        killed = copy_of(project.root, root)
        words = [TESTS / "switch_steps.py", str(step), "kill", "run", str(root), "second", kind]
        assert warm.run(words, env=environment(), timeout_s=60).returncode == KILLED
        latest = sk.open_run(killed.out)  # which finishes what had begun
        if step == 1:
            assert sk.open_run(killed.out, "first").hf().to_list() == rows_of_version("first")
            latest.resume(quiet=True)
        assert content_of(latest) == whole
        assert len(killed.data_files()) == 3
        assert sk.check(killed.out).ok


def test_killed_while_files_are_written(project: Project, tmp_path: Path, kind: str) -> None:
    done = project.start(project.root, kind, code=KILLED_WHILE_WRITING).wait()
    assert done.code == KILLED, done.stderr
    assert sk.open_run(project.out, "first").hf().to_list() == rows_of_version("first")
    resumed = sk.open_run(project.out).resume(quiet=True)
    assert resumed.run_id == "second"
    undisturbed = copy_of(project.root, tmp_path / "undisturbed")
    shutil.rmtree(undisturbed.out)
    assert content_of(resumed) == content_of(undisturbed.run(workers=1, rows_per_file=3, format=kind))
    assert content_of(resumed)[0] == rows_of_version("second")
