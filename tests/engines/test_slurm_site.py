"""Slurm's engine where there is no Slurm: its settings, and what it makes of commands that answer as some sites do."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from engine_jobs import request

import shardkit as sk
from shardkit.engines import slurm_commands
from shardkit.engines.kinds import settings_from
from shardkit.engines.slurm import SlurmEngine
from shardkit.engines.slurm_commands import Seen
from shardkit.engines.slurm_ends import end_of
from shardkit.engines.slurm_files import Batch, SlurmFiles, write_once
from shardkit.engines.slurm_words import sbatch_words
from shardkit.jobs.causes import classify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Site = "Callable[..., None]"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what commands print; each notes its words in a file of its name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "no.conf"))

    def say(**commands: str) -> None:
        slurm_commands.site_limits.cache_clear()
        for name, script in ({"squeue": "", "scontrol": "echo MaxArraySize = 1001"} | commands).items():
            (folder / name).write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/{name}.words\n{script}\n')
            (folder / name).chmod(0o755)

    yield say
    slurm_commands.site_limits.cache_clear()


def words(tmp_path: Path, name: str) -> list[str]:
    """What a command was called with, a line each."""
    return (tmp_path / f"{name}.words").read_text().splitlines()


def jobs(count: int) -> list[dict[str, Any]]:
    return [request(f"job-{i}", "true") | {"Resources": {"cpus": 2}} for i in range(count)]


def codes(answers: list[Exception | None]) -> list[str]:
    return [error.response["Error"]["Code"] if isinstance(error, ClientError) else "" for error in answers]


# ---- the settings --------------------------------------------------------------------------------------------------


def test_what_a_job_asks_for() -> None:
    engine = sk.Slurm(
        partition="short", account="me", qos="low", cpus=4, memory_gb=1.5, gpus="a100:2", time="2-12",
        options=["--constraint=fast"], merge={"memory_gb": 64, "gpus": None},
    )  # fmt: skip
    made = engine.request(entrypoint=["true"], instances=2)
    assert sbatch_words(made["Resources"], 2) == [
        "--nodes=1", "--ntasks=1", "--partition=short", "--account=me", "--qos=low", "--time=2-12",
        "--cpus-per-task=8", "--mem=3072M", "--gres=gpu:a100:4", "--constraint=fast",
    ]  # fmt: skip
    last = engine.for_merge().request(entrypoint=["true"])["Resources"]
    assert (last["memory_gb"], last["cpus"], "gpus" in last) == (64, 4, False)
    assert "RoleArn" not in made
    again = settings_from(engine.to_dict())
    assert again == engine
    assert again.vcpus == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cpu": 4}, "did you mean cpus"),
        ({"cpus": 0}, "cpus"),
        ({"time": "soon"}, "expected minutes"),
        ({"gpus": "many"}, "expected a number, or a kind of GPU"),
        ({"options": ["--array=1-9"]}, "the engine sets this itself"),
        ({"options": ["constraint=fast"]}, "expected options of sbatch"),
        ({"partition": "a b"}, "partition"),
        ({"merge": {"memory": 3}}, "did you mean memory_gb"),
        ({"merge": {"kind": "local"}}, "runs where the others run"),
        ({"role": "me"}, "role: unknown field"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(sk.PipelineError, match=said):
        sk.Slurm(**fields)


def test_a_larger_machine_for_the_merge_on_any_engine() -> None:
    engine = sk.Local(instance_type="ml.m5.large", merge={"instance_type": "ml.m5.4xlarge", "volume_gb": 90})
    cluster = engine.for_merge().request(entrypoint=["true"])["ProcessingResources"]["ClusterConfig"]
    assert (cluster["InstanceType"], cluster["VolumeSizeInGB"]) == ("ml.m5.4xlarge", 90)
    with pytest.raises(sk.PipelineError, match="merge"):
        sk.Local(merge={"instance_type": "large"})


# ---- sites ---------------------------------------------------------------------------------------------------------


def test_many_jobs_are_as_few_arrays_as_the_site_allows(site: Any, tmp_path: Path) -> None:
    site(sbatch="cat >/dev/null; echo 17", scontrol="echo 'MaxArraySize = 4'; echo 'MaxJobCount = 100'")
    assert codes(SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(9))) == [""] * 9
    arrays = [next((word for word in line.split() if "--array" in word), "") for line in words(tmp_path, "sbatch")]
    assert arrays == ["--array=0-3", "--array=0-3", ""]
    assert all("--no-requeue" in line and "--cpus-per-task=2" in line for line in words(tmp_path, "sbatch"))


FULL = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates"


def test_as_many_jobs_as_the_site_takes(site: Any, tmp_path: Path) -> None:
    """It takes arrays of up to 3, and three submissions in all."""
    site(
        sbatch=f"""cat >/dev/null; case "$*" in *--array=0-[3-9]*) echo '{FULL}' >&2; exit 1;; esac
        [ $(ls {tmp_path}/taken-* 2>/dev/null | wc -l) -lt 3 ] || {{ echo '{FULL}' >&2; exit 1; }}
        touch {tmp_path}/taken-$$; echo $$"""
    )
    engine = SlurmEngine(tmp_path / "jobs")
    answers = codes(engine.create_processing_jobs(jobs(8)))
    assert answers == [""] * 6 + ["ResourceLimitExceeded"] * 2
    assert not any("job-7" in name for name in os.listdir(tmp_path / "jobs" / "jobs"))  # its name is free


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("Unable to contact slurm controller (connect failure)", "ServiceUnavailable"),
        ("Batch job submission failed: Socket timed out on send/recv operation", "ServiceUnavailable"),
        ("Batch job submission failed: Requested node configuration is not available", "ValidationException"),
        ("invalid partition specified: nope", "ValidationException"),
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)", "ResourceLimitExceeded"),
    ],
)  # fmt: skip
def test_what_errors_mean(site: Any, tmp_path: Path, said: str, code: str) -> None:
    site(sbatch=f"echo 'sbatch: error: {said}' >&2; exit 1")
    assert codes(SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(2))) == [code] * 2


def test_a_submission_whose_answer_was_lost_is_found_by_its_name(site: Any, tmp_path: Path) -> None:
    down = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"
    site(sbatch=f"cat >/dev/null; {down}")
    engine = SlurmEngine(tmp_path / "jobs")
    assert codes(engine.create_processing_jobs(jobs(2))) == ["ServiceUnavailable"] * 2
    assert engine.list_processing_jobs()["ProcessingJobSummaries"] == []  # nobody knows yet
    (batch,) = os.listdir(tmp_path / "jobs" / "batches")
    site(squeue=f"echo '99|0|99|PENDING|Priority|{batch}'; echo '99|1|100|RUNNING|None|{batch}'", sbatch=down)
    engine = SlurmEngine(tmp_path / "jobs")
    assert codes(engine.create_processing_jobs(jobs(2))) == ["ResourceInUse"] * 2
    about = engine.describe_processing_job(ProcessingJobName="job-0")
    assert (about["ProcessingJobStatus"], about["WaitingReason"]) == ("InProgress", "Priority")
    assert "WaitingReason" not in engine.describe_processing_job(ProcessingJobName="job-1")


def test_a_submission_that_did_not_get_through_is_made_again(site: Any, tmp_path: Path) -> None:
    site(sbatch="echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    engine = SlurmEngine(tmp_path / "jobs")
    assert codes(engine.create_processing_jobs(jobs(1))) == ["ServiceUnavailable"]
    site(sbatch="cat >/dev/null; echo 7")
    assert codes(SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(1))) == [""]


def test_jobs_that_the_controller_has_forgotten(site: Any, tmp_path: Path) -> None:
    """The accounts know how they ended; where there are none, they count as lost after a while."""
    site(
        sbatch="cat >/dev/null; echo 7",
        scontrol="echo 'AccountingStorageType = accounting_storage/slurmdbd'; echo 'MaxArraySize = 99'",
        sacct="case \"$*\" in *7_0*) echo '7_0|CANCELLED by 0|None';; esac",
    )
    engine = SlurmEngine(tmp_path / "jobs", lag_s=0.0, gone_s=0.0)
    engine.create_processing_jobs(jobs(2))
    about = [engine.describe_processing_job(ProcessingJobName=f"job-{i}") for i in range(2)]
    assert [classify(each) for each in about] == ["stopped", "lost"]


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm_commands.site_limits.cache_clear()
    with pytest.raises(sk.PipelineError, match="There is no scontrol on this machine"):
        SlurmEngine(tmp_path / "jobs").create_processing_job(**request("one", "true"))


def test_what_slurm_sets_for_a_job_does_not_get_into_the_jobs_that_it_submits(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    site(sbatch=f"cat >/dev/null; env >{tmp_path}/env; echo 7")
    SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(1))
    around = (tmp_path / "env").read_text()
    assert "SLURM_MEM_PER_CPU" not in around
    assert "SBATCH_ACCOUNT=mine" in around
    assert "SLURM_CONF=" in around


# ---- how jobs end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("PREEMPTED", "preempted"),
        ("NODE_FAIL", "node"),
        ("BOOT_FAIL", "node"),
        ("OUT_OF_MEMORY", "memory"),
        ("TIMEOUT", "timeout"),
        ("DEADLINE", "timeout"),
        ("CANCELLED", "stopped"),
        ("FAILED", "internal"),
        ("COMPLETED", "internal"),
        (None, "lost"),
    ],
)
def test_every_state_has_a_cause(tmp_path: Path, state: str | None, cause: str) -> None:
    seen = Seen(state) if state is not None else None
    end, _ = end_of(seen, "7", begun=True, stopped=False, batch=Batch(str(tmp_path), "b"))
    assert classify(end) == cause


def test_a_job_ends_once(tmp_path: Path) -> None:
    """Whoever is first: its supervisor, or whoever gives it up."""
    files = SlurmFiles(str(tmp_path), "one")
    files.create({}, 1)
    files.write_state({"ProcessingJobStatus": "InProgress"})
    files.write_state({"ProcessingJobStatus": "Failed", "FailureReason": "NodeFailure: gone"})
    files.write_state({"ProcessingJobStatus": "Completed"})
    files.write_state({"ProcessingJobStatus": "InProgress"})
    assert files.state()["ProcessingJobStatus"] == "Failed"
    assert (files.claim("7"), files.claim("8"), files.claimant()) == (True, False, "7")
    assert write_once(str(tmp_path / "new"), "a")
    assert not [name for name in os.listdir(files.folder) if str(os.getpid()) in name]


def test_the_script_runs_this_very_python(site: Any, tmp_path: Path) -> None:
    site(sbatch=f"cat >{tmp_path}/script; echo 7")
    SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(1))
    script = (tmp_path / "script").read_text()
    assert script.startswith("#!/bin/sh\nexec ")
    assert sys.executable in script
