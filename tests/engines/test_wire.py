"""The local engine over HTTP: the service's protocol, its faults, and that nobody else gets in."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError
from engine_jobs import ended, request, until
from signed_requests import send, signed

import shardkit as sk
from shardkit.engines.faults import FaultyEngine
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.engines.wire import WireServer, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")

KEYS = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}


@pytest.fixture
def local(tmp_path: Path) -> LocalEngine:
    return LocalEngine(tmp_path / "engine", max_instances=50)


@pytest.fixture
def url(local: LocalEngine) -> Iterator[str]:
    with serving(local) as found:
        yield found


def client(url: str, *, attempts: int = 1) -> Any:
    config = Config(retries={"total_max_attempts": attempts, "mode": "standard"})
    return boto3.client("sagemaker", endpoint_url=url, config=config, **KEYS)


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """The server's answer to a signed request that no SDK would make."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return send(url, body, signed(url, body, given) | given)


# ---- the protocol ------------------------------------------------------------------------------------------------


def test_requests_that_are_none(url: str) -> None:
    describe = "SageMaker.DescribeProcessingJob"
    for body, target, code in (
        (b"{}", "SageMaker.CreateTransformJob", "UnknownOperationException"),
        (b"{}", "", "UnknownOperationException"),
        (b"no json", describe, "SerializationException"),
        (b"[]", describe, "SerializationException"),
        (b"{}", describe, "ValidationException"),
        (b'{"ProcessingJobName": 7}', describe, "ValidationException"),
        (b'{"ProcessingJobName": "one", "More": 1}', describe, "ValidationException"),
    ):
        status, answer = post(url, body, X_Amz_Target=target)
        assert (status, answer["__type"]) == (400, code)
        assert answer["message"]


def test_errors_come_as_the_service_sends_them(url: str, local: LocalEngine) -> None:
    sagemaker = client(url)
    with pytest.raises(ClientError) as caught:
        sagemaker.describe_processing_job(ProcessingJobName="nobody")
    with pytest.raises(ClientError) as expected:
        local.describe_processing_job(ProcessingJobName="nobody")
    assert caught.value.response["Error"] == expected.value.response["Error"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    sagemaker.create_processing_job(**request("one", "true"))
    with pytest.raises(sagemaker.exceptions.ResourceInUse):
        sagemaker.create_processing_job(**request("one", "true"))


def test_waiters_and_pages_of_boto3(url: str, local: LocalEngine) -> None:
    sagemaker = client(url)
    for i in range(12):
        local.create_failed_job("CapacityError: none", **request(f"failed-{i}", "true"))
    pages = list(sagemaker.get_paginator("list_processing_jobs").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["ProcessingJobSummaries"]) for page in pages] == [5, 5, 2]
    sagemaker.create_processing_job(**request("good", "true"))
    waiter = sagemaker.get_waiter("processing_job_completed_or_stopped")
    waiter.wait(ProcessingJobName="good", WaiterConfig={"Delay": 0.01, "MaxAttempts": 1000})


def test_tags_can_be_read(url: str) -> None:
    sagemaker = client(url)
    tags = [{"Key": "team", "Value": "data"}]
    arn = sagemaker.create_processing_job(**request("tagged", "true", Tags=tags))["ProcessingJobArn"]
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags


def test_moto_agrees_on_the_shape_of_the_answers(url: str) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        moto = client(f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        ours = client(url)
        answers: dict[str, list[Any]] = {"ours": [], "moto": []}
        for who, sagemaker in (("ours", ours), ("moto", moto)):
            answers[who].append(sagemaker.create_processing_job(**request("same", "true")))
            answers[who].append(ended(sagemaker, "same"))
            answers[who].append(sagemaker.list_processing_jobs(NameContains="same")["ProcessingJobSummaries"][0])
            with pytest.raises(ClientError) as caught:
                sagemaker.describe_processing_job(ProcessingJobName="nobody")
            answers[who].append({"code": caught.value.response["Error"]["Code"]})
    finally:
        server.stop()
    for mine, theirs in zip(answers["ours"], answers["moto"], strict=True):
        left_out = {"ResponseMetadata", "ProcessingResources", "CreationTime", "LastModifiedTime", "ProcessingEndTime"}
        shared = (set(mine) & set(theirs)) - left_out
        assert set(theirs) - set(mine) <= {"ResponseMetadata", "Tags", "NetworkConfig", "StoppingCondition"}
        assert {type(mine[key]) for key in shared} == {type(theirs[key]) for key in shared}
        assert {key: mine[key] for key in shared if "Arn" not in key} == {
            key: theirs[key] for key in shared if "Arn" not in key
        }


# ---- who gets in -------------------------------------------------------------------------------------------------


def test_it_listens_on_the_loopback_only(local: LocalEngine) -> None:
    server = WireServer(local)
    try:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with pytest.raises(sk.PipelineError, match="--port 0"):
            WireServer(local, port=server.server_port)
    finally:
        server.server_close()


def test_web_pages_do_not_get_in(url: str) -> None:
    target = {"X_Amz_Target": "SageMaker.ListProcessingJobs"}
    assert post(url, b"{}", **target)[0] == 200
    for strange in (
        {"Origin": "https://example.com"},
        {"Host": "rebound.example.com"},
        {"Host": "evil.example.com:80"},
    ):
        status, answer = post(url, b"{}", **target, **strange)
        assert (status, answer["__type"]) == (403, "AccessDeniedException")


# ---- the service's bad days ----------------------------------------------------------------------------------------


def test_more_creates_than_the_rate_are_throttled(local: LocalEngine) -> None:
    now = [0.0]
    engine = FaultyEngine(local, create_rate=2, clock=lambda: now[0])
    outcome = []
    for i, at in enumerate((0.0, 0.1, 0.4, 0.5, 0.9, 1.1)):
        now[0] = at
        try:
            engine.create_processing_job(**request(f"paced-{i}", "true"))
            outcome.append("made")
        except ClientError as error:
            outcome.append(error.response["Error"]["Code"])
    assert outcome == ["made", "ThrottlingException", "ThrottlingException", "made", "ThrottlingException", "made"]


def test_throttled_calls_are_not_carried_out(local: LocalEngine) -> None:
    with serving(FaultyEngine(local, throttle=1)) as url:
        sagemaker = client(url)
        for call, arguments in (
            (sagemaker.create_processing_job, request("one", "true")),
            (sagemaker.describe_processing_job, {"ProcessingJobName": "one"}),
            (sagemaker.list_processing_jobs, {}),
            (sagemaker.stop_processing_job, {"ProcessingJobName": "one"}),
        ):
            with pytest.raises(ClientError, match="ThrottlingException.*Rate exceeded"):
                call(**arguments)
    assert local.list_processing_jobs()["ProcessingJobSummaries"] == []


def test_a_lost_response_is_of_a_call_that_was_carried_out(local: LocalEngine) -> None:
    engine = FaultyEngine(local, lose_responses=1)
    with pytest.raises(ConnectionClosedError):
        engine.create_processing_job(**request("here", "true"))
    with serving(engine) as url:
        with pytest.raises(ConnectionClosedError):
            client(url).create_processing_job(**request("lost", "true"))
        assert ended(local, "lost")["ProcessingJobStatus"] == "Completed"
    with serving(local) as url, pytest.raises(ClientError, match="ResourceInUse"):
        client(url).create_processing_job(**request("lost", "true"))


@pytest.mark.whole
def test_botos_own_second_attempt_meets_the_job_that_the_first_made(local: LocalEngine) -> None:
    with serving(FaultyEngine(local, lose_responses=0.5, seed=1)) as url:
        sagemaker = client(url, attempts=10)
        outcomes = set()
        for i in range(6):
            try:
                sagemaker.create_processing_job(**request(f"twice-{i}", "true"))
                outcomes.add("made")
            except ClientError as error:
                outcomes.add(error.response["Error"]["Code"])
    assert outcomes == {"made", "ResourceInUse"}
    assert len(local.list_processing_jobs()["ProcessingJobSummaries"]) == 6


def test_jobs_that_find_no_machines(local: LocalEngine) -> None:
    engine = FaultyEngine(local, capacity_errors=1)
    engine.create_processing_job(**request("none", "true"))
    about = engine.describe_processing_job(ProcessingJobName="none")
    assert about["ProcessingJobStatus"] == "Failed"
    assert about["FailureReason"].startswith("CapacityError: ")
    assert "ProcessingStartTime" not in about
    assert list(engine.log_lines("none")) == []


def test_the_same_seed_chooses_the_same_calls(tmp_path: Path) -> None:
    def outcomes(name: str) -> list[str]:
        engine = FaultyEngine(LocalEngine(tmp_path / name), throttle=0.3, capacity_errors=0.5, seed=11)
        found = []
        for i in range(20):
            try:
                engine.list_processing_jobs(NameContains=str(i))
                found.append("answered")
            except ClientError:
                found.append("throttled")
        return found

    first = outcomes("a")
    assert first == outcomes("b")
    assert set(first) == {"answered", "throttled"}


@pytest.mark.parametrize("faults", [{"throttle": 1.5}, {"lose_responses": -0.1}, {"create_rate": 0}])
def test_faults_that_cannot_be(local: LocalEngine, faults: dict[str, float]) -> None:
    with pytest.raises(sk.PipelineError, match=next(iter(faults))):
        FaultyEngine(local, **faults)  # type: ignore[arg-type]


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    root = tmp_path / "engine"
    command = [sys.executable, "-m", "shardkit", "engine", "serve", "--root", str(root), "--max-instances", "3"]
    server = subprocess.Popen([*command, "--seed", "1"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told = ""
    while not (found := re.search(r"export AWS_ENDPOINT_URL_SAGEMAKER=(http://127\.0\.0\.1:\d+)\n", told)):
        line = server.stdout.readline()
        assert line, told
        told += line
    assert "this machine only" in told
    sagemaker = client(found[1])
    sagemaker.create_processing_job(**request("stays", shell=f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"))
    with pytest.raises(ClientError, match="limit .* is 3 Instances"):
        sagemaker.create_processing_job(**request("more", "true", instances=3))
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    server.stdout.close()
    port = urlsplit(found[1]).port
    until(lambda: socket.socket().connect_ex(("127.0.0.1", port or 0)) != 0)
    (tmp_path / "go").touch()
    assert ended(LocalEngine(root), "stays")["ProcessingJobStatus"] == "Completed"


def test_the_command_says_what_it_cannot_do() -> None:
    for options, said in ((["--throttle", "2"], "from 0 to 1"), (["--isolation", "docker"], "docker")):
        done = subprocess.run(
            [sys.executable, "-m", "shardkit", "engine", "serve", *options],
            env=os.environ | {"COLUMNS": "120"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
