"""Who gets into a served engine: whoever signs as its owner, no other user of the machine, and no web page."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError
from engine_jobs import ended, request
from signed_requests import send, signed

from shardkit.engines import signing
from shardkit.engines.local import LocalEngine, available_isolation
from shardkit.engines.signing import Keys
from shardkit.engines.validation import service_model
from shardkit.engines.wire import CALLS, LOG_CALLS, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine")
LIST = {"X-Amz-Target": "SageMaker.ListProcessingJobs", "Content-Type": "application/x-amz-json-1.1"}
GROUP = "/aws/sagemaker/ProcessingJobs"
ASK_AS_NOBODY = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from signed_requests import send, signed
url, target, keep = sys.argv[2:]
send(url, b"{}", signed(url, b"{}", json.loads(target)))  # has read all modules while it may
os.setgroups([]); os.setgid(65534); os.setuid(65534)
told = [send(url, b"{}", json.loads(target))[1]["__type"]]
told.append(send(url, b"{}", signed(url, b"{}", json.loads(target)))[1]["__type"])
try:
    told.append(open(keep).read())
except PermissionError:
    told.append("kept from others")
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    return LocalEngine(tmp_path_factory.mktemp("served") / "engine", max_instances=20)


@pytest.fixture(scope="module")
def url(local: LocalEngine) -> Iterator[str]:
    with serving(local) as found:
        yield found


def client(service: str, url: str, key: str, secret: str) -> Any:
    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "eu-west-1"}
    return boto3.client(service, endpoint_url=url, **keys)


def asked(url: str, headers: dict[str, str], body: bytes = b"{}", **options: Any) -> tuple[int, str]:
    status, answer = send(url, body, headers, **options)
    return status, answer.get("__type", "")


# ---- signatures ----------------------------------------------------------------------------------------------------


def test_the_pair_of_the_root_lets_in_and_stays_the_same(url: str, local: LocalEngine) -> None:
    ((key, secret),) = Keys.of_root(local.root).pairs.items()
    assert client("sagemaker", url, key, secret).list_processing_jobs()["ProcessingJobSummaries"] == []
    assert os.stat(f"{local.root}/{signing.KEPT}").st_mode & 0o777 == 0o600
    os.chmod(f"{local.root}/{signing.KEPT}", 0o644)  # others may have read it, so it must not be valid any more
    assert key not in Keys.of_root(local.root).pairs


def test_the_pair_of_the_environment_lets_in_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "all mine")
    with serving(LocalEngine(tmp_path / "engine")) as url:
        assert asked(url, signed(url, b"{}", LIST, key="mine", secret="all mine")) == (200, "")


def test_who_does_not_sign_rightly_is_not_let_in(url: str) -> None:
    good = signed(url, b"{}", LIST)
    assert asked(url, good) == (200, "")
    refused = {
        "MissingAuthenticationTokenException": [LIST],
        "UnrecognizedClientException": [signed(url, b"{}", LIST, key="AKIANOBODY")],
        "InvalidSignatureException": [
            signed(url, b"{}", LIST, secret="guessed"),
            good | {"X-Amz-Target": "SageMaker.StopProcessingJob"},
            signed(url, b"another body", LIST),
            signed(url, b"{}", LIST | {"X-Amz-Content-SHA256": "0" * 64}),
        ],
        "IncompleteSignatureException": [
            LIST | {"Authorization": "Basic YTpi"},
            good | {"X-Amz-Meta": "not signed"},
            {name: value for name, value in good.items() if name != "X-Amz-Date"},
        ],
    }
    for code, requests in refused.items():
        for headers in requests:
            assert asked(url, headers) == (403, code)


def test_an_old_request_is_not_taken_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = signed(url, b"{}", LIST)
    monkeypatch.setattr(signing, "SKEW_S", -1.0)  # all requests are old
    assert asked(url, headers) == (403, "InvalidSignatureException")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_not_let_in(url: str, local: LocalEngine) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK_AS_NOBODY, json.dumps(sys.path), url, json.dumps(LIST), f"{local.root}/serve.env"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert json.loads(done.stdout) == [
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
        "kept from others",
    ]


@pytest.mark.parametrize(
    "strange", [{"Origin": "https://example.com"}, {"Host": "rebound.example.com"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_no_web_page_is_let_in_even_with_a_signature(url: str, strange: dict[str, str]) -> None:
    headers = signed(url, b"{}", LIST | strange) | strange
    assert asked(url, headers) == (403, "AccessDeniedException")


# ---- what is no call -----------------------------------------------------------------------------------------------


def test_every_other_operation_of_the_service_is_refused_in_its_words(url: str) -> None:
    operations = set(service_model().operation_names) - set(CALLS) - {"ListTags"}
    assert len(operations) > 100
    for operation in sorted(operations)[::10]:
        headers = signed(url, b"{}", LIST | {"X-Amz-Target": f"SageMaker.{operation}"})
        assert asked(url, headers) == (400, "UnknownOperationException")


def test_requests_of_odd_shapes(url: str) -> None:
    for body in (b"{", b"[]", b"null", b"\xff", b"[" * 100_000):
        assert asked(url, signed(url, body, LIST), body) == (400, "SerializationException")
    for body in (b'{"self": 1}', b'{"NextToken": "x"}', b'{"MaxResults": "many"}'):
        assert asked(url, signed(url, body, LIST), body) == (400, "ValidationException")
    form = LIST | {"Content-Type": "text/plain"}
    assert asked(url, signed(url, b"{}", form)) == (415, "SerializationException")
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        assert asked(url, LIST, method=method) == (405, "UnknownOperationException")
    assert send(url, None, LIST, method="HEAD")[0] == 405
    assert asked(url, signed(url, b"{}", LIST), chunked=True) == (200, "")
    huge = signed(url, b"", LIST) | {"Content-Length": str(1 << 40)}
    assert asked(url, huge, b"") == (413, "RequestEntityTooLargeException")
    assert asked(url, signed(url, b"{}", LIST)) == (200, "")  # it serves on


@pytest.mark.parametrize("text", [b"\0\0\0\0\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n"])
def test_what_is_no_http_is_answered_and_forgotten(url: str, text: bytes) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=10) as connection:
        connection.sendall(text)
        assert b"SerializationException" in connection.makefile("rb").read()


# ---- logs ----------------------------------------------------------------------------------------------------------


def test_logs_are_read_as_sdks_read_them(url: str, local: LocalEngine) -> None:
    shell = "i=0; while [ $i -lt 25 ]; do echo line $i; i=$((i+1)); done; echo DB_PASSWORD=hunter2; printf end"
    local.create_processing_job(**request("talks", shell=shell, instances=2))
    ended(local, "talks")
    logs = client("logs", url, "any", "any")
    about = {"logGroupName": GROUP, "logStreamNamePrefix": "talks/", "orderBy": "LogStreamName"}
    first, second = logs.describe_log_streams(**about)["logStreams"]
    page = logs.describe_log_streams(**about, limit=1)
    assert logs.describe_log_streams(**about, nextToken=page["nextToken"])["logStreams"] == [second]
    stream = {"logGroupName": GROUP, "logStreamName": first["logStreamName"]}
    said, token = [], {}
    while True:
        page = logs.get_log_events(**stream, startFromHead=True, limit=10, **token)
        said += [event["message"] for event in page["events"]]
        if token == {"nextToken": page["nextForwardToken"]}:
            break
        token = {"nextToken": page["nextForwardToken"]}
    assert said == [*(f"line {i}" for i in range(25)), "DB_PASSWORD=***", "end"]
    last = logs.get_log_events(**stream, limit=2)
    assert [event["message"] for event in last["events"]] == said[-2:]
    before = logs.get_log_events(**stream, limit=3, nextToken=last["nextBackwardToken"])
    assert [event["message"] for event in before["events"]] == said[-5:-2]
    found = logs.filter_log_events(logGroupName=GROUP, logStreamNamePrefix="talks/", filterPattern='"line 2"')
    assert len(found["events"]) == 2 * 6
    for call, arguments in (
        (logs.describe_log_streams, {"logGroupName": "/aws/lambda/x"}),
        (logs.get_log_events, stream | {"logStreamName": "nobody/algo-1-1"}),
    ):
        with pytest.raises(ClientError, match="ResourceNotFoundException"):
            call(**arguments)
    with pytest.raises(ClientError, match="InvalidParameterException"):
        logs.get_log_events(**stream, nextToken="f/next")
    assert set(LOG_CALLS) < set(service_model("logs").operation_names)
