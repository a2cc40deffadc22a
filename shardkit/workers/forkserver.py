"""Starts workers in milliseconds, as forks of a process that has imported what they need.

That process is a fresh interpreter without threads that runs no user's code, so its forks inherit no locked lock. It
serves one program, run after run, and ends with it.

It earns its place by small runs: from a notebook's second run on, one with 8 workers takes 0.2 s, and 1.1 s if each
worker is a new interpreter. The standard library's ``multiprocessing.forkserver`` forks as fast, but each of its forks
imports the program's main module (if that imports pandas, 8 forks take 20 times as long), and it does not report how
much memory a fork has used. A release of Python that changed both could replace this module and ``forks.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, TypeAlias

from shardkit.workers.orphans import end_group

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The garbage collector waits until all is imported that the forks share: it would look through that ten times.
BOOTSTRAP = (
    "import gc, sys; gc.disable(); sys.path[:] = {path}; from shardkit.workers.forks import main; main({control})"
)
# One thread a worker, because there is a worker a CPU; an allocator that gives freed memory back; and the other
# allocator must not start a thread, because forks do not inherit it.
ALLOCATORS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
WORKER_ENVIRONMENT = ALLOCATORS | dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "ARROW_IO_THREADS",
    ),
    "1",
)
# Variables that Python and the libraries read when they are loaded; each fork sets all others by itself.
READ_AT_START = (
    "PYTHON",
    "ARROW_",
    "JE_",
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "VECLIB_",
    "LD_",
    "DYLD_",
    "MALLOC_",
    "GLIBC_",
    "LC_",
)
Call: TypeAlias = tuple[int, int, int, "str | None", int]  # the arguments of `shardkit.workers.worker.work`
LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
DESCRIPTORS = 4  # that come with a request for a fork: the pipe, the board, stderr, and where to report its end
LENGTH, BEGUN, ENDED = struct.Struct("!Q"), struct.Struct("!q"), struct.Struct("!iq")


@dataclass(frozen=True)
class Start:
    """What a fork gets to become a worker: its number among the workers, and what it would inherit from the program.

    ``store`` is the kind of store that its objects are fetched from.
    """

    number: int
    store: str | None
    path: list[str]
    folder: str | None
    environment: dict[str, str]

    @classmethod
    def here(cls, number: int, store: str | None, *, workers: int, more: dict[str, str] | None = None) -> Start:
        """With the folder, the path and the environment of this process as they are now, for one of ``workers``.

        ``more`` are variables of this worker alone.
        """
        folder = None
        with contextlib.suppress(OSError):  # it has been removed
            folder = os.getcwd()
        return cls(number, store, list(sys.path), folder, _share_of_cpus(workers) | _environment() | (more or {}))


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit code, or the negative number of a signal, and its largest resident size.

    ``exit_code`` is None if the server ended first, because its children end with it.
    """

    exit_code: int | None
    peak_bytes: int | None


class Child:
    """A process that the server was asked to fork."""

    def __init__(self, server: _Server, status: Connection) -> None:
        self._server = server
        self._status = status
        self._reading = threading.RLock()
        self._pid: int | None = None
        self._ending: Ending | None = None

    @property
    def pid(self) -> int:
        """Its process id; waits until it has one.

        Raises:
            OSError: it could not be forked.
            EOFError: the server ended before.
        """
        with self._reading:
            if self._pid is None:
                (number,) = BEGUN.unpack(self._status.recv_bytes())
                if number < 0:
                    raise OSError(-number, os.strerror(-number))
                self._pid = number
            return self._pid

    def ending(self, *, timeout_s: float | None = 0.0) -> Ending | None:
        """How it ended; None if it has not within ``timeout_s``."""
        with self._reading:
            if self._ending is None:
                try:
                    if not self._status.poll(timeout_s) or not self.pid or not self._status.poll(timeout_s):
                        return None
                    self._ending = Ending(*ENDED.unpack(self._status.recv_bytes()))
                except (EOFError, OSError):
                    self._ending = Ending(None, None)
                    self._server.is_lost = True  # though its socket may accept requests a moment longer
                    if self._pid is not None:
                        end_group(self._pid)  # as the server would have done
                self._status.close()
        return self._ending

    def wait(self) -> Ending:
        """Wait until it has ended; returns how."""
        while (ending := self.ending(timeout_s=None)) is None:
            pass
        return ending

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.ending() is None:
            with contextlib.suppress(EOFError, OSError):  # the server was faster
                self._server.send(self.pid)
            self.wait()

    def forget(self) -> None:
        """Let it end by itself, without waiting for it."""
        self._status.close()


class _Server:
    """This process's connection to the fork server, which ends when neither this process nor a child needs it."""

    def __init__(self) -> None:
        self.is_lost = False
        self._owner = os.getpid()
        self._surroundings = _surroundings()
        self._sending = threading.Lock()
        self._control, theirs = socket.socketpair()
        with theirs, _no_interrupt():
            process = subprocess.Popen(  # noqa: S603  our own interpreter and code
                [sys.executable, "-c", BOOTSTRAP.format(path=sys.path, control=theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                start_new_session=True,  # when this process's whole group is killed, it must live to end its children
            )
        weakref.finalize(self, _end, os.getpid(), self._control, process)

    def is_current(self) -> bool:
        """Whether it is this process's own, and nothing has changed of what its forks inherit from it."""
        return not self.is_lost and self._owner == os.getpid() and self._surroundings == _surroundings()

    def send(self, content: Start | int, descriptors: Sequence[int] = ()) -> None:
        """Ask for a fork, or for the end of the child with that process id.

        Raises:
            OSError: the server has ended.
        """
        data = pickle.dumps(content)
        with self._sending:
            socket.send_fds(self._control, [LENGTH.pack(len(data))], descriptors)
            self._control.sendall(data)


def _end(owner: int, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.close()
    if owner == os.getpid():  # not in a fork of this process
        process.kill()
        process.wait()


_current: _Server | None = None
_choosing = threading.Lock()


def begin_server() -> None:
    """Start the server, so that it is ready when it is needed.

    Raises:
        OSError: it cannot be started.
    """
    _server()


def end_server() -> None:
    """Let the server end as soon as its children have ended."""
    global _current  # noqa: PLW0603  there is one a process
    with _choosing:
        _current = None


def fork_worker(start: Start, descriptors: Sequence[int]) -> Child:
    """Ask for a worker, with copies of the descriptors of its end of the pipe and of the board.

    Raises:
        OSError: the server cannot be started, or there are too many open files.
    """
    ours, theirs = os.pipe()
    status = Connection(ours, writable=False)
    try:
        with _stderr() as stderr:
            passed = [*descriptors, stderr, theirs]
            server = _server()
            try:
                server.send(start, passed)
            except ConnectionError:  # somebody has killed it
                server = _server(instead_of=server)
                server.send(start, passed)
    except BaseException:
        status.close()
        raise
    finally:
        os.close(theirs)
    return Child(server, status)


def _server(*, instead_of: _Server | None = None) -> _Server:
    """The server of this process: a new one if there is none, or if it is dead or not up to date."""
    global _current  # noqa: PLW0603
    with _choosing:
        if _current is None or _current is instead_of or not _current.is_current():
            _current = _Server()
        return _current


def _environment() -> dict[str, str]:
    return WORKER_ENVIRONMENT | dict(os.environ)


def _share_of_cpus(workers: int) -> dict[str, str]:
    """What tells joblib, of which a function asks ``n_jobs=-1``, how many CPUs a worker has for itself."""
    from joblib import cpu_count

    return {"LOKY_MAX_CPU_COUNT": str(max(1, cpu_count() // workers))}


def _surroundings() -> tuple[object, ...]:
    """What a fork inherits from its server and cannot set by itself."""
    variables = {name: value for name, value in _environment().items() if name.startswith(READ_AT_START)}
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return variables, sorted(cpus), [resource.getrlimit(limit) for limit in LIMITS], os.nice(0), os.geteuid()


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Let processes that are started in the block ignore Ctrl-C at first, because their parent handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _stderr() -> Iterator[int]:
    """A descriptor for a worker's stderr: a copy of this process's, or the null device if that is closed."""
    try:
        descriptor = os.dup(2)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
