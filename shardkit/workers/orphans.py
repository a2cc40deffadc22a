"""Ends what a worker's function has started: programs, their children, and processes in sessions of their own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

PATIENCE_S = 5.0
TIDYING_S = 2.0  # for resource trackers; they take milliseconds
_SET_CHILD_SUBREAPER = 36
_PARENT, _GROUP = 1, 2  # fields of /proc/PID/stat


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none is lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_group(leader: int) -> None:
    """End a process group, if there is one with that number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_group_tidily(leader: int) -> None:
    """End the group of a process that died, but let resource trackers in it do first what they are there for.

    joblib's arrays and semaphores lie in shared memory, which is lost to the machine unless a tracker removes them;
    it does that when all processes that it serves have ended.
    """
    members = _processes(_GROUP, leader)
    trackers = {pid for pid in members if _is_tracker(pid)}
    if trackers:
        _kill(members - trackers)
        deadline = time.monotonic() + TIDYING_S
        while any(map(_is_tracker, trackers)) and time.monotonic() < deadline:
            time.sleep(0.001)
    end_group(leader)


def end_orphans(spare: Collection[int]) -> None:
    """End all children of this process except ``spare``, and the processes that become its children as a result."""
    deadline = time.monotonic() + PATIENCE_S
    while _has_children(spare) and time.monotonic() < deadline:
        mine = _children() - set(spare)
        if not mine:
            return
        _kill(mine)
        while any(map(_is_left, mine)) and time.monotonic() < deadline:
            time.sleep(0.001)


def ended_child() -> tuple[int, bool] | None:
    """A child that has ended and that nobody has waited for, and whether it ended as it should."""
    try:
        child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return (child.si_pid, (child.si_code, child.si_status) == (os.CLD_EXITED, 0)) if child is not None else None


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _is_tracker(pid: int) -> bool:
    """Whether it is a resource tracker of ``multiprocessing`` or of joblib, and has not ended."""
    with contextlib.suppress(OSError):
        return b"resource_tracker import main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _is_left(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _has_children(spare: Collection[int]) -> bool:
    """Whether there may be any others; the check costs next to nothing."""
    if spare:
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> set[int]:
    """The children of this process, also those that have ended and that nobody has waited for."""
    return _processes(_PARENT, os.getpid())


def _processes(field: int, value: int) -> set[int]:
    """The processes of which a field of ``/proc/PID/stat``, counted after the name, has this value."""
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as f:
                    if int(f.read().rpartition(")")[2].split()[field]) == value:
                        found.add(int(name))
    return found
