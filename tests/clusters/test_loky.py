"""Chunks on a cluster that is there without another package: joblib's own processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import joblib
import pytest

import shardkit as sk
from shardkit.clusters.loky import Loky

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.whole


def rows(record: sk.Record) -> dict[str, object]:
    text = record.path.read_text()
    if text == "exit":
        os._exit(3)
    if text == "raise":
        raise ValueError("bad")
    return {"key": record.key, "size": len(text), "parent": os.getppid()}


def test_a_run_is_what_it_is_on_this_machine(files: Callable[..., Path], tmp_path: Path) -> None:
    data = files({f"{i}.txt": "exit" if i == 7 else "raise" if i == 9 else "x" * i for i in range(30)})
    here = sk.run(rows, data, tmp_path / "here", max_failures=2, quiet=True)
    there = sk.run(
        rows, data, tmp_path / "there", max_failures=2, quiet=True, parallel={"backend": "loky", "n_jobs": 2}
    )
    table, expected = there.dataset().to_table(), here.dataset().to_table()
    assert table.select(["key", "size"]).equals(expected.select(["key", "size"]))
    assert there.failures()[["key", "error"]].equals(here.failures()[["key", "error"]])
    assert not {*table["parent"].to_pylist()} & {*expected["parent"].to_pylist()}, "it has workers of its own"


def test_joblibs_own_way_of_choosing_a_backend(files: Callable[..., Path], tmp_path: Path) -> None:
    data = files([f"{i}.txt" for i in range(10)])
    with joblib.parallel_config(backend="loky", n_jobs=2):
        run = sk.run(rows, data, tmp_path / "out", quiet=True)
    assert list(tmp_path.glob("out/_shardkit/runs/*/nodes/*/*")), "a cluster's nodes have proved that they are fit"
    assert run.dataset().count_rows() == 10


def processes(record: sk.Record) -> dict[str, int]:
    return {"worker": os.getpid(), "node": os.getppid()}


def test_a_node_has_as_many_workers_as_chunks_at_once(files: Callable[..., Path], tmp_path: Path) -> None:
    data = files([f"{i}.txt" for i in range(12)])
    run = sk.run(processes, data, tmp_path / "out", quiet=True, parallel={"backend": "loky", "n_jobs": 2})
    workers = {(row["node"], row["worker"]) for row in run.dataset().to_table().to_pylist()}
    assert len(workers) == len({node for node, _ in workers}), "each process of joblib's has one chunk at a time"


def test_days_are_merged_on_the_nodes(files: Callable[..., Path], tmp_path: Path) -> None:
    data = files([f"2026/01/0{day}/{n}.txt" for day in range(1, 5) for n in range(3)])
    days = {"by": "date", "path": "{Y}/{m}/{d}"}
    here = sk.run(rows, data, tmp_path / "here", shards=days, quiet=True)
    there = sk.run(rows, data, tmp_path / "there", shards=days, quiet=True, parallel={"backend": "loky", "n_jobs": 2})
    notes = [path.name for path in tmp_path.glob("*/_shardkit/runs/*/merged/*")]
    assert sorted(notes) == [f"2026-01-0{day}.json" for day in range(1, 5)], "a node has merged each"
    table, expected = there.dataset().to_table(), here.dataset().to_table()
    assert table.drop_columns("parent").equals(expected.drop_columns("parent"))


def test_joblibs_own_processes_are_left_to_joblib(tmp_path: Path, files: Callable[..., Path]) -> None:
    """A program may use joblib, and what is built on it, before and after a run, and between two."""
    data = files({f"{n}.txt": "x" for n in range(4)})

    def squares() -> list[int]:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(n, 2) for n in range(4))

    for out in ("before", "between"):
        assert squares() == [0, 1, 4, 9]
        sk.run(processes, data, tmp_path / out, quiet=True, parallel={"backend": "loky", "n_jobs": 2})
    assert squares() == [0, 1, 4, 9]


def test_processes_have_the_environment_that_the_program_has_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("before", "after"):
        monkeypatch.setenv("SHARDKIT_TEST", text)
        assert Loky(1, None).submit(os.getenv, "SHARDKIT_TEST").result() == text
