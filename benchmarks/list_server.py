"""A stub of S3 that lists objects which do not exist, page by page, to measure the memory that a listing takes.

python list_server.py PORT COUNT FOLDER
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PORT, COUNT, FOLDER = map(int, sys.argv[1:])
PAGE = 1000
ROOT = "feed/"


class Handler(BaseHTTPRequestHandler):
    """Answers ListObjectsV2 of the root, of a folder, and of folders one level down."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a page of keys, or with the folders."""
        if "list-type" not in urlsplit(self.path).query:  # an object that nobody has made, which shows a store
            self._send(404, "<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchKey</Code></Error>")
            return
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix = asked.get("prefix", "")
        if "delimiter" in asked and prefix == ROOT:
            names = (f"{ROOT}{i:04d}/" for i in range(-(-COUNT // FOLDER)))
            body = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in names)
            self._answer(body, 0, None)
            return
        begin, end = 0, COUNT
        if len(prefix) > len(ROOT):
            begin = int(prefix[len(ROOT) : len(ROOT) + 4]) * FOLDER
            end = min(begin + FOLDER, COUNT)
        begin = int(asked.get("continuation-token", begin))
        stop = min(begin + PAGE, end)
        self._answer("".join(map(self._object, range(begin, stop))), stop - begin, stop if stop < end else None)

    @staticmethod
    def _object(i: int) -> str:
        key = f"{ROOT}{i // FOLDER:04d}/part-{i:07d}.jsonl"
        return (
            f"<Contents><Key>{key}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{i:032x}&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )

    def _answer(self, body: str, count: int, following: int | None) -> None:
        more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following is not None else ""
        self._send(
            200,
            f"<?xml version='1.0' encoding='UTF-8'?><ListBucketResult><Name>b</Name><KeyCount>{count}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{body}"
            "</ListBucketResult>",
        )

    def _send(self, status: int, body: str) -> None:
        text = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
