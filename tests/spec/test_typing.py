"""A user's code passes a strict type checker, and mistakes in it do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "typing_example.py"
ROOT = EXAMPLE.parents[1]


def mypy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_example_is_typed() -> None:
    done = mypy(EXAMPLE)
    assert done.returncode == 0, done.stdout


MISTAKES = """
import shardkit as sk

def rows(record: sk.Record) -> dict[str, int]:
    return {"size": record.size}

sk.run(rows, 5, "out/")
sk.run(rows, "data/", "out/", quiet="yes")
run: int = sk.open_run("out/")
sk.nonsense
"""


@pytest.mark.slow
def test_mistakes_are_found(tmp_path: Path) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    done = mypy(tmp_path / "mistakes.py")
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    assert lines == {5, 7, 8, 9, 10}, done.stdout
