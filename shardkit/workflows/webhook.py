"""The webhook of a workflow: an HTTP server that begins a run for each POST with the right token.

    printf 'Authorization: Bearer %s' "$HOOK_TOKEN" | curl -H @- -d '{"date": "2026-01-31"}' http://127.0.0.1:12000/

    202  the run begins, or waits: {"run_id": ...}
    400  the body is no JSON object of parameters, or one of these will not do
    401  there is no token, or a wrong one
    404, 405   another path, another method
    408  the request did not come within some seconds
    409  a run is in progress (with ``runs: one``)
    411, 413   no Content-Length, or a larger body than ``max_body``
    503  too many runs wait, or too many calls at once

One request is answered on each connection, and it has to come whole within `REQUEST_S`, however slowly a client sends.
What was sent is in no log.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NoReturn

from shardkit.errors import PipelineError, ShardkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shardkit.workflows.parts import Webhook

REQUEST_S = 10.0
MOST_CONNECTIONS = 32
SHORTEST_TOKEN = 16


class Busy(Exception):
    """A run is in progress; the text is its id."""


class Full(Exception):
    """Too many runs wait."""


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def token_of(webhook: Webhook) -> bytes:
    """The token, from the variable that holds it.

    Raises:
        PipelineError: it is not set, or too short to keep anybody out.
    """
    token = os.environ.get(webhook.token_name, "")
    if not token:
        raise PipelineError(
            f"webhook.token: the variable {webhook.token_name} is not set here.",
            hint="Set it to a long random text, such as openssl rand -hex 32 prints.",
        )
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise PipelineError(
            f"webhook.token: what {webhook.token_name} holds is too short or has odd characters.",
            hint=f"It takes {SHORTEST_TOKEN} letters and digits or more, such as openssl rand -hex 32 prints.",
        )
    return token.encode()


def parameters_in(body: bytes) -> dict[str, str]:
    """The parameters in a body, as texts.

    Raises:
        ValueError: it is no JSON object of texts, numbers and truth values.
    """
    if not body.strip():
        return {}
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON.") from None
    if not isinstance(content, dict):
        raise ValueError('the body is no JSON object of parameters, such as {"date": "2026-01-31"}.')  # noqa: TRY004
    values = {}
    for name, value in content.items():
        if isinstance(value, bool):
            values[name] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            values[name] = str(value)
        else:
            raise ValueError(f"{name[:40]!r} is no text, number or truth value.")  # noqa: TRY004
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


@contextlib.contextmanager
def listening(
    webhook: Webhook,
    token: bytes,
    begin: Callable[[Mapping[str, str]], str],
    *,
    say: Callable[[str], object],
    request_s: float = REQUEST_S,
) -> Iterator[str]:
    """Answer calls while the block runs, in threads; yields the address, ``host:port``.

    Args:
        webhook: The settings.
        token: What calls have to bring.
        begin: Begins a run with these parameters, and returns its id; it raises `Busy`, `Full` or an error of shardkit.
        say: Gets a line about what fails here.
        request_s: How long a request may take to come.

    Raises:
        PipelineError: the port is taken, or there is no such host.
    """
    digest = hashlib.sha256(token).digest()

    class Handler(_Handler):
        pass

    Handler.settings, Handler.digest, Handler.begin, Handler.request_s = webhook, digest, staticmethod(begin), request_s
    try:
        server = _Server((webhook.host, webhook.port), Handler)
    except OSError as error:
        raise PipelineError(
            f"webhook: {webhook.host}:{webhook.port} cannot be listened at: {error.strerror or error}.",
            hint="Choose another port.",
        ) from None
    server.say = say
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"{webhook.host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """A server with an end to the number of its threads."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS
    say: Callable[[str], object] = staticmethod(lambda _: None)

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there is one left; a slow client has its thread for seconds only."""
        if not self._room.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(1.0)
                request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say that answering failed; the error may have what was sent."""
        import sys

        kind = sys.exc_info()[0]
        if kind is not None and not issubclass(kind, OSError):
            self.say(f"A call of the webhook could not be answered: {kind.__name__}.")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    settings: Webhook
    digest: bytes
    begin: Callable[[Mapping[str, str]], str]
    request_s: float
    server_version, sys_version = "shardkit", ""

    def setup(self) -> None:
        """See that the connection ends if the request does not come in time."""
        super().setup()
        self._late = False
        self._timer = threading.Timer(self.request_s, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def finish(self) -> None:
        """End the connection."""
        self._timer.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def _cut(self) -> None:
        self._late = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def parse_request(self) -> bool:
        """Read the head; every method but POST is refused here."""
        if not super().parse_request():
            return False
        self.close_connection = True
        if self.command != "POST":
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only POST begins a run."}, Allow="POST")
            return False
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer to what is no request, without a word of what was sent."""
        del message, explain
        self.close_connection = True
        self._answer(HTTPStatus(code), {"error": HTTPStatus(code).phrase.lower()})

    def do_POST(self) -> None:
        """Begin a run."""
        try:
            self._check_caller()
            run_id = self.begin(parameters_in(self._body()))
        except _Refused as error:
            more = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
            self._answer(error.status, {"error": str(error)}, **more)
        except Busy as error:
            self._answer(HTTPStatus.CONFLICT, {"error": "a run is in progress.", "run_id": str(error)})
        except Full:
            retry = {"Retry-After": "60"}
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many runs wait."}, **retry)
        except (PipelineError, ValueError) as error:
            text = error.message if isinstance(error, ShardkitError) else str(error)
            self._answer(HTTPStatus.BAD_REQUEST, {"error": text})
        else:
            self._answer(HTTPStatus.ACCEPTED, {"run_id": run_id})

    def _check_caller(self) -> None:
        if self.path != self.settings.path:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is nothing here.")
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        same = hmac.compare_digest(given, self.digest)
        if not same or scheme.lower() != "bearer":
            raise _Refused(HTTPStatus.UNAUTHORIZED, "this takes a token.")

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length") or []
        if len(lengths) != 1 or self.headers.get("Transfer-Encoding") is not None:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the body has to be said, once.")
        text = lengths[0].strip()
        if not (text.isascii() and text.isdigit()):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the length of the body is no number.")
        if len(text) > 12 or int(text) > self.settings.max_body:
            most = f"{self.settings.max_body:,} bytes at most."
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is too large: {most}")
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            why = "the body did not come in time." if self._late else "the body is shorter than it was said to be."
            raise _Refused(HTTPStatus.REQUEST_TIMEOUT if self._late else HTTPStatus.BAD_REQUEST, why)
        self._timer.cancel()
        return body

    def _answer(self, status: HTTPStatus, content: dict[str, Any], **headers: str) -> None:
        self._timer.cancel()
        self.connection.settimeout(self.request_s)
        data = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if getattr(self, "command", "") != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing: what was sent may hold a secret."""
