"""Nodes that cannot do a run's work: each is named, with the cure, before any record is touched."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, Project, environment, wait_for
from loopback_clusters import JOBS, DaskCluster, is_installed

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    LINUX,
    pytest.mark.dask,
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("distributed"), reason="Dask is not installed"),
]
WORK = """
from pathlib import Path

def features(record):
    root = Path(record).parent.parent
    (root / "calls" / record.key).touch()
    if Path(record).read_text() == "wait":
        import time
        while not (root / "gate").exists():
            time.sleep(0.01)
    return {"key": record.key}
"""
HIDDEN = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"')  # over a folder: a mount of its own
needs_namespaces = pytest.mark.skipif(
    bool(subprocess.run([*HIDDEN[:2], "true"], check=False, stderr=subprocess.DEVNULL).returncode)
    if sys.platform == "linux"
    else True,
    reason="no mount namespace can be made here",
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write_function(WORK)
    made.write_records(["good"] * 12)
    for folder in (made.out, tmp_path / "calls"):
        folder.mkdir()
    return made


@pytest.fixture
def cluster(bare_dask: DaskCluster) -> Iterator[DaskCluster]:
    """A Dask cluster of one fit worker, to which others may be added."""
    bare_dask.end_all()
    bare_dask.fill(1, nanny=False)
    yield bare_dask
    bare_dask.end_all()


@pytest.fixture
def without_shardkit(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has no shardkit."""
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "shardkit.py").write_text("raise ModuleNotFoundError(\"No module named 'shardkit'\")")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "before"), *filter(None, sys.path)])}


def run(project: Project, cluster: DaskCluster, **fields: Any) -> sk.Run:
    return project.run(parallel={"backend": "dask", "n_jobs": JOBS, "address": cluster.address}, **fields)


def calls(project: Project) -> list[Path]:
    return list((project.root / "calls").iterdir())


@needs_namespaces
@pytest.mark.parametrize(("folder", "told"), [("out", "does not see the run folder"), ("data", "cannot read r0")])
def test_a_node_that_does_not_share_a_folder_is_named(
    cluster: DaskCluster, project: Project, folder: str, told: str
) -> None:
    cluster.add(nanny=False, before=(*HIDDEN, str(project.root / folder)))
    cluster.wait_for(2)
    with pytest.raises(sk.RunFailed, match=rf"tcp://127.0.0.1:\d+: .* {told}.*all nodes share: a bucket, or a folder"):
        run(project, cluster)
    assert not calls(project)
    cluster.end_all()
    cluster.fill(1, nanny=False)
    assert sk.open_run(project.out).resume(quiet=True).summary().records["done"] == 12


@needs_namespaces
def test_a_node_that_comes_later_and_shares_nothing_ends_the_run_by_name(
    cluster: DaskCluster, project: Project
) -> None:
    project.write_records({"r000.txt": "wait"})
    with contextlib.ExitStack() as stack:
        command = project.start(
            *project.run_arguments(chunks="even"),
            *("--set", f"parallel={{backend: dask, n_jobs: 2, address: '{cluster.address}'}}"),
        )
        stack.callback(command.kill_all)
        wait_for(lambda: calls(project), what="the call that waits")
        cluster.add(nanny=False, before=(*HIDDEN, str(project.out)))
        ended = command.wait()
    assert ended.code == 1
    assert "does not see the run folder" in ended.stderr
    assert "On node " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_node_without_shardkit_is_named(
    cluster: DaskCluster, project: Project, without_shardkit: dict[str, str]
) -> None:
    cluster.add(nanny=False, env=without_shardkit)
    cluster.wait_for(2)
    with pytest.raises(sk.RunFailed, match=r"tcp://.* lacks a package: .*shardkit.*Install shardkit==.* on all nodes"):
        run(project, cluster)
    assert not calls(project)


def test_a_scheduler_needs_no_shardkit(
    project: Project, tmp_path_factory: pytest.TempPathFactory, s3_url: str, without_shardkit: dict[str, str]
) -> None:
    home = tmp_path_factory.mktemp("other-dask")
    with contextlib.closing(DaskCluster(home, s3_url, without_shardkit)) as cluster:
        cluster.fill(1, nanny=False)
        assert run(project, cluster).summary().records["done"] == 12


def test_a_function_by_value_needs_one_version_of_python(
    cluster: DaskCluster, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardkit.clusters.work.python_version", lambda: "3.99")

    def features(record: sk.Record) -> dict[str, str]:
        return {"key": record.key}

    with pytest.raises(sk.RunFailed, match=r"by value from Python 3.99, and tcp://.* has Python 3.*source_dir"):
        run(project, cluster, function=features)
    assert run(project, cluster).summary().records["done"] == 12, "by name it may travel"


def test_a_cluster_without_workers_is_told_of(
    bare_dask: DaskCluster, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_dask.end_all()
    monkeypatch.setattr("shardkit.clusters.dask.CONNECT_S", 1)
    with pytest.raises(sk.PipelineError, match=r"tcp://.* has had no worker for 1 s"):
        run(project, bare_dask)


def test_an_object_that_was_deleted_since_says_nothing_of_the_nodes(cluster: DaskCluster, project: Project) -> None:
    project.write_records({"r006.txt": "wait", "r007.txt": "wait"})
    project.write_function(WORK.replace("(root /", 'Path(record).parent.joinpath("r006.txt").unlink(); (root /', 1))
    with pytest.raises(sk.RunFailed):
        run(project, cluster, max_failures=0)
    assert sk.open_run(project.out).resume(max_failures="100%", quiet=True).quarantine()


def test_without_a_cluster_dask_needs_no_main_guard(project: Project) -> None:
    program = project.root / "program.py"
    program.write_text(
        "import shardkit as sk\n"
        f"run = sk.run('work:features', {str(project.data)!r}, {str(project.out)!r}, quiet=True, parallel='dask')\n"
        "print(run.summary().records['done'])\n"
    )
    done = subprocess.run(
        [sys.executable, program], cwd=project.root, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout == "12\n", done.stderr
