"""A process that has loaded the libraries of notebooks and pages, too, and forks commands, jobs and kernels for them.

It is a fork of the process of `warm.py`, serves as that does, and ends with it. What it has loaded on top takes longer
to import than most commands, jobs and cells take; and all tests of a run share it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import types
import zlib
from typing import TYPE_CHECKING, Any

import warm

from shardkit.workers import forkserver

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SET_PDEATHSIG = 1
CHARTS = "SHARDKIT_TESTS_CHARTS"  # the variable with the file that `charts.py` reads
# A fork server of workers, of which the standard output is what it is asked by.
FORK_SERVER = (
    "import os, sys; sys.path[:] = {path}; control = os.dup(1); os.dup2(os.open(os.devnull, os.O_RDWR), 1); "
    "import warm; from shardkit.workers.forks import main; warm.run_to_the_end(lambda: main(control))"
)
KERNELS = (
    *("pandas", "pandas.plotting._matplotlib", "pyarrow.dataset", "matplotlib.pyplot", "duckdb"),
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "IPython.core.completer"),
)


class Server(warm.Server):
    """The process that has loaded these libraries, which the first to need it has begun."""

    def __init__(self, libraries: Sequence[str]) -> None:
        first = warm.server()
        self.read_at_start, self.address = (
            first.read_at_start,
            f"{first.address}-{zlib.crc32(' '.join(libraries).encode())}",
        )
        said, theirs = os.pipe()
        with open(said, "rb") as end:
            words = [__file__, self.address, *libraries]
            first.fork(words, cwd="/", env=os.environ, output=[theirs, 2], session=True)
            os.close(theirs)
            end.read(1)  # it has its address, or another one has


@functools.cache
def server(*libraries: str) -> Server:
    """The process that has loaded these, as far as they are installed."""
    return Server(libraries)


def start_kernel(command: Sequence[str], *, cwd: str, env: Mapping[str, str], **_: Any) -> warm.Forked:
    """Start a kernel, as `jupyter_client.launcher.launch_kernel` does."""
    kernel = server(*KERNELS).fork(command[1:], cwd=cwd, env=env, output=[1, 2], session=True)
    kernel.stdin = kernel.stdout = kernel.stderr = None  # type: ignore[attr-defined]  # that it may close
    return kernel


@contextlib.contextmanager
def fork_servers(forks: warm.Server) -> Iterator[None]:
    """Have the fork servers of this process's workers be forks, too."""

    def start(_: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int], **__: Any) -> warm.Forked:
        words = ["-c", FORK_SERVER.format(path=sys.path)]
        return forks.fork(words, cwd=os.getcwd(), env=env, output=[*pass_fds, 2], session=True)

    forkserver.end_server()
    forkserver.subprocess = types.SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]
    try:
        yield
    finally:
        forkserver.subprocess = subprocess
        forkserver.end_server()


# ---- the process -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Be the process, unless another one has its address."""
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    alive, _other_end = socket.socketpair()
    with alive, _other_end, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked:
        try:
            asked.bind(f"\0{sys.argv[1]}")
            asked.listen(64)  # who asks now is answered when all is loaded
        except OSError:
            return
        finally:
            os.write(1, b"!")
        os.dup2(2, 1)
        warm.CHILDREN.clear()
        sys.modules["debugpy"] = None  # type: ignore[assignment]  # much, and nobody looks for bugs in these kernels
        for name in sys.argv[2:]:
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        request = warm.serve(alive, asked)
    if request:
        be(request)


def be(request: dict[str, Any]) -> None:
    """Be the program that was asked for."""
    import warm_forks
    import warm_jobs

    if "ipykernel_launcher" in request["words"]:
        set_up_for_kernel()
    if request["words"][:2] != warm_jobs.WORDS:
        warm_forks.Spare(warm.run_to_the_end)
    warm.run_to_the_end(functools.partial(warm.perform, request["words"]))


def set_up_for_kernel() -> None:
    """Set what the libraries set themselves if they are loaded in a kernel."""
    if matplotlib := sys.modules.get("matplotlib"):
        matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    if pandas := sys.modules.get("pandas"):
        pandas.options.display.max_columns = 20


if __name__ == "__main__":
    main()
