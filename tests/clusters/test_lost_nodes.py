"""Nodes that are killed in the midst of a run, and drivers: the dataset is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, Project, check_ledger, dying, wait_for
from loopback_clusters import JOBS, DaskCluster, RayCluster, System, is_installed

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [LINUX, pytest.mark.slow]
RECORDS = 80
WORK = """
import time
from pathlib import Path
ROOT = Path(__file__).parent

def features(record):
    text = Path(record).read_text()
    if text.startswith("slow"):
        time.sleep(0.03)
    return [{"key": record.key, "row": i} for i in range(3)]
"""
# One record waits for a file named gate, where it is called for the first time.
GATED = """
import time
from pathlib import Path

def features(record):
    calls = Path(record).parent.parent / "calls"
    if Path(record).read_text().startswith("wait"):
        try:
            calls.mkdir()
        except FileExistsError:
            pass
        else:
            while not (calls.parent / "gate").exists():
                time.sleep(0.01)
    return [{"key": record.key, "row": i} for i in range(3)]
"""
needs_dask = pytest.mark.skipif(not is_installed("distributed"), reason="Dask is not installed")
needs_ray = pytest.mark.skipif(not is_installed("ray"), reason="Ray is not installed")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write_function(WORK)
    return made


def parallel(backend: str, address: str) -> dict[str, Any]:
    return {"backend": backend, "n_jobs": JOBS, "address": address}


# The seeds of these tests: one kills early, before a chunk is done, the other when most are.
def run_disturbed(project: Project, where: dict[str, Any], disturb: Callable[[], object], rng: random.Random) -> None:
    """Run while something happens at a random instant, and see that the dataset is as if it had not."""
    project.write_records(["slow"] * RECORDS)
    markers, pause_s = rng.randrange(6), rng.uniform(0, 0.4)
    errors: list[BaseException] = []

    def wait_and_disturb() -> None:
        try:
            wait_for(lambda: len(list(project.out.glob("_shardkit/runs/*/markers/*/*"))) >= markers)
            wait_for(lambda: list(project.out.glob("_shardkit/runs/*/nodes/*/driver.json")))
            time.sleep(pause_s)
            disturb()
        except BaseException as error:
            errors.append(error)

    disturber = threading.Thread(target=wait_and_disturb)
    disturber.start()
    run = project.run(parallel=where, max_failures=0)
    disturber.join()
    assert not errors
    summary = check_ledger(run)
    assert summary.records == {"listed": RECORDS, "done": RECORDS, "quarantined": 0, "skipped": 0}
    assert project.rows() == all_rows(RECORDS)


def all_rows(records: int) -> list[dict[str, Any]]:
    return [{"key": f"r{i:03d}.txt", "row": n} for i in range(records) for n in range(3)]


@needs_dask
@pytest.mark.dask
@pytest.mark.parametrize("seed", [1, 2])
def test_a_dask_worker_that_is_killed_and_started_again(dask: DaskCluster, project: Project, seed: int) -> None:
    rng = random.Random(seed)
    victim = rng.choice(dask.wait_for(JOBS))
    run_disturbed(project, parallel("dask", dask.address), lambda: os.kill(victim, signal.SIGKILL), rng)


@needs_dask
@pytest.mark.dask
@pytest.mark.parametrize("seed", [1, 2])
def test_a_dask_worker_that_is_gone_for_good(bare_dask: DaskCluster, project: Project, seed: int) -> None:
    rng = random.Random(seed)
    victim = rng.choice(bare_dask.fill(JOBS, nanny=False))
    run_disturbed(project, parallel("dask", bare_dask.address), lambda: os.kill(victim, signal.SIGKILL), rng)


@needs_dask
@pytest.mark.dask
def test_a_cluster_that_loses_all_workers_and_gets_new_ones(bare_dask: DaskCluster, project: Project) -> None:
    old = bare_dask.fill(1, nanny=False)

    def replace_all() -> None:
        for pid in old:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not bare_dask.living())
        bare_dask.fill(JOBS, nanny=False)

    run_disturbed(project, parallel("dask", bare_dask.address), replace_all, random.Random(1))
    assert not {*old} & {*bare_dask.wait_for(JOBS)}


@needs_ray
@pytest.mark.ray
@pytest.mark.parametrize("seed", [0, 2])
def test_a_ray_node_that_is_killed(ray: RayCluster, project: Project, seed: int) -> None:
    try:
        run_disturbed(project, parallel("ray", ray.address), ray.kill, random.Random(seed))
    finally:
        ray.replace()


@pytest.mark.whole
def test_what_a_node_finishes_for_a_driver_that_was_killed_does_no_harm(system: System, project: Project) -> None:
    if system.parallel["backend"] in {"shardkit", "loky"}:
        pytest.skip("its processes end with the driver")
    project.write_function(GATED)
    project.write_records(["wait", *["good"] * 19])
    with dying(project.start(*system.arguments(project, chunks="even"))) as driver:
        wait_for((project.root / "calls").exists, what="the call that waits")
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    project.command("resume", project.out, "--set", "parallel=shardkit", "--quiet")
    assert project.rows() == all_rows(20)
    before = project.markers()
    (project.root / "gate").touch()
    with contextlib.suppress(AssertionError):  # Ray ends the work of a driver that has ended
        wait_for(lambda: project.markers() != before, timeout_s=5 if system.parallel["backend"] == "ray" else 30)
    project.command("check", project.out)
    assert project.rows() == all_rows(20)
    done = project.command("resume", project.out)
    assert "nothing to resume" in done.stderr
    assert check_ledger(sk.open_run(project.out)).records["done"] == 20
