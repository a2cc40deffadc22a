"""A short storm: whatever is killed or paused, the datasets are complete in the end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from crashing import LINUX, TESTS, environment

MINUTES = 0.1


@LINUX
@pytest.mark.slow
def test_a_tenth_of_a_minute_of_the_storm() -> None:
    command = [sys.executable, TESTS / "storm.py", "--minutes", str(MINUTES)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert " 0 faults" in done.stdout
