"""The command line with jobs, on the local engine: run, watch, interrupt, stop, look, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from functools import partial, partialmethod
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
import warm
from botocore.exceptions import ClientError
from crashing import Command
from in_process import InProcess

import shardkit as sk
from shardkit.engines.local import LocalEngine

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result
    from conftest import RunCommand, WriteFiles

    Ask = Callable[..., Result]

MODULE = """
import os
import time
from pathlib import Path

PLACE = Path({place!r})


def rows(record):
    with open(PLACE / "calls", "a") as calls:
        calls.write(record.key + "\\n")
    while (PLACE / "hold").exists():
        time.sleep(0.02)
    text = Path(record).read_text()
    if text == "bad":
        raise ValueError("no good: " + record.key)
    return {{"key": record.key, "n": int(text)}}
"""
YAML = """\
name: made-up
input: {uri: data/, pattern: "*.txt"}
function: work_for_jobs:rows
source_dir: code
workers: 1
max_failures: 1
shards: {by: directory}
output: {uri: out/}
"""
KEYS = [f"{group}/{n}.txt" for group in "ab" for n in range(3)]


class Project:
    """A folder with a pipeline of two groups of three files, and what its function does there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def break_(self, *keys: str) -> None:
        for key in keys:
            (self.folder / "data" / key).write_text("bad")

    def mend(self, *keys: str) -> None:
        for key in keys:
            (self.folder / "data" / key).write_text("7")

    def hold(self) -> None:
        """Make the function wait from now on."""
        (self.folder / "hold").touch()

    def let_go(self) -> None:
        (self.folder / "hold").unlink()

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def engine(self, text: str) -> None:
        """Say where the pipeline's jobs run."""
        (self.folder / "pipeline.yaml").write_text(f"{YAML}{text}\n")

    def dataset(self, output: str = "out") -> list[dict[str, Any]]:
        return list(pd.read_parquet(self.folder / output).sort_values("key").to_dict("records"))

    def start(self, *arguments: str) -> Command:
        """The command in the background, which can be interrupted as from a terminal."""
        out, err = self.folder / "stdout", self.folder / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = warm.start(
                ["-m", "shardkit", *arguments],
                cwd=self.folder,
                env=os.environ | {"COLUMNS": "120"},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        return Command(process, out, err)


@pytest.fixture
def project(files: WriteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    files({key: str(i) for i, key in enumerate(KEYS)})
    files({"work_for_jobs.py": MODULE.format(place=str(tmp_path))}, "code")
    files({"pipeline.yaml": YAML}, "")
    made = Project(tmp_path)
    yield made
    (tmp_path / "hold").unlink(missing_ok=True)
    if (tmp_path / "out").exists() and (run := sk.open_run(tmp_path / "out")).has_jobs:
        run.stop()


@pytest.fixture
def ask(project: Project, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A command about the project's runs."""
    return partial(InProcess(monkeypatch), project.folder)


def wait_for(condition: Callable[[], Any], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def expected(*but: str) -> list[dict[str, Any]]:
    return [{"key": key, "n": i} for i, key in enumerate(KEYS) if key not in but]


def answer(done: subprocess.CompletedProcess[str] | Result) -> dict[str, Any]:
    """What --json prints, which is all of stdout."""
    (line,) = done.stdout.splitlines()
    content: dict[str, Any] = json.loads(line)
    return content


# ---- a run that goes well --------------------------------------------------------------------------------------


def test_plan_tells_the_jobs(ask: Ask, project: Project) -> None:
    text = ask("plan", "pipeline.yaml", "--engine", "local").stdout
    assert "jobs     2 and 1 for pass 2, on this machine" in text and "CreateProcessingJob" not in text
    packed = answer(ask("plan", "pipeline.yaml", "--engine", "local", "--set", "shards.max_jobs=1", "--json"))
    assert packed["totals"]["jobs"] == len(packed["jobs"]) == 1
    assert packed["pipeline"]["engine"]["kind"] == "local"
    assert not (project.folder / "out").exists() and not (project.folder / "state").exists()


@pytest.mark.whole
def test_run_and_look(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    """One run, with everything that can be asked about it afterwards."""
    done = shardkit("run", "pipeline.yaml", "--engine", "local", "--json")
    summary = answer(done)
    assert summary["status"] == "done"
    assert summary["records"] == {"listed": 6, "done": 6, "quarantined": 0, "skipped": 0}
    assert "jobs: 3/3 ended, 0 running | 6/6 records | 0 quarantined" in done.stderr
    assert f"Run {summary['run_id']}: done." in done.stderr
    assert project.dataset() == expected()

    assert "  jobs     3: 3 Completed" in ask("status", "out").stdout.splitlines()
    told = answer(ask("status", "pipeline.yaml", "--json"))
    jobs = told.pop("jobs")
    assert told == summary
    assert [job["job"].rpartition("-")[2] for job in jobs] == ["00000", "00001", "merge"]
    assert [job["name"] for job in jobs] == [f"{job['job']}-1" for job in jobs]
    assert {job["status"] for job in jobs} == {"Completed"}
    assert all(len(job["attempts"]) == 1 and job["reason"] == "" for job in jobs)

    logs = ask("logs", "out").stdout
    assert [line.split()[1] for line in logs.splitlines() if line.startswith("== ")] == [job["name"] for job in jobs]
    assert "Shard 0: 3 records done, 0 quarantined." in logs
    one = ask("logs", "out", "--job", "00001").stdout
    assert "Shard 1: 3 records done" in one and "==" not in one and "Shard 0" not in one

    shutil.rmtree(next((project.folder / "state").rglob("jobs/*-00001-1")))
    gone = ask("logs", "out", "--job", "00001", code=1).stderr
    assert "-00001-1 cannot be read: " in gone and "was something removed there?" in gone and "Traceback" not in gone

    assert ask("stop", "out").stdout == f"Run {summary['run_id']}: no job is left to stop.\n"
    for command in ("resume", "retry"):
        assert f"Run {summary['run_id']} is done; there is nothing to do." in ask(command, "out").stderr
    assert sorted(project.calls()) == KEYS


@pytest.mark.whole
def test_one_job_of_several_instances(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    done = shardkit(
        *("run", "pipeline.yaml", "--engine", "local", "--set", "shards={by: s3key, instances: 2}", "--json")
    )
    assert answer(done)["status"] == "done"
    assert project.dataset() == expected()
    jobs = answer(ask("status", "out", "--json"))["jobs"]
    assert [job["attempts"][0]["instances"] for job in jobs] == [2, 1]
    logs = ask("logs", "out", "--job", "00000").stdout
    assert all(f"Shard {shard}: 3 records done" in logs for shard in range(2))


# ---- where the jobs run ----------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_engine_of_the_pipeline(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    """With its settings; a relative folder counts from the YAML file. --engine has the last word."""
    project.engine("engine: {kind: local, root: jobs, max_instances: 1}")
    (project.folder / "elsewhere").mkdir()
    one_job = ("--quiet", "--set", "shards.max_jobs=1")
    done = shardkit("run", "../pipeline.yaml", *one_job, cwd=project.folder / "elsewhere")
    assert done.stdout == "" and "jobs:" not in done.stderr
    assert done.stderr.splitlines()[1] == "  records  6 listed = 6 done + 0 quarantined + 0 skipped"
    assert len(list((project.folder / "jobs" / "jobs").iterdir())) == 2
    assert not list((project.folder / "elsewhere").iterdir()) and not (project.folder / "state").exists()

    for no_engine in (["--engine", "none"], ["--set", "engine=null"]):
        assert not answer(ask("plan", "pipeline.yaml", "--json", *no_engine))["pipeline"].get("engine")
    shardkit("run", "pipeline.yaml", "--quiet", *no_engine)
    status = ask("status", "out").stdout
    assert "done." in status and "\n  jobs " not in status
    for command in ("logs", "stop"):
        assert "runs in one process and has no jobs." in ask(command, "out", code=2).stderr


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("engine: lokal", "line 9: engine: expected local, sagemaker, slurm or none, or a mapping with its kind; did you mean local?"),
        ("engine: 7", "line 9: engine: expected local, sagemaker, slurm or none, or a mapping with its kind."),
        ("engine: {root: jobs}", "line 9: engine: expected local, sagemaker, slurm or none, or a mapping with its kind."),
        ("engine:\n  kind: sagemakr", "line 9: engine: expected local, sagemaker, slurm or none, or a mapping with its kind; did you mean sagemaker?"),
        ("engine:\n  kind: local\n  max_instance: 2", "line 11: engine.max_instance: unknown field; did you mean max_instances?"),
        ("engine:\n  kind: local\n  max_instances: many", 'line 11: engine.max_instances: should be a valid integer, not "many"'),
        ("engine: sagemaker", "line 9: engine.role: this field is missing"),
        ("engine: {kind: sagemaker, role: R, image: a/b:c, isolation: none}", "line 9: engine.isolation: this field is for another kind"),
        ("engine:\n  kind: sagemaker\n  image: a/b:c\n  role: x y", "line 12: engine.role: expected the ARN of an IAM role"),
        ("engine: {kind: sagemaker, role: R, image: a/b:c, region: eu-west-1}", "input.uri: "),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_wrong_engine_is_named_with_its_line(project: Project, ask: Ask, engine: str, message: str) -> None:
    project.engine(engine)
    done = ask("run", "pipeline.yaml", code=2)
    assert done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (project.folder / "out").exists()


def test_the_option_is_told_without_a_line(ask: Ask) -> None:
    done = ask("run", "pipeline.yaml", "--engine", "sagemake", code=2)
    assert done.stderr.startswith("Error: engine: expected local, sagemaker, slurm or none")


# ---- what fails ------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_broken_record_is_mended_and_tried_again(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    project.break_("b/1.txt")
    done = shardkit("run", "pipeline.yaml", "--engine", "local")
    assert (
        "1 record failed and is not in the dataset, within max_failures. The first is b/1.txt: ValueError"
        in done.stderr
    )
    assert project.dataset() == expected("b/1.txt")
    assert "no good: b/1.txt" in ask("failures", "out").stdout
    project.mend("b/1.txt")
    before = project.calls()
    assert answer(shardkit("retry", "out", "--json"))["records"]["done"] == 6
    assert project.calls()[len(before) :] == ["b/1.txt"]
    assert {"key": "b/1.txt", "n": 7} in project.dataset()
    jobs = answer(ask("status", "out", "--json"))["jobs"]
    assert [job["job"].split("-g2-")[1] for job in jobs] == ["00001", "merge"]  # only the shard that it is in


@pytest.mark.whole
def test_a_budget_that_is_spent(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    project.break_("a/1.txt", "a/2.txt", "b/0.txt")
    done = shardkit("run", "pipeline.yaml", "--engine", "local", "--json", code=1)
    summary = answer(done)
    assert summary["status"] == "failed"
    assert "records are quarantined, more than max_failures (1) allows" in done.stderr
    assert f"shardkit failures {project.folder / 'out'} --run-id {summary['run_id']}" in done.stderr
    assert "Traceback" not in done.stderr
    status = ask("status", "out").stdout
    assert "failed." in status and "is Failed: " in status and "max_failures" in status
    assert "more than max_failures" in ask("logs", "out").stdout  # those of the job that failed
    done = shardkit("resume", "out", "--set", "max_failures=3", "--json")
    assert answer(done)["records"] == {"listed": 6, "done": 3, "quarantined": 3, "skipped": 0}
    assert project.dataset() == expected("a/1.txt", "a/2.txt", "b/0.txt")


@pytest.mark.whole
def test_a_job_that_fails_for_good(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    """Code that only the job cannot import: it is not tried again, and its log has the reason."""
    module = project.folder / "code" / "work_for_jobs.py"
    module.write_text("import os\nassert not os.path.exists('/opt/ml/config'), 'never in a job'\n" + module.read_text())
    command = ("run", "pipeline.yaml", "--engine", "local", "--set", "shards.max_jobs=1", "--quiet")
    done = shardkit(*command, code=1)
    assert "-g1-00000-1 failed after 1 attempt" in done.stderr and "never in a job" in done.stderr
    assert "See what it said: shardkit logs" in done.stderr and "Then go on: shardkit resume" in done.stderr
    status = ask("status", "out").stdout
    assert "failed." in status and "2 Failed" in status and "did not complete" not in status
    logs = ask("logs", "out").stdout
    assert "never in a job" in logs
    module.write_text(module.read_text().partition("\n")[2].partition("\n")[2])
    shardkit("resume", "out", "--changed-function", "--quiet")
    assert project.dataset() == expected()


# ---- interrupted, stopped, come back ---------------------------------------------------------------------------


@pytest.mark.whole
def test_ctrl_c_leaves_the_jobs_running(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    project.hold()
    project.engine("engine: {kind: local, max_instances: 1}")
    driver = project.start("run", "pipeline.yaml", "--json")
    wait_for(project.calls)

    refused = ask("resume", "out", code=1)
    assert "is being worked on by another process" in refused.stderr

    driver.process.send_signal(signal.SIGINT)
    interrupted = driver.wait()
    assert interrupted.code == 130
    summary = json.loads(interrupted.stdout)
    run_id = summary["run_id"]
    where = f"{project.folder / 'out'} --run-id {run_id}"
    assert f"Run {run_id}: no longer watching; 1 job goes on, and 2 wait to be launched." in interrupted.stderr
    assert f"Go on: shardkit resume {where}" in interrupted.stderr
    assert f"Stop them: shardkit stop {where}" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr

    status = ask("status", "out").stdout
    assert f"Run {run_id}: running." in status and "nobody is watching" in status
    assert "jobs     3: 1 InProgress, 2 New" in status

    project.let_go()
    states = lambda: [job["status"] for job in sk.open_run(project.folder / "out").jobs()]  # noqa: E731
    wait_for(lambda: states() == ["Completed", "New", "New"])
    done = shardkit("resume", "out", "--json")
    assert answer(done)["status"] == "done"
    assert project.dataset() == expected()
    assert sorted(project.calls()) == KEYS  # nothing was done twice


@pytest.mark.whole
def test_stop_and_go_on(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    """Stopped from another terminal; the driver says so. What was committed is kept."""
    project.engine("engine: {kind: local, max_instances: 1}")
    project.hold()
    driver = project.start("run", "pipeline.yaml", "--quiet")
    wait_for(project.calls)
    said = ask("stop", "out").stdout
    run_id = sk.open_run(project.folder / "out").run_id
    assert (
        said == f"3 jobs of run {run_id} stopped. Go on: shardkit resume {project.folder / 'out'} --run-id {run_id}\n"
    )
    project.let_go()  # otherwise it takes the ten seconds that a record has to end
    stopped = driver.wait()
    assert stopped.code == 130
    assert f"Run {run_id} was stopped." in stopped.stderr
    status = ask("status", "out").stdout
    assert f"Run {run_id}: interrupted." in status and "3 Stopped" in status
    assert answer(shardkit("resume", "out", "--json"))["status"] == "done"
    assert project.dataset() == expected()
    assert ask("status", "out").stdout.splitlines()[-1] == "  jobs     3: 3 Completed"


@pytest.mark.whole
def test_a_stop_that_the_service_does_not_hear(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop is sent again; if that does not help either, the command does not claim that the jobs were stopped."""
    project.hold()
    monkeypatch.chdir(project.folder)
    one_job = sk.Pipeline.from_yaml("pipeline.yaml").replace(shards=None)
    run = one_job.run(sk.Local(), wait=False, quiet=True)
    driver = project.start("resume", "out", "--quiet")
    wait_for(project.calls)
    driver.process.kill()
    driver.wait()

    asked: list[str] = []
    real, busy = LocalEngine.stop_processing_job, {"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}

    def stop(engine: LocalEngine, *, after: int, **request: str) -> dict[str, Any]:
        asked.append(request["ProcessingJobName"])
        if len(asked) <= after:
            raise ClientError(busy, "StopProcessingJob")
        return real(engine, **request)

    monkeypatch.setattr("shardkit.runs.stopping.STOP_TRIES", 1)
    monkeypatch.setattr(LocalEngine, "stop_processing_job", partialmethod(stop, after=99))
    with pytest.raises(
        sk.RunFailed, match="the service does not answer, and 1 job could not be stopped. Try again: sk.open_run"
    ):
        run.stop()
    assert len(asked) == 2
    monkeypatch.setattr(LocalEngine, "stop_processing_job", partialmethod(stop, after=3))
    assert run.stop() == 1
    assert len(asked) == 4
    project.let_go()
    wait_for(lambda: {job["status"] for job in run.jobs()} == {"Stopped"})


@pytest.mark.whole
def test_a_driver_that_is_killed(shardkit: RunCommand, ask: Ask, project: Project) -> None:
    """An engine without settings, whose jobs are in the user's state folder."""
    project.engine("engine: local")
    project.hold()
    command = ("run", "pipeline.yaml", "--set", "shards.max_jobs=1", "--run-id", "one")
    driver = project.start(*command)
    wait_for(project.calls)
    driver.process.kill()
    driver.wait()
    assert "Run one: running." in ask("status", "out").stdout
    project.let_go()
    done = shardkit(*command)
    assert "Run one exists; going on where it ended." in done.stderr
    assert project.dataset() == expected()
    assert sorted(project.calls()) == KEYS
    assert len(list((project.folder / "state").rglob("jobs/*-merge-1"))) == 1
