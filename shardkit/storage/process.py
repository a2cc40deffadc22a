"""Who a process is, so that another one of the same machine can tell whether it still lives."""

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
    """Seconds that only grow, at the same pace also while the machine sleeps, where its system can tell."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()


def identity() -> dict[str, Any]:
    """This process, for `is_gone` to tell; empty where the system does not say enough."""
    return dict(_identity(os.getpid()))


@functools.lru_cache(maxsize=1)
def _identity(pid: int) -> Mapping[str, Any]:
    with contextlib.suppress(OSError):
        if (began := _began(pid)) is not None:
            return {"pid": pid, "began": began, "boot": _boot(), "pids": _pid_space()}
    return {}


def is_here(told: Mapping[str, Any]) -> bool:
    """Whether a process is of this machine, since its last start, and of this container, if there are any."""
    # A host's name tells nothing: containers share names, and numbers of processes mean something in their own only.
    with contextlib.suppress(OSError):
        return bool(told.get("boot")) and told["boot"] == _boot() and told.get("pids") == _pid_space()
    return False


def is_gone(told: Mapping[str, Any]) -> bool:
    """Whether a process surely lives no more."""
    if not is_here(told) or not isinstance(pid := told.get("pid"), int):
        return False
    with contextlib.suppress(OSError):
        return _began(pid) != told.get("began")  # another process may have its number by now
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
