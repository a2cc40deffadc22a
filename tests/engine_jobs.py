"""Shared by the tests of engines: requests, and waits for what happens to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError

from shardkit.engines.jobfiles import JobFiles
from shardkit.engines.local import LocalEngine
from shardkit.engines.wire import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

WIRE = pytest.param("wire", marks=pytest.mark.whole)  # boto3's client of an engine over HTTP
ENDED = {"Completed", "Failed", "Stopped"}
ROLE = "arn:aws:iam::123456789012:role/processing"
DATA = "/opt/ml/processing/input/data"
OUTPUT = "/opt/ml/processing/output"


def request(name: str, *command: str, shell: str = "", instances: int = 1, **more: Any) -> dict[str, Any]:
    """A CreateProcessingJob request for a command, or for a line of shell."""
    cluster = {"InstanceCount": instances, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 1}
    return {
        "ProcessingJobName": name,
        "ProcessingResources": {"ClusterConfig": cluster},
        "AppSpecification": {"ImageUri": "image", "ContainerEntrypoint": ["sh", "-c", shell] if shell else [*command]},
        "RoleArn": ROLE,
    } | more


def s3_input(
    uri: str | Path, path: str = DATA, kind: str = "S3Prefix", name: str = "data", **more: Any
) -> dict[str, Any]:
    about = {"S3Uri": str(uri), "LocalPath": path, "S3DataType": kind, "S3InputMode": "File"}
    return {"InputName": name, "S3Input": about | more}


def s3_output(uri: str | Path, path: str = OUTPUT, mode: str = "EndOfJob", name: str = "out") -> dict[str, Any]:
    return {"OutputName": name, "S3Output": {"S3Uri": str(uri), "LocalPath": path, "S3UploadMode": mode}}


def outputs(*given: dict[str, Any]) -> dict[str, Any]:
    return {"ProcessingOutputConfig": {"Outputs": list(given)}}


def until(condition: Any, *, seconds: float = 30.0, every_s: float = 0.005) -> Any:
    """Wait until a condition returns something true, and return it; one that takes long is asked less often."""
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        if result := condition():
            return result
        time.sleep(max(every_s, min(4 * (time.monotonic() - begun), 0.1)))
    raise AssertionError("it did not come to pass")


def ended(engine: Any, name: str) -> dict[str, Any]:
    """Wait until a job has ended; returns the engine's description of it."""

    def look() -> dict[str, Any] | None:
        about = engine.describe_processing_job(ProcessingJobName=name)
        return about if about["ProcessingJobStatus"] in ENDED else None

    answer: dict[str, Any] = until(look)
    return answer


def status(engine: Any, name: str) -> str:
    return str(engine.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"])


def said(engine: Any, name: str, text: str) -> None:
    """Wait until a text is in a job's log."""
    until(lambda: text in list(engine.log_lines(name)))


def processes(marker: str) -> list[int]:
    """The processes with a word in their command line, without zombies."""
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(marker.encode() == word for word in words):
                pids.append(int(name))
    return pids


def tree(folder: Path) -> dict[str, str]:
    """The files under a folder, with their contents."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def local_engine(folder: Path) -> Iterator[LocalEngine]:
    """A local engine, whose jobs end with it."""
    engine = LocalEngine(folder, max_instances=8, stop_grace=20)
    yield engine
    for jobs in (engine, engine.training):
        for job in jobs.list_processing_jobs(StatusEquals="InProgress", MaxResults=100)["ProcessingJobSummaries"]:
            os.kill(JobFiles(jobs.root, job["ProcessingJobName"]).supervisor() or 0, signal.SIGKILL)


@contextlib.contextmanager
def wired(engine: LocalEngine) -> Iterator[Any]:
    """A boto3 client of an engine, over the wire."""
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    with serving(engine) as url:
        yield Wired(boto3.client("sagemaker", endpoint_url=url, region_name="us-east-1", **keys), engine)


FIND = f"cd {DATA} && find . -type f | sort | cut -c3- | tr '\\n' ' '"


CALLS = ("create_", "describe_", "list_", "stop_")
TRAINING = ("_training_job", "_training_jobs")


class Wired:
    """A boto3 client of the engine, with the engine's own extras."""

    def __init__(self, client: Any, engine: LocalEngine) -> None:
        self.client = client
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        called = name.startswith(CALLS) and name.endswith(("_processing_job", "_processing_jobs", *TRAINING))
        return getattr(self.client if called else self.engine, name)


def refusal(call: Any, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def names(answer: dict[str, Any]) -> list[str]:
    return [about["ProcessingJobName"] for about in answer["ProcessingJobSummaries"]]


def found(engine: Any, name: str, *inputs: dict[str, Any], **more: Any) -> str | list[str]:
    """The names that a job finds in its input; of several instances, line by line."""
    engine.create_processing_job(**request(name, shell=f"{FIND}; echo", ProcessingInputs=list(inputs), **more))
    about = ended(engine, name)
    assert about["ProcessingJobStatus"] == "Completed", about
    lines = [line.rstrip() for line in engine.log_lines(name)]
    return lines[0] if len(lines) == 1 else lines
