"""Runs on an engine whose driver, jobs, instances and workers are killed: committed work is not lost or done again."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crashing import LINUX, check_ledger, descendants, dying, wait_for
from job_runs import JobProject

import shardkit as sk
from shardkit.engines.local import available_isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [LINUX, pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")]
WHOLE = pytest.mark.whole


@pytest.fixture
def project(tmp_path: Path) -> Iterator[JobProject]:
    made = JobProject(tmp_path / "the user's")
    yield made
    made.end()


def held(project: JobProject, *, groups: str = "ab") -> None:
    """Groups each with a record that waits between two that do not; all have one size, so that it is not first."""
    project.write_groups("go..", "wait", "go..", groups=groups)


def once_each(project: JobProject, *, but: tuple[str, ...] = ()) -> None:
    """Check that the function was called once with each record, except for some that were in flight."""
    calls = Counter(project.calls())
    assert {key for key, _ in project.expected()} == set(calls)
    assert {key for key, number in calls.items() if number > 1} <= set(but), calls


def committed_once(run: sk.Run) -> None:
    """Check that no record is in two markers."""
    summary = check_ledger(run)
    assert sum(marker["records"]["listed"] for marker in run.folder.markers()) == summary.records["listed"]


def command_of(process: int) -> str:
    """The command that it was started with, and the name that it has given itself."""
    with contextlib.suppress(OSError):
        files = (Path(f"/proc/{process}/{name}") for name in ("cmdline", "comm"))
        return " ".join(file.read_bytes().replace(b"\0", b" ").decode() for file in files)
    return ""


def processes_of(project: JobProject, word: str) -> list[int]:
    """The processes of all jobs whose command holds a word."""
    found = [process for supervisor in project.supervisors().values() for process in descendants(supervisor)]
    return [process for process in found if word in command_of(process)]


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


# ---- the driver --------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_jobs_outlive_their_driver_and_are_not_cleaned_away(
    project: JobProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(project)
    with dying(project.start_driver()) as driver:
        project.wait_for_calls("a/r1.txt", "b/r1.txt")
        run = sk.open_run(project.out)
        assert run.summary().status == "running"
        with pytest.raises(sk.RunBusy, match=f"{run.run_id} is being worked on"):
            run.resume(quiet=True)
        assert [job["status"] for job in run.jobs()] == ["InProgress", "InProgress", "New"]
        driver.kill_all()
    assert run.summary().status == "running"
    assert "nobody is watching" in (run.summary().message or "")
    with pytest.raises(sk.RunBusy, match="has jobs that have not ended"):
        run.resume(quiet=True, workers=2)
    with monkeypatch.context() as silent:  # as if they had just been launched, and silent yet
        silent.setattr("shardkit.runs.summary.JOB_SILENCE_S", -60.0)
        assert run.summary().status == "interrupted"
        (told,) = sk.clean(project.out, unfinished=True).runs
    assert (told.files, told.reason) == (0, "at work")
    project.open_gate()
    assert run.wait(quiet=True) is run
    assert project.keys_and_rows() == project.expected()
    once_each(project)
    assert [len(job["attempts"]) for job in run.jobs()] == [1, 1, 1]
    assert run.summary().status == "done"


@pytest.mark.whole
def test_ctrl_c_leaves_the_jobs_and_says_how_to_go_on(project: JobProject) -> None:
    held(project)
    with dying(project.start_driver()) as driver:
        project.wait_for_calls("a/r1.txt", "b/r1.txt")
        driver.signal_group(signal.SIGINT)
        done = driver.wait()
    assert "no longer watching; 2 jobs go on, and 1 waits to be launched" in done.stderr
    calls = re.findall(r": sk\.open_run\(.*\)\.(\w+)\(\)", done.stderr)
    assert calls == ["resume", "stop"]
    assert len(project.supervisors()) == 2
    project.open_gate()
    sk.open_run(project.out).resume(quiet=True)
    once_each(project)
    assert project.keys_and_rows() == project.expected()


@pytest.mark.whole
def test_a_run_that_is_stopped_goes_on(project: JobProject) -> None:
    held(project, groups="a")
    run = project.run_jobs(wait=False)
    assert [job["status"] for job in run.jobs()] == ["New"] * 2
    assert run.stop() == 2
    assert [job["status"] for job in run.jobs()] == ["Stopped"] * 2
    assert run.summary().status == "interrupted"
    with dying(
        project.start(project.out, code="import sys, shardkit as sk; sk.open_run(sys.argv[1]).resume()")
    ) as driver:
        project.wait_for_calls("a/r1.txt")
        assert run.stop() == 2
        project.open_gate()  # what is in flight ends and is committed
        assert "was stopped" in driver.wait().stderr
    assert run.summary().status == "interrupted"
    run.resume(quiet=True)
    assert project.keys_and_rows() == project.expected()
    once_each(project)
    assert check_ledger(run).status == "done"


@pytest.mark.whole
def test_a_run_that_is_stopping_is_waited_for(project: JobProject) -> None:
    held(project, groups="a")
    with dying(project.start_driver()) as driver:
        project.wait_for_calls("a/r1.txt")
        driver.kill_all()
    run = sk.open_run(project.out)
    assert run.stop() == 2
    project.open_gate()
    run.resume(quiet=True)
    assert project.keys_and_rows() == project.expected()
    once_each(project)
    committed_once(run)


@WHOLE
def test_the_driver_is_killed_at_any_moment(project: JobProject) -> None:
    moments = random.Random(0)
    project.write_groups(*["slow"] * 6)
    for _ in range(4):
        with dying(project.start_driver(workers=1) if not project.out.exists() else resuming(project)) as driver:
            with contextlib.suppress(Exception):
                driver.process.wait(timeout=moments.uniform(0.3, 2.5))
            driver.kill_all()
    run = project.wait_for_run() if list(project.out.glob("_shardkit/runs/*/plan.json")) else project.run_jobs()
    run.resume(quiet=True)
    assert project.keys_and_rows(run) == project.expected()
    once_each(project)
    committed_once(run)


def resuming(project: JobProject):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Another driver of the same run, if there is one yet."""
    code = "import sys, shardkit as sk; sk.open_run(sys.argv[1]).resume(quiet=True)"
    return project.start(project.out, code=code)


@WHOLE
def test_a_queue_that_was_lost_is_rebuilt(project: JobProject) -> None:
    held(project, groups="a")
    with dying(project.start_driver()) as driver:
        project.wait_for_calls("a/r1.txt")
        driver.kill_all()
    run = sk.open_run(project.out)
    for path in run.path.glob("jobs.sqlite*"):
        path.unlink()
    assert [job["status"] for job in run.jobs()] == ["InProgress", "New"]
    for path in run.path.glob("jobs.sqlite*"):
        path.unlink()
    project.open_gate()
    run.resume(quiet=True)
    for path in run.path.glob("jobs.sqlite*"):
        path.write_bytes(b"") if path.suffix == ".sqlite" else path.unlink()  # as a process leaves it that dies early
    run.resume(quiet=True, **{"output.rows_per_file": 3})
    assert [job["job"].rpartition("-g")[2] for job in run.jobs()] == ["2-merge"]
    assert project.keys_and_rows() == project.expected()
    once_each(project)


# ---- jobs --------------------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize(
    "victim", ["supervisor", *(pytest.param(victim, marks=WHOLE) for victim in ("program", "worker", "forks"))]
)
def test_a_job_that_is_killed_is_started_again(project: JobProject, victim: str) -> None:
    groups = "ab" if victim == "supervisor" else "a"  # of jobs one is killed, of a job's own processes all
    held(project, groups=groups)
    at_work = [f"{group}/r1.txt" for group in groups]
    with dying(project.start_driver()) as driver:
        project.wait_for_calls(*at_work)
        run = sk.open_run(project.out)
        wait_for(lambda: len(run.folder.markers()) >= len(groups), what="the first chunks' markers")
        if victim == "supervisor":
            victims = [next(pid for name, pid in project.supervisors().items() if "-00000-" in name)]
        else:
            victims = processes_of(project, "bootstrap.py" if victim == "program" else f"shardkit-{victim}")
        assert victims
        for process in victims:
            kill(process)
        if victim == "supervisor":
            wait_for(lambda: len(run.jobs()[0]["attempts"]) == 2, what="another attempt")
        project.open_gate()
        done = driver.wait()
    assert done.code == 0, done.stderr
    assert project.keys_and_rows() == project.expected()
    once_each(project, but=(*at_work, *(f"{group}/r2.txt" for group in groups)))
    committed_once(run)
    attempts = [job["attempts"] for job in run.jobs()]
    killed = {"supervisor": [2, 1, 1], "program": [2, 1]}.get(victim, [1, 1])
    assert [len(each) for each in attempts] == killed
    assert attempts[0][0].get("cause", "") == {"supervisor": "internal", "program": "died"}.get(victim, "")


@pytest.mark.whole
def test_a_record_that_kills_its_worker_is_quarantined_in_its_job(project: JobProject) -> None:
    project.write_groups("go", "kill", "go", groups="a")
    source = (project.code / "work.py").read_text()
    project.write_function(
        source.replace(
            '    if text.startswith("slow")',
            "    if text == 'kill':\n        os.kill(os.getpid(), 9)\n    if text.startswith(\"slow\")",
        )
    )
    run = project.run_jobs(max_failures=1)
    assert [(entry["key"], entry["signal"]) for entry in run.quarantine()] == [("a/r1.txt", "SIGKILL")]
    assert check_ledger(run).records["done"] == 2
    assert [len(job["attempts"]) for job in run.jobs()] == [1, 1]


@WHOLE
@pytest.mark.parametrize("mode", ["stream", "download"])
def test_an_instance_of_several_is_killed(project: JobProject, mode: str) -> None:
    project.write_records({f"r{i:02}.txt": "wait" if i in {4, 5} else "go.." for i in range(8)})
    with dying(project.start_driver(shards={"by": "s3key", "instances": 2}, input_mode=mode)) as driver:
        project.wait_for_calls("r04.txt", "r05.txt")
        run = sk.open_run(project.out)
        wait_for(lambda: len(run.folder.markers()) >= 4, what="the first markers")
        done_before = sum(marker["records"]["listed"] for marker in run.folder.markers())
        before = len(project.calls())
        kill(processes_of(project, "bootstrap.py")[-1])
        wait_for(lambda: len(run.jobs()[0]["attempts"]) == 2, what="another attempt")
        project.open_gate()
        assert driver.wait().code == 0
    assert project.keys_and_rows() == project.expected()
    committed_once(run)
    assert len(project.calls()) <= before + 8 - done_before


@WHOLE
def test_anything_is_killed_at_any_moment(project: JobProject) -> None:
    moments = random.Random(100)
    project.write_groups(*["slow"] * 40, groups="ab")
    deadline = time.monotonic() + 6
    driver = project.start_driver(workers=1)
    run = None
    try:
        run = project.wait_for_run()
        while time.monotonic() < deadline:
            time.sleep(moments.uniform(0.2, 1.2))
            kind = moments.choice(["driver", "supervisor", "bootstrap.py", "shardkit-worker", "shardkit-forks"])
            victims = {"driver": [driver.pid], "supervisor": [*project.supervisors().values()]}.get(kind)
            found = victims if victims is not None else processes_of(project, kind)
            if found:
                kill(moments.choice(found))
            if driver.process.poll() is not None:
                driver = resuming(project)
    finally:
        with dying(driver):
            driver.process.wait(timeout=60)
    for _ in range(5):  # attempts may be used up
        with contextlib.suppress(sk.RunFailed):
            run.resume(quiet=True)
            break
    killed = run.failures()  # whose workers were killed twice: such a record is set aside, as one that kills them
    if len(killed):
        assert set(killed["error"]) == {"WorkerDied"}
        run.retry(quiet=True)
    assert project.keys_and_rows(run) == project.expected()
    committed_once(run)
    assert run.summary().status == "done"
