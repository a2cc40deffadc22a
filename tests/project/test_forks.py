"""Files of tests in forks: what is reported, by whom, and where a fork dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole  # they start pytest
ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "conftest.py": """
import os
import pytest

pytest_plugins = ["forks"]

@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    yield os.getpid()
    (tmp_path_factory.getbasetemp() / "torn down").touch()
""",
    "test_dies.py": """
import os

def test_before(shared): assert shared == os.getpid()
def test_dies(): os._exit(41)
def test_after(shared): assert shared == os.getpid()
""",
    "test_says.py": """
import os, time, warnings
from pathlib import Path

def test_fails(tmp_path, shared):
    other, (tmp_path.parent.parent / os.environ["PYTEST_XDIST_WORKER"])
    print("what it has printed")
    assert {"a": 1} == {"a": 2}

def test_passes(shared):
    assert shared == os.getpid()

def test_warns(tmp_path):
    warnings.warn("on its way out", DeprecationWarning)
""".replace('    other, (tmp_path.parent.parent / os.environ["PYTEST_XDIST_WORKER"])\n', ""),
    "test_waits.py": """
import time

def test_beside(tmp_path):
    beside = tmp_path.parent.parent  # of all forks
    end = time.monotonic() + 30
    while len(list(beside.glob("gw*"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
""",
}


def pytest_here(folder: Path, *options: str) -> tuple[int, str]:
    """The exit code and the output of pytest in a folder with these files."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", f"--basetemp={folder / 'made'}", *options]
    environment = known | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_all_is_reported_and_a_death_is_a_failure(tmp_path: Path) -> None:
    code, text = pytest_here(tmp_path, "--forks", "3")
    assert code == 1, text
    assert "2 failed, 5 passed, 1 warning" in text
    for line in (
        *(
            "PASSED test_dies.py::test_before",
            "FAILED test_dies.py::test_dies - The process that ran it ended with 41.",
        ),
        *(
            "PASSED test_dies.py::test_after",
            "FAILED test_says.py::test_fails - AssertionError: assert {'a': 1} == {'a': 2}",
        ),
        *("PASSED test_says.py::test_passes", "PASSED test_says.py::test_warns", "PASSED test_waits.py::test_beside"),
        *("what it has printed", "DeprecationWarning: on its way out"),
    ):
        assert line in text
    assert (
        len(list((tmp_path / "made").glob("gw*/torn down"))) == 2
    )  # each once in its fork; the third has no such test


def test_after_so_many_failures_no_test_begins(tmp_path: Path) -> None:
    code, text = pytest_here(tmp_path, "--forks", "1", "--maxfail", "1", "test_says.py", "test_waits.py")
    assert code == 1, text
    assert "1 failed" in text
    assert "passed" not in text.splitlines()[-1]
    assert "stopping after 1 failures" in text
