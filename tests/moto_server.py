"""moto's server, for S3: a process of its own that prints its port, and ends with the one that has started it.

It gives moto's answers over connections that stay open: a thread and a connection for each request took as long as
the answer. The program that asks is a test, so that requests are not checked, but answered.
"""

from __future__ import annotations

import functools
import gc
import io
import sys
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from moto import backends
from moto.core import serialize
from moto.moto_server import threaded_moto_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler
from moto.s3.responses import S3Response

if TYPE_CHECKING:
    from collections.abc import Iterable

put_object, one_at_a_time = S3Response.put_object, threading.Lock()


class Handler(MotoRequestHandler):
    """Answers one request of a connection after the other, each in one piece."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds back an answer after "100 Continue" until that is confirmed

    def run_wsgi(self) -> None:
        """Answer a request."""
        environ = self.make_environ()
        body = environ["wsgi.input"]  # of all that follows the head, unless it is in chunks
        if not environ.get("wsgi.input_terminated"):
            body = io.BytesIO(self.rfile.read(int(environ.get("CONTENT_LENGTH") or 0)))
        environ["wsgi.input"] = body
        answered: list[tuple[str, list[tuple[str, str]]]] = []
        pieces: Iterable[bytes] = self.server.app(environ, lambda *about: answered.append(about[:2]))  # type: ignore[arg-type, return-value]
        data = b"".join(pieces)
        body.read()  # what nobody has looked at would be taken for the next request
        self._answer(*answered[0], data)

    def _answer(self, status: str, headers: list[tuple[str, str]], data: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
        has_body = self.command != "HEAD" and int(status[:3]) not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        if has_body and not any(name.lower() == "content-length" for name, _ in headers):
            lines.append(f"Content-Length: {len(data)}")
        head = "\r\n".join([*lines, f"Date: {self.date_time_string()}", "", ""])
        self.wfile.write(head.encode("latin-1") + (data if has_body else b""))


def atomic(self: S3Response) -> Any:
    """Of two that create an object only if there is none, moto may let both."""
    with one_at_a_time:
        return put_object(self)


def make_faster() -> None:
    """Do once what moto does for each request: list the folder of its modules, and parse the same times."""
    modules = frozenset(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules  # type: ignore[assignment, return-value]
    serialize.parse_to_aware_datetime = functools.lru_cache(1 << 16)(serialize.parse_to_aware_datetime)
    dispatcher = DomainDispatcherApplication
    dispatcher.get_backend_for_host = functools.lru_cache(dispatcher.get_backend_for_host)  # type: ignore[method-assign]


def main() -> None:
    """Serve until the standard input ends, and so the program at its other end."""
    make_faster()
    S3Response.put_object = atomic  # type: ignore[method-assign]
    threaded_moto_server.MotoRequestHandler = Handler  # type: ignore[misc]
    server = threaded_moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    gc.freeze()
    sys.stdout.write(f"{server.get_host_and_port()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
