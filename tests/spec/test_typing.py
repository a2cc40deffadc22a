"""A user's code passes a strict type checker, and mistakes in it do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "typing_example.py"
ROOT = EXAMPLE.parents[1]


MISTAKES = """
import shardkit as sk

def rows(record: sk.Record) -> dict[str, int]:
    return {"size": record.size}

sk.run(rows, 5, "out/")
sk.run(rows, "data/", "out/", quiet="yes")
run: int = sk.open_run("out/")
text: str = sk.open_run("out/").failures()
sk.nonsense
"""

# Of shardkit, only what its functions take and return is looked at: whether its own code is sound, `scripts/check` finds.
# Other libraries are left out, but for the type hints of pandas; those include NumPy, and most of what is in them.
SETTINGS = """
[mypy]
strict = true
follow_imports = skip

[mypy-shardkit.*]
follow_imports = silent

[mypy-matplotlib.*,numpy.*]
follow_imports = skip
follow_imports_for_stubs = true
"""


@pytest.mark.whole
def test_the_example_is_typed_and_mistakes_are_found(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    mistakes = tmp_path / "mistakes.py"
    mistakes.write_text(MISTAKES)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    options = ["--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path / "cache"]
    command = [sys.executable, "-m", "mypy", *options, EXAMPLE, mistakes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    errors = [line.split(": error:")[0] for line in done.stdout.splitlines() if ": error:" in line]
    assert {int(place.rpartition(":")[2]) for place in errors if "mistakes.py" in place} == {5, 7, 8, 9, 10, 11}, (
        done.stdout
    )
    assert not [place for place in errors if "mistakes.py" not in place], done.stdout
