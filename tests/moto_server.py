"""moto's server, for S3: a process of its own that prints its port, and ends with the one that has started it.

It gives moto's answers over connections that stay open: a thread and a connection for each request took as long as
the answer. The program that asks is a test, so that requests are not checked, but answered. What is for S3 goes straight
to moto's S3: the way through Flask took longer than all the rest.
"""

from __future__ import annotations

import functools
import gc
import io
import sys
import threading
from http import HTTPStatus
from secrets import token_hex
from typing import TYPE_CHECKING, Any, ClassVar

from moto import backends
from moto.core import serialize
from moto.moto_api._internal import mock_random as moto_random
from moto.moto_server import threaded_moto_server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler
from moto.s3.responses import S3Response
from werkzeug.serving import DechunkedInput

if TYPE_CHECKING:
    from collections.abc import Iterable

put_object, one_at_a_time = S3Response.put_object, threading.Lock()
get_value = serialize.S3Serializer.get_value


class Headers(dict[str, str]):
    """Headers by their names, however these are written."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class Request:
    """What moto's S3 wants to know of a request."""

    from_wsgi_server = True
    content_encoding = None  # moto leaves the content as it is
    form: ClassVar[dict[str, Any]] = {}
    files: ClassVar[dict[str, Any]] = {}

    def __init__(self, handler: Handler, data: bytes) -> None:
        self.method, self.data, self.environ = handler.command, data, {}
        self.headers = Headers((name.lower(), value) for name, value in handler.headers.items())
        self.raw_path = handler.path.partition("?")[0]
        self.url = self.raw_url = f"http://{self.headers['host']}{handler.path}"


class Handler(MotoRequestHandler):
    """Answers one request of a connection after the other, each in one piece."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds back an answer after "100 Continue" until that is confirmed

    def run_wsgi(self) -> None:
        """Answer a request."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = DechunkedInput(self.rfile).read()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/s3/aws4_request" in self.headers.get("Authorization", ""):
            self._ask_s3(data)
            return
        environ = self.make_environ() | {"wsgi.input": io.BytesIO(data), "wsgi.input_terminated": True}
        answered: list[tuple[str, list[tuple[str, str]]]] = []
        pieces: Iterable[bytes] = self.server.app(environ, lambda *about: answered.append(about[:2]))  # type: ignore[arg-type, return-value]
        self._answer(*answered[0], b"".join(pieces))

    def _ask_s3(self, data: bytes) -> None:
        request = Request(self, data)
        _, _, key = request.raw_path[1:].partition("/")
        ask = S3Response.key_dispatch if key else S3Response.bucket_dispatch
        code, headers, content = ask(request, request.raw_url, request.headers)
        content = content.encode() if isinstance(content, str) else content
        self._answer(f"{code} {HTTPStatus(code).phrase}", list(headers.items()), content)

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


def member(self: Any, value: Any, key: str, shape: Any) -> Any:
    """What an answer has under a name: moto looks for it under six names, in each of thousands of lines of a list."""
    return value.get(key) if type(value) is dict else get_value(self, value, key, shape)


def make_faster() -> None:
    """Do once what moto does for each request or each line: see which modules it has, and parse the same times."""
    modules = frozenset(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules  # type: ignore[assignment, return-value]
    serialize.parse_to_aware_datetime = functools.lru_cache(1 << 16)(serialize.parse_to_aware_datetime)
    serialize.S3Serializer.get_value = member  # type: ignore[method-assign]
    dispatcher = DomainDispatcherApplication
    dispatcher.get_backend_for_host = functools.lru_cache(dispatcher.get_backend_for_host)  # type: ignore[method-assign]
    moto_random.get_random_string = lambda length=20, **_: token_hex(length)[:length]  # type: ignore[method-assign]
    S3Response.subdomain_based_buckets = lambda *_: False  # type: ignore[method-assign]


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
