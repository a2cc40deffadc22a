"""shardkit in a notebook: functions defined in a cell, the live display, the quarantine as a DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from notebooks import cell, needs_notebooks, notebook, run

if TYPE_CHECKING:
    from pathlib import Path

CELLS = [
    """
import shardkit as sk

BAD = {"3.txt"}                          # the function refers to a global of the notebook

def lines(record):
    if record.key in BAD:
        raise ValueError("cannot read this one")
    with open(record) as file:
        return {"key": record.key, "n": len(file.read())}
""",
    'run = sk.run(lines, "data", "out", max_failures=1, workers=2)\nrun',
    "run.failures()[['key', 'error', 'message']]",
    """
def lines(record):                       # mended
    with open(record) as file:
        return {"key": record.key, "n": len(file.read())}

run.retry(function=lines)
print(run.summary())
run.dataset().to_table().num_rows
""",
]


def _outputs(cell: Any, kind: str) -> list[Any]:
    return [out for out in cell["outputs"] if out["output_type"] == kind]


@needs_notebooks
@pytest.mark.slow
def test_a_notebook_runs_a_function_of_its_own(tmp_path: Path) -> None:
    """The cell's function travels by value, the bar is drawn in place, and a mended cell is what retry takes."""
    (tmp_path / "data").mkdir()
    for i in range(20):
        (tmp_path / "data" / f"{i}.txt").write_text("x" * i)
    book = run(notebook(cell(source, f"cell-{at}") for at, source in enumerate(CELLS)), tmp_path, new=True)
    _, ran, failed, retried = book.cells
    bars = [out["data"]["text/html"] for out in _outputs(ran, "display_data")]
    assert any('<progress value="20" max="20">' in bar and "1 quarantined" in bar for bar in bars)
    assert _outputs(ran, "execute_result")[0]["data"]["text/plain"].startswith("Run('")
    table = _outputs(failed, "execute_result")[0]["data"]["text/plain"]
    assert "3.txt" in table and "cannot read this one" in table
    assert "20 done + 0 quarantined" in "".join(out["text"] for out in _outputs(retried, "stream"))
    assert _outputs(retried, "execute_result")[0]["data"]["text/plain"] == "20"
