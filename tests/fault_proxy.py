"""A proxy in front of an S3 server that adds faults: slow down, errors, truncated bodies, lost connections, stalls."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAULTS = ("slow down", "error", "cut", "reset", "stall")
STALL_S = 0.5
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "server", "date"}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def setup(self) -> None:
        super().setup()
        self._behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)

    def finish(self) -> None:
        self._behind.close()
        super().finish()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (other := self.server.instead(self)) is not None:
            self._answer(*other)
            return
        if (refusal := self.server.gate(self)) is not None:
            self._refuse(*refusal)
            return
        fault = self.server.next_fault()
        if fault == "reset":
            self._reset()
            return
        if fault in {"slow down", "error"}:
            self._refuse(503 if fault == "slow down" else 500, "SlowDown" if fault == "slow down" else "InternalError")
            return
        if fault == "stall":
            time.sleep(STALL_S)
        self._behind.request(self.command, self.path, body, dict(self.headers))
        answer = self._behind.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP | ({"content-length"} if self.command != "HEAD" else set()):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut" and self.command == "GET" and len(data) > 1:
            self.wfile.write(data[: len(data) // 2])
            self._reset()
            return
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815  the names that the base class looks for

    def _refuse(self, status: int, code: str, message: str = "a bad day") -> None:
        self._answer(status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


class FaultProxy(http.server.ThreadingHTTPServer):
    """Passes requests on to the server on the port ``behind``; ``share`` of them meet each kind of fault.

    ``gate`` looks at a request first, and may refuse it with a status, a code and a message.
    ``instead`` may answer in the server's place, with a status, headers and a body.
    """

    daemon_threads = True

    def __init__(
        self,
        behind: int,
        *,
        share: float = 0.0,
        seed: int = 1,
        gate: Callable[[http.server.BaseHTTPRequestHandler], tuple[Any, ...] | None] = lambda _: None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.share = share
        self.gate = gate
        self.instead: Callable[[http.server.BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes] | None]
        self.instead = lambda _: None
        self.seen: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def next_fault(self) -> str:
        """What happens to the next request."""
        with self._lock:
            number = int(self._random.random() / self.share) if self.share else len(FAULTS)
            fault = FAULTS[number] if number < len(FAULTS) else ""
            self.seen[fault] += 1
            return fault

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve during the block; yields the URL."""
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{self.server_address[1]}"
        finally:
            self.shutdown()
            self.server_close()
