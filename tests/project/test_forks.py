"""Files of tests in forks: what is reported, by whom, and where a fork dies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole  # they start pytest
ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "conftest.py": """
import os
import time
from pathlib import Path

import pytest

pytest_plugins = ["forks"]

@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    with (tmp_path_factory.getbasetemp() / f"made by {os.getpid()}").open("a") as file:
        file.write("once")
    yield os.getpid()
    (tmp_path_factory.getbasetemp() / f"torn down by {os.getpid()}").touch()

@pytest.fixture
def meet(tmp_path):
    def wait(us, them):
        beside = tmp_path.parent.parent  # of all forks
        (beside / us).touch()
        end = time.monotonic() + 30
        while not (beside / them).exists():
            assert time.monotonic() < end
            time.sleep(0.01)
    return wait
""",
    "test_dies.py": """
import os

def test_before(shared): assert shared == os.getpid()
def test_dies(): os._exit(41)
def test_after(shared): assert shared == os.getpid()
""",
    "test_says.py": """
import os, warnings

def test_fails(meet, shared):
    print("what it has printed")
    meet("one", "other")
    assert {"a": 1} == {"a": 2}

def test_passes(shared):
    assert shared == os.getpid()

def test_warns():
    warnings.warn("on its way out", DeprecationWarning)
""",
    "test_beside.py": """
def test_beside(meet, shared):
    print("what is printed beside that")
    meet("other", "one")
""",
    "test_more.py": """
def test_more(shared): pass
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
    assert "2 failed, 6 passed, 1 warning" in text
    for line in (
        *(
            "PASSED test_dies.py::test_before",
            "FAILED test_dies.py::test_dies - The process that ran it ended with 41.",
        ),
        *(
            "PASSED test_dies.py::test_after",
            "FAILED test_says.py::test_fails - AssertionError: assert {'a': 1} == {'a': 2}",
        ),
        *("PASSED test_says.py::test_passes", "PASSED test_says.py::test_warns", "PASSED test_beside.py::test_beside"),
        *("PASSED test_more.py::test_more", "DeprecationWarning: on its way out"),
    ):
        assert line in text
    _, *parts = re.split(r"^_+ (\w+) _+$", text, flags=re.MULTILINE)
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    assert "what it has printed" in said["test_fails"] and "beside that" not in said["test_fails"]
    assert "what is printed beside that" in said["test_beside"]


def test_what_is_of_the_session_is_made_once_in_a_fork(tmp_path: Path) -> None:
    code, text = pytest_here(tmp_path, "--forks", "2", "test_beside.py", "test_says.py", "test_more.py")
    assert code == 1, text
    made = {path.name.rpartition(" ")[2]: path.read_text() for path in (tmp_path / "made").glob("gw*/made by *")}
    assert list(made.values()) == ["once"] * 2
    assert {path.name.rpartition(" ")[2] for path in (tmp_path / "made").glob("gw*/torn down by *")} == set(made)


def test_after_so_many_failures_no_test_begins(tmp_path: Path) -> None:
    (tmp_path / "test_bad.py").write_text("def test_bad(): assert False\n\ndef test_never(): pass\n")
    for file, passed in (("test_dies.py", ", 1 passed"), ("test_bad.py", "")):
        code, text = pytest_here(tmp_path, "--forks", "1", "--maxfail", "1", file, "test_more.py")
        assert code == 1, text
        assert f" 1 failed{passed} in " in text
        assert "stopping after 1 failures" in text
