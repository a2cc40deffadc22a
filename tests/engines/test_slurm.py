"""Slurm's engine on a real cluster: what Slurm does to jobs, and what becomes of them."""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from engine_jobs import ended, processes, request, said, status, until
from slurm_cluster import slurm_engine

from shardkit.engines.local import available_isolation
from shardkit.jobs.causes import classify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_cluster import Cluster

    from shardkit.engines.slurm import SlurmEngine

pytestmark = pytest.mark.slurm

NAPS = itertools.count()


@pytest.fixture
def engine(slurm_cluster: Cluster, tmp_path: Path) -> Iterator[SlurmEngine]:
    with slurm_engine(slurm_cluster, tmp_path / "engine") as made:
        yield made


@pytest.fixture
def nap() -> str:
    return f"3600.{os.getpid()}{next(NAPS):04d}"


def running(engine: SlurmEngine, name: str, nap: str, **resources: Any) -> str:
    """Start a job that sleeps for long; its id in Slurm."""
    engine.create_processing_job(**request(name, shell=f"echo ready; exec sleep {nap}"), Resources=resources)
    said(engine, name, "ready")
    return engine._slurm_ids[name]


def cause(engine: SlurmEngine, name: str) -> str:
    return classify(ended(engine, name))


# ---- how Slurm ends jobs -------------------------------------------------------------------------------------------


def test_a_job_that_somebody_cancels(engine: SlurmEngine, slurm_cluster: Cluster, nap: str) -> None:
    slurm_cluster.run("scancel", running(engine, "one", nap))
    assert cause(engine, "one") == "stopped"
    assert "Somebody cancelled" in ended(engine, "one")["FailureReason"]
    assert not processes(nap)


def test_tasks_of_an_array_that_have_not_begun(engine: SlurmEngine, slurm_cluster: Cluster, nap: str) -> None:
    """Those that are cancelled or stopped end, and no others do."""
    shell = f"exec sleep {nap}"
    made = [request(f"job-{i}", shell=shell) | {"Resources": {"cpus": 16}} for i in range(8)]
    assert engine.create_processing_jobs(made) == [None] * 8
    until(lambda: len(processes(nap)) == 2)
    assert status(engine, "job-6") == "InProgress"
    slurm_cluster.run("scancel", engine._slurm_ids["job-6"])
    engine.stop_processing_job(ProcessingJobName="job-7")
    assert cause(engine, "job-6") == "stopped"
    assert ended(engine, "job-7")["ProcessingJobStatus"] == "Stopped"
    assert "FailureReason" not in ended(engine, "job-7")
    others = [engine.describe_processing_job(ProcessingJobName=f"job-{i}") for i in range(6)]
    assert {about["ProcessingJobStatus"] for about in others} == {"InProgress"}
    assert sum("WaitingReason" in about for about in others) == 4
    asked = [{"ProcessingJobName": name} for name in ("job-0", "job-3", "job-7", "job-9", "job-5")]
    errors = engine.stop_processing_jobs(asked)  # one that runs, and two that wait
    assert ["" if error is None else str(error)[-30:] for error in errors] == [
        "", "", "the processing job is Stopped.", "requested job with name: job-9", "",
    ]  # fmt: skip
    assert {ended(engine, f"job-{i}")["ProcessingJobStatus"] for i in (0, 3, 5)} == {"Stopped"}
    left = [engine.describe_processing_job(ProcessingJobName=f"job-{i}") for i in (1, 2, 4)]
    assert {about["ProcessingJobStatus"] for about in left} == {"InProgress"}


def test_a_job_that_others_take_the_node_of(engine: SlurmEngine, slurm_cluster: Cluster, nap: str) -> None:
    running(engine, "one", nap, cpus=16, options=["--nodelist=n1"])
    engine.create_processing_job(
        **request("two", shell="true"), Resources={"partition": "first", "cpus": 16, "options": ["--nodelist=n1"]}
    )
    assert ended(engine, "two")["ProcessingJobStatus"] == "Completed"
    assert cause(engine, "one") == "preempted"


def test_a_job_that_takes_too_much_memory(engine: SlurmEngine) -> None:
    code = "import time; print('ready', flush=True); x = b'x' * (400 << 20); time.sleep(60)"
    engine.create_processing_job(**request("one", "python3", "-c", code), Resources={"memory_gb": 0.2})
    assert cause(engine, "one") == "memory"


def test_a_node_that_is_given_up_while_its_processes_live_on(
    engine: SlurmEngine, slurm_cluster: Cluster, nap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine says that the job is lost, and nothing that its processes do or say changes that."""
    running(engine, "one", nap, options=["--nodelist=n2"])
    slurm_cluster.end("n2", signal.SIGKILL)
    try:
        slurm_cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
        about = ended(engine, "one")
        assert classify(about) == "node"
        until(lambda: not processes(nap))  # they have found out, although nobody could tell them
        until(lambda: not processes(engine.root))
        assert engine.describe_processing_job(ProcessingJobName="one")["FailureReason"] == about["FailureReason"]
    finally:
        slurm_cluster.start_node("n2")
        slurm_cluster.run("scontrol", "update", "nodename=n2", "state=resume")


@pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")
def test_a_node_that_does_not_see_the_root(engine: SlurmEngine, slurm_cluster: Cluster) -> None:
    slurm_cluster.end("n2")
    try:
        slurm_cluster.start_node("n2", hidden=os.path.dirname(engine.root))
        engine.create_processing_job(
            **request("one", shell="true"), Resources={"partition": "main", "options": ["--nodelist=n2"]}
        )
        reason = ended(engine, "one")["FailureReason"]
        assert " on n2 before its program began" in reason
        assert f"Do the nodes see engine.root, {engine.root}, and the Python that submitted the job" in reason
    finally:
        slurm_cluster.end("n2")
        slurm_cluster.start_node("n2")


def test_what_slurm_wrote_is_the_log_of_a_job_that_has_none(
    engine: SlurmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that there is no such Python on the node."""
    monkeypatch.setattr("shardkit.engines.slurm.interpreter_words", lambda code: ["/no/such/python", code])
    engine.create_processing_job(**request("one", shell="true"))
    assert "before its program began" in ended(engine, "one")["FailureReason"]
    assert "/no/such/python" in "".join(engine.log_lines("one"))


@pytest.mark.slow
def test_a_job_whose_time_is_over(engine: SlurmEngine, slurm_cluster: Cluster, nap: str) -> None:
    job = running(engine, "one", nap, time="10")
    slurm_cluster.run("scontrol", "update", f"jobid={job}", "endtime=now")  # Slurm looks every half a minute
    until(lambda: status(engine, "one") != "InProgress", seconds=90)
    assert cause(engine, "one") == "timeout"


def test_a_supervisor_that_is_killed(engine: SlurmEngine, nap: str) -> None:
    running(engine, "one", nap)
    os.kill(min(processes(engine.root)), signal.SIGKILL)  # its keepers began later
    about = ended(engine, "one")
    assert (classify(about), "without a word" in about["FailureReason"]) == ("internal", True)
    until(lambda: not processes(nap))
