"""The local engine over HTTP, in the service's own protocol, so that boto3, the AWS CLI and the SDKs run against it.

    with serving(LocalEngine()) as url:
        client = boto3.client("sagemaker", endpoint_url=url)

Whoever can reach it can run programs as the user who started it, so it listens on the loopback interface only. It does
not look at signatures: any credentials will do.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import threading
import uuid
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError, ConnectionClosedError, ParamValidationError

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPBACK = "127.0.0.1"
TARGET = "SageMaker."
CONTENT_TYPE = "application/x-amz-json-1.1"
LARGEST_REQUEST = 16 << 20  # bytes
CALLS = {
    "CreateProcessingJob": "create_processing_job",
    "DescribeProcessingJob": "describe_processing_job",
    "ListProcessingJobs": "list_processing_jobs",
    "StopProcessingJob": "stop_processing_job",
}


class WireServer(ThreadingHTTPServer):
    """Serves one engine on a port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, engine: Any, *, port: int = 0) -> None:
        self.engine = engine
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise PipelineError(
                f"Port {port} of {LOOPBACK} cannot be had: {error.strerror}.", hint="Give --port 0 for any free port."
            ) from error

    def server_bind(self) -> None:
        """Bind without asking the name service who 127.0.0.1 is, which takes seconds on some machines."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    @property
    def url(self) -> str:
        """Where the server is reached."""
        return f"http://{LOOPBACK}:{self.server_port}"


@contextlib.contextmanager
def serving(engine: Any, *, port: int = 0) -> Iterator[str]:
    """Serve an engine while the block runs; its URL."""
    server = WireServer(engine, port=port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()


def serve(engine: Any, *, port: int, say: Callable[[str], None]) -> None:
    """Serve an engine until Ctrl-C or SIGTERM, and say how to reach it; the jobs go on without it.

    Args:
        engine: a local engine, with or without faults.
        port: of 127.0.0.1; 0 for any free one.
        say: what prints a line for people.
    """
    server = WireServer(engine, port=port)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    say(f"SageMaker Processing at {server.url}, for this machine only; its jobs are in {engine.root}.")
    say("In the shell of your programs:")
    say(f"  export AWS_ENDPOINT_URL_SAGEMAKER={server.url}")
    say("Any credentials and any region will do. Ctrl-C ends it; the jobs go on.")
    stop.wait()
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    server: WireServer

    def do_POST(self) -> None:
        """Every call is a POST whose target header names the operation."""
        try:
            status, answer = self._answer()
        except ConnectionClosedError:  # a response that is to be lost
            self.close_connection = True
            return
        body = json.dumps(answer, default=_encode).encode()
        self.send_response(status)
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if "__type" in answer:
            self.send_header("x-amzn-ErrorType", answer["__type"])
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[int, dict[str, Any]]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST_REQUEST:
            self.close_connection = True
            return 400, _error("SerializationException", "The request has no length, or is too large.")
        text = self.rfile.read(int(length))
        if not self._is_for_us():
            return 403, _error("AccessDeniedException", f"This engine answers to {LOOPBACK} and localhost only.")
        target = self.headers.get("X-Amz-Target", "")
        operation = target[len(TARGET) :] if target.startswith(TARGET) else ""
        try:
            request = json.loads(text or b"{}")
        except ValueError:
            request = None
        if not isinstance(request, dict):
            return 400, _error("SerializationException", "The request is no JSON object.")
        if operation == "ListTags":
            return _guarded(self._tags, request)
        if operation not in CALLS:
            return 400, _error(
                "UnknownOperationException", f"The local engine knows {', '.join(CALLS)} and ListTags, not {target!r}."
            )
        return _guarded(getattr(self.server.engine, CALLS[operation]), request)

    def _is_for_us(self) -> bool:
        """No web page that a user looks at may start programs here: browsers send its origin, and its host name."""
        host = self.headers.get("Host", LOOPBACK).rpartition(":")[0] or self.headers.get("Host", LOOPBACK)
        return host in (LOOPBACK, "localhost") and "Origin" not in self.headers

    def _tags(self, ResourceArn: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803  # the service's name
        """Tags of a job: some SDKs ask for them when they look at one."""
        return {"Tags": self.server.engine.tags(ResourceArn.rpartition("/")[2])}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the answers say it all."""


def _guarded(call: Callable[..., dict[str, Any]], request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Make a call of the engine; its answer or its refusal, with the HTTP status."""
    try:
        answer = call(**request)
    except ConnectionClosedError:
        raise
    except ClientError as error:
        about = error.response
        return about["ResponseMetadata"]["HTTPStatusCode"], _error(about["Error"]["Code"], about["Error"]["Message"])
    except ParamValidationError as error:
        missing = re.findall(r'Missing required parameter in [^:]*: "(\w+)"', str(error))
        told = "".join(f" The request must have {name}." for name in missing)
        return 400, _error("ValidationException", told.strip() or str(error).replace("\n", " "))
    except Exception as error:  # noqa: BLE001  # the caller shall hear of it, and the server go on
        return 500, _error("InternalFailure", f"{type(error).__name__}: {error}")
    return 200, {key: value for key, value in answer.items() if key != "ResponseMetadata"}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"__type": code, "message": message}


def _encode(value: Any) -> Any:
    """Times travel as seconds."""
    if isinstance(value, datetime):
        return round(value.timestamp(), 3)
    raise TypeError(f"{type(value).__name__} cannot travel as JSON")
