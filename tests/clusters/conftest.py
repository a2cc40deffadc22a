"""The clusters that chunks can go to; those whose packages are missing are left out."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from emulators import use_emulator
from loopback_clusters import JOBS, DaskCluster, RayCluster, System, is_installed

from shardkit.clusters.loky import Loky

if TYPE_CHECKING:
    from collections.abc import Iterator

DASK = pytest.param("dask", marks=pytest.mark.dask)
RAY = pytest.param("ray", marks=pytest.mark.ray)
SYSTEMS = [
    "shardkit",
    "loky",
    *([DASK] if is_installed("distributed") else []),
    *([RAY] if is_installed("ray") else []),
]


@pytest.fixture(autouse=True, scope="session")
def _processes_that_stay() -> Iterator[None]:
    """Let tests share joblib's processes, which it starts again when the environment changes, as pytest changes it."""
    begin = Loky.__init__

    def without_the_test(loky: Loky, *arguments: Any, **options: Any) -> None:
        begin(loky, *arguments, **options)
        loky._environment.pop("PYTEST_CURRENT_TEST", None)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Loky, "__init__", without_the_test)
        yield


@pytest.fixture(scope="session")
def dask(tmp_path_factory: pytest.TempPathFactory, s3_url: str) -> Iterator[DaskCluster]:
    """A Dask cluster of two workers."""
    with contextlib.closing(DaskCluster(tmp_path_factory.mktemp("dask"), s3_url)) as cluster:
        cluster.fill(JOBS)
        yield cluster


@pytest.fixture(scope="session")
def ray(s3_url: str) -> Iterator[RayCluster]:
    """A Ray cluster of two nodes."""
    with contextlib.closing(RayCluster(s3_url)) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest, s3_url: str) -> Iterator[System]:
    """One after the other, each of what chunks can be handed to, from a program that can reach the bucket.

    If only some tests of a module could reach it, joblib's processes would be started again for them.
    """
    here = {"backend": request.param, "n_jobs": JOBS}
    with pytest.MonkeyPatch.context() as patched:
        use_emulator(patched, s3_url)
        if request.param in {"shardkit", "loky"}:
            yield System(here)
            return
        cluster = request.getfixturevalue(request.param)
        pids = cluster.workers if request.param == "dask" else cluster.pids
        yield System({**here, "address": cluster.address}, pids)


@pytest.fixture(scope="session")
def bare_dask(tmp_path_factory: pytest.TempPathFactory, s3_url: str) -> Iterator[DaskCluster]:
    """A Dask cluster whose workers, none at first, nobody starts again."""
    with contextlib.closing(DaskCluster(tmp_path_factory.mktemp("bare-dask"), s3_url)) as cluster:
        yield cluster
