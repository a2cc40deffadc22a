"""Which GPUs are found, and which of them each worker sees; the devices are names here, no GPU is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import shardkit as sk
from shardkit.workers import devices
from shardkit.workers.devices import Devices, devices_here

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

TWO_AND_SLICES = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-2222-3333-4444-555555555555)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-99999999-2222-3333-4444-555555555555)
  MIG 3g.20gb     Device  0: (UUID: MIG-aaaaaaaa-2222-3333-4444-555555555555)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbbbbbb-2222-3333-4444-555555555555)
"""
WORK = """
import os, time
SEEN = os.environ.get("CUDA_VISIBLE_DEVICES")  # when it is imported, which is before any call

def seen(record):
    time.sleep(0.05)
    return {"key": record.key, "seen": SEEN, "pid": os.getpid()}
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without variables, programs and drivers for GPUs; returns the folder for programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    devices._found.cache_clear()
    return programs


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0,1", ["0", "1"]), ("3", ["3"]), (" 2, GPU-1f ", ["2", "GPU-1f"]), ("", []), ("-1", []), ("1,-1,2", ["1"])],
)
def test_a_scheduler_says_which(bare: Path, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = devices_here()
    assert list(found.names) == names and not found.by_bus, "their order is the scheduler's"


def test_the_driver_says_which(bare: Path, tmp_path: Path) -> None:
    for name in ("0000:01:00.0", "0000:41:00.0"):
        (tmp_path / "none" / name).mkdir(parents=True)
    assert devices_here() == Devices(("0", "1"), by_bus=True)


def test_the_driver_s_program_says_which(bare: Path) -> None:
    program = bare / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] && cat <<END\n{TWO_AND_SLICES}END\n')
    program.chmod(0o755)
    slices = [f"MIG-{letter * 8}-2222-3333-4444-555555555555" for letter in "ab"]
    assert devices_here() == Devices(("0", *slices), by_bus=True)


@pytest.mark.parametrize(
    ("gpus", "places", "dealt"),
    [
        (1, 4, ["0", "1", "2", "3"]),
        (2, 2, ["0,1", "2,3"]),
        (3, 1, ["0,1,2"]),
        (0.5, 8, ["0", "1", "2", "3", "0", "1", "2", "3"]),
        (1 / 3, 12, ["0", "1", "2", "3"] * 3),
        (5, 0, []),
    ],
)
def test_they_are_dealt_to_workers(gpus: float, places: int, dealt: list[str]) -> None:
    four = Devices(("0", "1", "2", "3"))
    assert four.places(gpus) == places
    assert [four.environment(worker, gpus)["CUDA_VISIBLE_DEVICES"] for worker in range(places)] == dealt


def test_numbers_of_the_bus_are_said_to_be_that() -> None:
    assert Devices(("0",), by_bus=True).environment(0, 1)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_worker_sees_its_own_before_the_function_is_imported(
    files: WriteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    (tmp_path / "work.py").write_text(WORK)
    data = files([f"{number:02d}" for number in range(24)])
    options: dict[str, Any] = {"source_dir": tmp_path, "quiet": True}
    run = sk.run("work:seen", data, tmp_path / "out", gpus=1, **options)
    rows = run.dataset().to_table().to_pandas()
    assert set(rows["seen"]) <= {"4", "6", "7"} and len(set(rows["seen"])) > 1
    assert (rows.groupby("pid")["seen"].nunique() == 1).all() and (rows.groupby("seen")["pid"].nunique() == 1).all()
    assert run.folder.plan()["workers"] == 3
    run = sk.run("work:seen", data, tmp_path / "two", gpus=2, workers=8, **options)
    assert set(run.dataset().to_table()["seen"].to_pylist()) == {"4,6"}, "there is no room for a second worker"


def test_without_enough_of_them_nothing_begins(
    bare: Path, files: WriteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work.py").write_text(WORK)
    data = files(["a"])
    options: dict[str, Any] = {"source_dir": tmp_path, "quiet": True}
    with pytest.raises(sk.RunFailed, match="gpus: 1, and this machine has no GPU: CUDA_VISIBLE_DEVICES is not set"):
        sk.run("work:seen", data, tmp_path / "out", gpus=1, **options)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(sk.RunFailed, match="gpus: 3, and this machine has 2 GPUs: 0, 1"):
        sk.run("work:seen", data, tmp_path / "out", gpus=3, **options)


@pytest.mark.parametrize("gpus", [0, -1, 1.5, True, "many"])
def test_a_number_that_cannot_be(gpus: Any) -> None:
    with pytest.raises(sk.PipelineError, match="gpus: "):
        sk.Pipeline(function="work:seen", input="in", output="out", gpus=gpus)


def test_on_a_cluster_its_scheduler_deals_them() -> None:
    with pytest.raises(sk.PipelineError, match="gpus are dealt to workers of this machine"):
        sk.Pipeline(function="work:seen", input="in", output="out", gpus=1, parallel="dask")
