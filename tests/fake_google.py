"""A stand-in for Google Cloud Storage's XML interface, as much of it as is used here: objects in memory."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import itertools
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

WHEN = "Wed, 21 Oct 2026 07:28:00 GMT"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        bucket, key, query = self._target()
        if not key:
            self._list(query)
            return
        stored = self.server.objects.get((bucket, key))
        if stored is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        generation, data = stored
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted != _etag(data):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        sent = {"ETag": _etag(data), "Last-Modified": WHEN, "x-goog-generation": str(generation)}
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(data)), len(data) - 1)
            sent["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._answer(206, data[start : end + 1], sent)
        else:
            self._answer(200, data, sent)

    do_HEAD = do_GET  # noqa: N815  the name that the base class looks for

    def do_PUT(self) -> None:
        bucket, key, query = self._target()
        data = self._body()
        if "partNumber" in query:
            self.server.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = data
            self._answer(200, b"", {"ETag": _etag(data)})
            return
        if source := self.headers.get("x-goog-copy-source"):
            origin, _, name = unquote(source).lstrip("/").partition("/")
            data = self.server.objects[origin, name][1]
        with self.server.lock:
            generation = self.server.objects.get((bucket, key), (0, b""))[0]
            if self.headers.get("x-goog-if-generation-match", str(generation)) != str(generation):
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                return
            self._answer(200, b"", self._store(bucket, key, data))

    def do_POST(self) -> None:
        bucket, key, query = self._target()
        self._body()
        if "uploads" in query:
            upload = str(next(self.server.numbers))
            self.server.uploads[upload] = {}
            names = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>".encode())
            return
        parts = self.server.uploads.pop(query["uploadId"][0])
        sent = self._store(bucket, key, b"".join(parts[number] for number in sorted(parts)))
        etag = escape(sent["ETag"])
        body = f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
        self._answer(200, body.encode(), sent)

    def do_DELETE(self) -> None:
        bucket, key, _ = self._target()
        there = self.server.objects.pop((bucket, key), None)
        self._answer(204 if there else 404, b"" if there else b"<Error><Code>NoSuchKey</Code></Error>")

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        contents, folders = [], {}
        with self.server.lock:
            objects = sorted(self.server.objects.items())
        for (_, key), (generation, data) in objects:
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders[prefix + rest.partition(delimiter)[0] + delimiter] = None
                continue
            contents.append(
                f"<Contents><Key>{escape(key)}</Key><Generation>{generation}</Generation><Size>{len(data)}</Size>"
                f"<LastModified>2026-10-21T07:28:00.000Z</LastModified><ETag>{_etag(data)}</ETag></Contents>"
            )
        below = [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders]
        self._answer(200, f"<ListBucketResult>{''.join(contents + below)}</ListBucketResult>".encode())

    def _target(self) -> tuple[str, str, dict[str, list[str]]]:
        url = urlsplit(self.path)
        bucket, _, key = url.path.lstrip("/").partition("/")
        return unquote(bucket), unquote(key), parse_qs(url.query, keep_blank_values=True)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _store(self, bucket: str, key: str, data: bytes) -> dict[str, str]:
        generation = next(self.server.numbers)
        self.server.objects[bucket, key] = (generation, data)
        return {"ETag": _etag(data), "x-goog-generation": str(generation)}

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()


@contextlib.contextmanager
def google() -> Iterator[str]:
    """Serve during the block; yields the URL."""
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
