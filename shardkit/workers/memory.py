"""How much memory is left: to the machine, and to the control groups that the process is in; and how much one holds."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # version 1 of control groups says it by a number near 2**63


def available_bytes() -> int | None:
    """How much can still be taken before the system kills a process; None if the system does not say."""
    return min((left for left in (_of_machine(), *_of_groups()) if left is not None), default=None)


def resident_bytes(pid: int) -> int:
    """How much a process holds now; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def forget_peak() -> None:
    """Begin anew with the largest size that this process has had, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_groups() -> Iterator[int | None]:
    """What is left to each control group that the process is in, and to those around them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                names, root = ("memory.max", "memory.current", "inactive_file"), GROUPS
            elif "memory" in controllers.split(","):
                names, root = (
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
                    GROUPS / "memory",
                )
            else:
                continue
            here = root / path.strip("/")
            for folder in (here, *here.parents):
                yield _left(folder, *names)
                if folder == root:
                    break


def _left(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        most = int((folder / limit).read_text())  # "max" is no number
        if most < UNLIMITED:
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return most - int((folder / usage).read_text()) + int(stat.get(cache, 0))
    return None
