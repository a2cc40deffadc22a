"""What the tests of the local engine share: requests, and waiting for what happens to them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

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


def until(condition: Any, *, seconds: float = 30.0) -> Any:
    """Wait until a condition holds; what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not come to pass")


def ended(engine: Any, name: str) -> dict[str, Any]:
    """Wait until a job has ended; what the engine says of it."""

    def look() -> dict[str, Any] | None:
        about = engine.describe_processing_job(ProcessingJobName=name)
        return about if about["ProcessingJobStatus"] in ENDED else None

    found: dict[str, Any] = until(look)
    return found


def status(engine: Any, name: str) -> str:
    return str(engine.describe_processing_job(ProcessingJobName=name)["ProcessingJobStatus"])


def said(engine: Any, name: str, text: str) -> None:
    """Wait until a job has said something."""
    until(lambda: text in list(engine.log_lines(name)))


def processes(marker: str) -> list[int]:
    """The processes with a word in their command line, zombies left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(marker.encode() == word for word in words):
                found.append(int(name))
    return found


def tree(folder: Path) -> dict[str, str]:
    """The files under a folder, with their content."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}
