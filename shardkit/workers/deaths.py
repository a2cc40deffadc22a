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
    ended. ``made_room`` says that it was ended to leave its memory to others, ``is_too_large`` that it took all the
    memory there was. ``memory_bytes`` is how much there is, where it is certain that this was too little. ``several``
    are all records that it may have been at, where these could be more than one.
    """

    position: int
    reached: int
    loading: bool
    exit_code: int | None
    seconds: float
    timed_out: bool
    garbled: bool
    peak_memory_bytes: int | None
    made_room: bool = False
    is_too_large: bool = False
    memory_bytes: int = 0
    several: tuple[int, ...] = ()

    @property
    def is_python(self) -> bool:
        """Whether Python itself said that there was no memory."""
        return self.exit_code == EXIT_OUT_OF_MEMORY

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
    if death.is_spoilt:
        return "WorkerDied", HARM[EXIT_CLOSED if death.garbled else death.exit_code or 0]
    kind, end = _end(death)
    if death.memory_bytes:
        return kind, f"{end}: {too_little(death.peak_memory_bytes, death.memory_bytes)}"
    peak = "" if death.peak_memory_bytes is None else f"; its peak memory was {death.peak_memory_bytes / 1e6:,.0f} MB"
    guess = " (usually: out of memory)" if death.exit_code is None or death.signal_name == "SIGKILL" else ""
    return kind, f"{end}{guess}{peak}"


def _end(death: WorkerDied) -> tuple[str, str]:
    if death.is_python:
        return "MemoryError", "there was not enough memory to store the rows"
    if death.exit_code is None:
        return "WorkerDied", "the process that workers are forked from was killed"
    if death.signal_name is None:
        return "WorkerDied", f"the worker process exited with code {death.exit_code}"
    return "WorkerDied", f"the worker process was ended by {death.signal_name}"


def too_little(peak_bytes: int | None, memory_bytes: int) -> str:
    """Why a record does not fit into the memory that there is, and what to do about it."""
    peak = f" (peak: {peak_bytes / 1e6:,.0f} MB)" if peak_bytes else ""
    return (
        f"it needs more memory than the {memory_bytes / 1e6:,.0f} MB that there are{peak}, even alone. "
        "Let the function hold less at a time, or retry with more memory"
    )
