"""Identifies a process, so that another one on the same machine can see whether it still lives."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def awake_or_not_s() -> float:
    """Seconds that only grow, even while the machine sleeps if its system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()


def identity() -> dict[str, Any]:
    """This process, in a form that `is_gone` reads; empty if the system does not say enough."""
    return dict(_identity(os.getpid()))


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> Mapping[str, Any]:
    with contextlib.suppress(OSError):
        if (began := _began(pid)) is not None:
            return {"pid": pid, "began": began, "boot": _boot(), "pids": _pid_space()}
    return {}


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether a process belongs to this machine, since its last start, and to this container if there is one."""
    # A host's name proves nothing: containers share names, and a process number has a meaning only in its container.
    with contextlib.suppress(OSError):
        return bool(process.get("boot")) and process["boot"] == _boot() and process.get("pids") == _pid_space()
    return False


def is_gone(process: Mapping[str, Any]) -> bool:
    """Whether a process has surely ended."""
    if not is_here(process) or not isinstance(pid := process.get("pid"), int):
        return False
    with contextlib.suppress(OSError):
        return _began(pid) != process.get("began")  # another process may have its number by now
    return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_space() -> str:
    return os.readlink("/proc/self/ns/pid")


def _began(pid: int) -> int | None:
    """When a process began, in the system's own ticks; None if there is none of that number, or it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in {"Z", "X"} else int(rest[18])
