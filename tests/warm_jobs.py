"""The jobs of the local engine as forks of the process that has loaded the program, too.

A job is a chain of programs: its supervisor, a shell that looks for a Python, bootstrap.py, and a pass of shardkit. The
first two take a few hundredths of a second, the others import for half a second. Here the supervisor is a fork, and
where it would start the shell, the instance's own process becomes what the shell and Python would have made of it. All
processes, namespaces, signals and files are as always. A job that would start differently (another Python, or another
program than a pass) starts as always; and so do the jobs of `tests/engines`, which try that out.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ADDRESS = "SHARDKIT_TESTS_WARM"  # the variable with the address of the process that forks
PROGRAM = "import warm_jobs; warm_jobs.supervise()"
WORDS = ["-c", PROGRAM]
SET_NAME = 15
SIZE = 200_000  # of a request, at most
are_forks = False  # the jobs of commands that this process starts
OWN_PYTHON = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONUSERBASE"}  # which a job's program gets, and which are seen to


def use(start: Callable[..., bool]) -> None:
    """Have this process's local engines start their jobs by ``start``, where that returns true."""
    from shardkit.engines.local import LocalEngine

    as_always = LocalEngine._supervise

    def supervise(engine: LocalEngine, files: Any) -> None:
        if engine.supervise != LocalEngine.supervise:  # the steps of a workflow have a supervisor of their own
            as_always(engine, files)
            return
        environment = dict(os.environ) | ({"AWS_ENDPOINT_URL_S3": engine.endpoint_url} if engine.endpoint_url else {})
        with open(os.path.join(files.logs, "supervisor.log"), "ab") as log:
            begun = start([*WORDS, engine.root, files.name], env=environment, output=log.fileno())
        if not begun:
            as_always(engine, files)

    LocalEngine._supervise = supervise  # type: ignore[method-assign]


def use_those_of(address: str) -> None:
    """Have this process's local engines ask the process at an address."""
    use(functools.partial(asked, address))


def asked(address: str, words: Sequence[str], *, env: Mapping[str, str], output: int) -> bool:
    """Start a supervisor, which leaves its place to a child at once; false if there is nobody to ask."""
    ended, theirs = os.pipe()
    request = {"words": list(words), "cwd": os.getcwd(), "env": dict(env), "session": True}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.connect(f"\0{address}")
            socket.send_fds(server, [json.dumps(request).encode()], [output, output, theirs])
            server.recv(64)
    except OSError:  # it has ended, or the request is too large
        os.close(ended)
        return False
    finally:
        os.close(theirs)
    with open(ended, "rb") as end:
        return bool(end.read())


def supervise() -> None:
    """Be the supervisor of a job."""
    from shardkit.engines.supervisor import main

    _name("supervisor")
    os.execvpe = functools.partial(_become, os.execvpe, os.environ.copy())  # type: ignore[assignment]
    main()


def _become(
    execute: Callable[..., object], before: Mapping[str, str], file: str, words: Sequence[str], env: Mapping[str, str]
) -> object:
    """Be the program of an instance."""
    from warm import perform, read_at_start, run_to_the_end
    from warm_forks import Spare

    python = shutil.which("python3", path=env["PATH"])
    is_pass = words[0] == "/bin/sh" and [os.path.basename(word) for word in words[1:2]] == ["bootstrap.sh"]
    same = all(before.get(name) == value for name, value in read_at_start(env).items() if name not in OWN_PYTHON)
    if not is_pass or not same or python is None or "SHARDKIT_PYTHON" in env:
        return execute(file, words, env)
    folder = os.path.dirname(words[1])
    os.environ.clear()
    os.environ.update(env)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.executable = python
    sys.prefix = sys.exec_prefix = env["VIRTUAL_ENV"]
    own = [each for each in env.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [folder, *own, *(each for each in sys.path[1:] if each not in own)]
    sys.path_importer_cache.clear()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _name("python3")
    Spare(run_to_the_end)
    _name("bootstrap.py")
    run_to_the_end(lambda: perform([os.path.join(folder, "bootstrap.py"), *words[2:]]))
    return None


def _name(name: str) -> None:
    ctypes.CDLL(None).prctl(SET_NAME, name.encode())
