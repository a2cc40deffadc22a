"""Chunks on Spark, with a local master; where pyspark or Java is missing, this is left out."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from crashing import LINUX, Project, check_ledger
from loopback_clusters import JOBS, is_installed

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    LINUX,
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("pyspark") or shutil.which("java") is None, reason="Spark is not installed"),
]
WORK = """
import os
from pathlib import Path

def features(record):
    text = Path(record).read_text()
    if text == "exit":
        os._exit(3)
    return {"key": record.key, "node": os.getppid()}
"""


def test_a_run_on_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    project = Project(tmp_path)
    project.write_function(WORK)
    project.write_records(["good"] * 11 + ["exit"])
    where = {"backend": "spark", "n_jobs": JOBS, "address": f"local[{JOBS}]"}
    run = project.run(parallel=where, max_failures=1)
    assert [row["key"] for row in project.rows()] == [f"r{i:03d}.txt" for i in range(11)]
    assert [entry["key"] for entry in run.quarantine()] == ["r011.txt"]
    assert check_ledger(run).records["done"] == 11
    assert len({row["node"] for row in project.rows()}) <= JOBS, "Spark's processes stay, and so do their workers"
    project.write_records({"r011.txt": "good"})
    run.retry(quiet=True)
    assert check_ledger(sk.open_run(project.out)).records["done"] == 12
