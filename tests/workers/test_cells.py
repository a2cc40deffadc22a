"""Functions that travel by value: the warnings about them, and what they print and log where they run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from crashing import Project

from shardkit.cli.app import cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.whole
CODE = '''
import linecache, sys, warnings
import shardkit as sk
from shardkit import carried
carried.LARGE_BYTES = 5_000_000

def cell(number, source):
    """As a notebook runs a cell: of a file that is not there, with its lines where tracebacks look for them."""
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), globals())

cell(1, """
import logging

def check(text):
    if text == "bad": raise ValueError("this line")
""")
cell(2, """
def rows(record):
    text = open(record).read()
    logging.getLogger("mine").warning("seen %s", text)
    check(text)
    if text == "stop": breakpoint()
    return {"key": record.key, "size": len(TABLE)}
""")
TABLE = bytes(6_000_000)
sk.run(rows, sys.argv[1], sys.argv[2], max_failures=2, workers=1, quiet=True)
'''


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, dict[str, str]]]:
    """The output of a run of a cell's function, and its quarantine."""
    project = Project(tmp_path_factory.mktemp("cells"))
    project.write_records(["bad", "stop", "good"])
    done = project.start(project.data, project.out, code=CODE).wait()
    assert done.code == 0, done.stderr
    failures = CliRunner().invoke(cli, ["failures", str(project.out), "--json"]).stdout.splitlines()
    return done.stderr, {entry["key"]: entry for entry in map(json.loads, failures)}


@pytest.mark.whole
def test_a_traceback_shows_the_lines_of_each_cell(told: tuple[str, dict[str, dict[str, str]]]) -> None:
    traceback = told[1]["r000.txt"]["traceback"]
    assert 'File "/tmp/ipykernel_1/2.py", line 5, in rows\n    check(text)\n' in traceback
    assert (
        'File "/tmp/ipykernel_1/1.py", line 5, in check\n    if text == "bad": raise ValueError("this line")\n'
        in traceback
    )


def test_a_breakpoint_says_how_to_debug(told: tuple[str, dict[str, dict[str, str]]]) -> None:
    assert "shardkit try pipeline.yaml KEY" in told[1]["r001.txt"]["message"]


def test_what_is_logged_is_shown_with_its_record(told: tuple[str, dict[str, dict[str, str]]]) -> None:
    assert "WARNING mine: seen good [r002.txt]\n" in told[0]


def test_a_large_variable_is_named(told: tuple[str, dict[str, dict[str, str]]]) -> None:
    assert "most of it 'TABLE' (6 MB)" in told[0]


# A record is large from fewer rows on here, so that it takes less time.
LARGE = """
from shardkit.workers import large_record
large_record.LARGE_ROWS, large_record.PIECE_ROWS = 1 << 15, 1 << 13

def features(record):
    text = open(record).read()
    for i in range(35_000):
        yield {"i": i, "v": i if i < 34_000 else {"floats": 0.5, "texts": "x"}.get(text, i)}
        if i == 34_800 and text == "fails": raise ValueError("late")
"""


@pytest.mark.whole
def test_a_large_record_is_what_it_would_be_as_a_whole(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records({"a": "fails", "b": "floats", "c": "texts", "d": "fails"})
    project.write_function(LARGE)
    run = project.run(workers=1, chunks="even", max_failures=3)
    assert [(entry["key"], entry["message"]) for entry in run.quarantine()] == [
        ("a", "late"),
        ("c", "column 'v' cannot be stored: it mixes int and str"),
        ("d", "late"),
    ]
    table = run.dataset().to_table()
    assert table["i"].to_pylist() == [*range(35_000)]
    assert str(table.schema.field("v").type) == "double"
    (marker,) = map(json.loads, (path.read_text() for path in project.markers()))
    assert len(list((project.run_folder() / "parts").rglob("*.parquet"))) == len(marker["parts"])
