"""How a worker died before its work was done, and how the quarantine describes it."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

from shardkit.workers.guard import EXIT_CLOSED, EXIT_OUT_OF_MEMORY, HARM

# A process that gets no memory is ended by the kernel, by a library that gives up, or by its function's own exit.
# A segmentation fault is not among them: a wrong pointer does not depend on what else runs on the machine.
MEMORY_SIGNALS = {"SIGKILL", "SIGABRT", "SIGBUS"}


_STATE, _FLAGS, _EXITING = 0, 6, 0x4  # fields of /proc/PID/stat, counted after the name; a bit of the second


def is_dying(pid: int) -> bool:
    """Whether a process has begun to end; giving back its memory may take it a while."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[_STATE] in "ZX" or bool(int(fields[_FLAGS]) & _EXITING)
    return False


@dataclass(eq=False)
class WorkerDied(Exception):
    """A worker ended, or was killed, before its chunk was done.

    ``position`` is the record that it was working on (-1: none), ``reached`` the one that had begun last, ``seconds``
    how long it had worked on it; ``loading`` says that it had not even loaded the function, ``garbled`` that it was
    killed because of what came out of its pipe. If ``exit_code`` is None, the process that workers are forked from has
    ended.
    """

    position: int
    reached: int
    loading: bool
    exit_code: int | None
    seconds: float
    timed_out: bool
    garbled: bool
    peak_memory_bytes: int | None

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that ended it, if one did."""
        if self.exit_code is None or self.exit_code >= 0:
            return None
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.exit_code).name
        return f"signal {-self.exit_code}"

    @property
    def is_spoilt(self) -> bool:
        """Whether the function broke something that the worker needs."""
        return self.garbled or self.exit_code in HARM

    @property
    def may_be_memory(self) -> bool:
        """Whether too little memory may be the cause, which may be the fault of others."""
        if self.timed_out or self.is_spoilt or self.exit_code is None:
            return False
        return self.exit_code >= 0 or self.signal_name in MEMORY_SIGNALS

    @property
    def needs_quiet(self) -> bool:
        """Whether the death proves nothing against the record unless it ran alone."""
        return self.may_be_memory or self.exit_code is None


def describe_death(death: WorkerDied, timeout_s: float | None) -> tuple[str, str]:
    """The kind and the description of a worker's death, for the quarantine."""
    if death.timed_out:
        return "TimeoutError", f"took longer than {timeout_s:g} s (the pipeline's timeout) and was killed"
    peak = "" if death.peak_memory_bytes is None else f"; its peak memory was {death.peak_memory_bytes / 1e6:,.0f} MB"
    if death.is_spoilt:
        return "WorkerDied", HARM[EXIT_CLOSED if death.garbled else death.exit_code or 0]
    if death.exit_code == EXIT_OUT_OF_MEMORY:
        return "MemoryError", f"there was not enough memory to store the rows{peak}"
    if death.exit_code is None:
        return "WorkerDied", f"the process that workers are forked from was killed (usually: out of memory){peak}"
    if death.signal_name is None:
        return "WorkerDied", f"the worker process exited with code {death.exit_code}{peak}"
    guess = " (usually: out of memory)" if death.signal_name == "SIGKILL" else ""
    return "WorkerDied", f"the worker process was ended by {death.signal_name}{guess}{peak}"
