"""The local engine: what only it has, such as quotas, kinds of isolation, and processes that anybody may kill.

What it has in common with other engines is in test_engine_contract.py.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError
from engine_jobs import (
    DATA,
    FIND,
    OUTPUT,
    WIRE,
    ended,
    found,
    local_engine,
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

import shardkit as sk
from shardkit.engines import isolation
from shardkit.engines.jobfiles import JobFiles
from shardkit.engines.local import LocalEngine, available_isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import WriteFiles

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine"),
]

NAPS = itertools.count()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalEngine]:
    with local_engine(tmp_path / "engine") as engine:
        yield engine


@pytest.fixture
def nap() -> str:
    """Many seconds to sleep, a number that no other test has, so that this test's processes can be found by it."""
    return f"3600.{os.getpid()}{next(NAPS):04d}"


@pytest.fixture(params=["here", WIRE])
def engine(request: pytest.FixtureRequest, local: LocalEngine) -> Iterator[Any]:
    """The engine itself, and boto3's client of it over HTTP: both must behave alike."""
    if request.param == "here":
        yield local
        return
    with wired(local) as client:
        yield client


# ---- what a script sees ----------------------------------------------------------------------------------------


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


# ---- input -----------------------------------------------------------------------------------------------------

# ---- output ----------------------------------------------------------------------------------------------------


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


@pytest.mark.whole
def test_input_and_output_in_s3(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", "any"), ("SECRET_ACCESS_KEY", "any"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    s3, bucket = boto3.client("s3", endpoint_url=s3_url), f"local-engine-{os.getpid()}"
    s3.create_bucket(Bucket=bucket)
    local = LocalEngine(tmp_path / "engine", endpoint_url=s3_url)
    for key in ("in/3/a.txt", "in/3/b/c.txt", "in/30/d.txt"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    manifest = json.dumps([{"prefix": f"s3://{bucket}/in/"}, "30/d.txt", "3/a.txt"])
    s3.put_object(Bucket=bucket, Key="in/manifest", Body=manifest.encode())
    assert found(local, "string", s3_input(f"s3://{bucket}/in/3")) == "30/d.txt a.txt b/c.txt"
    assert found(local, "listed", s3_input(f"s3://{bucket}/in/manifest", kind="ManifestFile")) == "3/a.txt 30/d.txt"
    shell = f"{FIND}; cp -r {DATA}/. {OUTPUT}"
    made = request("copy", shell=shell, ProcessingInputs=[s3_input(f"s3://{bucket}/in/3/")])
    local.create_processing_job(**made, **outputs(s3_output(f"s3://{bucket}/out")))
    assert ended(local, "copy")["ProcessingJobStatus"] == "Completed"
    assert next(iter(local.log_lines("copy"))).rstrip() == "a.txt b/c.txt"
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]]
    assert keys == ["out/a.txt", "out/b/c.txt"]
    local.create_processing_job(**request("none", shell="true", ProcessingInputs=[s3_input(f"s3://{bucket}/none/")]))
    assert f"No objects found under s3://{bucket}/none/" in ended(local, "none")["FailureReason"]


# ---- how jobs end ----------------------------------------------------------------------------------------------


# ---- stopping --------------------------------------------------------------------------------------------------


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


# ---- requests that are refused -----------------------------------------------------------------------------------


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


@pytest.mark.whole
def test_a_job_costs_little(local: LocalEngine) -> None:
    local.create_processing_job(**request("first", shell="true"))
    ended(local, "first")
    begun = time.monotonic()
    for i in range(5):
        local.create_processing_job(**request(f"cost-{i}", shell="true"))
        ended(local, f"cost-{i}")
    assert (time.monotonic() - begun) / 5 < 0.5  # some 0.03 s on an idle machine
