"""A REST catalogue of Iceberg on loopback: the protocol's answers, over pyiceberg's own catalogue in SQLite."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pyiceberg import exceptions as refused
from pyiceberg.catalog.rest import CreateTableRequest, TableResponse
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import CommitTableRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CODES = {
    refused.NoSuchNamespaceError: 404,
    refused.NoSuchTableError: 404,
    refused.NamespaceAlreadyExistsError: 409,
    refused.TableAlreadyExistsError: 409,
    refused.CommitFailedException: 409,
}


class RestCatalog:
    """The server. ``asked`` are the requests so far; ``after`` is called with each that has been carried out."""

    def __init__(self, home: Path, token: str) -> None:
        self.catalog = SqlCatalog("rest", uri=f"sqlite:///{home}/rest.sqlite", warehouse=f"file://{home}/warehouse")
        self.asked: list[str] = []
        self.after: Callable[[str], object] = lambda _: None
        self._lock, self._token = threading.Lock(), token
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = f"{self.command} {self.path}"
                data = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                code, body = outer.answer(asked, data, self.headers.get("Authorization", ""))
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            do_GET = do_HEAD = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, asked: str, data: str, authorization: str) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        with self._lock:
            self.asked.append(asked)
            try:
                answer = self._carried_out(*asked.split(" /v1/"), data, authorization)
                self.after(asked)
            except Exception as error:
                code = CODES.get(type(error), 401 if isinstance(error, refused.UnauthorizedError) else 500)
                about = {"message": str(error), "type": type(error).__name__, "code": code}
                return code, json.dumps({"error": about}).encode()
        return 200, (answer if isinstance(answer, str) else json.dumps(answer)).encode()

    def _carried_out(self, method: str, path: str, data: str, authorization: str) -> Any:
        if authorization != f"Bearer {self._token}":
            raise refused.UnauthorizedError("no token")
        steps = path.partition("?")[0].split("/")
        match method, steps:
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                self.catalog.create_namespace(tuple(json.loads(data)["namespace"]))
                return json.loads(data)
            case "GET" | "HEAD", ["namespaces", name]:
                return {"namespace": [name], "properties": self.catalog.load_namespace_properties(name)}
            case "POST", ["namespaces", name, "tables"]:
                wanted = CreateTableRequest.model_validate_json(data)
                made = self.catalog._create_staged_table if wanted.stage_create else self.catalog.create_table
                fields = {"partition_spec": wanted.partition_spec, "sort_order": wanted.write_order}
                given = {name: value for name, value in fields.items() if value is not None}
                table = made(
                    (name, wanted.name), wanted.table_schema, wanted.location, properties=wanted.properties, **given
                )
            case "GET", ["namespaces", name, "tables", of]:
                table = self.catalog.load_table((name, of))
            case "POST", ["namespaces", name, "tables", of]:
                change = CommitTableRequest.model_validate_json(data)
                named: Any = SimpleNamespace(name=lambda: (name, of))
                return self.catalog.commit_table(named, change.requirements, change.updates).model_dump_json(
                    by_alias=True
                )
            case _:
                raise NotImplementedError(f"{method} {path}")
        told = TableResponse(**{"metadata-location": table.metadata_location, "metadata": table.metadata})
        return told.model_dump_json(by_alias=True)


@contextlib.contextmanager
def rest_catalog(home: Path, token: str) -> Iterator[RestCatalog]:
    """A catalogue that answers those who have the token, with what it keeps in ``home``."""
    home.mkdir()
    rest = RestCatalog(home, token)
    thread = threading.Thread(target=rest.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield rest
    finally:
        rest.server.shutdown()
        thread.join()
        rest.server.server_close()
        rest.catalog.close()
