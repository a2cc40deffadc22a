"""The live line of a run in narrow terminals: how it looks, and how the function's prints look beside it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from crashing import LINUX, Project, environment
from terminal import said_in_terminal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [LINUX, pytest.mark.whole]
WORK = """
import time
time.sleep(0.6)  # loading takes a while

def features(record):
    time.sleep(0.02)
    if record.key == "r003.txt":
        print("a word of the function's own")
        raise ValueError("bad")
    return {"key": record.key}
"""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def seen(project: Project, columns: int) -> list[str]:
    """What a terminal of that width shows, line by line and frame by frame."""
    words = ["-m", "shardkit", *project.run_arguments(max_failures=1, workers=1)]
    said = said_in_terminal(words, env=environment(COLUMNS=str(columns), TERM="xterm"))
    return [line.strip() for line in re.split(r"[\r\n]+", CONTROL.sub("\r", said)) if line.strip()]


@pytest.mark.parametrize("columns", [60, 40])
def test_a_narrow_terminal_shows_the_quarantine_and_what_a_function_prints(tmp_path: Path, columns: int) -> None:
    project = Project(tmp_path / "project")
    project.write_function(WORK)
    project.write_records(["text"] * 30)
    lines = seen(project, columns)
    assert "a word of the function's own" in lines  # alone on its line
    live = [line for line in lines if "records" in line and "/30" in line]
    assert any(re.search(r"\b1 quarantined", line) for line in live), live
    assert not any(len(line) > columns for line in live)
    if columns == 60:
        assert any("starting workers" in line for line in live), live
    assert not any(" 0 B/s" in line for line in live)
