"""Ends what a worker's function has started: programs, their children, and processes in sessions of their own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

PATIENCE_S = 5.0
_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none is lost."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_group(leader: int) -> None:
    """End a process group, if there is one with that number."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def end_orphans(spare: Collection[int]) -> None:
    """End all children of this process except ``spare``, and the processes that become its children as a result."""
    deadline = time.monotonic() + PATIENCE_S
    while _has_children(spare) and time.monotonic() < deadline:
        mine = _children() - set(spare)
        if not mine:
            return
        for pid in mine:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        while any(map(_is_left, mine)) and time.monotonic() < deadline:
            time.sleep(0.001)


def ended_child() -> int | None:
    """A child that has ended and that nobody has waited for."""
    try:
        child = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return child.si_pid if child is not None else None


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
    own, children = str(os.getpid()), set()
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as f:
                    if f.read().rpartition(")")[2].split()[1] == own:
                        children.add(int(name))
    return children
