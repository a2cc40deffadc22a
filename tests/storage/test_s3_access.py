"""Buckets of other people, and credentials that expire during a run."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from crashing import check_ledger
from fault_proxy import FaultProxy
from test_object_store import Bucket, bucket, in_another_process, keys_of, namespaces, project, run_here  # noqa: F401  fixtures too

import shardkit as sk
from shardkit.storage import requests as repeats

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from job_runs import JobProject

pytestmark = pytest.mark.whole
Refusal = tuple[int, str] | None
DENIED = (403, "AccessDenied")
EXPIRED = (400, "ExpiredToken")


def put_public(bucket: Bucket, texts: dict[str, str]) -> None:  # noqa: F811
    for key, text in texts.items():
        bucket.client.put_object(Bucket=bucket.name, Key=key, Body=text, ACL="public-read")


class Guard:
    """Refuses requests for the input that are not as its owner wants them, and notes others that are."""

    def __init__(self, source: Bucket, wanted: str) -> None:
        self._source = source.name
        self._wanted = wanted
        self.wrong: list[str] = []

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> Refusal:
        pays, signed = request.headers.get("x-amz-request-payer") == "requester", "Authorization" in request.headers
        if request.path.split("?")[0].split("/")[1] != self._source:
            if pays or not signed:
                self.wrong.append(f"{request.command} {request.path}")
            return None
        return None if (pays and signed if self._wanted == "requester_pays" else not signed) else DENIED


@namespaces
@pytest.mark.parametrize("wanted", ["requester_pays", "anonymous"])
def test_the_input_is_read_as_its_owner_wants(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
) -> None:
    put_public(bucket, {"in/a/r0.txt": "go", "in/a/r1.txt": "go", "in/a/empty.txt": ""})
    output = Bucket(s3_url)
    guard = Guard(bucket, wanted)
    with FaultProxy(urlsplit(s3_url).port or 0, gate=guard).running() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        fields: dict[str, Any] = {"source_dir": project.code, "name": "work"}
        source = {"uri": f"{bucket.uri}/in", wanted: True}
        with pytest.raises(sk.InputError, match=f"Access to .* is denied.*input.{wanted}: true"):
            sk.run("work:features", f"{bucket.uri}/in", project.out, quiet=True, **fields)
        alone = sk.run("work:features", source["uri"], project.out, quiet=True, **fields, **{wanted: True})
        assert len(keys_of(alone)) == 3
        jobs = sk.Pipeline(
            function="work:features",
            input=source,
            output=f"{output.uri}/out",
            shards={"by": "directory"},
            requirements_mode="none",
            **fields,
        ).run(project.local(), quiet=True)
        assert keys_of(jobs) == keys_of(alone)
        assert jobs.folder.plan()["pipeline"]["input"][wanted] is True
    assert guard.wrong == []


def test_a_resumption_may_say_how_the_input_is_read(project: JobProject, bucket: Bucket) -> None:  # noqa: F811
    bucket.put_all({f"in/r{i}.txt": "go" for i in range(3)})
    run = run_here(project, bucket, run_id="one")
    assert "anonymous" not in run.folder.plan()["pipeline"]["input"]
    run.resume(quiet=True, **{"input.anonymous": True})
    run_here(project, bucket, run_id="one", requester_pays=True)  # the same plan
    with pytest.raises(sk.PlanMismatch, match=r"input.pattern cannot change"):
        run.resume(quiet=True, **{"input.pattern": "*"})


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    def message(engine: str | None = None, **fields: Any) -> str:
        with pytest.raises(sk.PipelineError) as caught:
            sk.Pipeline(function="a:b", input=fields, output=tmp_path, engine=engine, input_mode="download").run()
        return str(caught.value)

    assert "input.requester_pays: this is for buckets of S3" in message(uri="gs://bucket", requester_pays=True)
    assert "input.anonymous: this is for buckets of S3" in message(uri="data/", anonymous=True)
    assert "exclude each other" in message(uri="s3://bucket", requester_pays=True, anonymous=True)
    assert "input.anonymous: expected true or false" in message(uri="s3://bucket", anonymous="of course")
    assert "Use input_mode: stream" in message(uri="s3://bucket", anonymous=True, engine="local")


def test_without_any_credentials(project: JobProject, bucket: Bucket) -> None:  # noqa: F811
    put_public(bucket, {"in/r.txt": "go"})
    none = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere"}
    code = (
        "import shardkit as sk\ntry:\n"
        "    run = sk.run('work:features', '{uri}/in', 'out', source_dir='code', quiet=True{more})\n"
        "    print(run.summary().records['done'], 'done')\nexcept sk.ShardkitError as error:\n    print(error)\n"
    )
    told = in_another_process(project, code.format(uri=bucket.uri, more=""), **none, **nowhere)
    assert "There are no AWS credentials" in told and "set input.anonymous: true" in told
    told = in_another_process(project, code.format(uri=bucket.uri, more=", anonymous=True"), **none, **nowhere)
    assert told == "1 done\n"


class Tokens:
    """Tokens that are valid for so many requests each; ``now`` is the one that is given out."""

    def __init__(self, good_for: int) -> None:
        self._good_for = good_for
        self._uses: dict[str, int] = {"token-0": 0}
        self._lock = threading.Lock()
        self.refused = 0

    @property
    def now(self) -> str:
        with self._lock:
            return max(self._uses, key=lambda token: int(token[6:]))

    def __call__(self, request: http.server.BaseHTTPRequestHandler) -> Refusal:
        token = request.headers.get("x-amz-security-token", "")
        with self._lock:
            number = len(self._uses) - 1
            if token == f"token-{number}":
                self._uses[token] += 1
                if self._uses[token] <= self._good_for:
                    return None
                self._uses[f"token-{number + 1}"] = 0
                self.renewed()
            self.refused += 1
        return EXPIRED

    def renewed(self) -> None:
        """Change the token."""


class _Container(http.server.BaseHTTPRequestHandler):
    """Gives credentials as a container's endpoint does, which end soon."""

    server: Any

    def do_GET(self) -> None:
        keys = {"AccessKeyId": "AK", "SecretAccessKey": "secret", "Token": self.server.tokens.now}
        body = json.dumps(keys | {"Expiration": _soon()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _soon() -> str:
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)
    return end.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Only temporary credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.mark.parametrize("source", ["container", "file"])
def test_credentials_that_expire_midway(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    temporary: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
) -> None:
    """As a container's endpoint renews them, or as a tool writes new ones into the credentials file."""
    bucket.put_all({f"in/{i:03d}.txt": f"go {i}" for i in range(20)})
    tokens = Tokens(good_for=30)
    if source == "container":
        container: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Container)
        container.daemon_threads, container.tokens = True, tokens
        threading.Thread(target=container.serve_forever, daemon=True).start()
        temporary.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{container.server_port}/keys")
    else:
        path = tmp_path / "credentials"

        def write() -> None:
            token = max(tokens._uses, key=lambda token: int(token[6:]))
            fresh = path.with_suffix(".new")
            fresh.write_text(
                f"[default]\naws_access_key_id = AK\naws_secret_access_key = s\naws_session_token = {token}\n"
            )
            os.replace(fresh, path)

        tokens.renewed = write  # type: ignore[method-assign]
        write()
        temporary.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    with FaultProxy(urlsplit(bucket.client.meta.endpoint_url).port or 0, gate=tokens).running() as url:
        temporary.setenv("AWS_ENDPOINT_URL", url)
        summary = check_ledger(run_here(project, bucket))
    assert summary.records == {"listed": 20, "done": 20, "quarantined": 0, "skipped": 0}
    assert len(tokens._uses) > 3
    assert 1 <= summary.repeated["expired"] <= tokens.refused


def test_credentials_that_nobody_renews(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put("in/r.txt")
    monkeypatch.setitem(repeats.PATIENCE_S, repeats.EXPIRED, 0.3)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    with FaultProxy(urlsplit(s3_url).port or 0, gate=lambda _: EXPIRED).running() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(sk.InputError, match="have expired: .* Sign in again .* then resume the run"):
            sk.run("work:features", f"{bucket.uri}/in", project.out, source_dir=project.code, quiet=True)
