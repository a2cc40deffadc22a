"""The fork server of a command that was forked: a fork, too, of the process as it was before the command began.

A fork server is a new interpreter that imports NumPy and pyarrow, which takes longer than most commands of tests. This
one has its own session, and the path, environment, folder and descriptors that the command would have started it with,
and knows nothing of the command's own modules. The command itself forks it before it begins, so that it is a child
of the command's. Where it would not be the same (a limit has changed), or when it has been killed, the command starts
a fork server as the program does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any

from shardkit.workers import forks, forkserver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SET_PDEATHSIG = 1
SIZE = 1 << 20  # of the message, at most


class Spare:
    """A process that waits until the command needs its fork server, and then is that; it ends with the command."""

    def __init__(self, run: Callable[[Callable[[], object]], object]) -> None:
        """``run`` runs a program to the end of the process."""
        self._before = forkserver._surroundings()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = os.fork()
        if not self.pid:
            self._socket.close()
            self._wait(theirs, parent, run)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        forkserver.subprocess = types.SimpleNamespace(Popen=self._start, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]

    def _start(self, command: list[str], *, env: Mapping[str, str], pass_fds: list[int], **options: Any) -> Any:
        """As ``subprocess.Popen`` starts the fork server."""
        if forkserver._surroundings() == self._before:
            about = {"path": list(sys.path), "environment": dict(env)}
            with contextlib.suppress(OSError), self._socket:  # it has ended, or was taken already
                socket.send_fds(self._socket, [pickle.dumps(about)], [*pass_fds, 2])
                return self
        return subprocess.Popen(command, env=env, pass_fds=pass_fds, **options)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)

    def _wait(self, ours: socket.socket, parent: int, run: Callable[[Callable[[], object]], object]) -> None:
        os.setsid()
        _die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        message, descriptors, _, _ = socket.recv_fds(ours, SIZE, 2)
        ours.close()
        if not message:
            os._exit(0)
        _die_with_parent(0)
        about = pickle.loads(message)
        control, stderr = descriptors
        os.dup2(stderr, 2)
        os.close(stderr)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.close(nothing)
        os.environ.clear()
        os.environ.update(about["environment"])
        sys.path[:] = about["path"]
        sys.argv[:] = ["-c"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        gc.freeze()
        run(lambda: forks.main(control))


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, number)
