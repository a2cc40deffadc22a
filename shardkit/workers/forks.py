"""The program of the fork server: it imports what workers need, and becomes a worker in each of its forks."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from shardkit.workers.forkserver import BEGUN, DESCRIPTORS, ENDED, LENGTH, Start
from shardkit.workers.orphans import adopt_orphans, end_group, end_group_tidily, end_orphans, ended_child
from shardkit.workers.worker import preload, set_process_name, work

if TYPE_CHECKING:
    from shardkit.workers.forkserver import Call


def main(control: int) -> None:
    """Serve forks; in each fork, do a worker's work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the parent has blocked it until here
    set_process_name("shardkit-forks")
    adopt_orphans()
    preload(None)
    gc.freeze()
    gc.enable()
    call = _Forks(socket.socket(fileno=control)).serve()
    if call is None:
        os._exit(0)  # the program waits: nothing here needs to be taken apart for 20 ms
    work(*call)


class _Forks:
    """The server's side: serves requests, and reports how its children end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._children: dict[int, Connection] = {}
        self._ended, waking = os.pipe()
        for descriptor in (self._ended, waking):
            os.set_blocking(descriptor, False)
        self._waking = waking
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)

    def serve(self) -> Call | None:
        """Serve until the program has ended, then return None; in a fork, return the arguments of the worker."""
        while True:
            ready = wait([self._control, self._ended])
            if self._ended in ready:
                os.read(self._ended, 1 << 10)
                self._reap()
            if self._control in ready:
                content, descriptors = self._receive()
                if content is None:
                    self._end_all()
                    return None
                if isinstance(content, Start):
                    if (call := self._fork(content, descriptors)) is not None:
                        return call
                elif content in self._children:
                    os.kill(content, signal.SIGKILL)

    def _receive(self) -> tuple[Start | int | None, list[int]]:
        """A request and the descriptors that came with it; None if the program has ended."""
        head, descriptors, _, _ = socket.recv_fds(self._control, LENGTH.size, DESCRIPTORS)
        if len(head) < LENGTH.size:
            return None, descriptors
        (left,) = LENGTH.unpack(head)
        data = bytearray()
        while len(data) < left:
            data += (more := self._control.recv(left - len(data)))
            if not more:
                return None, descriptors
        content: Start | int = pickle.loads(data)  # noqa: S301  from our own parent
        return content, descriptors

    def _fork(self, start: Start, descriptors: list[int]) -> Call | None:
        if len(descriptors) != DESCRIPTORS:  # the system drops some if this process has too many open
            for descriptor in descriptors:
                os.close(descriptor)
            return None
        *inherited, status_end = descriptors
        status = Connection(status_end, readable=False)
        preload(start.store)
        sys.path_importer_cache.clear()  # each fork would have to go through all that this process has looked at
        gc.freeze()  # forks need not look through the objects that exist already
        try:
            pid = os.fork()
        except OSError as error:
            pid = -(error.errno or errno.EAGAIN)
        if pid == 0:
            status.close()
            return self._become(start, *inherited)
        for descriptor in inherited:
            os.close(descriptor)
        self._report(status, BEGUN.pack(pid))
        if pid > 0:
            self._children[pid] = status
        else:
            status.close()
        return None

    def _become(self, start: Start, pipe: int, board: int, stderr: int) -> Call:
        """Make a fork of the server as if the program had started it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()  # so that all that it starts ends with it, and Ctrl-C does not reach them
        adopt_orphans()
        self._control.close()
        for status in self._children.values():
            status.close()
        os.close(self._ended)
        os.close(self._waking)
        os.dup2(stderr, 2)
        os.close(stderr)
        _change_environment(start.environment)
        time.tzset()
        sys.path[:] = start.path
        importlib.invalidate_caches()  # modules written since then should be found too
        if start.folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(start.folder)
        if (random := sys.modules.get("numpy.random")) is not None:
            random.seed()  # otherwise all workers would draw the same numbers
        return pipe, board, start.number, start.store, self._pid

    def _reap(self) -> None:
        """Report the children that have ended, once what they have started has ended too."""
        ended = []
        while (child := ended_child()) is not None:
            pid, is_well = child
            end = end_group_tidily if pid in self._children and not is_well else end_group
            end(pid)  # before the system gives its number to another process
            _, code, usage = os.wait4(pid, 0)
            status = self._children.pop(pid, None)
            if status is not None:
                peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
                ended.append((status, ENDED.pack(os.waitstatus_to_exitcode(code), peak)))
        if ended:
            end_orphans(self._children)
        for status, message in ended:
            self._report(status, message)
            status.close()

    def _end_all(self) -> None:
        """End the children and what they have started, because the program has ended."""
        for pid in self._children:
            end_group_tidily(pid)
            os.kill(pid, signal.SIGKILL)  # in case it has no group of its own yet
        end_orphans(())

    @staticmethod
    def _report(status: Connection, message: bytes) -> None:
        with contextlib.suppress(OSError):  # nobody waits for the child any more
            status.send_bytes(message)


def _change_environment(variables: dict[str, str]) -> None:
    """Make these the variables of this process; it touches only the few that differ, because all others are shared."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
