"""Functions that use joblib themselves, as scikit-learn does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import pytest
from crashing import LINUX, Project, is_alive

from shardkit.workers.forkserver import end_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.whole
SHARED_MEMORY = Path("/dev/shm")
FEATURES = """
import os, time
from pathlib import Path

import numpy as np
from joblib import Parallel, cpu_count, delayed, effective_n_jobs, parallel_config
from joblib.parallel import get_active_backend

def total(array):
    time.sleep(0.02)  # so that no process does them all
    return os.getpid(), float(array.sum())

def asks(record):
    row = {"cpus": cpu_count(), "said": os.environ["LOKY_MAX_CPU_COUNT"]}
    row["backend"] = type(get_active_backend()[0]).__name__
    for backend in ("loky", "threading", "multiprocessing"):
        with parallel_config(backend):
            row[backend] = effective_n_jobs(-1)
    return row

def insists(record):
    answers = Parallel(n_jobs=2)(delayed(total)(np.ones(400_000)) for _ in range(6))
    pids = {pid for pid, _ in answers}
    with Path(__file__).with_name("pids.txt").open("a") as file:
        print(os.getpid(), *pids, file=file)
    if record.key == "r001.txt":
        os.kill(os.getpid(), 9)
    return {"key": record.key, "total": sum(value for _, value in answers), "has_worked": os.getpid() in pids}
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    made.write_records(["x"] * 3)
    made.write_function(FEATURES)
    yield made
    end_server()


def answers(project: Project, name: str, **fields: Any) -> dict[str, Any]:
    """What all records were told alike."""
    project.out = project.root / name
    project.run(function="work:asks", **fields)
    first, *others = project.rows()
    assert all(row == first for row in others)
    return first


def test_a_worker_has_its_share_of_the_cpus(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    cpus = joblib.cpu_count()
    with joblib.parallel_config(backend="threading", n_jobs=7):  # the program's, not the workers'
        row = answers(project, "many", workers=cpus + 1)
    assert [row[kind] for kind in ("cpus", "loky", "threading", "multiprocessing")] == [1, 1, 1, 1]
    assert row["backend"] == "LokyBackend"

    assert answers(project, "one", workers=1)["loky"] == cpus
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "123")
    assert answers(project, "said", workers=cpus + 1)["said"] == "123"


@LINUX
def test_a_worker_that_dies_leaves_nothing_of_joblibs(project: Project) -> None:
    run = project.run(function="work:insists", workers=1, max_failures=1)
    assert [(row["total"], row["has_worked"]) for row in project.rows()] == [(2.4e6, False)] * 2
    assert run.failures()["key"].to_list() == ["r001.txt"]
    pids = {int(pid) for pid in (project.root / "pids.txt").read_text().split()}
    assert len(pids) >= 6, "two that died and one that did not, with two processes each"
    assert not any(map(is_alive, pids))
    names = [path.name for path in SHARED_MEMORY.iterdir()]
    left = [name for name in names if any(f"loky-{pid}-" in name or f"folder_{pid}_" in name for pid in pids)]
    assert not left
