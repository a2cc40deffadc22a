"""Slurm's engine where there is no Slurm: its settings, and what it makes of commands that answer as some sites do."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from engine_jobs import request, until

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
        ("AssocMaxSubmitJobLimit / Job violates accounting/QOS policy (job submit limit, ...)", "ResourceLimitExceeded"),
        ("QOSMaxWallDurationPerJobLimit / Job violates accounting/QOS policy (job submit limit, ...)", "ValidationException"),
        ("Batch job submission failed: Rate limit exceeded, please retry momentarily", "ServiceUnavailable"),
        ("Batch job submission failed: Slurm backup controller in standby mode", "ServiceUnavailable"),
        ("Munge encode failed: Failed to access /run/munge/munge.socket.2: No such file", "ServiceUnavailable"),
        ("Batch job submission failed: I/O error writing script/environment to file", "ServiceUnavailable"),
        ("Batch job submission failed: Invalid qos specification", "ValidationException"),
    ],
)  # fmt: skip
def test_what_errors_mean(site: Any, tmp_path: Path, said: str, code: str) -> None:
    site(sbatch=f"echo 'sbatch: error: {said}' >&2; exit 1")
    assert codes(SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(2))) == [code] * 2


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("invalid partition specified: nope", "sinfo lists the partitions. Give one as engine.partition."),
        ("Invalid account or account/partition combination specified", "sacctmgr show associations"),
        ("Invalid generic resource (gres) specification", "Change engine.gpus"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "Lower engine.time"),
        ("QOSMaxWallDurationPerJobLimit; Job violates accounting/QOS policy (job submit limit)", "Lower engine.time"),
    ],
)
def test_what_slurm_will_never_take_is_refused_before_there_is_a_run(
    site: Any, tmp_path: Path, said: str, cure: str
) -> None:
    site(sbatch=f"echo 'sbatch: error: {said}' >&2; exit 1")
    with pytest.raises(sk.PipelineError, match="engine: Slurm takes no such jobs") as caught:
        sk.Slurm(root=tmp_path).check_site()
    assert said in caught.value.message
    assert cure in caught.value.hint
    assert all("--test-only" in line for line in words(tmp_path, "sbatch"))


def test_only_the_merge_is_refused(site: Any, tmp_path: Path) -> None:
    site(sbatch="case $* in *nope*) echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1;; esac")
    sk.Slurm(root=tmp_path).check_site()
    assert len(words(tmp_path, "sbatch")) == 1
    with pytest.raises(sk.PipelineError, match=r"engine\.merge: Slurm takes no such jobs: .*nope"):
        sk.Slurm(root=tmp_path, merge={"partition": "nope"}).check_site()


@pytest.mark.parametrize(
    "said",
    ["Requested node configuration is not available", "Unable to contact slurm controller", "QOSMaxSubmitJobPerUserLimit"],
)  # fmt: skip
def test_what_may_change_does_not_hinder_a_run(site: Any, tmp_path: Path, said: str) -> None:
    """All nodes may be down, the controller away, the queue full."""
    site(sbatch=f"echo 'allocation failure: {said}' >&2; exit 1")
    sk.Slurm(root=tmp_path).check_site()


def test_a_full_site_is_asked_a_few_times(site: Any, tmp_path: Path) -> None:
    """However many jobs it does not take."""
    site(sbatch=f"cat >/dev/null; echo '{FULL}' >&2; exit 1")
    assert codes(SlurmEngine(tmp_path / "jobs").create_processing_jobs(jobs(300))) == ["ResourceLimitExceeded"] * 300
    assert len(words(tmp_path, "sbatch")) == 9  # 300, 150, 75, 37, 18, 9, 4, 2, 1
    assert os.listdir(tmp_path / "jobs" / "jobs") == []


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Priority", "Priority"),
        ("PartitionTimeLimit", "PartitionTimeLimit (engine.time is longer than the partition allows)"),
        ("QOSMaxWallDurationPerJobLimit", "(engine.time is longer than the qos or the account allows)"),
        ("QOSMaxCpuPerJobLimit", "(the jobs ask for more than the qos or the account allows a job)"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit"),
        ("JobHeldUser", "(somebody holds the jobs back: scontrol release)"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "(nodes that the jobs need are down or reserved)"),
    ],
)
def test_a_reason_to_wait_says_what_to_do_if_time_alone_does_not_help(
    site: Any, tmp_path: Path, reason: str, said: str
) -> None:
    site(sbatch="cat >/dev/null; echo 7", squeue=f"echo '7|N/A|7|PENDING|{reason}||x'")
    engine = SlurmEngine(tmp_path / "jobs")
    engine.create_processing_jobs(jobs(1))
    assert engine.describe_processing_job(ProcessingJobName="job-0")["WaitingReason"].endswith(said)


def test_a_job_that_waits_costs_no_look_at_its_files(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are on a filesystem that many share."""
    site(sbatch="cat >/dev/null; echo 7", squeue='for i in 0 1 2; do echo "7|$i|7|PENDING|Priority||x"; done')
    engine = SlurmEngine(tmp_path / "jobs")
    engine.create_processing_jobs(jobs(3))
    assert len(engine.list_processing_jobs()["ProcessingJobSummaries"]) == 3
    opened: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr("shardkit.engines.slurm_files.read", lambda path: opened.append(path))
        patched.setattr("shardkit.engines.jobfiles.read", lambda path: opened.append(path))
        assert len(engine.list_processing_jobs()["ProcessingJobSummaries"]) == 3
    assert opened == []
    assert len(words(tmp_path, "squeue")) <= 2


def test_a_request_needs_neither_a_role_nor_an_image(site: Any, tmp_path: Path) -> None:
    """Nor an instance type; and a variable may be as long as Linux takes it."""
    site(sbatch="cat >/dev/null; echo 7", squeue="echo '7|N/A|7|PENDING|Priority||x'")
    engine = SlurmEngine(tmp_path / "jobs")
    made = sk.Slurm(cpus=2, env={"LONG": "x" * 5000}).request(entrypoint=["true"])
    assert not {"RoleArn", "ImageUri"} & {*made, *made["AppSpecification"]}
    engine.create_processing_job(ProcessingJobName="one", **made)
    assert engine.describe_processing_job(ProcessingJobName="one")["Environment"]["LONG"] == "x" * 5000
    engine.create_processing_job(
        ProcessingJobName="two", AppSpecification={"ContainerEntrypoint": ["true"]}, Resources={"memory_gb": 1}
    )
    assert "--mem=1024M" in words(tmp_path, "sbatch")[-1]
    with pytest.raises(sk.PipelineError, match="env: LONG is too long"):
        sk.Local(env={"LONG": "x" * 5000})


def test_a_submission_whose_answer_was_lost_is_found_by_its_name(site: Any, tmp_path: Path) -> None:
    down = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"
    site(sbatch=f"cat >/dev/null; {down}")
    engine = SlurmEngine(tmp_path / "jobs")
    assert codes(engine.create_processing_jobs(jobs(2))) == ["ServiceUnavailable"] * 2
    assert engine.list_processing_jobs()["ProcessingJobSummaries"] == []  # nobody knows yet
    (batch,) = os.listdir(tmp_path / "jobs" / "batches")
    site(squeue=f"echo '99|0|99|PENDING|Priority||{batch}'; echo '99|1|100|RUNNING|None|n1|{batch}'", sbatch=down)
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
    engine = SlurmEngine(tmp_path / "jobs", lag_s=0.1, gone_s=0.1)
    engine.create_processing_jobs(jobs(2))

    def causes() -> list[str]:
        about = engine.list_processing_jobs(SortBy="Name", SortOrder="Ascending")["ProcessingJobSummaries"]
        return [classify(each) for each in about if each["ProcessingJobStatus"] != "InProgress"]

    assert causes() == []
    assert until(lambda: len(found := causes()) == 2 and found) == ["stopped", "lost"]
    asked = words(tmp_path, "sacct")[0].rpartition("--jobs=")[2]
    assert sorted(asked.split(",")) == ["7_0", "7_1"]  # one question about all of them


def test_accounts_that_are_away_are_no_hindrance(site: Any, tmp_path: Path) -> None:
    site(
        sbatch="cat >/dev/null; echo 7",
        scontrol="echo 'AccountingStorageType = accounting_storage/slurmdbd'; echo 'MaxArraySize = 99'",
        sacct="echo 'sacct: error: Unable to connect to database' >&2; exit 1",
    )
    engine = SlurmEngine(tmp_path / "jobs", lag_s=0.0, gone_s=3600.0)
    engine.create_processing_jobs(jobs(1))
    assert engine.describe_processing_job(ProcessingJobName="job-0")["ProcessingJobStatus"] == "InProgress"


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm_commands.site_limits.cache_clear()
    with pytest.raises(sk.PipelineError, match="There is no scontrol on this machine"):
        SlurmEngine(tmp_path / "jobs").create_processing_job(**request("one", "true"))
    with pytest.raises(sk.PipelineError, match="There is no sbatch on this machine") as caught:
        sk.Slurm(root=tmp_path).check_site()
    assert "login node" in caught.value.hint


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
    seen = Seen(state, node="n2") if state is not None else None
    end, _ = end_of(seen, "7", begun=True, stopped=False, batch=Batch(str(tmp_path), "b"))
    assert classify(end) == cause
    assert ("n2" in end["FailureReason"]) == (state in {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "FAILED", "COMPLETED"})


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
