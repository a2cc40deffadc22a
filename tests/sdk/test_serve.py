"""The SDK's own run() against `shardkit engine serve`: plain scripts, no Docker, no account."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow.parquet as pq
import pytest
import sdk
from moto.server import ThreadedMotoServer

import shardkit as sk
from shardkit.engines.local import available_isolation
from shardkit.jobs import Policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REGION = "us-east-1"
JOB: dict[str, Any] = {
    "role": "arn:aws:iam::123456789012:role/Data",
    "image_uri": "any/image:1",
    "instance_count": 1,
    "instance_type": "ml.m5.xlarge",
}
COUNT = """
import os, pathlib, sys
import counting
folder = pathlib.Path("/opt/ml/processing")
words = counting.words((folder / "input/data/text.txt").read_text())
(folder / "output/count.txt").write_text(f"{sys.argv[1:]} {os.environ['MODE']} {words}")
"""
FAIL = """
import pathlib, sys
pathlib.Path("/opt/ml/output").mkdir(parents=True, exist_ok=True)
pathlib.Path("/opt/ml/output/message").write_text("no such patient")
sys.exit(7)
"""

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no instance can have its own /opt/ml here")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 and a served engine, and the environment variables that lead to them."""
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    endpoint = "http://{}:{}".format(*s3.get_host_and_port())
    known = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    known |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}
    root = tmp_path_factory.mktemp("engine")
    command = [sys.executable, "-m", "shardkit", "engine", "serve", "--root", str(root), "--endpoint-url", endpoint]
    with subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        said = server.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert match, said
        logs = {"AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": match[0]}
        yield known | logs | {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ENDPOINT_URL_SAGEMAKER": match[0]}
        server.terminate()
    s3.stop()


@pytest.fixture
def session(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    boto_session = boto3.Session()
    s3 = boto_session.client("s3")
    s3.create_bucket(Bucket="bucket")
    s3.put_object(Bucket="bucket", Key="in/text.txt", Body=b"one two three")
    return sdk.Session(boto_session, default_bucket="bucket", sagemaker_config=sdk.QUIET)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "count.py").write_text(COUNT)
    (tmp_path / "counting.py").write_text("def words(text):\n    return len(text.split())\n")
    (tmp_path / "alone.py").write_text(COUNT.replace("import counting\n", "").replace("counting.words", "len"))
    (tmp_path / "fail.py").write_text(FAIL)
    return tmp_path


def counted(session: Any) -> str:
    body = session.boto_session.client("s3").get_object(Bucket="bucket", Key="out/count.txt")["Body"]
    return str(body.read().decode())


def channels() -> dict[str, Any]:
    return {
        "inputs": [sdk.data_input("data", "s3://bucket/in/", "/opt/ml/processing/input/data")],
        "outputs": [sdk.output("out", "/opt/ml/processing/output", "s3://bucket/out/")],
        "arguments": ["--mode", "a b"],
    }


def test_a_script(session: Any, code: Path) -> None:
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, env={"MODE": "fast"}, **JOB)
    processor.run(code=str(code / "alone.py"), wait=True, logs=False, **channels())
    assert counted(session) == "['--mode', 'a b'] fast 13"


def test_the_log_is_followed_by_default(session: Any, code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code / "talks.py").write_text("for i in range(3):\n    print('line', i, flush=True)\n")
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **JOB)
    processor.run(code=str(code / "talks.py"), job_name="talks")
    said = capsys.readouterr()
    text = re.sub(r"\x1b\[[\d;]*m", "", said.out + said.err)
    assert [f"line {i}" for i in range(3)] == re.findall(r"line \d", text)


def test_a_folder_of_code(session: Any, code: Path) -> None:
    processor = sdk.framework_processor(sagemaker_session=session, env={"MODE": "slow"}, **JOB)
    processor.run(code="count.py", source_dir=str(code), wait=False, logs=False, job_name="folder", **channels())
    assert ended(session, "folder")["ProcessingJobStatus"] == "Completed"
    assert counted(session) == "['--mode', 'a b'] slow 3"


def test_a_script_that_fails(session: Any, code: Path) -> None:
    processor = sdk.ScriptProcessor(command=["python3"], sagemaker_session=session, **JOB)
    processor.run(code=str(code / "fail.py"), wait=False, logs=False, job_name="fails")
    about = ended(session, "fails")
    assert about["ProcessingJobStatus"] == "Failed"
    assert about["ExitMessage"] == "no such patient"
    assert "exit code: 7" in about["FailureReason"]


def test_a_pipeline_with_a_processor(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.local(max_instances=4)  # it looks more often
    monkeypatch.setattr("shardkit.engines.settings.Settings.policy", lambda _: policy)
    (tmp_path / "counting.py").write_text(
        "def words(record):\n    return {'key': record.key, 'words': len(open(record).read().split())}\n"
    )
    s3 = session.boto_session.client("s3")
    for day in range(2):
        for i in range(3):
            s3.put_object(Bucket="bucket", Key=f"days/{day}/{i}.txt", Body=b"word " * (10 * day + i))
    processor = sdk.framework_processor(sagemaker_session=session, **JOB)
    pipeline = sk.Pipeline(
        function="counting:words",
        source_dir=tmp_path,
        input="s3://bucket/days/",
        shards={"by": "directory"},
        output="s3://bucket/words/",
    )
    run = pipeline.run(sk.SageMaker(processor), quiet=True)
    assert run.summary().records == {"listed": 6, "done": 6, "quarantined": 0, "skipped": 0}
    assert len(run.jobs()) == 3
    names = [found["Key"] for found in s3.list_objects_v2(Bucket="bucket", Prefix="words/")["Contents"]]
    (dataset,) = [name for name in names if not name.startswith("words/_shardkit/")]
    table = pq.read_table(io.BytesIO(s3.get_object(Bucket="bucket", Key=dataset)["Body"].read()))
    rows = {row["key"]: row["words"] for row in table.to_pylist()}
    assert rows == {f"{day}/{i}.txt": 10 * day + i for day in range(2) for i in range(3)}


def ended(session: Any, name: str) -> dict[str, Any]:
    """Wait until a job has ended; returns the service's description of it."""
    client = session.boto_session.client("sagemaker")
    for _ in range(600):
        about: dict[str, Any] = client.describe_processing_job(ProcessingJobName=name)
        if about["ProcessingJobStatus"] != "InProgress":
            return about
        time.sleep(0.1)
    raise AssertionError(f"{name} has not ended")
