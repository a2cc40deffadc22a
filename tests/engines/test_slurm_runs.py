"""Whole runs on a Slurm cluster: as a user has them, and with what Slurm does to their jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from engine_jobs import until

import shardkit as sk
from shardkit.jobs import SQLiteStore, Submission, drive, launch, monitor, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import RunCommand
    from slurm_cluster import Cluster

pytestmark = pytest.mark.slurm

FUNCTION = """
import os, time

def rows(record):
    folder = os.path.dirname(os.path.dirname(os.path.dirname(record.path)))
    with open(os.path.join(folder, "begun"), "a") as file:
        file.write(f"{record.key} {os.environ['SLURM_JOB_ID']}\\n")
    while record.stem.endswith("hold") and not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.05)
    return {"key": record.key, "cpus": os.environ["LOKY_MAX_CPU_COUNT"]}
"""


@pytest.fixture
def project(slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an input of two directories, a function, and a pipeline on the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.configuration))
    for name in ("a/1.txt", "a/2.txt", "b/1.txt", "b/hold.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "function.py").write_text(FUNCTION)
    engine = {
        "kind": "slurm",
        "root": str(tmp_path / "jobs"),
        "cpus": 2,
        "memory_gb": 2,
        "poll_s": 0.3,
        "merge": {"cpus": 3},
    }
    content = {"input": "data/", "function": "function:rows", "output": "out/", "engine": engine, "records": "file"}
    (tmp_path / "pipeline.yaml").write_text(json.dumps(content | {"shards": {"by": "directory"}}))
    yield tmp_path
    slurm_cluster.run("scancel", f"--user={os.getuid()}")


def begun(project: Path) -> dict[str, list[str]]:
    """The Slurm jobs that have begun with each record."""
    jobs: dict[str, list[str]] = {}
    if (project / "begun").exists():
        for line in (project / "begun").read_text().splitlines():
            key, job = line.split()
            jobs.setdefault(key, []).append(job)
    return jobs


@pytest.fixture
def watched(project: Path) -> Iterator[subprocess.Popen[str]]:
    """`shardkit run`, which watches while its last record waits for the file `go`."""
    words = [sys.executable, "-m", "shardkit", "run", "pipeline.yaml"]
    process = subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until(lambda: "b/hold.txt" in begun(project) or process.poll() is not None)
        yield process
    finally:
        process.kill()
        process.communicate()


def jobs_of(run: sk.Run) -> dict[str, Any]:
    return {job["job"].rpartition("-")[2]: job for job in run.jobs()}


@pytest.mark.slow
def test_a_run_whose_job_is_cancelled_and_that_is_stopped_goes_on_where_it_was(
    watched: subprocess.Popen[str], project: Path, slurm_cluster: Cluster, shardkit: RunCommand
) -> None:
    run = sk.open_run(project / "out")
    until(lambda: jobs_of(run)["00000"]["status"] == "Completed", seconds=60, every_s=0.3)
    assert "1 InProgress" in shardkit("status", "out/").stdout
    (held,) = begun(project)["b/hold.txt"]
    slurm_cluster.run("scancel", held)
    until(lambda: len(set(begun(project)["b/hold.txt"])) == 2, seconds=60)  # two jobs of Slurm
    assert [entry.get("cause") for entry in jobs_of(run)["00001"]["attempts"]] == ["stopped", None]
    assert "stopped" in shardkit("stop", "out/").stdout.lower()
    said, _ = watched.communicate(timeout=120)
    assert watched.returncode != 0, said
    assert "1 job to be tried again (it was stopped, although nobody had asked the queue to), such as rows-" in said
    assert {job["status"] for job in jobs_of(run).values()} <= {"Stopped", "Completed"}
    (project / "go").touch()
    assert "4 listed = 4 done" in shardkit("resume", "out/").stderr
    rows = run.dataset().to_table().to_pydict()
    assert (sorted(rows["key"]), set(rows["cpus"])) == (["a/1.txt", "a/2.txt", "b/1.txt", "b/hold.txt"], {"2"})
    assert len(begun(project)["a/1.txt"]) == 1
    assert "Shard 1:" in shardkit("logs", "out/", "--job", "00001").stdout
    name = jobs_of(run)["merge"]["name"]
    merge = run._run_jobs().engine.client().describe_processing_job(ProcessingJobName=name)
    assert (merge["Resources"]["cpus"], merge["ProcessingJobStatus"]) == (3, "Completed")


def test_jobs_that_wait_say_for_what(project: Path, shardkit: RunCommand, slurm_cluster: Cluster) -> None:
    pipeline = sk.Pipeline.from_yaml(project / "pipeline.yaml")
    assert pipeline.engine is not None
    slurm_cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        engine = pipeline.engine.replace(partition="main")
        shown = pipeline.replace(engine=engine).run(wait=False, quiet=True)
        jobs = shown._run_jobs()
        launch(jobs.store, jobs.engine.client(), policy=jobs.engine.policy())
        until(
            lambda: [job["reason"][:16] for job in jobs_of(shown).values()].count("waits: Partition") == 2, every_s=0.3
        )
        status = shardkit("status", "out/").stdout
        assert "jobs     3: 2 waiting, 1 New\n    2 wait for: Partition" in status
        assert ": running." in status
        assert "The engine has 2 jobs of it; nobody is watching. Watch: shardkit resume" in status
        listed = shardkit("jobs", "list", "--store", shown.path / "jobs.sqlite").stdout
        assert sum("waits: Partition" in line for line in listed.splitlines()) == 2
        assert shown.stop() == 3
        assert [job["status"] for job in jobs_of(shown).values()] == ["Stopped"] * 3
    finally:
        slurm_cluster.run("scontrol", "update", "partition=main", "state=up")


# ---- many jobs, and no controller ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "jobs.sqlite")


def submitted(store: SQLiteStore, engine: sk.Slurm, count: int, shell: str) -> None:
    made = engine.request(entrypoint=["sh", "-c", shell])
    store.submit_many(Submission(f"run-{i:05d}", made) for i in range(count))


def cpu_s() -> float:
    """The seconds of CPU so far, those of Slurm's commands with them: they are the same on a busy machine."""
    return sum(os.times()[:4])


def test_a_thousand_jobs(project: Path, store: SQLiteStore) -> None:
    engine = sk.Slurm(root=project / "jobs", cpus=16, poll_s=0.3)
    client, policy = engine.client(), engine.policy()
    submitted(store, engine, 1000, "sleep 100")
    begun = cpu_s()
    report = launch(store, client, policy=policy)
    launched = cpu_s()
    assert (len(report.launched), report.trouble) == (1000, "")
    report = monitor(store, client, policy=policy, force=True)
    looked = cpu_s()
    assert store.counts()["Launched"] >= 990
    assert max(launched - begun, looked - launched) < 5, (launched - begun, looked - launched)
    stop(store, client, [job.job_id for job in store.jobs()[-20:]])
    until(lambda: monitor(store, client, policy=policy, force=True) and store.counts()["Stopped"] == 20, every_s=0.3)
    begun = cpu_s()
    assert len(stop(store, client)) >= 970
    assert cpu_s() - begun < 5


@pytest.mark.slow
def test_a_controller_that_is_down_costs_no_attempt(project: Path, store: SQLiteStore, slurm_cluster: Cluster) -> None:
    engine = sk.Slurm(root=project / "jobs", poll_s=0.3)
    client, policy = engine.client(), engine.policy()
    submitted(store, engine, 2, f"while [ ! -e {project}/go ]; do sleep 0.1; done")
    launch(store, client, policy=policy)
    until(lambda: monitor(store, client, policy=policy, force=True) and store.counts()["InProgress"] == 2, every_s=0.2)
    store.submit("run-later", engine.request(entrypoint=["true"]))
    slurm_cluster.end("slurmctld")
    try:
        until(lambda: "ServiceUnavailable" in monitor(store, client, policy=policy, force=True).trouble)
        (project / "go").touch()
        until(lambda: "ServiceUnavailable" in launch(store, client, policy=policy).trouble)
        assert not any(job.ended for job in store.jobs())
    finally:
        slurm_cluster.start_controller()
    drive(store, client, policy=policy)
    assert [(job.status, job.attempt) for job in store.jobs()] == [("Completed", 1)] * 3
