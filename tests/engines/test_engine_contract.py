"""What every engine holds: the local one, itself and over the wire, and Slurm's. Real processes, as the service has them.

Where ``plain`` is the engine, the wire would show nothing new: these tests run without it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError
from engine_jobs import (
    DATA,
    OUTPUT,
    WIRE,
    ended,
    found,
    local_engine,
    names,
    outputs,
    processes,
    refusal,
    request,
    s3_input,
    s3_output,
    said,
    status,
    tree,
    until,
    wired,
)
from slurm_cluster import slurm_engine

from shardkit.engines.local import available_isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteFiles

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")

NAPS = itertools.count()
SLURM = pytest.param("slurm", marks=pytest.mark.slurm)


@pytest.fixture
def nap() -> str:
    """Many seconds to sleep, a number that no other test has, so that this test's processes can be found by it."""
    return f"3600.{os.getpid()}{next(NAPS):04d}"


@pytest.fixture(params=["local", WIRE, SLURM])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Every engine, and boto3's client of one over the wire: what holds for one holds for the others."""
    with one_of(request, tmp_path) as made:
        yield made


@pytest.fixture(params=["local", SLURM])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Every engine, without the wire."""
    with one_of(request, tmp_path) as made:
        yield made


@contextlib.contextmanager
def one_of(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    if request.param == "slurm":
        with slurm_engine(request.getfixturevalue("slurm_cluster"), folder / "engine") as slurm:
            yield slurm
        return
    with local_engine(folder / "engine") as local:
        if request.param == "local":
            yield local
            return
        with wired(local) as client:
            yield client


# ---- what a script sees ----------------------------------------------------------------------------------------

SCRIPT = """
import argparse, csv, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--factor", type=int)
factor = parser.parse_args().factor
os.makedirs("/opt/ml/processing/output/sums", exist_ok=True)
for path in sorted(pathlib.Path("/opt/ml/processing/input/data").rglob("*.csv")):
    with open(path) as file:
        total = factor * sum(int(row["x"]) for row in csv.DictReader(file))
    with open("/opt/ml/processing/output/sums/" + path.stem + ".json", "w") as file:
        json.dump({"total": total, "unit": os.environ["UNIT"]}, file)
"""


def test_any_script_runs_unchanged(engine: Any, files: WriteFiles, tmp_path: Path) -> None:
    data = files({"a.csv": "x\n1\n2\n", "sub/b.csv": "x\n5\n"})
    code = files({"script.py": SCRIPT}, "code")
    made = request("script", "python3", "/opt/ml/processing/input/code/script.py")
    made["AppSpecification"]["ContainerArguments"] = ["--factor", "10"]
    made["Environment"] = {"UNIT": "mm"}
    made["ProcessingInputs"] = [
        s3_input(data),
        s3_input(code / "script.py", "/opt/ml/processing/input/code", name="code"),
    ]
    made |= outputs(s3_output(tmp_path / "out"))
    arn = engine.create_processing_job(**made)["ProcessingJobArn"]
    about = ended(engine, "script")
    assert about["ProcessingJobStatus"] == "Completed", list(engine.log_lines("script"))
    assert arn == about["ProcessingJobArn"]
    assert arn.endswith(":123456789012:processing-job/script")
    assert {key: json.loads(text)["total"] for key, text in tree(tmp_path / "out").items()} == {
        "sums/a.json": 30,
        "sums/b.json": 50,
    }
    assert (
        about["CreationTime"] <= about["ProcessingStartTime"] <= about["ProcessingEndTime"] <= about["LastModifiedTime"]
    )
    assert about["CreationTime"].tzinfo is not None
    for field in ("ProcessingInputs", "ProcessingOutputConfig", "AppSpecification", "Environment", "RoleArn"):
        assert about[field] == made[field]


def test_the_configuration_that_the_service_writes(plain: Any) -> None:
    made = request("config", shell="cat /opt/ml/config/processingjobconfig.json", Tags=[{"Key": "a", "Value": "b"}])
    arn = plain.create_processing_job(**made)["ProcessingJobArn"]
    assert ended(plain, "config")["ProcessingJobStatus"] == "Completed"
    job = json.loads("".join(plain.log_lines("config")))
    assert job["ProcessingJobArn"] == arn
    assert job["ProcessingJobName"] == "config"
    assert job["AppSpecification"] == made["AppSpecification"]
    assert job["ProcessingResources"] == made["ProcessingResources"]
    plain.create_processing_job(**request("hosts", shell="cat /opt/ml/config/resourceconfig.json; echo", instances=2))
    ended(plain, "hosts")
    lines = dict(line.split(": ", 1) for line in plain.log_lines("hosts"))
    found = {host: json.loads(text) for host, text in lines.items()}
    assert {host: about["current_host"] for host, about in found.items()} == {"algo-1": "algo-1", "algo-2": "algo-2"}
    assert found["algo-2"]["hosts"] == ["algo-1", "algo-2"]
    assert found["algo-2"]["current_instance_type"] == "ml.m5.xlarge"


def test_the_environment_is_clean(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the role")
    monkeypatch.setenv("SECRET_OF_THE_DRIVER", "hidden")
    made = request(
        "env", shell="env; python3 -c 'import sys; print(sys.prefix, sys.base_prefix)'", Environment={"MINE": "1 = 2"}
    )
    plain.create_processing_job(**made)
    ended(plain, "env")
    lines = list(plain.log_lines("env"))
    assert {"AWS_SESSION_TOKEN=the role", "MINE=1 = 2", "LANG=C.UTF-8"} <= set(lines)
    assert not any("SECRET" in line for line in lines)
    # The job's own, on top of the engine's.
    assert lines[-1].endswith(f"/algo-1/env {sys.base_prefix}")


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="tells the interfaces")
def test_network_isolation_leaves_the_loopback(plain: Any) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    shell = f'grep -c : /proc/net/dev; python3 -c "{code}" && echo works'
    plain.create_processing_job(**request("net", shell=shell, NetworkConfig={"EnableNetworkIsolation": True}))
    assert ended(plain, "net")["ProcessingJobStatus"] == "Completed"
    assert list(plain.log_lines("net")) == ["1", "works"]


# ---- input -----------------------------------------------------------------------------------------------------


def test_a_prefix_matches_as_a_string(plain: Any, files: WriteFiles) -> None:
    data = files(["3/a", "3/b/c", "30/d", "31", "4/e"])
    assert found(plain, "slash", s3_input(f"{data}/3/")) == "a b/c"
    assert found(plain, "none", s3_input(f"{data}/3")) == "30/d 31 a b/c"
    assert found(plain, "uri", s3_input(f"file://{data}/3/")) == "a b/c"
    assert found(plain, "file", s3_input(data / "3" / "a")) == "a"


def test_instances_share_the_input_by_key(engine: Any, files: WriteFiles) -> None:
    data = files([f"{i}.txt" for i in range(7)])
    split = s3_input(f"{data}/", S3DataDistributionType="ShardedByS3Key")
    assert found(engine, "split", split, instances=3) == [
        "algo-1: 0.txt 3.txt 6.txt",
        "algo-2: 1.txt 4.txt",
        "algo-3: 2.txt 5.txt",
    ]
    whole = s3_input(f"{data}/", S3DataDistributionType="FullyReplicated")
    everything = " ".join(f"{i}.txt" for i in range(7))
    assert found(engine, "whole", whole, instances=2) == [f"algo-1: {everything}", f"algo-2: {everything}"]


def test_a_manifest_names_the_input(plain: Any, files: WriteFiles, tmp_path: Path) -> None:
    data = files(["a/1", "a/2", "b/1"])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps([{"prefix": f"{data}/"}, "a/2", "b/1"]))
    assert found(plain, "manifest", s3_input(manifest, kind="ManifestFile")) == "a/2 b/1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"prefix": "DATA/"}, "a", "missing"]', "missing cannot be brought"),
        ("not json", "cannot be read"),
        ('["a"]', "cannot be read"),
        ('[{"prefix": "DATA/"}, 7]', "7, which is no key"),
        ('[{"prefix": "DATA/"}, "../../../escape"]', "outside of its LocalPath"),
        ('[{"prefix": "DATA/"}]', "No objects found"),
    ],
)
def test_a_manifest_that_cannot_be_followed(
    plain: Any, files: WriteFiles, tmp_path: Path, content: str, said: str
) -> None:
    data = files(["a"])
    files(["escape"], "")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(content.replace("DATA", str(data)))
    given = [s3_input(manifest, kind="ManifestFile")]
    plain.create_processing_job(**request("bad", shell="true", ProcessingInputs=given))
    about = ended(plain, "bad")
    assert about["ProcessingJobStatus"] == "Failed"
    assert about["FailureReason"].startswith("ClientError: ")
    assert said in about["FailureReason"]
    assert "ProcessingStartTime" not in about


def test_input_that_is_not_there(engine: Any, tmp_path: Path) -> None:
    given = [s3_input(tmp_path / "nothing")]
    engine.create_processing_job(**request("nothing", shell="true", ProcessingInputs=given))
    about = ended(engine, "nothing")
    assert about["ProcessingJobStatus"] == "Failed"
    assert "No objects found" in about["FailureReason"]


def test_a_script_may_write_to_its_input(plain: Any, files: WriteFiles) -> None:
    data = files({"a": "as it was"})
    given = [s3_input(data)]
    plain.create_processing_job(**request("write", shell=f"echo changed > {DATA}/a", ProcessingInputs=given))
    assert ended(plain, "write")["ProcessingJobStatus"] == "Completed"
    assert tree(data) == {"a": "as it was"}


# ---- output ----------------------------------------------------------------------------------------------------


def test_output_at_the_end_of_a_job_that_completes(engine: Any, tmp_path: Path) -> None:
    write = f"mkdir {OUTPUT}/sub; echo $0 > {OUTPUT}/sub/x"
    for name, code in (("good", 0), ("bad", 1)):
        made = request(name, "sh", "-c", f"{write}; exit {code}", name) | outputs(s3_output(tmp_path / name))
        engine.create_processing_job(**made)
        ended(engine, name)
    assert tree(tmp_path / "good") == {"sub/x": "good\n"}
    assert not (tmp_path / "bad").exists()


def test_continuous_output_comes_while_the_job_runs(plain: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shell = (
        f"echo 1 > {OUTPUT}/first; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo 2 > {OUTPUT}/last; exit 1"
    )
    made = request("steady", shell=shell) | outputs(s3_output(out, mode="Continuous"))
    plain.create_processing_job(**made)
    until(lambda: (out / "first").exists())
    assert status(plain, "steady") == "InProgress"
    (tmp_path / "go").touch()
    assert ended(plain, "steady")["ProcessingJobStatus"] == "Failed"
    assert tree(out) == {"first": "1\n", "last": "2\n"}


def test_instances_upload_side_by_side(plain: Any, tmp_path: Path) -> None:
    shell = f"grep -o 'current_host[^,]*' /opt/ml/config/resourceconfig.json | tr -dc 0-9 > {OUTPUT}/$(cat {DATA}/*)"
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    given = [s3_input(f"{folder}/", S3DataDistributionType="ShardedByS3Key")]
    made = request("both", shell=shell, instances=2, ProcessingInputs=given) | outputs(s3_output(tmp_path / "out"))
    plain.create_processing_job(**made)
    assert ended(plain, "both")["ProcessingJobStatus"] == "Completed"
    assert tree(tmp_path / "out") == {"a": "1", "b": "2"}


def test_output_is_no_link_to_what_it_was_made_from(plain: Any, files: WriteFiles, tmp_path: Path) -> None:
    source = files({"a": "A"}) / "a"
    shell = f"cd {OUTPUT}; ln -s $0 soft; ln $0 hard || cp $0 hard; cp $0 plain; mkdir d; ln -s /x d/no"
    made = request("links", "sh", "-c", shell, str(source)) | outputs(s3_output(tmp_path / "out"))
    plain.create_processing_job(**made)
    assert ended(plain, "links")["ProcessingJobStatus"] == "Completed"
    assert tree(tmp_path / "out") == {"hard": "A", "plain": "A", "soft": "A"}
    for path in (tmp_path / "out").iterdir():
        path.write_text("changed")
    assert source.read_text() == "A"


def test_output_that_cannot_be_written(plain: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    made = request("blocked", shell=f"echo x > {OUTPUT}/x") | outputs(s3_output(tmp_path / "out"))
    plain.create_processing_job(**made)
    about = ended(plain, "blocked")
    assert about["ProcessingJobStatus"] == "Failed"
    assert "The output cannot be uploaded" in about["FailureReason"]


# ---- how jobs end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 75"], 75),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -SEGV $$"], 139),
        (["python3", "-c", "raise ValueError"], 1),
        (["no-such-program"], 127),
        (["/etc/hostname"], 126),
    ],
)
def test_exit_codes(plain: Any, command: list[str], code: int) -> None:
    plain.create_processing_job(**request("code", *command))
    about = ended(plain, "code")
    assert about["ProcessingJobStatus"] == "Failed"
    assert about["FailureReason"] == f"AlgorithmError: , exit code: {code}"
    assert "ExitMessage" not in about


def test_the_message_of_a_job(engine: Any) -> None:
    engine.create_processing_job(**request("good", shell="echo done > /opt/ml/output/message"))
    about = ended(engine, "good")
    assert (about["ProcessingJobStatus"], about["ExitMessage"]) == ("Completed", "done\n")
    assert "FailureReason" not in about
    shell = "python3 -c \"print('ü' * 5000)\" > /opt/ml/output/message; exit 9"
    engine.create_processing_job(**request("bad", shell=shell))
    about = ended(engine, "bad")
    assert about["ExitMessage"] == "ü" * 1024
    assert len(about["FailureReason"]) == 1024
    assert about["FailureReason"].startswith("AlgorithmError: üü")
    assert about["FailureReason"].endswith(", exit code: 9")


def test_one_instance_that_fails_ends_its_siblings(nap: str, plain: Any, tmp_path: Path) -> None:
    shell = 'grep -q \'"current_host": "algo-2"\' /opt/ml/config/resourceconfig.json && exit 5; exec sleep ' + nap
    plain.create_processing_job(**request("siblings", shell=shell, instances=3))
    about = ended(plain, "siblings")
    assert about["FailureReason"] == "AlgorithmError: , exit code: 5"
    assert not processes(nap)


def test_a_job_that_runs_too_long_is_stopped(nap: str, plain: Any) -> None:
    made = request("long", shell=f"sleep {nap} & sleep {nap}", StoppingCondition={"MaxRuntimeInSeconds": 1})
    plain.create_processing_job(**made)
    about = ended(plain, "long")
    assert about["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntime" in about["FailureReason"]
    assert 1 <= (about["ProcessingEndTime"] - about["ProcessingStartTime"]).total_seconds() < 20
    assert not processes(nap)


def test_what_a_program_leaves_running_ends_with_it(nap: str, plain: Any) -> None:
    code = f"import subprocess; subprocess.Popen(['sleep', '{nap}'], start_new_session=True)"
    plain.create_processing_job(**request("daemon", "python3", "-c", code))
    assert ended(plain, "daemon")["ProcessingJobStatus"] == "Completed"
    until(lambda: not processes(nap))


# ---- stopping --------------------------------------------------------------------------------------------------


def test_stopping_lets_a_program_clean_up(engine: Any, tmp_path: Path) -> None:
    shell = f"trap 'echo saved > {OUTPUT}/x; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    made = request("polite", shell=shell) | outputs(s3_output(tmp_path / "out", mode="Continuous"))
    engine.create_processing_job(**made)
    said(engine, "polite", "ready")
    assert engine.stop_processing_job(ProcessingJobName="polite")["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert status(engine, "polite") in {"Stopping", "Stopped"}
    about = ended(engine, "polite")
    assert about["ProcessingJobStatus"] == "Stopped"
    assert "FailureReason" not in about
    assert tree(tmp_path / "out") == {"x": "saved\n"}


def test_stopping_kills_after_the_grace_period(plain: Any) -> None:
    plain.stop_grace = 0.3
    plain.create_processing_job(**request("deaf", shell="trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    said(plain, "deaf", "ready")
    plain.stop_processing_job(ProcessingJobName="deaf")
    assert status(plain, "deaf") == "Stopping"
    plain.stop_processing_job(ProcessingJobName="deaf")
    assert ended(plain, "deaf")["ProcessingJobStatus"] == "Stopped"


def test_stopping_a_job_at_once(nap: str, plain: Any) -> None:
    for i in range(5):
        plain.create_processing_job(**request(f"early-{i}", shell=f"exec sleep {nap}"))
        for _ in range(i + 1):
            with contextlib.suppress(ClientError):  # it has ended by now
                plain.stop_processing_job(ProcessingJobName=f"early-{i}")
    assert {ended(plain, f"early-{i}")["ProcessingJobStatus"] for i in range(5)} == {"Stopped"}
    assert not processes(nap)


def test_stopping_what_cannot_be_stopped(engine: Any) -> None:
    engine.create_processing_job(**request("short", shell="true"))
    ended(engine, "short")
    code, message = refusal(engine.stop_processing_job, ProcessingJobName="short")
    assert (code, "Completed" in message) == ("ValidationException", True)
    code, message = refusal(engine.stop_processing_job, ProcessingJobName="nobody")
    assert (code, "Could not find" in message) == ("ValidationException", True)


# ---- deaths ----------------------------------------------------------------------------------------------------


# ---- names and quotas ------------------------------------------------------------------------------------------


def test_names_are_unique(engine: Any) -> None:
    engine.create_processing_job(**request("one", shell="true"))
    ended(engine, "one")
    code, message = refusal(engine.create_processing_job, **request("one", shell="true"))
    assert (code, "already exists" in message) == ("ResourceInUse", True)
    code, message = refusal(engine.describe_processing_job, ProcessingJobName="two")
    assert (code, "two" in message) == ("ValidationException", True)


# ---- lists -----------------------------------------------------------------------------------------------------


def test_lists_page_by_page(engine: Any) -> None:
    made = [f"job-{i:02d}" for i in range(25)]
    for name in made:
        engine.create_failed_job("CapacityError: none", **request(name, shell="true"))
    assert names(engine.list_processing_jobs()) == made[:14:-1]  # ten, newest first
    for order, expected in (("Ascending", made), ("Descending", made[::-1])):
        for by in ("CreationTime", "Name", "Status"):
            seen, token, pages = [], {}, 0
            while True:
                page = engine.list_processing_jobs(SortBy=by, SortOrder=order, MaxResults=7, **token)
                seen += names(page)
                pages += 1
                if "NextToken" not in page:
                    break
                token = {"NextToken": page["NextToken"]}
            assert (seen, pages) == (expected, 4)
    about = engine.list_processing_jobs(MaxResults=1)["ProcessingJobSummaries"][0]
    assert set(about) == {
        "ProcessingJobName", "ProcessingJobArn", "CreationTime", "LastModifiedTime", "ProcessingEndTime",
        "ProcessingJobStatus", "FailureReason",
    }  # fmt: skip


def test_lists_by_what_is_asked_for(engine: Any) -> None:
    engine.create_failed_job("CapacityError: none", **request("alpha-1", shell="true"))
    time.sleep(0.002)
    between = datetime.now(timezone.utc)
    time.sleep(0.002)
    engine.create_processing_job(**request("beta-1", shell="true"))
    ended(engine, "beta-1")
    for asked, expected in (
        ({"NameContains": "alpha"}, ["alpha-1"]),
        ({"NameContains": "-1"}, ["beta-1", "alpha-1"]),
        ({"NameContains": "ALPHA"}, []),
        ({"StatusEquals": "Completed"}, ["beta-1"]),
        ({"StatusEquals": "InProgress"}, []),
        ({"CreationTimeAfter": between}, ["beta-1"]),
        ({"CreationTimeBefore": between}, ["alpha-1"]),
        ({"LastModifiedTimeAfter": between}, ["beta-1"]),
        ({"LastModifiedTimeBefore": between - timedelta(hours=1)}, []),
        ({"CreationTimeAfter": between.timestamp()}, ["beta-1"]),
    ):
        assert names(engine.list_processing_jobs(**asked)) == expected, asked
    code, message = refusal(engine.list_processing_jobs, NextToken="made up")
    assert (code, "NextToken" in message) == ("ValidationException", True)
    assert refusal(engine.list_processing_jobs, MaxResults=101)[0] == "ValidationException"
    assert refusal(engine.list_processing_jobs, StatusEquals="Done")[0] == "ValidationException"


def test_a_list_of_no_jobs(engine: Any) -> None:
    assert engine.list_processing_jobs()["ProcessingJobSummaries"] == []


# ---- requests that are refused -----------------------------------------------------------------------------------


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good request with one field changed; None removes it."""
    made = request("good", shell="true")
    made["ProcessingInputs"] = [s3_input("s3://bucket/in/")]
    made |= outputs(s3_output("s3://bucket/out"))
    where: Any = made
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        where = where[part] if isinstance(part, int) else where.setdefault(part, {})
    if value is None:
        del where[last]
    else:
        where[last] = value
    return made


APP, CLUSTER = "AppSpecification", "ProcessingResources.ClusterConfig"
INPUT, S3 = "ProcessingInputs.0", "ProcessingInputs.0.S3Input"
OUT = "ProcessingOutputConfig.Outputs.0"
TWO = [{"InstanceType": "ml.m5.xlarge"}, {"InstanceType": "ml.m5.2xlarge"}]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("ProcessingJobName", "under_score", "'processingJobName' failed to satisfy constraint"),
        ("ProcessingJobName", "a" * 64, "less than or equal to 63"),
        ("ProcessingJobName", "-a", "regular expression"),
        ("RoleArn", "arn:aws:iam::12:role/short-account", "'roleArn'"),
        (f"{APP}.ContainerArguments", ["x" * 257], "appSpecification.containerArguments.1.member"),
        (f"{APP}.ContainerArguments", ["x"] * 101, "less than or equal to 100"),
        (f"{APP}.ContainerArguments", ["a", ""], "empty"),
        (f"{APP}.ContainerArguments", ["two\nlines"], "regular expression"),
        (f"{APP}.ContainerEntrypoint", None, "no image"),
        ("Environment", {f"V{i}": "" for i in range(101)}, "less than or equal to 100"),
        ("Environment", {"A": "x" * 257}, "Map value must have length less than or equal to 256"),
        ("Environment", {"1A": "x"}, "Map keys must satisfy regular expression"),
        (f"{CLUSTER}.InstanceType", "ml.m5.tiny", "enum value set"),
        (f"{CLUSTER}.InstanceCount", 101, "less than or equal to 100"),
        (f"{CLUSTER}.VolumeSizeInGB", 16385, "less than or equal to 16384"),
        (f"{CLUSTER}.InstancePreferences", TWO, "exactly one of InstanceType"),
        (f"{CLUSTER}.InstanceType", None, "exactly one of InstanceType"),
        (f"{CLUSTER}.SelectedInstanceType", "ml.m5.xlarge", "read-only"),
        ("StoppingCondition.MaxRuntimeInSeconds", 777601, "less than or equal to 777600"),
        ("Tags", [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}], "Tag key must be unique"),
        ("ProcessingInputs", [s3_input("s3://b/", f"{DATA}/{i}", name=str(i)) for i in range(11)], "to 10"),
        ("ProcessingInputs", [s3_input("s3://b/", DATA, name=i) for i in "ab"], "LocalPath of an input must be unique"),
        ("ProcessingInputs", [s3_input("s3://b/", DATA + i) for i in "ab"], "InputName must be unique"),
        (f"{S3}.S3Uri", "bucket/in", "regular expression"),
        (f"{S3}.LocalPath", "/data", "must begin with /opt/ml/processing/"),
        (f"{S3}.LocalPath", "/opt/ml/processing/../../x", "must begin with"),
        (f"{S3}.LocalPath", None, "must have a LocalPath"),
        (f"{S3}.S3InputMode", "Pipe", "Pipe"),
        (f"{S3}.S3CompressionType", "Gzip", "only be used when S3InputMode is Pipe"),
        (f"{INPUT}.S3Input", None, "exactly one of S3Input"),
        (f"{OUT}.S3Output.LocalPath", "/tmp/out", "must begin with /opt/ml/"),
        (f"{OUT}.S3Output", None, "exactly one of S3Output"),
    ],
)
def test_requests_that_the_service_would_refuse(plain: Any, path: str, value: Any, said: str) -> None:
    code, message = refusal(plain.create_processing_job, **changed(path, value))
    assert code == "ValidationException"
    assert said in message
    assert names(plain.list_processing_jobs()) == []


def test_every_violation_is_told(plain: Any) -> None:
    made = changed("Environment", {"A": "x" * 257}) | {"ProcessingJobName": "a b"}
    assert refusal(plain.create_processing_job, **made)[1].startswith("2 validation errors detected: ")


def test_requests_that_botocore_would_not_send(engine: Any) -> None:
    for path in ("RoleArn", "ProcessingResources", f"{APP}.ImageUri", f"{S3}.S3DataType"):
        with pytest.raises(ParamValidationError, match="Missing required parameter"):
            engine.create_processing_job(**changed(path, None))
    with pytest.raises(ParamValidationError, match="Unknown parameter"):
        engine.create_processing_job(**changed("Colour", "red"))
    with pytest.raises(ParamValidationError, match="Invalid type"):
        engine.create_processing_job(**changed(f"{CLUSTER}.InstanceCount", "1"))


def test_instance_preferences(engine: Any) -> None:
    made = request("prefer", shell="cat /opt/ml/config/resourceconfig.json")
    made["ProcessingResources"]["ClusterConfig"] = {
        "VolumeSizeInGB": 1,
        "InstancePreferences": [each | {"InstanceCount": n} for each, n in zip(TWO, (2, 1), strict=True)],
    }
    engine.create_processing_job(**made)
    about = ended(engine, "prefer")["ProcessingResources"]["ClusterConfig"]
    assert "InstanceType" not in about
    assert (about["SelectedInstanceType"], about["SelectedInstanceCount"]) == ("ml.m5.xlarge", 2)
    assert len(list(engine.log_lines("prefer"))) == 2
    for preferences in ([*TWO, TWO[0]], [TWO[0] | {"InstanceCount": 1}, TWO[1]]):
        made["ProcessingResources"]["ClusterConfig"]["InstancePreferences"] = preferences
        assert refusal(engine.create_processing_job, **made)[0] == "ValidationException"


# ---- isolation ---------------------------------------------------------------------------------------------------


# ---- what it costs -----------------------------------------------------------------------------------------------
