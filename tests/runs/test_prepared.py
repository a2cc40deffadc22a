"""Prepared runs: something else starts the jobs, again and again if need be, and shardkit knows nothing of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import in_process
import pyarrow.parquet as pq
import pytest
import warm
from crashing import wait_for

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import RunCommand, WriteFiles

PIPELINE = """
name: words
input: {{uri: data/, pattern: "*.txt"}}
function: words:rows
shards: {shards}
workers: 1
output: {{uri: out/}}
"""
FUNCTION = """
import pathlib, time

def rows(record):
    text = pathlib.Path(record).read_text()
    if text == "wait":
        pathlib.Path("calls", record.key.replace("/", "-")).touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
    if text == "bad":
        raise ValueError("no words")
    return {"key": record.key, "text": text}
"""
BY_FOLDER = "{by: directory, depth: 1}"
GROUPS = {f"{group}/{name}.txt": f"{group}{name}" for group in "abcde" for name in "12"}


class Project:
    """A pipeline in a folder, and the commands that a workflow would start for it."""

    def __init__(self, root: Path, files: WriteFiles, shardkit: RunCommand) -> None:
        self.root, self._files, self._shardkit = root, files, shardkit
        (root / "words.py").write_text(FUNCTION)
        (root / "calls").mkdir()

    def write(self, content: dict[str, str] = GROUPS, shards: str = BY_FOLDER) -> None:
        self._files(content)
        (self.root / "pipeline.yaml").write_text(PIPELINE.format(shards=shards))

    def plan(self, *words: str, run_id: str = "nightly-1", code: int = 0) -> dict[str, Any]:
        done = self._shardkit("plan", "pipeline.yaml", "--run-id", run_id, *words, code=code)
        return json.loads(done.stdout) if code == 0 else {"error": done.stderr}

    def job(self, run: str, number: int, code: int = 0) -> str:
        return self._shardkit("pass1", "--run", run, "--job", str(number), code=code).stderr

    def merge(self, run: str, code: int = 0) -> str:
        return self._shardkit("pass2", "--run", run, code=code).stderr

    def keys(self) -> list[str]:
        return sorted(pq.read_table(self.root / "out", columns=["key"])["key"].to_pylist())


@pytest.fixture
def shardkit_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Run a command in ``tmp_path``, in this process; ``code`` is the exit code that is expected."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = in_process.command(*words, code=code)
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def project(tmp_path: Path, files: WriteFiles, shardkit_here: RunCommand) -> Project:
    return Project(tmp_path, files, shardkit_here)


@pytest.mark.whole
def test_jobs_in_any_order_make_the_dataset_and_a_step_done_again_does_no_harm(project: Project) -> None:
    project.write()
    planned = project.plan("--max-jobs", "3", "--outputs", "outputs/a")
    written = {name: (project.root / "outputs/a" / name).read_text() for name in ("run", "jobs", "output")}
    assert planned == {"run": written["run"], "jobs": [0, 1, 2], "output": str(project.root / "out")}
    assert (json.loads(written["jobs"]), written["output"]) == (planned["jobs"], planned["output"])

    project.job(planned["run"], 2)
    assert project.plan("--max-jobs", "3")["jobs"] == [0, 1]
    assert "neither done nor quarantined" in project.merge(planned["run"], code=1)
    for number in (1, 0, 1):
        project.job(planned["run"], number)
    project.merge(planned["run"])
    assert project.keys() == sorted(GROUPS)

    before = {path: path.stat().st_mtime_ns for path in (project.root / "out").glob("*.parquet")}
    assert "nothing to do" in project.merge(planned["run"])
    assert before == {path: path.stat().st_mtime_ns for path in (project.root / "out").glob("*.parquet")}
    assert project.plan()["jobs"] == []


@pytest.mark.whole
def test_a_planning_that_is_repeated_keeps_its_plan_though_the_input_has_changed(project: Project) -> None:
    project.write()
    planned = project.plan()
    project.write(GROUPS | {"f/1.txt": "late"})
    assert project.plan() == planned
    for number in planned["jobs"]:
        project.job(planned["run"], number)
    project.merge(planned["run"])
    assert project.keys() == sorted(GROUPS)
    assert len(project.plan(run_id="nightly-2")["jobs"]) == 6


def test_a_run_of_another_function_is_not_taken_for_this_one(project: Project) -> None:
    project.write()
    project.plan()
    (project.root / "words.py").write_text(FUNCTION.replace("no words", "none"))
    assert "another function or pipeline has planned it. Give another --run-id" in project.plan(code=2)["error"]


@pytest.mark.parametrize(
    ("shards", "most", "jobs"),
    [
        ("{by: size, target: 1}", 4, 4),
        ("{by: size, count: 9}", 4, 4),
        ("{by: size, count: 2}", 4, 2),
        ("{by: directory, depth: 1, max_jobs: 2}", 4, 2),
        ("{by: directory, depth: 1}", 1, 1),
        ("null", 4, 1),
    ],
)
def test_there_are_no_more_jobs_than_asked_for(project: Project, shards: str, most: int, jobs: int) -> None:
    project.write(shards=shards)
    planned = project.plan("--max-jobs", str(most))
    assert planned["jobs"] == list(range(jobs))
    assert sk.open_run(planned["output"]).folder.plan()["totals"]["records"] == len(GROUPS)


def test_by_default_there_are_200_jobs_at_most(project: Project) -> None:
    project.write({f"{number:03d}/1.txt": "x" for number in range(250)})
    assert len(project.plan()["jobs"]) == 200


def test_what_cannot_be_prepared_is_refused(project: Project) -> None:
    project.write()
    assert "1,001 jobs: expected 1 to 1,000" in project.plan("--max-jobs", "1001", code=2)["error"]
    error = project.plan("--set", "shards={by: s3key, instances: 3}", code=2)["error"]
    assert "by: s3key deals objects to the instances of one Processing job" in error
    assert not (project.root / "out").exists()


@pytest.mark.whole
def test_without_changes_there_is_no_job_and_the_merge_has_nothing_to_do(project: Project) -> None:
    project.write()
    incremental = ("--set", "incremental=true")
    planned = project.plan(*incremental)
    for number in planned["jobs"]:
        project.job(planned["run"], number)
    project.merge(planned["run"])
    again = project.plan(*incremental, run_id="nightly-2")
    assert again == {**planned, "jobs": []}
    assert "nothing to do" in project.merge(again["run"])


def test_a_function_that_fails_and_a_job_that_does_not_exist_have_exit_code_1(project: Project) -> None:
    project.write({"a/1.txt": "bad", "a/2.txt": "bad", "b/1.txt": "b1"})
    planned = project.plan("--max-failures", "0")
    assert "no words" in project.job(planned["run"], 0, code=1)
    assert "has jobs 0 to 1, and no job 7" in project.job(planned["run"], 7, code=1)
    assert "holds no plan" in project.merge(planned["run"].replace("nightly-1", "nightly-9"), code=1)


@pytest.mark.whole
def test_a_job_that_is_told_to_end_says_that_it_may_be_started_again(
    project: Project, shardkit_here: RunCommand
) -> None:
    project.write({"a/1.txt": "wait", "b/1.txt": "b1"})
    planned = project.plan()
    words = ["-m", "shardkit", "pass1", "--run", planned["run"], "--job", "0"]
    with (project.root / "log").open("w") as log:
        job = warm.start(words, cwd=project.root, env=os.environ, stdout=log, stderr=log)
    try:
        wait_for(lambda: list((project.root / "calls").iterdir()))
        assert sk.open_run(planned["output"]).summary().status == "running"
        busy = shardkit_here("resume", "out/", code=1).stderr
        assert "jobs are at work that something else has started" in busy
        job.send_signal(signal.SIGTERM)
        (project.root / "go").touch()
        assert job.wait(60) == 75
    finally:
        job.kill()
    for number in planned["jobs"]:
        project.job(planned["run"], number)
    project.merge(planned["run"])
    assert project.keys() == ["a/1.txt", "b/1.txt"]


@pytest.mark.whole
def test_the_rest_can_be_done_anywhere_else(project: Project, shardkit_here: RunCommand) -> None:
    project.write()
    planned = project.plan()
    project.job(planned["run"], 3)
    status = shardkit_here("status", "out/").stdout
    assert "If what started the jobs will start no more of them, do the rest here: shardkit resume" in status
    shardkit_here("resume", "out/", "--quiet")
    assert project.keys() == sorted(GROUPS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["pass1", "--job", "1"], "Give both --run and --job"),
        (["pass1", "--run", "out/_shardkit/runs/x"], "Give both --run and --job"),
        (["pass1", "--run", "x", "--job", "1", "--workers", "2"], "leave out workers"),
        (["pass2", "--run", "x", "--format", "csv"], "leave out format"),
        (["pass1"], "Give --input and --output; or --run and --job"),
        (["plan", "pipeline.yaml", "--outputs", "o"], "give --run-id too"),
        (["plan", "pipeline.yaml", "--run-id", "x", "--sample", "2"], "Give --sample or --run-id"),
    ],
)
def test_a_command_that_makes_no_sense_says_so(shardkit_here: RunCommand, words: list[str], complaint: str) -> None:
    assert complaint in " ".join(shardkit_here(*words, code=2).stderr.split())
