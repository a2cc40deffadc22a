"""The local engine: real processes, and the behaviour that the service has."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError, ParamValidationError
from engine_jobs import (
    DATA,
    OUTPUT,
    ended,
    outputs,
    processes,
    request,
    s3_input,
    s3_output,
    said,
    status,
    tree,
    until,
)

import shardkit as sk
from shardkit.engines import isolation
from shardkit.engines.jobfiles import JobFiles
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.engines.wire import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteFiles

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")

NAPS = itertools.count()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalEngine]:
    engine = LocalEngine(tmp_path / "engine", max_instances=8, stop_grace=20)
    yield engine
    for job in engine.list_processing_jobs(StatusEquals="InProgress", MaxResults=100)["ProcessingJobSummaries"]:
        engine.stop_grace = 0
        os.kill(JobFiles(engine.root, job["ProcessingJobName"]).supervisor() or 0, signal.SIGKILL)


@pytest.fixture
def nap() -> str:
    """Seconds to sleep, many, and of this test only: its processes are told by it."""
    return f"3600.{os.getpid()}{next(NAPS):04d}"


class Wired:
    """A boto3 client of the engine, with the engine's own extras."""

    def __init__(self, client: Any, engine: LocalEngine) -> None:
        self.client = client
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client if name.endswith(("_processing_job", "_processing_jobs")) else self.engine, name)


@pytest.fixture(params=["here", "wire"])
def engine(request: pytest.FixtureRequest, local: LocalEngine) -> Iterator[Any]:
    """The engine itself, and boto3's client of it over the wire: what holds for one holds for the other."""
    if request.param == "here":
        yield local
        return
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    with serving(local) as url:
        yield Wired(boto3.client("sagemaker", endpoint_url=url, region_name="us-east-1", **keys), local)


def refusal(call: Any, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


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


def test_the_configuration_that_the_service_writes(local: LocalEngine) -> None:
    made = request("config", shell="cat /opt/ml/config/processingjobconfig.json", Tags=[{"Key": "a", "Value": "b"}])
    arn = local.create_processing_job(**made)["ProcessingJobArn"]
    assert ended(local, "config")["ProcessingJobStatus"] == "Completed"
    job = json.loads("".join(local.log_lines("config")))
    assert job["ProcessingJobArn"] == arn
    assert job["ProcessingJobName"] == "config"
    assert job["AppSpecification"] == made["AppSpecification"]
    assert job["ProcessingResources"] == made["ProcessingResources"]
    local.create_processing_job(**request("hosts", shell="cat /opt/ml/config/resourceconfig.json; echo", instances=2))
    ended(local, "hosts")
    lines = dict(line.split(": ", 1) for line in local.log_lines("hosts"))
    found = {host: json.loads(text) for host, text in lines.items()}
    assert {host: about["current_host"] for host, about in found.items()} == {"algo-1": "algo-1", "algo-2": "algo-2"}
    assert found["algo-2"]["hosts"] == ["algo-1", "algo-2"]
    assert found["algo-2"]["current_instance_type"] == "ml.m5.xlarge"


def test_the_environment_is_clean(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the role")
    monkeypatch.setenv("SECRET_OF_THE_DRIVER", "hidden")
    made = request(
        "env", shell="env; python3 -c 'import sys; print(sys.prefix, sys.base_prefix)'", Environment={"MINE": "1 = 2"}
    )
    local.create_processing_job(**made)
    ended(local, "env")
    lines = list(local.log_lines("env"))
    assert {"AWS_SESSION_TOKEN=the role", "MINE=1 = 2", "LANG=C.UTF-8"} <= set(lines)
    assert not any("SECRET" in line for line in lines)
    # The job's own, on top of the engine's.
    assert lines[-1] == f"{local.root}/jobs/env/algo-1/env {sys.base_prefix}"


def test_instances_see_their_own_files_only(local: LocalEngine) -> None:
    there = Path("/opt/ml").exists()
    wait = f"echo mine > {OUTPUT}/$0; while [ ! -e /opt/ml/go ]; do sleep 0.01; done; ls {OUTPUT}"
    for name in ("one", "two"):
        made = request(name, "sh", "-c", wait, name) | outputs(s3_output(Path(local.root) / name))
        local.create_processing_job(**made)
    for name in ("one", "two"):
        volume = Path(JobFiles(local.root, name).volume("algo-1"))
        until(lambda volume=volume, name=name: (volume / "ml/processing/output" / name).exists())
        (volume / "ml" / "go").touch()
    assert {ended(local, name)["ProcessingJobStatus"] for name in ("one", "two")} == {"Completed"}
    assert [list(local.log_lines(name)) for name in ("one", "two")] == [["one"], ["two"]]
    assert Path("/opt/ml").exists() == there


def test_what_a_job_took_on_the_disk_is_free_when_it_has_ended(local: LocalEngine) -> None:
    local.create_processing_job(**request("disk", shell=f"echo said; mkdir -p {OUTPUT}; echo x > {OUTPUT}/big"))
    ended(local, "disk")
    files = JobFiles(local.root, "disk")
    until(lambda: not Path(files.volume("algo-1")).exists())
    assert list(local.log_lines("disk")) == ["said"]
    assert (Path(local.logs_folder("disk")) / "algo-1.log").read_text() == "said\n"


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="tells the interfaces")
def test_network_isolation_leaves_the_loopback(local: LocalEngine) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    shell = f'grep -c : /proc/net/dev; python3 -c "{code}" && echo works'
    local.create_processing_job(**request("net", shell=shell, NetworkConfig={"EnableNetworkIsolation": True}))
    assert ended(local, "net")["ProcessingJobStatus"] == "Completed"
    assert list(local.log_lines("net")) == ["1", "works"]


# ---- input -----------------------------------------------------------------------------------------------------

FIND = f"cd {DATA} && find . -type f | sort | cut -c3- | tr '\\n' ' '"


def found(engine: Any, name: str, *inputs: dict[str, Any], **more: Any) -> str | list[str]:
    """The names that a job finds in its input; of several instances, line by line."""
    engine.create_processing_job(**request(name, shell=f"{FIND}; echo", ProcessingInputs=list(inputs), **more))
    about = ended(engine, name)
    assert about["ProcessingJobStatus"] == "Completed", about
    lines = [line.rstrip() for line in engine.log_lines(name)]
    return lines[0] if len(lines) == 1 else lines


def test_a_prefix_matches_as_a_string(local: LocalEngine, files: WriteFiles) -> None:
    data = files(["3/a", "3/b/c", "30/d", "31", "4/e"])
    assert found(local, "slash", s3_input(f"{data}/3/")) == "a b/c"
    assert found(local, "none", s3_input(f"{data}/3")) == "30/d 31 a b/c"
    assert found(local, "uri", s3_input(f"file://{data}/3/")) == "a b/c"
    assert found(local, "file", s3_input(data / "3" / "a")) == "a"


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


def test_a_manifest_names_the_input(local: LocalEngine, files: WriteFiles, tmp_path: Path) -> None:
    data = files(["a/1", "a/2", "b/1"])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps([{"prefix": f"{data}/"}, "a/2", "b/1"]))
    assert found(local, "manifest", s3_input(manifest, kind="ManifestFile")) == "a/2 b/1"


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
    local: LocalEngine, files: WriteFiles, tmp_path: Path, content: str, said: str
) -> None:
    data = files(["a"])
    files(["escape"], "")
    manifest = tmp_path / "manifest.json"
    manifest.write_text(content.replace("DATA", str(data)))
    given = [s3_input(manifest, kind="ManifestFile")]
    local.create_processing_job(**request("bad", shell="true", ProcessingInputs=given))
    about = ended(local, "bad")
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


def test_a_script_may_write_to_its_input(local: LocalEngine, files: WriteFiles) -> None:
    data = files({"a": "as it was"})
    given = [s3_input(data)]
    local.create_processing_job(**request("write", shell=f"echo changed > {DATA}/a", ProcessingInputs=given))
    assert ended(local, "write")["ProcessingJobStatus"] == "Completed"
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


def test_continuous_output_comes_while_the_job_runs(local: LocalEngine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shell = (
        f"echo 1 > {OUTPUT}/first; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo 2 > {OUTPUT}/last; exit 1"
    )
    made = request("steady", shell=shell) | outputs(s3_output(out, mode="Continuous"))
    local.create_processing_job(**made)
    until(lambda: (out / "first").exists())
    assert status(local, "steady") == "InProgress"
    (tmp_path / "go").touch()
    assert ended(local, "steady")["ProcessingJobStatus"] == "Failed"
    assert tree(out) == {"first": "1\n", "last": "2\n"}


def test_instances_upload_side_by_side(local: LocalEngine, tmp_path: Path) -> None:
    shell = f"grep -o 'current_host[^,]*' /opt/ml/config/resourceconfig.json | tr -dc 0-9 > {OUTPUT}/$(cat {DATA}/*)"
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(name)
    given = [s3_input(f"{folder}/", S3DataDistributionType="ShardedByS3Key")]
    made = request("both", shell=shell, instances=2, ProcessingInputs=given) | outputs(s3_output(tmp_path / "out"))
    local.create_processing_job(**made)
    assert ended(local, "both")["ProcessingJobStatus"] == "Completed"
    assert tree(tmp_path / "out") == {"a": "1", "b": "2"}


def test_output_is_no_link_to_what_it_was_made_from(local: LocalEngine, files: WriteFiles, tmp_path: Path) -> None:
    source = files({"a": "A"}) / "a"
    shell = f"cd {OUTPUT}; ln -s $0 soft; ln $0 hard || cp $0 hard; cp $0 plain; mkdir d; ln -s /x d/no"
    made = request("links", "sh", "-c", shell, str(source)) | outputs(s3_output(tmp_path / "out"))
    local.create_processing_job(**made)
    assert ended(local, "links")["ProcessingJobStatus"] == "Completed"
    assert tree(tmp_path / "out") == {"hard": "A", "plain": "A", "soft": "A"}
    for path in (tmp_path / "out").iterdir():
        path.write_text("changed")
    assert source.read_text() == "A"


def test_output_that_cannot_be_written(local: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    made = request("blocked", shell=f"echo x > {OUTPUT}/x") | outputs(s3_output(tmp_path / "out"))
    local.create_processing_job(**made)
    about = ended(local, "blocked")
    assert about["ProcessingJobStatus"] == "Failed"
    assert "The output cannot be uploaded" in about["FailureReason"]


def test_continuous_output_is_tried_again(local: LocalEngine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("in the way")
    shell = f"echo x > {OUTPUT}/x; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    local.create_processing_job(**request("again", shell=shell), **outputs(s3_output(out, mode="Continuous")))
    process = until(lambda: _porter(local, "again"))
    os.kill(process, signal.SIGKILL)
    out.unlink()
    until(lambda: (out / "x").exists())
    (tmp_path / "go").touch()
    assert ended(local, "again")["ProcessingJobStatus"] == "Completed"


def _porter(local: LocalEngine, name: str) -> int | None:
    """The process that uploads a job's output: the child of the supervisor that keeps no instance."""
    files = JobFiles(local.root, name)
    keepers = set((files.state().get("keepers") or {}).values())
    supervisor = files.supervisor()
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next((int(child) for child in children if keepers and int(child) not in keepers), None)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    for name, value in (("ACCESS_KEY_ID", "any"), ("SECRET_ACCESS_KEY", "any"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


@pytest.mark.whole
def test_input_and_output_in_s3(bucket: Any, tmp_path: Path) -> None:
    local = LocalEngine(tmp_path / "engine", endpoint_url=bucket.meta.endpoint_url)
    for key in ("in/3/a.txt", "in/3/b/c.txt", "in/30/d.txt"):
        bucket.put_object(Bucket="bucket", Key=key, Body=key.encode())
    manifest = json.dumps([{"prefix": "s3://bucket/in/"}, "30/d.txt", "3/a.txt"])
    bucket.put_object(Bucket="bucket", Key="in/manifest", Body=manifest.encode())
    assert found(local, "folder", s3_input("s3://bucket/in/3/")) == "a.txt b/c.txt"
    assert found(local, "string", s3_input("s3://bucket/in/3")) == "30/d.txt a.txt b/c.txt"
    assert found(local, "listed", s3_input("s3://bucket/in/manifest", kind="ManifestFile")) == "3/a.txt 30/d.txt"
    made = request("copy", shell=f"cp -r {DATA}/. {OUTPUT}", ProcessingInputs=[s3_input("s3://bucket/in/3/")])
    local.create_processing_job(**made, **outputs(s3_output("s3://bucket/out")))
    assert ended(local, "copy")["ProcessingJobStatus"] == "Completed"
    keys = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="bucket", Prefix="out/")["Contents"]]
    assert keys == ["out/a.txt", "out/b/c.txt"]
    local.create_processing_job(**request("none", shell="true", ProcessingInputs=[s3_input("s3://bucket/none/")]))
    assert "No objects found under s3://bucket/none/" in ended(local, "none")["FailureReason"]


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
def test_exit_codes(local: LocalEngine, command: list[str], code: int) -> None:
    local.create_processing_job(**request("code", *command))
    about = ended(local, "code")
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


def test_one_instance_that_fails_ends_its_siblings(nap: str, local: LocalEngine, tmp_path: Path) -> None:
    shell = 'grep -q \'"current_host": "algo-2"\' /opt/ml/config/resourceconfig.json && exit 5; exec sleep ' + nap
    local.create_processing_job(**request("siblings", shell=shell, instances=3))
    about = ended(local, "siblings")
    assert about["FailureReason"] == "AlgorithmError: , exit code: 5"
    assert not processes(nap)


def test_a_job_that_runs_too_long_is_stopped(nap: str, local: LocalEngine) -> None:
    made = request("long", shell=f"sleep {nap} & sleep {nap}", StoppingCondition={"MaxRuntimeInSeconds": 1})
    local.create_processing_job(**made)
    about = ended(local, "long")
    assert about["ProcessingJobStatus"] == "Stopped"
    assert "MaxRuntime" in about["FailureReason"]
    assert 1 <= (about["ProcessingEndTime"] - about["ProcessingStartTime"]).total_seconds() < 20
    assert not processes(nap)


def test_what_a_program_leaves_running_ends_with_it(nap: str, local: LocalEngine) -> None:
    code = f"import subprocess; subprocess.Popen(['sleep', '{nap}'], start_new_session=True)"
    local.create_processing_job(**request("daemon", "python3", "-c", code))
    assert ended(local, "daemon")["ProcessingJobStatus"] == "Completed"
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


def test_stopping_kills_after_the_grace_period(local: LocalEngine) -> None:
    local.stop_grace = 0.3
    local.create_processing_job(**request("deaf", shell="trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    said(local, "deaf", "ready")
    local.stop_processing_job(ProcessingJobName="deaf")
    assert status(local, "deaf") == "Stopping"
    local.stop_processing_job(ProcessingJobName="deaf")
    assert ended(local, "deaf")["ProcessingJobStatus"] == "Stopped"


def test_stopping_a_job_at_once(nap: str, local: LocalEngine) -> None:
    for i in range(5):
        local.create_processing_job(**request(f"early-{i}", shell=f"exec sleep {nap}"))
        for _ in range(i + 1):
            with contextlib.suppress(ClientError):  # it has ended by now
                local.stop_processing_job(ProcessingJobName=f"early-{i}")
    assert {ended(local, f"early-{i}")["ProcessingJobStatus"] for i in range(5)} == {"Stopped"}
    assert not processes(nap)


def test_stopping_what_cannot_be_stopped(engine: Any) -> None:
    engine.create_processing_job(**request("short", shell="true"))
    ended(engine, "short")
    code, message = refusal(engine.stop_processing_job, ProcessingJobName="short")
    assert (code, "Completed" in message) == ("ValidationException", True)
    code, message = refusal(engine.stop_processing_job, ProcessingJobName="nobody")
    assert (code, "Could not find" in message) == ("ValidationException", True)


# ---- deaths ----------------------------------------------------------------------------------------------------


def test_a_supervisor_that_is_killed(nap: str, engine: Any) -> None:
    engine.create_processing_job(**request("orphan", shell=f"echo ready; exec sleep {nap}", instances=8))
    until(lambda: len(processes(nap)) == 8)
    os.kill(JobFiles(engine.root, "orphan").supervisor() or 0, signal.SIGKILL)
    about = ended(engine, "orphan")
    assert about["ProcessingJobStatus"] == "Failed"
    assert about["FailureReason"].startswith("InternalServerError")
    until(lambda: not processes(nap))
    engine.create_processing_job(**request("next", shell="true", instances=8))  # nothing counts as in use
    assert ended(engine, "next")["ProcessingJobStatus"] == "Completed"


def test_an_instance_that_is_killed(nap: str, local: LocalEngine) -> None:
    for name, victim in (("program", nap), ("keeper", "")):
        local.create_processing_job(**request(name, shell=f"exec sleep {nap}", instances=2))
        until(lambda: len(processes(nap)) == 2)
        state = JobFiles(local.root, name).state
        process = processes(victim)[0] if victim else until(lambda state=state: state().get("keepers"))["algo-2"]
        os.kill(process, signal.SIGKILL)
        about = ended(local, name)
        assert (about["ProcessingJobStatus"], about["FailureReason"]) == ("Failed", "AlgorithmError: , exit code: 137")
        until(lambda: not processes(nap))


def test_a_driver_that_is_killed(local: LocalEngine, tmp_path: Path) -> None:
    code = (
        "import json, sys, time; from shardkit.engines.local import LocalEngine\n"
        "LocalEngine(sys.argv[1]).create_processing_job(**json.loads(sys.argv[2])); print('made', flush=True)\n"
        "time.sleep(600)"
    )
    shell = f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo $PPID"
    made = json.dumps(request("survivor", shell=shell))
    driver = subprocess.Popen([sys.executable, "-c", code, local.root, made], stdout=subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"made\n"
    driver.kill()
    driver.wait()
    driver.stdout.close()
    assert status(local, "survivor") == "InProgress"
    (tmp_path / "go").touch()
    assert ended(local, "survivor")["ProcessingJobStatus"] == "Completed"


def test_another_process_describes_and_stops(nap: str, local: LocalEngine) -> None:
    local.create_processing_job(**request("shared", shell=f"exec sleep {nap}"))
    code = (
        "import sys; from shardkit.engines.local import LocalEngine; engine = LocalEngine(sys.argv[1])\n"
        "print(engine.describe_processing_job(ProcessingJobName='shared')['ProcessingJobStatus'])\n"
        "engine.stop_processing_job(ProcessingJobName='shared')"
    )
    done = subprocess.run([sys.executable, "-c", code, local.root], capture_output=True, text=True, check=True)
    assert done.stdout == "InProgress\n"
    assert ended(local, "shared")["ProcessingJobStatus"] == "Stopped"


def test_a_creator_that_died_before_there_was_a_supervisor(local: LocalEngine) -> None:
    local.create_processing_job(**request("known", shell="true"))
    ended(local, "known")
    content = JobFiles(local.root, "known").request()
    assert content is not None
    JobFiles(local.root, "half").create(content, 8)
    assert ended(local, "half")["FailureReason"].startswith("InternalServerError")
    (Path(local.root) / "live" / "removed-by-hand").write_text("8")
    local.create_processing_job(**request("after", shell="true", instances=8))


# ---- names and quotas ------------------------------------------------------------------------------------------


def test_names_are_unique(engine: Any) -> None:
    engine.create_processing_job(**request("one", shell="true"))
    ended(engine, "one")
    code, message = refusal(engine.create_processing_job, **request("one", shell="true"))
    assert (code, "already exists" in message) == ("ResourceInUse", True)
    code, message = refusal(engine.describe_processing_job, ProcessingJobName="two")
    assert (code, "two" in message) == ("ValidationException", True)


def test_no_more_instances_than_the_quota(nap: str, engine: Any) -> None:
    engine.create_processing_job(**request("big", shell=f"exec sleep {nap}", instances=5))
    code, message = refusal(engine.create_processing_job, **request("more", shell="true", instances=4))
    assert code == "ResourceLimitExceeded"
    assert "is 8 Instances" in message
    assert "utilization of 5 Instances" in message
    refusal(engine.describe_processing_job, ProcessingJobName="more")
    engine.create_processing_job(**request("fits", shell="true", instances=3))
    ended(engine, "fits")
    engine.stop_processing_job(ProcessingJobName="big")
    ended(engine, "big")
    engine.create_processing_job(**request("more", shell="true", instances=8))
    assert ended(engine, "more")["ProcessingJobStatus"] == "Completed"


def test_the_quota_holds_for_many_at_once(nap: str, local: LocalEngine) -> None:
    results: list[str] = []

    def create(name: str) -> None:
        try:
            LocalEngine(local.root, max_instances=3).create_processing_job(**request(name, shell=f"exec sleep {nap}"))
            results.append("made")
        except ClientError as error:
            results.append(error.response["Error"]["Code"])

    threads = [threading.Thread(target=create, args=(f"many-{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["ResourceLimitExceeded"] * 9 + ["made"] * 3


# ---- lists -----------------------------------------------------------------------------------------------------


def names(answer: dict[str, Any]) -> list[str]:
    return [about["ProcessingJobName"] for about in answer["ProcessingJobSummaries"]]


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
def test_requests_that_the_service_would_refuse(local: LocalEngine, path: str, value: Any, said: str) -> None:
    code, message = refusal(local.create_processing_job, **changed(path, value))
    assert code == "ValidationException"
    assert said in message
    assert names(local.list_processing_jobs()) == []


def test_every_violation_is_told(local: LocalEngine) -> None:
    made = changed("Environment", {"A": "x" * 257}) | {"ProcessingJobName": "a b"}
    assert refusal(local.create_processing_job, **made)[1].startswith("2 validation errors detected: ")


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


@pytest.mark.parametrize("kind", [*isolation.KINDS, isolation.BUBBLEWRAP])
def test_every_kind_of_isolation(nap: str, local: LocalEngine, kind: str, tmp_path: Path) -> None:
    if os.geteuid() != 0 and kind in ("pid", "mount"):
        pytest.skip("takes root")
    if kind == isolation.BUBBLEWRAP and shutil.which("bwrap") is None:
        pytest.skip("is not installed")
    local.isolation = kind
    shell = f"id -u; touch {OUTPUT}/made; sleep {nap} & echo over; kill -9 $$"
    made = request("kind", shell=shell) | outputs(s3_output(tmp_path / "out", mode="Continuous"))
    local.create_processing_job(**made)
    assert ended(local, "kind")["FailureReason"].endswith("exit code: 137")
    assert list(local.log_lines("kind"))[:2] == [str(os.geteuid()), "over"]
    assert (tmp_path / "out" / "made").stat().st_uid == os.geteuid()
    until(lambda: not processes(nap))
    local.create_processing_job(**request("die", shell=f"sleep {nap} & exec sleep {nap}"))
    until(lambda: len(processes(nap)) == 2)
    os.kill(JobFiles(local.root, "die").supervisor() or 0, signal.SIGKILL)
    until(lambda: not processes(nap) and not processes(local.root))  # by themselves: nobody has asked about the job yet
    assert ended(local, "die")["FailureReason"].startswith("InternalServerError")
    until(lambda: not processes(nap))
    local.create_processing_job(**request("polite", shell="trap 'echo bye; exit 0' TERM; echo ready; sleep 9 & wait"))
    said(local, "polite", "ready")
    local.stop_processing_job(ProcessingJobName="polite")
    assert ended(local, "polite")["ProcessingJobStatus"] == "Stopped"
    assert list(local.log_lines("polite")) == ["ready", "bye"]


def test_a_mount_point_that_is_not_there(tmp_path: Path) -> None:
    code = "from shardkit.engines import isolation; isolation.OPT_ML = '/no-such-folder/ml'; print(isolation.probe())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in isolation.KINDS
    assert not Path("/no-such-folder").exists()


BOOTSTRAP = """
echo "$@"; cp "$(dirname "$0")/../data/a" "$SHARDKIT_OPT_ML/processing/output/"; echo gone > "$SHARDKIT_OPT_ML/output/message"
"""


def test_without_isolation_only_shardkits_own_jobs_run(tmp_path: Path, files: WriteFiles) -> None:
    bare = LocalEngine(tmp_path / "engine", isolation="none")
    code, message = refusal(bare.create_processing_job, **request("script", "python3", f"{DATA}/script.py"))
    assert code == "ValidationException"
    assert "/opt/ml of its own" in message
    made = request("own", "/bin/sh", "/opt/ml/processing/input/code/bootstrap.sh")
    made["AppSpecification"]["ContainerArguments"] = ["pass1", "--run", f"{DATA}/a", "/opt/mlx"]
    made["ProcessingInputs"] = [
        s3_input(files({"a": "A"})),
        s3_input(files({"bootstrap.sh": BOOTSTRAP}, "code"), "/opt/ml/processing/input/code", name="code"),
    ]
    made["NetworkConfig"] = {"EnableNetworkIsolation": True}
    bare.create_processing_job(**made, **outputs(s3_output(tmp_path / "out")))
    about = ended(bare, "own")
    lines = list(bare.log_lines("own"))
    assert (about["ProcessingJobStatus"], about["ExitMessage"]) == ("Completed", "gone\n"), lines
    assert lines[0].startswith("This machine cannot take the network")
    volume = JobFiles(bare.root, "own").volume("algo-1")
    assert lines[1] == f"pass1 --run {volume}/ml/processing/input/data/a /opt/mlx"
    assert tree(tmp_path / "out") == {"a": "A"}


def test_engines_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(sk.StorageError, match="another root"):
        LocalEngine(tmp_path / "file").create_processing_job(**request("one", shell="true"))
    with pytest.raises(sk.PipelineError, match="auto, namespace or none"):
        LocalEngine(tmp_path, isolation="docker")
    with pytest.raises(sk.PipelineError, match="at least 1"):
        LocalEngine(tmp_path, max_instances=0)


# ---- what it costs -----------------------------------------------------------------------------------------------


def test_a_job_costs_little(local: LocalEngine) -> None:
    local.create_processing_job(**request("first", shell="true"))
    ended(local, "first")
    begun = time.monotonic()
    for i in range(10):
        local.create_processing_job(**request(f"cost-{i}", shell="true"))
        ended(local, f"cost-{i}")
    assert (time.monotonic() - begun) / 10 < 0.5  # some 0.03 s on a machine with nothing else to do
