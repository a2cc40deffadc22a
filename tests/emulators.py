"""Emulators of AWS services for the tests, which listen where nobody else can reach them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PORT = 4566
URL = f"http://127.0.0.1:{PORT}"
START_S = 40
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-west-1"}

_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
line = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
    fcntl.ioctl(plain, 0x8914, line)  # SIOCSIFFLAGS
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Its schedules are looked at every ten seconds, and none is shorter than a minute.
_HASTY = """
import runpy, sys
from ministack.services import eventbridge
share = float(sys.argv[1])
eventbridge._SCHEDULER_TICK_INTERVAL *= share
rate_s = eventbridge._parse_rate_seconds
eventbridge._parse_rate_seconds = lambda text: rate_s(text) and rate_s(text) * share
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_WAIT = """
import sys, time, urllib.request
until = time.monotonic() + float(sys.argv[2])
while True:
    try:
        urllib.request.urlopen(sys.argv[1] + "/_ministack/health", timeout=5).close()
        break
    except OSError:
        if time.monotonic() > until:
            raise
        time.sleep(0.1)
"""


@dataclass(frozen=True)
class Ministack:
    """A running ministack, in a network that it shares only with what is run beside it."""

    pid: int
    env: Mapping[str, str]

    def run(
        self, command: str | Sequence[str], env: Mapping[str, str] | None = None, *, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, or a text as a Python program, where boto3 finds ministack by itself; the output is text."""
        words = [sys.executable, "-c", command] if isinstance(command, str) else list(command)
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials", *words],
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


@contextlib.contextmanager
def ministack(folder: Path, env: Mapping[str, str] | None = None, *, minute_s: float = 60.0) -> Iterator[Ministack]:
    """Start ministack in a network of its own, with its files in ``folder``. Skips the test where that is impossible.

    ``env`` is for ministack and for everything that is run beside it. It is for tests that need more than tables and
    buckets: the code that ministack then runs may listen anywhere. ``minute_s`` is how long a minute of a schedule is.
    """
    tools = shutil.which("unshare") and shutil.which("nsenter")
    if not tools or subprocess.run(["unshare", "-Urn", "true"], check=False).returncode:
        pytest.skip("unshare cannot make a network namespace here")
    around = _around(folder, PORT) | dict(env or {})
    program = [_program()] if minute_s == 60.0 else [sys.executable, "-c", _HASTY, str(minute_s / 60), _program()]
    with _started(["unshare", "-Urn", sys.executable, "-c", _LOOPBACK_UP, *program], around) as (process, log):
        beside = Ministack(process.pid, around)
        ready = _wait(beside)
        assert ready.returncode == 0, f"{ready.stderr}\n{log.read_text()[-3000:]}"
        yield beside


@contextlib.contextmanager
def ministack_on_loopback(folder: Path) -> Iterator[str]:
    """Start ministack on a free port of 127.0.0.1, for its tables and buckets only; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    around = _around(folder, port)
    with _started([_program()], around) as (_, log):
        url = around["AWS_ENDPOINT_URL"]
        ready = subprocess.run(
            [sys.executable, "-c", _WAIT, url, str(START_S)], env=around, check=False, timeout=START_S + 10
        )
        assert ready.returncode == 0, log.read_text()[-3000:]
        yield url


@contextlib.contextmanager
def moto_on_loopback() -> Iterator[str]:
    """Start moto's server, for S3, in a process of its own; yields its URL."""
    command = [sys.executable, Path(__file__).with_name("moto_server.py")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def shared(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a server that the first process to ask for it in ``folder`` starts, and that ends with the last one.

    Each user holds a lock on a file, which the system releases even if the user is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    url_file = folder / "url"
    with (folder / "users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with locked(folder / "start"):
            if not url_file.exists():
                url_file.write_text(_started_by_keeper(kind, folder))
        url = url_file.read_text()
        if not url.startswith("http"):
            pytest.skip(url or f"{kind} does not start: {(folder / 'log').read_text()[-3000:]}")
        yield url


def _started_by_keeper(kind: str, folder: Path) -> str:
    """Start a server, and a process that looks after it, which outlive this one; its URL, or why there is none."""
    command = [sys.executable, __file__, kind, str(folder)]
    with (folder / "log").open("w") as log:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True
        )
    assert keeper.stdout is not None
    return keeper.stdout.readline().strip()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let only one process at a time into the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(kind: str, folder: Path) -> None:
    """Run a server until nobody uses it any more."""
    try:
        with moto_on_loopback() if kind == "moto" else ministack_on_loopback(folder) as url:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            with (folder / "users").open("w") as users:
                fcntl.flock(users, fcntl.LOCK_EX)
    except pytest.skip.Exception as reason:
        sys.stdout.write(f"{reason}\n")


def use_emulator(monkeypatch: pytest.MonkeyPatch, url: str, *, service: str = "") -> None:
    """Direct the AWS clients of this process and its children to an emulator; with ``service`` only that service's."""
    import boto3

    for name, value in ({f"AWS_ENDPOINT_URL{service and '_'}{service}": url} | CREDENTIALS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@functools.cache
def s3_client(url: str, region: str = CREDENTIALS["AWS_DEFAULT_REGION"]) -> Any:
    """boto3's client for an emulator's S3; to make one takes longer than ten requests."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name=region,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def _program() -> str:
    program = Path(sys.executable).with_name("ministack")
    if not program.exists():
        pytest.skip("ministack is not installed: pip install ministack")
    return str(program)


def _around(folder: Path, port: int) -> dict[str, str]:
    """The environment of ministack and its clients, without the proxies and credentials of this one."""
    home = folder / "ministack"
    home.mkdir(parents=True, exist_ok=True)
    plain = {name: text for name, text in os.environ.items() if name[:4] != "AWS_" and name[-6:].lower() != "_proxy"}
    return {
        **plain,
        "HOME": str(home),
        "TMPDIR": str(home),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",  # it would listen on all interfaces
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        **CREDENTIALS,
        "AWS_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def _started(command: list[str], env: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A running process and its log; at the end it is killed with all that it started."""
    home = Path(env["HOME"])
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, home / "log"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def _wait(beside: Ministack) -> subprocess.CompletedProcess[str]:
    """Wait until it answers; the first attempts may come before the namespace is there."""
    for _ in range(50):
        done = beside.run([sys.executable, "-c", _WAIT, URL, str(START_S)], timeout_s=START_S + 10)
        if "nsenter" not in done.stderr:
            return done
        time.sleep(0.05)
    return done


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
