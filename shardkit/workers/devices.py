"""The GPUs of this machine, and which of them each worker sees.

They are found without a library: in CUDA_VISIBLE_DEVICES, by which schedulers such as Slurm say what a job has, by
``nvidia-smi -L``, or in ``/proc/driver/nvidia/gpus``. A worker sees its own through CUDA_VISIBLE_DEVICES, which is set
before it imports the user's code.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shardkit.errors import RunFailed
from shardkit.units import counted

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"  # the order in which nvidia-smi counts; CUDA's own begins with the fastest
DRIVER = Path("/proc/driver/nvidia/gpus")
ASK_S = 60.0  # the first question after a start may take the driver long
GPU = re.compile(r"GPU (\d+):")
SLICE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True)
class Devices:
    """Devices as CUDA_VISIBLE_DEVICES names them; ``by_bus`` if their numbers are in the order of the bus."""

    names: tuple[str, ...]
    by_bus: bool = False

    def places(self, gpus: float) -> int:
        """How many workers there can be, if each has so many devices, or such a part of one."""
        return int(len(self.names) // gpus) if gpus >= 1 else len(self.names) * int(1 / gpus + 1e-9)

    def environment(self, worker: int, gpus: float) -> dict[str, str]:
        """The variables by which a worker, by its number, sees the devices that are its own."""
        if gpus >= 1:
            count = int(gpus)
            own = self.names[worker * count : (worker + 1) * count]
        else:  # those that share a device are far apart, so that few workers have one each
            own = (self.names[worker % len(self.names)],)
        order = {ORDER: BY_BUS} if self.by_bus else {}
        return {VISIBLE: ",".join(own)} | order


def devices_here() -> Devices:
    """The devices that this process may use."""
    return _found(os.environ.get(VISIBLE), os.environ.get("PATH"))


def devices_for(gpus: float) -> Devices:
    """The same, if they are enough for one worker.

    Raises:
        RunFailed: they are not.
    """
    devices = devices_here()
    if devices.places(gpus):
        return devices
    if devices.names:
        raise RunFailed(
            f"gpus: {gpus:g}, and this machine has {counted(len(devices.names), 'GPU')}: {', '.join(devices.names)}.",
            hint="Set gpus to what it has.",
        )
    where = f"{VISIBLE} is {os.environ[VISIBLE]!r}" if VISIBLE in os.environ else f"{VISIBLE} is not set"
    raise RunFailed(
        f"gpus: {gpus:g}, and this machine has no GPU: {where}, and neither nvidia-smi nor {DRIVER} names one.",
        hint="Run where there are some, or leave out gpus (--set gpus=null).",
    )


@functools.lru_cache(maxsize=8)  # asking the driver may take a second
def _found(visible: str | None, _: str | None) -> Devices:
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        ends = next((place for place, name in enumerate(names) if name in {"", "-1"}), len(names))  # as for CUDA
        return Devices(tuple(names[:ends]))
    names = _from_smi() or _from_driver()
    return Devices(tuple(names), by_bus=True)


def _from_smi() -> list[str]:
    """What ``nvidia-smi -L`` names: the numbers of devices; of one that is cut into slices, these."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=ASK_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return []
    devices: list[list[str]] = []
    for line in done.stdout.splitlines():
        if whole := GPU.match(line):
            devices.append([whole[1]])
        elif (part := SLICE.match(line)) and devices:
            if devices[-1][0].isdigit():
                devices[-1].clear()
            devices[-1].append(part[1])
    return [name for names in devices for name in names]


def _from_driver() -> list[str]:
    try:
        return [str(number) for number in range(len(os.listdir(DRIVER)))]
    except OSError:
        return []
