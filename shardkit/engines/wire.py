"""The local engine over HTTP, in the service's own protocol, so that boto3, the AWS CLI and the SDKs run against it.

    with serving(LocalEngine()) as url:
        client = boto3.client("sagemaker", endpoint_url=url)

Anyone with access can run programs as the user who started the server. So it listens on the loopback interface only,
takes only signed requests (see ``shardkit.engines.signing``), and none that a web page may have sent. It serves the
calls of Processing and training jobs, and those of CloudWatch Logs with which SDKs follow a job.
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

from shardkit.engines import validation
from shardkit.engines.signing import KEPT, Keys, Refused, is_own_user, keep
from shardkit.engines.wire_logs import Logs
from shardkit.errors import PipelineError
from shardkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPBACK = "127.0.0.1"
CONTENT_TYPE = "application/x-amz-json-1.1"
LARGEST_REQUEST = 16 << 20  # bytes
PATIENCE_S = 60.0  # with a silent client
CALLS = {
    "CreateProcessingJob": "create_processing_job",
    "DescribeProcessingJob": "describe_processing_job",
    "ListProcessingJobs": "list_processing_jobs",
    "StopProcessingJob": "stop_processing_job",
    "CreateTrainingJob": "create_training_job",
    "DescribeTrainingJob": "describe_training_job",
    "ListTrainingJobs": "list_training_jobs",
    "StopTrainingJob": "stop_training_job",
}
LOG_CALLS = {
    "DescribeLogGroups": "describe_log_groups",
    "DescribeLogStreams": "describe_log_streams",
    "FilterLogEvents": "filter_log_events",
    "GetLogEvents": "get_log_events",
}
SERVICES = {"SageMaker": "sagemaker", "Logs_20140328": "logs"}  # by the beginning of their targets


class WireServer(ThreadingHTTPServer):
    """Serves one engine on a port of 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, engine: Any, *, port: int = 0, keys: Keys | None = None) -> None:
        self.engine, self.keys, self.logs = engine, keys, Logs(engine)
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
        """The address of the server."""
        return f"http://{LOOPBACK}:{self.server_port}"


@contextlib.contextmanager
def serving(engine: Any, *, port: int = 0) -> Iterator[str]:
    """Serve an engine at the URL that this yields while the block runs, to all who have its root's key pair."""
    server = WireServer(engine, port=port, keys=Keys.of_root(engine.root))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()


def serve(engine: Any, *, port: int, say: Callable[[str], None], anybody: bool = False) -> None:
    """Serve an engine until Ctrl-C or SIGTERM, and say how to reach it; the jobs go on without it.

    Args:
        engine: a local engine, with or without faults.
        port: of 127.0.0.1; 0 for any free one.
        say: prints a line for people.
        anybody: take unsigned requests, from anyone who reaches the port.
    """
    keys = Keys.of_root(engine.root)
    server = WireServer(engine, port=port, keys=None if anybody else keys)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    exports = keys.exports(server.url)
    keep(engine.root, exports)
    say(f"SageMaker Processing at {server.url}, for this machine only; its jobs are in {engine.root}.")
    say("In the shell of your programs:")
    for line in exports:
        say(f"  {line}")
    say(f"The same lines are in {engine.root}/{KEPT}, for you alone. Any region will do.")
    if anybody:
        say("NOTE: credentials are not checked: anyone who reaches this port can run programs as you.")
    say("Ctrl-C ends it; the jobs go on.")
    stop.wait()
    server.shutdown()
    server.server_close()


class _NoRequest(Exception):
    """The data on the connection is not a request that any call could answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "shardkit", ""
    timeout = PATIENCE_S
    server: WireServer

    def do_POST(self) -> None:
        """Every call is a POST whose target header names the operation."""
        try:
            status, answer = self._answer()
        except _NoRequest as error:
            self.close_connection = True  # the rest of the request may still be on its way
            status, answer = error.status, _error(error.code, str(error))
        except ConnectionClosedError:  # an injected fault: the response gets lost
            self.close_connection = True
            return
        self._send(status, answer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer anything that is not a POST, or not HTTP, in the service's words too."""
        del explain
        self.close_connection = True
        self.request_version = self.request_version or self.protocol_version
        name = "UnknownOperationException" if code == 501 else "SerializationException"
        self._send(405 if code == 501 else code, _error(name, message or "This is no request."))

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer, default=_encode).encode()
        self.send_response(status)
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        if "__type" in answer:
            self.send_header("x-amzn-ErrorType", answer["__type"])
        if self.close_connection:
            self.send_header("Connection", "close")
        try:
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except ConnectionError:  # whoever has asked is gone
            self.close_connection = True

    def _answer(self) -> tuple[int, dict[str, Any]]:
        if not self._is_for_us():
            raise _NoRequest(403, "AccessDeniedException", f"This engine answers to {LOOPBACK} and localhost only.")
        text = self._body()
        try:
            self._check_signature(text)
        except Refused as error:
            return 403, _error(error.code, str(error))
        kind = self.headers.get("Content-Type", CONTENT_TYPE).partition(";")[0].strip().lower()
        if not kind.startswith("application/") or "json" not in kind:
            return 415, _error("SerializationException", f"The Content-Type is {kind!r}; it must be {CONTENT_TYPE}.")
        target = self.headers.get("X-Amz-Target", "")
        try:
            request = json.loads(text or b"{}")
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return 400, _error("SerializationException", "The request is no JSON object.")
        prefix, _, operation = target.rpartition(".")
        call = self._call(SERVICES.get(prefix, ""), operation)
        if call is None:
            calls = ", ".join([*CALLS, "ListTags", *LOG_CALLS])
            return 400, _error("UnknownOperationException", f"The local engine knows {calls}, not {target!r}.")
        return _guarded(SERVICES[prefix], operation, call, request)

    def _body(self) -> bytes:
        """The body, also one that comes in chunks."""
        if self.headers.get("Transfer-Encoding", "").strip().lower() == "chunked":
            return b"".join(self._chunks())
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,15}", length) or "Transfer-Encoding" in self.headers:
            raise _NoRequest(411, "SerializationException", "The request has no length.")
        if int(length) > LARGEST_REQUEST:
            raise _NoRequest(413, "RequestEntityTooLargeException", f"More than {LARGEST_REQUEST} bytes are too many.")
        return self.rfile.read(int(length))

    def _chunks(self) -> Iterator[bytes]:
        total = 0
        while True:
            size_text = self.rfile.readline(100).partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size_text):
                raise _NoRequest(400, "SerializationException", "The chunks of the request cannot be read.")
            size = int(size_text, 16)
            total += size
            if total > LARGEST_REQUEST:
                raise _NoRequest(
                    413, "RequestEntityTooLargeException", f"More than {LARGEST_REQUEST} bytes are too many."
                )
            yield self.rfile.read(size)
            self.rfile.readline(1000)
            if not size:
                return

    def _is_for_us(self) -> bool:
        """Whether no web page sent the request, as none may start programs: browsers send its origin and host name."""
        host = self.headers.get("Host", LOOPBACK).rpartition(":")[0] or self.headers.get("Host", LOOPBACK)
        return host in (LOOPBACK, "localhost") and not any(
            name in self.headers for name in ("Origin", "Sec-Fetch-Site")
        )

    def _check_signature(self, text: bytes) -> None:
        """Refuse an unsigned request.

        Raises:
            Refused: the reason, in the service's words.
        """
        keys = self.server.keys
        if keys is None:
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        url = f"http://{headers.get('host', LOOPBACK)}{self.path}"
        own = is_own_user(self.connection.getsockname(), self.client_address)
        keys.check(headers, url=url, body=text, is_own_user=own)

    def _call(self, service: str, operation: str) -> Callable[..., dict[str, Any]] | None:
        """The method that answers an operation of a service; None if there is none."""
        if service == "logs" and operation in LOG_CALLS:
            return getattr(self.server.logs, LOG_CALLS[operation])  # type: ignore[no-any-return]
        if service == "sagemaker" and operation == "ListTags":
            return self._tags
        if service == "sagemaker" and operation in CALLS:
            return getattr(self.server.engine, CALLS[operation])  # type: ignore[no-any-return]
        return None

    def _tags(self, ResourceArn: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803  # the service's name
        """Tags of a job: some SDKs ask for them when they look at one."""
        engine = self.server.engine
        jobs = engine.training if ":training-job/" in ResourceArn else engine
        return {"Tags": jobs.tags(ResourceArn.rpartition("/")[2])}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the answers say it all."""


def _guarded(
    service: str, operation: str, call: Callable[..., dict[str, Any]], request: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Call the engine; return its answer or its refusal, with the HTTP status."""
    try:
        validation.check(operation, request, service)
        answer = call(**request)
    except ConnectionClosedError:
        raise
    except ClientError as error:
        about = error.response
        return about["ResponseMetadata"]["HTTPStatusCode"], _error(about["Error"]["Code"], about["Error"]["Message"])
    except ParamValidationError as error:
        missing = re.findall(r'Missing required parameter in [^:]*: "(\w+)"', str(error))
        message = "".join(f" The request must have {name}." for name in missing)
        code = "ValidationException" if service == "sagemaker" else "InvalidParameterException"
        return 400, _error(code, message.strip() or str(error).replace("\n", " "))
    except Exception as error:  # noqa: BLE001  # the caller gets it, and the server goes on
        return 500, _error("InternalFailure", f"{type(error).__name__}: {error}")
    return 200, {key: value for key, value in answer.items() if key != "ResponseMetadata"}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"__type": code, "message": masked(message)}


def _encode(value: Any) -> Any:
    """Times travel as seconds."""
    if isinstance(value, datetime):
        return round(value.timestamp(), 3)
    raise TypeError(f"{type(value).__name__} cannot travel as JSON")
