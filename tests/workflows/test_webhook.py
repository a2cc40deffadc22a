"""The webhook as HTTP clients meet it: who gets in, what is taken, and what slow, large and odd calls come to."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import shardkit as sk
from shardkit.workflows.parts import Webhook
from shardkit.workflows.webhook import MOST_CONNECTIONS, Busy, Full, listening, parameters_in, token_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOKEN = "a-long-and-random-token"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class Hook:
    """A webhook that notes its calls instead of beginning runs."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Webhook(**({"port": 0, "token": "env:T", "max_body": 200} | settings))
        self.calls: list[Mapping[str, str]] = []
        self.said: list[str] = []
        self.error: Exception | None = None
        self.address = ""

    def begin(self, params: Mapping[str, str]) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append(params)
        return f"run-{len(self.calls)}"

    @contextlib.contextmanager
    def open(self, *, request_s: float = 10.0) -> Iterator[Hook]:
        with listening(self.settings, TOKEN.encode(), self.begin, say=self.said.append, request_s=request_s) as address:
            self.address = address
            yield self

    def call(
        self, body: Any = None, *, method: str = "POST", path: str = "/", headers: Mapping[str, str] = AUTHORIZED
    ) -> tuple[int, dict[str, Any], Any]:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
            connection.request(method, path, body=data, headers=dict(headers))
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else {}, answer.headers
        finally:
            connection.close()

    def raw(self, *pieces: bytes, every_s: float = 0.0) -> bytes:
        """What is answered to these bytes."""
        host, _, port = self.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            for piece in pieces:
                with contextlib.suppress(OSError):
                    connection.sendall(piece)
                time.sleep(every_s)
            answer = b""
            with contextlib.suppress(OSError):
                while data := connection.recv(4096):
                    answer += data
            return answer


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook().open() as opened:
        yield opened


def test_a_call_with_the_token_begins_a_run(hook: Hook) -> None:
    status, answer, headers = hook.call({"date": "2026-01-31", "limit": 3, "share": 0.5, "all": True})
    assert (status, answer) == (202, {"run_id": "run-1"})
    assert hook.calls == [{"date": "2026-01-31", "limit": "3", "share": "0.5", "all": "true"}]
    assert hook.call()[0] == 202
    assert hook.calls[1] == {}
    assert headers["Server"] == "shardkit "  # no version


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer \xe9"},
    ],
)
def test_without_the_token_nobody_learns_anything(hook: Hook, headers: Mapping[str, str]) -> None:
    status, answer, about = hook.call(b"no JSON", headers=headers)
    assert (status, answer) == (401, {"error": "this takes a token."})
    assert about["WWW-Authenticate"] == "Bearer"
    assert not hook.calls and not hook.said


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods(hook: Hook, method: str) -> None:
    status, _, headers = hook.call(method=method)
    assert status == 405
    assert headers["Allow"] == "POST"


def test_another_path(hook: Hook) -> None:
    assert hook.call(path="/other")[0] == 404
    assert hook.call(path="/?x=1")[0] == 404
    with Hook(path="/runs/").open() as deeper:
        assert deeper.call(path="/runs/")[0] == 202
        assert deeper.call(path="/runs/../runs/")[0] == 404


@pytest.mark.parametrize(
    "body",
    [b"{", b"[1]", b'"text"', b'{"a": {"b": 1}}', b'{"a": null}', b'{"a": NaN}', b"\xff", b"[" * 150, b'{"a": [1]}'],
)
def test_a_body_that_is_no_object_of_parameters(hook: Hook, body: bytes) -> None:
    assert hook.call(body)[0] == 400
    assert not hook.calls


def test_a_body_so_deep_that_a_reader_gives_up() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        parameters_in(b"[" * 100_000)


def test_a_large_body_is_not_read(hook: Hook) -> None:
    head = b"POST / HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
    begun = time.monotonic()
    assert b" 413 " in hook.raw(head + b"Content-Length: 201\r\n\r\n")  # none of it was sent
    assert b" 413 " in hook.raw(head + b"Content-Length: 999999999999999999999\r\n\r\n")
    assert time.monotonic() - begun < 8
    status, answer, _ = hook.call(b'"' + b"x" * 250 + b'"')
    assert (status, answer["error"]) == (413, "the body is too large: 200 bytes at most.")
    assert hook.call(b"{" + b" " * 198 + b"}")[0] == 202


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"", 411),
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", 411),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", 411),
        (b"Content-Length: -2\r\n", 400),
        (b"Content-Length: 0x2\r\n", 400),
        (b"Content-Length: +2\r\n", 400),
    ],
)
def test_lengths_that_will_not_do(hook: Hook, lines: bytes, status: int) -> None:
    answer = hook.raw(b"POST / HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n" + lines + b"\r\n{}")
    assert f" {status} ".encode() in answer.splitlines()[0]
    assert not hook.calls


def test_what_is_no_request_is_not_repeated(hook: Hook) -> None:
    for sent in (b"\x16\x03\x01<script>\r\n\r\n", b"POST <script> HTTP/9.9\r\n\r\n", b"<script>" * 20_000 + b"\r\n"):
        assert b"script" not in hook.raw(sent)
    many = b"".join(b"X-%d: y\r\n" % i for i in range(200))
    assert b" 431 " in hook.raw(b"POST / HTTP/1.1\r\n" + many + b"\r\n").splitlines()[0]
    assert not hook.calls
    assert hook.call()[0] == 202


def test_one_connection_is_one_request(hook: Hook) -> None:
    one = b"POST / HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\nContent-Length: 2\r\n\r\n{}"
    assert hook.raw(one + one).count(b"HTTP/1.") == 1
    assert len(hook.calls) == 1


def test_slow_clients_are_cut_off_and_hold_nobody_up() -> None:
    head = b"POST / HTTP/1.1\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"
    with Hook().open(request_s=1.0) as hook:
        begun = time.monotonic()
        answers: list[bytes] = []
        slow = [
            threading.Thread(target=lambda: answers.append(hook.raw(*[b"P"] * 40, every_s=0.2))),
            threading.Thread(target=lambda: answers.append(hook.raw(head, *[b"X-A: b\r\n"] * 40, every_s=0.2))),
            threading.Thread(
                target=lambda: answers.append(hook.raw(head + b"Content-Length: 5\r\n\r\n{", every_s=0.2))
            ),
        ]
        for each in slow:
            each.start()
        assert hook.call()[0] == 202
        assert time.monotonic() - begun < 5
        for each in slow:
            each.join()
        assert any(b" 408 " in answer for answer in answers)
        assert len(hook.calls) == 1


def test_more_connections_than_there_are_threads() -> None:
    with Hook().open(request_s=2.0) as hook, contextlib.ExitStack() as held:
        host, _, port = hook.address.rpartition(":")
        for _ in range(MOST_CONNECTIONS):
            held.enter_context(socket.create_connection((host, int(port)), timeout=20))
        statuses = [hook.raw(b"POST / HTTP/1.1\r\n\r\n")[:12] for _ in range(3)]
        assert b"HTTP/1.0 503" in statuses
        deadline = time.monotonic() + 20
        while hook.call()[0] != 202:  # those that held the threads are cut off
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_the_run_says(hook: Hook) -> None:
    for error, status, answer in (
        (Busy("run-9"), 409, {"error": "a run is in progress.", "run_id": "run-9"}),
        (Full(100), 503, {"error": "too many runs wait."}),
        (
            sk.PipelineError("small has no parameter 'x'; there are none."),
            400,
            {"error": "small has no parameter 'x'; there are none."},
        ),
    ):
        hook.error = error
        assert hook.call({"x": 1})[:2] == (status, answer)
    hook.error = RuntimeError("the secret is hunter2")
    with pytest.raises((http.client.HTTPException, OSError)):
        hook.call()
    assert hook.said == ["A call of the webhook could not be answered: RuntimeError."]


def test_a_token_that_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    webhook = Webhook(port=0, token="env:THE_TOKEN")
    monkeypatch.delenv("THE_TOKEN", raising=False)
    with pytest.raises(sk.PipelineError, match="THE_TOKEN is not set here"):
        token_of(webhook)
    monkeypatch.setenv("THE_TOKEN", "hunter2")
    with pytest.raises(sk.PipelineError, match="too short") as refused:
        token_of(webhook)
    assert "hunter2" not in str(refused.value)


def test_a_port_that_is_taken(hook: Hook) -> None:
    port = int(hook.address.rpartition(":")[2])
    with pytest.raises(sk.PipelineError, match=f"127.0.0.1:{port} cannot be listened at"), Hook(port=port).open():
        pass
