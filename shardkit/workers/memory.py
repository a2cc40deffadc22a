"""How much memory is left: to the machine, to the control groups that the process is in, and to the run's own limit."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM = Path("/")
UNLIMITED = 1 << 60  # version 1 of control groups says it by a number near 2**63
JUST_NOW_S = 5.0


@dataclass(frozen=True)
class Room:
    """Bytes that are left of the ``most`` that there are, and in swap; the caches of files count as left."""

    left: int
    most: int
    swap: int = 0


@dataclass(frozen=True)
class _Files:
    """The names of the files of control groups; each limit that is given holds."""

    limits: tuple[str, ...]
    usage: str
    caches: tuple[str, str]
    kills: str


OF_VERSION_1 = _Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    "memory.oom_control",
)
# What goes beyond memory.high is not killed, but slowed down until hardly anything goes on.
OF_VERSION_2 = _Files(
    ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"), "memory.events"
)


@dataclass(frozen=True)
class _Group:
    """A control group that may have a limit."""

    folder: Path
    files: _Files

    def room(self) -> Room | None:
        with contextlib.suppress(OSError, ValueError):
            most = min((limit for name in self.files.limits if (limit := self._limit(name)) is not None), default=None)
            if most is not None:
                stat = _fields(self.folder / "memory.stat")
                cached = sum(stat.get(name, 0) for name in self.files.caches)
                return Room(most - int((self.folder / self.files.usage).read_text()) + cached, most)
        return None

    def _limit(self, name: str) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            limit = int((self.folder / name).read_text())  # "max" is no number
            return limit if limit < UNLIMITED else None
        return None

    def kill_count(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return _fields(self.folder / self.files.kills).get("oom_kill", 0)
        return 0


class Memory:
    """The memory of this machine as far as a run may use it; ``limit`` is its own, for all its workers together.

    ``system`` is the root folder under which the system tells of itself.
    """

    def __init__(self, limit: int | None = None, *, system: Path = SYSTEM) -> None:
        self.limit = limit
        self._system = system
        groups = list(_groups(system))
        self._groups = [group for group in groups if group.room() is not None]
        self._own_group = groups[0] if groups else None
        self._kills = self._kill_count()
        self._killed_at = float("-inf")

    def room(self, held: int) -> Room | None:
        """Where the least is left, if the workers hold so many bytes; None if the system does not say."""
        rooms = [_of_machine(self._system), *(group.room() for group in self._groups)]
        if self.limit is not None:
            rooms.append(Room(self.limit - held, self.limit))
        return min((room for room in rooms if room is not None), key=lambda room: room.left + room.swap, default=None)

    def kernel_has_killed(self) -> bool:
        """Whether the kernel has killed some process for want of memory just now."""
        count = self._kill_count()
        if count > self._kills:
            self._kills, self._killed_at = count, time.monotonic()
        return time.monotonic() - self._killed_at < JUST_NOW_S

    def _kill_count(self) -> int:
        if self._own_group is not None:  # the machine counts those of all containers
            return self._own_group.kill_count()
        with contextlib.suppress(OSError, ValueError):
            return _fields(self._system / "proc/vmstat").get("oom_kill", 0)
        return 0


def allocated_bytes() -> int | None:
    """What Slurm has given to the workers of this job, beside this process; None outside of Slurm, or for all there is.

    Where a site limits jobs by no control group, nothing else says it before the whole job is ended.
    """
    given = os.environ.get("SLURM_MEM_PER_NODE", "")
    each, cpus = os.environ.get("SLURM_MEM_PER_CPU", ""), os.environ.get("SLURM_CPUS_ON_NODE", "")
    if given.isdigit():
        megabytes = int(given)
    elif each.isdigit() and cpus.isdigit():
        megabytes = int(each) * int(cpus)
    else:
        return None
    return max((megabytes << 20) - resident_bytes(os.getpid()), 0) or None


def resident_bytes(pid: int) -> int:
    """How much a process holds now; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def forget_peak(pid: int | str = "self") -> None:
    """Begin again with the largest size that a process has had, where the system can (Linux)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/clear_refs", "wb", 0) as file:
        file.write(b"5")


def _of_machine(system: Path) -> Room | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        with (system / "proc/meminfo").open("rb") as file:
            lines = file.read(2000).decode().splitlines()
        fields = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if rest}
        return Room(fields["MemAvailable"], fields["MemTotal"], fields.get("SwapFree", 0))
    return None


def _groups(system: Path) -> Iterator[_Group]:
    """The control groups that the process is in, the innermost first, and those around them."""
    with contextlib.suppress(OSError):
        mounts = list(_mounts(system))
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                kind, files = "cgroup2", OF_VERSION_2
            elif "memory" in controllers.split(","):
                kind, files = "cgroup", OF_VERSION_1
            else:
                continue
            for mount in (each for each in mounts if each.kind == kind):
                for folder in mount.folders(path):
                    if (folder / files.usage).exists():
                        yield _Group(folder, files)


@dataclass(frozen=True)
class _Mount:
    """Where control groups are mounted that may limit memory: the group named ``root`` is ``at`` that folder."""

    kind: str
    root: str
    at: Path

    def folders(self, path: str) -> Iterator[Path]:
        """The folders of the group of that name and of those around it, as far as they are mounted."""
        # In a container the names may be those outside; then the process is at least in the group that is mounted.
        within = path.removeprefix(self.root.rstrip("/")) if f"{path}/".startswith(f"{self.root.rstrip('/')}/") else ""
        steps = [step for step in within.split("/") if step]
        for count in range(len(steps), -1, -1):
            yield self.at.joinpath(*steps[:count])


def _mounts(system: Path) -> Iterator[_Mount]:
    """The mounts of version 2, and those of version 1 that have the controller for memory."""
    for line in (system / "proc/self/mountinfo").read_text().splitlines():
        here, _, there = line.partition(" - ")
        kind, _, options = there.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            root, at = here.split(" ")[3:5]
            yield _Mount(kind, root, system / at.lstrip("/"))


def _fields(path: Path) -> dict[str, int]:
    """A file of names and numbers."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines()) if len(words) == 2}
