"""Runs commands as forks of a process that has loaded the program, so that they need not load it themselves.

Imports are nine tenths of a command's time. A fork is a real process all the same: it has its own folder, environment,
signals, output and exit code, and runs `python -m shardkit ...` or `python -c ...` as Python does. If Python itself
would start differently (another `PYTHONHASHSEED`), a new interpreter is started instead. A command's first fork server
is such a fork, too: see `warm_forks.py`; and so are the jobs of the local engine: see `warm_jobs.py`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, TYPE_CHECKING, Any

import warm_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

READ_AT_START = ("PYTHON", "ARROW_", "JE_", "OMP_", "OPENBLAS_", "MKL_", "LD_", "MALLOC_", "GLIBC_", "LC_")
LOADED = ("joblib", "obstore.store", "pyarrow.compute", "pyarrow.parquet", "sqlite3", "zipfile")
# Of shardkit: a program, and what few use and is much; a fork copies the tables of all memory that its parent has.
LEFT_OUT = ("shardkit.__main__", "shardkit.jobs.dynamodb", "shardkit.runs.frames")
LENGTH, ENDED = struct.Struct("!I"), struct.Struct("!id")


class Forked:
    """A process that the server has forked, with the methods of `subprocess.Popen`."""

    def __init__(self, pid: int, args: Sequence[str], status: int) -> None:
        self.pid, self.args, self.returncode = pid, list(args), None
        self._status = status

    returncode: int | None
    cpu_s = 0.0  # the CPU time of all that have ended, with their own children

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            message = os.read(self._status, ENDED.size)
            os.close(self._status)
            status, cpu_s = ENDED.unpack(message) if message else (signal.SIGKILL, 0.0)
            self.returncode = os.waitstatus_to_exitcode(status)
            Forked.cpu_s += cpu_s
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The server, the process that forks. It ends with this process and its forks, which have it, too.

    All processes ask it at its ``address``.
    """

    def __init__(self) -> None:
        self._open, theirs = socket.socketpair()
        self.read_at_start = read_at_start(os.environ)
        self.address = f"shardkit-tests-{os.getpid()}-{secrets.token_hex(8)}"
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
            asked.bind(f"\0{self.address}")
            asked.listen(64)
            passed = [theirs.fileno(), asked.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, __file__, *map(str, passed)], pass_fds=passed, stdin=subprocess.DEVNULL
            )

    def fork(
        self, words: Sequence[str], *, cwd: str, env: Mapping[str, str], output: Sequence[int], session: bool
    ) -> Forked:
        status, theirs = os.pipe()
        address = {warm_jobs.ADDRESS: self.address} if warm_jobs.are_forks else {}
        request = {"words": list(words), "cwd": cwd, "env": dict(env) | address, "session": session}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                asking.connect(f"\0{self.address}")
                socket.send_fds(asking, [json.dumps(request).encode()], [*output, theirs])
                (pid,) = LENGTH.unpack(asking.recv(LENGTH.size))
        finally:
            os.close(theirs)
        return Forked(pid, words, status)


@functools.cache
def server() -> Server:
    return Server()


def start(
    words: Sequence[object],
    *,
    cwd: str | Path = ".",
    env: Mapping[str, str],
    stdout: IO[Any],
    stderr: IO[Any],
    start_new_session: bool = False,
    **options: Any,
) -> Forked | subprocess.Popen[Any]:
    """Start Python with these words: ``-m MODULE``, ``-c CODE`` or a script, and arguments. Its stdin is empty."""
    words, warm = list(map(str, words)), server()
    if options or read_at_start(env) != warm.read_at_start:
        return subprocess.Popen(
            [sys.executable, *words], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            start_new_session=start_new_session, **options,
        )  # fmt: skip
    output = [stdout.fileno(), stderr.fileno()]
    return warm.fork(words, cwd=os.path.abspath(cwd), env=env, output=output, session=start_new_session)


def address() -> str:
    """Where other processes can ask this process's server."""
    return server().address


def run(words: Sequence[object], *, timeout_s: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which must come within ``timeout_s``."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        process = start(words, stdout=out, stderr=err, **options)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(list(map(str, words)), code, *texts)


def read_at_start(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that Python and the libraries read when they are loaded; the module path can be changed later."""
    return {name: value for name, value in env.items() if name.startswith(READ_AT_START) and name != "PYTHONPATH"}


# ---- the server ------------------------------------------------------------------------------------------------------


def requests(alive: socket.socket, asked: socket.socket) -> Iterator[tuple[dict[str, Any], list[int], socket.socket]]:
    """The requests, with their descriptors and where to answer, until nobody holds the other end of ``alive``.

    While it waits for one, the endings of children are reported.
    """
    wakeup, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs)
    while True:
        ready, _, _ = select.select([alive, asked, wakeup], [], [])
        if wakeup in ready:
            os.read(wakeup, 4096)
            report_endings()
        if asked in ready:
            with asked.accept()[0] as asker:
                data, descriptors, _, _ = socket.recv_fds(asker, warm_jobs.SIZE, 3)
                if data:
                    yield json.loads(data), descriptors, asker
        if alive in ready:
            return


CHILDREN: dict[int, int] = {}


def report_endings() -> None:
    for pid in list(CHILDREN):
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            with contextlib.suppress(BrokenPipeError):
                os.write(CHILDREN[pid], ENDED.pack(status, used.ru_utime + used.ru_stime))
            os.close(CHILDREN.pop(pid))


def serve(alive: socket.socket, asked: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the fork, and None in the server when it ends."""
    path = list(sys.path[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it for the commands, not for the server
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for request, descriptors, asker in requests(alive, asked):
        pid = os.fork()
        if not pid:
            for each in (alive, asked, asker):
                each.close()
            become(request, descriptors, path)
            return request
        CHILDREN[pid] = descriptors.pop()
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(BrokenPipeError):
            asker.sendall(LENGTH.pack(pid))
        report_endings()
    return None


def become(request: dict[str, Any], descriptors: list[int], path: list[str]) -> None:
    """Make the fork as if Python had just started in it."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor in CHILDREN.values():
        os.close(descriptor)
    os.close(wakeup)
    if request["session"]:
        os.setsid()
    *output, status = descriptors
    for number, descriptor in enumerate(output, 1):
        os.dup2(descriptor, number)
    for descriptor in (*output, status):
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    tempfile.tempdir = None
    words = request["words"]
    first = {"-m": os.getcwd(), "-c": ""}.get(words[0], os.path.dirname(words[0]))
    own = [each for each in request["env"].get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [first, *own, *(each for each in path if each not in own)]
    sys.path_importer_cache.clear()
    if address := os.environ.get(warm_jobs.ADDRESS):
        warm_jobs.use_those_of(address)


def perform(words: Sequence[str]) -> None:
    """Run these words as Python does."""
    import faulthandler
    import runpy
    import types

    faulthandler.enable()
    if words[0] == "-m":
        sys.argv[:] = ["-m", *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv[:] = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


def run_to_the_end(program: Callable[[], object]) -> None:
    """Run a program and end as Python does, except that nothing is taken apart: that copies all that was shared."""
    code: object = None
    try:
        program()
    except SystemExit as error:
        code = error.code
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit((code or 0) & 0xFF)


def load() -> None:
    """Load what commands do, whichever they are."""
    import aws_models
    import boto3

    import shardkit

    sys.modules["warm"] = sys.modules["__main__"]  # it is both, and one
    own = (module.name for module in pkgutil.walk_packages(shardkit.__path__, "shardkit."))
    for name in (*LOADED, *own):
        if name not in LEFT_OUT:
            with contextlib.suppress(ModuleNotFoundError):  # a module for an optional library that is not installed
                importlib.import_module(name)
    aws_models.share()
    os.environ.pop("AWS_PROFILE", None)  # of the test that comes first; forks get their own environment
    boto3.Session("none", "none", region_name="us-east-1").client("s3")
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as the program has it, before anything loads pyarrow
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # forks do not inherit its thread
    from warm_forks import Spare

    load()
    with socket.socket(fileno=int(sys.argv[1])) as alive, socket.socket(fileno=int(sys.argv[2])) as asked:
        request = serve(alive, asked)
    if request:
        if request["words"][:2] != warm_jobs.WORDS:
            Spare(run_to_the_end)
        run_to_the_end(functools.partial(perform, request["words"]))
