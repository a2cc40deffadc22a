"""The AWS CLI against `shardkit engine serve`: create, describe, list, stop and wait, for Processing and training jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shardkit.engines.jobfiles import ENDED, JobFiles
from shardkit.engines.local import available_isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

CLI = shutil.which("aws", path=str(Path(sys.executable).parent))  # not one of the machine's, of whatever version
ROLE = "arn:aws:iam::123456789012:role/Data"
pytestmark = [
    pytest.mark.skipif(
        CLI is None, reason="the AWS CLI is not in this environment; scripts/test-sdk makes one that has it"
    ),
    pytest.mark.skipif(available_isolation() == "none", reason="no instance can have its own /opt/ml here"),
    pytest.mark.slow,
]


class Aws:
    """The command line, with the credentials that a server has printed."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder

    def __call__(self, *words: str, fails: bool = False) -> Any:
        """What a command prints, as data; the text of its error if it is to fail."""
        done = subprocess.run(
            [str(CLI), *words, "--output", "json"],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        if fails:
            return done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def wait(self, kind: str, name: str) -> None:
        """Wait with the CLI, once the job has ended: the CLI looks but once a minute."""
        root = self._folder / "jobs" / ("training" if kind == "training" else "")
        files = JobFiles(str(root), name)
        end = time.monotonic() + 60
        while files.state()["ProcessingJobStatus"] not in ENDED:
            assert time.monotonic() < end, f"{name} has not ended"
            time.sleep(0.02)
        self("sagemaker", "wait", f"{kind}-job-completed-or-stopped", f"--{kind}-job-name", name)

    def write(self, name: str, content: dict[str, Any]) -> str:
        """A file for ``--cli-input-json``."""
        (self._folder / name).write_text(json.dumps(content))
        return f"file://{name}"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """The CLI in a shell that has the lines which the server prints, and no other credentials."""
    folder = tmp_path_factory.mktemp("cli")
    known = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, "-m", "shardkit", "engine", "serve", "--root", str(folder / "jobs")]
    with subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        exports: dict[str, str] = {}
        for line in server.stdout:
            if match := re.match(r"\s*export (\w+)=(\S+)", line):
                exports[match[1]] = match[2]
            if "Ctrl-C" in line:
                break
        more = {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(folder)}
        yield Aws(known | exports | more, folder)
        server.terminate()


def processing(name: str, shell: str) -> dict[str, Any]:
    cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 1}
    return {
        "ProcessingJobName": name,
        "RoleArn": ROLE,
        "AppSpecification": {"ImageUri": "any", "ContainerEntrypoint": ["sh", "-c", shell]},
        "ProcessingResources": {"ClusterConfig": cluster},
    }


def training(name: str, shell: str, output: Path) -> dict[str, Any]:
    resources = {"InstanceCount": 1, "InstanceType": "ml.m5.xlarge", "VolumeSizeInGB": 1}
    algorithm = {"TrainingImage": "any", "TrainingInputMode": "File", "ContainerEntrypoint": ["sh", "-c", shell]}
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": algorithm,
        "OutputDataConfig": {"S3OutputPath": str(output)},
        "ResourceConfig": resources,
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }


def test_processing_jobs(aws: Aws) -> None:
    request = aws.write("one.json", processing("one", "echo hello; echo all well >/opt/ml/output/message"))
    made = aws("sagemaker", "create-processing-job", "--cli-input-json", request)
    assert made["ProcessingJobArn"].endswith(":processing-job/one")
    named = ("--processing-job-name", "two")  # a name beside the file goes over that in it
    long = aws.write("long.json", processing("long", "exec sleep 1000"))
    aws("sagemaker", "create-processing-job", "--cli-input-json", long, *named)
    aws("sagemaker", "stop-processing-job", *named)
    for name in ("one", "two"):
        aws.wait("processing", name)
    about = aws("sagemaker", "describe-processing-job", "--processing-job-name", "one")
    assert (about["ProcessingJobStatus"], about["ExitMessage"].strip()) == ("Completed", "all well")
    pages = ("--sort-by", "Name", "--sort-order", "Ascending", "--page-size", "1")
    lines = aws("sagemaker", "list-processing-jobs", *pages)["ProcessingJobSummaries"]
    states = {line["ProcessingJobName"]: line["ProcessingJobStatus"] for line in lines}
    assert states == {"one": "Completed", "two": "Stopped"}
    error = aws("sagemaker", "create-processing-job", "--cli-input-json", request, fails=True)
    assert "(ResourceInUse) when calling the CreateProcessingJob operation: Job name must be unique" in error
    group = ("--log-group-name", "/aws/sagemaker/ProcessingJobs")
    events = aws("logs", "filter-log-events", *group, "--log-stream-name-prefix", "one/")["events"]
    assert [event["message"] for event in events] == ["hello"]


def test_training_jobs(aws: Aws, tmp_path: Path) -> None:
    shell = "echo hello; echo model >/opt/ml/model/weights"
    request = aws.write("train.json", training("one", shell, tmp_path / "out"))
    made = aws("sagemaker", "create-training-job", "--cli-input-json", request)
    assert made["TrainingJobArn"].endswith(":training-job/one")
    long = aws.write("long-training.json", training("long", "exec sleep 1000", tmp_path / "out"))
    aws("sagemaker", "create-training-job", "--cli-input-json", long)
    aws("sagemaker", "stop-training-job", "--training-job-name", "long")
    for name in ("one", "long"):
        aws.wait("training", name)
    about = aws("sagemaker", "describe-training-job", "--training-job-name", "one")
    assert about["TrainingJobStatus"] == about["SecondaryStatus"] == "Completed"
    assert (tmp_path / "out" / "one" / "output" / "model.tar.gz").is_file()
    lines = aws("sagemaker", "list-training-jobs", "--status-equals", "Stopped")["TrainingJobSummaries"]
    assert [line["TrainingJobName"] for line in lines] == ["long"]
    error = aws("sagemaker", "describe-training-job", "--training-job-name", "none", fails=True)
    assert "(ValidationException)" in error
    assert "Requested resource not found" in error
    group = ("--log-group-name", "/aws/sagemaker/TrainingJobs")
    events = aws("logs", "filter-log-events", *group, "--log-stream-name-prefix", "one/")["events"]
    assert [event["message"] for event in events] == ["hello"]
    tags = aws("sagemaker", "list-tags", "--resource-arn", made["TrainingJobArn"])
    assert tags == {"Tags": []}
