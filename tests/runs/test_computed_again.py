"""How verify and diff compute their samples: by workers that may die, within the time limit, seen and interrupted."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, Project, dying, environment, wait_for
from terminal import said_in_terminal

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the function does beside its rows is in a file, by the name of the record.
WORK = """
import json, os, time
from pathlib import Path

HERE = Path(__file__).parent

def features(record):
    (HERE / "pids").open("a").write(f"{os.getpid()}\\n")
    wanted = json.loads((HERE / "wanted").read_text()).get(record.key[:-4], "")
    if wanted == "die":
        os.kill(os.getpid(), 9)
    if wanted == "hang":
        (HERE / "hangs").touch()
        time.sleep(300)
    return [{"key": record.key, "n": n} for n in range(3)]
"""
pytestmark = LINUX


class Again(Project):
    """A dataset of some records, and what the function is to do when it is called again."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write_function(WORK)
        self.write_records({f"{name}.txt": name * 10 for name in "abcdef"})
        self.wanted()
        self.made = self.run(workers=2, timeout=60, name="features")

    def wanted(self, **by_record: str) -> None:
        (self.root / "wanted").write_text(json.dumps(by_record))
        (self.root / "pids").write_text("")
        (self.root / "hangs").unlink(missing_ok=True)

    def pids(self) -> set[int]:
        return set(map(int, (self.root / "pids").read_text().split()))

    def pipeline(self, **fields: Any) -> sk.Pipeline:
        given = {"source_dir": self.root, "input": self.data, "output": self.out, "name": "features"}
        return sk.Pipeline(**(given | {"function": "work:features"} | fields))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Again:
    """The project of all tests, none of which writes to its dataset."""
    return Again(tmp_path_factory.mktemp("again") / "project")


@pytest.fixture
def project(made: Again) -> Again:
    made.wanted()
    return made


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders for what is looked at are made here, and none is left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert not list(scratch.glob("shardkit-again-*"))


def test_a_record_that_kills_its_process_is_one_that_fails(project: Again) -> None:
    project.wanted(c="die")
    verified = project.made.verify()
    assert sorted(verified.same) == [f"{name}.txt" for name in "abdef"]
    assert list(verified.failed) == ["c.txt"] and "SIGKILL" in verified.failed["c.txt"]
    assert os.getpid() not in project.pids()
    difference = project.pipeline(workers=2).diff()
    assert sorted(difference.failed) == ["c.txt"] and len(difference.same) == 5


def test_a_record_that_takes_too_long_is_one_that_fails(project: Again) -> None:
    project.wanted(b="hang")
    difference = project.pipeline(timeout=1, workers=2).diff()
    assert list(difference.failed) == ["b.txt"] and "Timeout" in difference.failed["b.txt"]
    assert len(difference.same) == 5


def test_as_many_processes_work_as_are_asked_for(project: Again) -> None:
    assert project.made.verify(workers=1, quiet=True).is_reproducible
    assert len(project.pids()) == 1
    project.wanted()
    assert project.made.verify(sample=1, workers=2, quiet=True).is_reproducible
    assert len(project.pids()) == 1, "no more than there are records"


def test_runs_of_the_same_work_are_computed_together(project: Again) -> None:
    days = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "name": "days", "workers": 1}
    out = project.root / "days"
    for day in range(1, 5):
        folder = project.root / "feed" / f"2026-01-0{day}"
        folder.mkdir(parents=True)
        (folder / f"{day}.txt").write_text("x")
        sk.run("work:features", project.root / "feed", out, source_dir=project.root, quiet=True, **days)
    run = sk.open_run(out)
    assert len({made["run"] for made in run.folder.result()["partitions"].values()}) == 4  # type: ignore[index]
    project.wanted()
    assert len(run.verify().same) == 4
    assert len(project.pids()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_it_at_once_and_leaves_nothing(project: Again, number: signal.Signals) -> None:
    project.wanted(a="hang", b="hang")
    before = sorted(project.out.rglob("*"))
    with dying(project.start("verify", project.out, "--workers", "2")) as command:
        wait_for(lambda: (project.root / "hangs").exists())
        command.process.send_signal(number)
        done = command.wait(timeout_s=9)  # less than a run waits for the records in flight
    assert (done.code, done.stdout) == (130, "")
    assert "The verification was interrupted; nothing was written." in done.stderr
    assert "resume" not in done.stderr
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in project.pids()))
    assert sorted(project.out.rglob("*")) == before


@pytest.mark.whole
def test_a_terminal_sees_how_far_it_is_and_a_log_sees_the_outcome_alone(project: Again, shardkit: Any) -> None:
    words = ["-m", "shardkit", "verify", project.out]
    said = said_in_terminal(words, env=environment(COLUMNS="100", TERM="xterm"))
    assert "6/6 records" in said and "6/6 records compared" in said
    assert "6 of 6 records give the same rows again." in said
    done = shardkit("verify", project.out)
    assert (done.stdout, done.stderr) == ("6 of 6 records give the same rows again.\n", "")
    said = said_in_terminal([*words, "--quiet"], env=environment(COLUMNS="100", TERM="xterm"))
    assert said.replace("\r", "") == "6 of 6 records give the same rows again.\n"
