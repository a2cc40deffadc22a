"""How much memory there is by control groups of both versions, read from folders like those of the system."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from shardkit.workers.memory import JUST_NOW_S, Memory, Room

if TYPE_CHECKING:
    from pathlib import Path

MB = 1 << 20
V2 = "0::{path}\n"
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "4:memory:{path}\n1:cpu:/elsewhere\n0::/\n"
V1_MOUNT = (
    "33 24 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "34 24 0:30 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "35 24 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


class System:
    """A machine with 64 GiB, of which 60 are available, and the control groups that are made here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {60 << 20} kB\nSwapFree: 0 kB\n")
        (root / "proc/vmstat").write_text("nr_free_pages 3\noom_kill 7\n")

    def is_in(self, cgroup: str, mounts: str) -> None:
        (self.root / "proc/self/cgroup").write_text(cgroup)
        (self.root / "proc/self/mountinfo").write_text(f"23 1 8:1 / / rw - ext4 /dev/sda rw\n{mounts}")

    def group(self, path: str, **files: object) -> Path:
        """A group of version 2; MB are counted, unless a limit is ``max``."""
        folder = self.root / "sys/fs/cgroup" / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        given = {"max": "max", "high": "max", "current": 0, "cached": 0, "kills": 0} | files
        for name in ("max", "high", "current"):
            value = given[name]
            (folder / f"memory.{name}").write_text(f"{value * MB if isinstance(value, int) else value}\n")
        cached = int(str(given["cached"])) * MB
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 0\nslab 9\n")
        (folder / "memory.events").write_text(f"low 0\nhigh 12\nmax 3\noom 1\noom_kill {given['kills']}\n")
        return folder

    def memory(self, limit: int | None = None) -> Memory:
        return Memory(limit, system=self.root)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_without_groups_the_machine_counts(system: System) -> None:
    assert system.memory().room(0) == Room(60 << 30, 64 << 30)
    assert system.memory(10 * MB).room(4 * MB) == Room(6 * MB, 10 * MB)
    system.is_in(V2.format(path="/user.slice"), V2_MOUNT.format(root="/"))
    system.group("/user.slice", current=300)
    assert system.memory().room(0) == Room(60 << 30, 64 << 30), "it has no limit"


def test_a_limit_counts_less_what_is_used_and_caches_are_no_use(system: System) -> None:
    system.is_in(V2.format(path="/job"), V2_MOUNT.format(root="/"))
    system.group("/job", max=1000, current=700, cached=250)
    assert system.memory().room(0) == Room(550 * MB, 1000 * MB)
    assert system.memory(2000 * MB).room(1900 * MB) == Room(100 * MB, 2000 * MB), "where the least is left"


def test_what_slows_down_is_a_limit_too(system: System) -> None:
    system.is_in(V2.format(path="/job"), V2_MOUNT.format(root="/"))
    system.group("/job", max=1000, high=800, current=500)
    assert system.memory().room(0) == Room(300 * MB, 800 * MB)
    system.group("/job", high=600, current=500)
    assert system.memory().room(0) == Room(100 * MB, 600 * MB)
    system.group("/job", max=400, high=600, current=300)
    assert system.memory().room(0) == Room(100 * MB, 400 * MB)


def test_of_nested_slices_the_one_counts_in_which_the_least_is_left(system: System) -> None:
    path = "/system.slice/batch.slice/job-7.scope"
    system.is_in(V2.format(path=path), V2_MOUNT.format(root="/"))
    system.group(path, max=4000, current=100)
    system.group("/system.slice/batch.slice", max=6000, current=5950)
    system.group("/system.slice", current=9000)
    assert system.memory().room(0) == Room(50 * MB, 6000 * MB), "the neighbours in the slice have the rest"
    system.group("/system.slice/batch.slice", max=6000, current=100)
    memory = system.memory()
    assert memory.room(0) == Room(3900 * MB, 4000 * MB)
    system.group("/system.slice", high=9100, current=9000)
    assert memory.room(0) == Room(3900 * MB, 4000 * MB), "limits that come later are not looked for"
    assert system.memory().room(0) == Room(100 * MB, 9100 * MB)


@pytest.mark.parametrize(
    ("path", "root"),
    [
        pytest.param("/", "/", id="a namespace of its own"),
        pytest.param("/kubepods/pod-1/box", "/kubepods/pod-1/box", id="the names outside, and its own group mounted"),
        pytest.param("/kubepods/pod-1/box", "/../../..", id="names that fit nothing"),
    ],
)
def test_in_a_container_its_own_group_is_where_groups_are_mounted(system: System, path: str, root: str) -> None:
    system.is_in(V2.format(path=path), V2_MOUNT.format(root=root))
    system.group("/", max=512, current=12)
    assert system.memory().room(0) == Room(500 * MB, 512 * MB)


def test_a_group_made_within_a_container_is_found(system: System) -> None:
    system.is_in(V2.format(path="/kubepods/box/part"), V2_MOUNT.format(root="/kubepods/box"))
    system.group("/", max=512, current=12)
    system.group("/part", max=100, current=12)
    assert system.memory().room(0) == Room(88 * MB, 100 * MB)


@pytest.mark.parametrize("root", ["/", "/docker/box"])
def test_groups_of_version_1_beside_an_empty_version_2(system: System, root: str) -> None:
    path = "/docker/box"
    system.is_in(V1.format(path=path), V1_MOUNT.format(root=root))
    within = path.removeprefix(root) if root != "/" else path
    folder = system.root / "sys/fs/cgroup/memory" / within.strip("/")
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(300 * MB))
    (folder / "memory.usage_in_bytes").write_text(str(100 * MB))
    (folder / "memory.stat").write_text(f"cache 1\ntotal_inactive_file {20 * MB}\ntotal_active_file {MB}\n")
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    memory = system.memory()
    assert memory.room(0) == Room(221 * MB, 300 * MB)
    assert not memory.kernel_has_killed()
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert memory.kernel_has_killed()
    (folder / "memory.limit_in_bytes").write_text(str((1 << 63) - 4096))
    assert system.memory().room(0) == Room(60 << 30, 64 << 30), "which is no limit"


def test_the_kernels_kills_are_those_of_the_own_group(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.is_in(V2.format(path="/slice/job"), V2_MOUNT.format(root="/"))
    system.group("/slice", max=100, kills=40)
    system.group("/slice/job", kills=3)
    memory = system.memory()
    assert not memory.kernel_has_killed()
    system.group("/slice", max=100, kills=41)
    (system.root / "proc/vmstat").write_text("oom_kill 9\n")
    assert not memory.kernel_has_killed(), "of others"
    system.group("/slice/job", kills=4)
    assert memory.kernel_has_killed()
    now = time.monotonic() + JUST_NOW_S + 1
    monkeypatch.setattr("shardkit.workers.memory.time.monotonic", lambda: now)
    assert not memory.kernel_has_killed(), "which was a while ago"


def test_where_groups_count_nothing_the_machine_does(system: System) -> None:
    memory = system.memory()
    assert not memory.kernel_has_killed()
    (system.root / "proc/vmstat").write_text("oom_kill 8\n")
    assert memory.kernel_has_killed()
