"""Ctrl-C while the store cannot be reached: the command ends within seconds, and the run can be resumed later."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from crashing import check_ledger, dying
from fault_proxy import FaultProxy
from test_object_store import bucket, project  # noqa: F401  fixtures

import shardkit as sk

if TYPE_CHECKING:
    import http.server

    from job_runs import JobProject
    from test_object_store import Bucket

STEPS = {
    "looking": "HEAD /",
    "listing": "list-type=2",
    "pass 1": "/in/0.txt",
    "a marker": "/markers/",
    "the switch": "/commit.json",
    "the result": "/result.json",
}


@pytest.mark.whole
@pytest.mark.parametrize("step", STEPS)
def test_ctrl_c_ends_what_waits_for_a_store_that_has_vanished(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    s3_url: str,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put_all({f"in/{i}.txt": "go" for i in range(6)})
    vanished, over = threading.Event(), threading.Event()

    def gate(request: http.server.BaseHTTPRequestHandler) -> None:
        method = ("HEAD ", "GET ") if step in {"looking", "listing", "pass 1"} else ("PUT ",)
        line = f"{request.command} {request.path}"
        if vanished.is_set() or (line.startswith(method) and STEPS[step] in line):
            vanished.set()
            over.wait(60)

    proxy = FaultProxy(urlsplit(s3_url).port or 0, gate=gate)
    proxy.handle_error = lambda *_: None  # type: ignore[method-assign]  # nobody is there to take the late answers
    with proxy.running() as url:
        arguments = ["--function", "work:features", "--source-dir", str(project.code), "--workers", "1", "--quiet"]
        where = ["--input", f"{bucket.uri}/in", "--output", f"{bucket.uri}/out"]
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with dying(project.start("run", *arguments, *where)) as command:
            monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
            try:
                assert vanished.wait(60)
                interrupted = time.monotonic()
                command.process.send_signal(signal.SIGINT)
                done = command.wait()
                seconds = time.monotonic() - interrupted
            finally:
                over.set()
    assert seconds < 20, done.stderr
    assert done.code == 130, done.stderr
    assert "nterrupted" in done.stderr
    assert "Traceback" not in done.stderr
    if step not in {"looking", "listing"}:
        for key in (key for key in bucket.keys("out/") if key.endswith("/lock")):
            bucket.delete(key)  # otherwise it would have to run out, because the store could not be asked to release it
        assert check_ledger(sk.open_run(f"{bucket.uri}/out").resume(quiet=True)).records["done"] == 6
