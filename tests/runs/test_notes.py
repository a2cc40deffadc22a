"""What a function counts and logs is added up over the records that are done, exactly once whatever crashes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from crashing import LINUX

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.notes import LINE_CHARACTERS, LINES, NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

# The records say what goes wrong after they have counted and logged.
WORK = """
import os
from pathlib import Path
HERE = Path(__file__).parent

def rows(record):
    word = record.read_text()
    record.count("calls")
    record.count("bytes", record.bytes)
    record.count("share", 0.25)
    record.log(f"a {word} record")
    if word == "bad" and not (HERE / "mended").exists():
        raise ValueError("bad")
    if word == "kill" or (word == "once" and not (HERE / "killed").exists()):
        (HERE / "killed").touch()
        os._exit(9)
    return {"key": object() if word == "unusable" else record.key}
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path / "out"


def run_on(data: Path, out: Path, **fields: Any) -> sk.Run:
    fields = {"workers": 2, "chunks": "even", "max_failures": 9} | fields
    return sk.run("work:rows", data, out, source_dir=out.parent, quiet=True, **fields)


@pytest.mark.whole
@LINUX
def test_sums_and_lines_are_of_records_that_are_done_exactly_once(out: Path, files: WriteFiles) -> None:
    words = {"a": "good", "b": "bad", "c": "once", "d": "good", "e": "kill", "f": "unusable", "g": "good"}
    run = run_on(files(words), out)
    done = "acdg"
    size = sum(len(words[key]) for key in done)
    summary = run.summary()
    assert summary.counts == {"bytes": size, "calls": 4, "share": 1.0}
    assert summary.log == [{"key": key, "text": f"a {words[key]} record"} for key in done]
    assert summary.logged == 4

    status = json.loads(CliRunner().invoke(cli, ["status", str(out), "--json"]).output)
    assert (status["counts"], status["log"], status["logged"]) == (summary.counts, summary.log, 4)
    text = CliRunner().invoke(cli, ["status", str(out)]).output
    assert (
        "  counted  calls: 4\n" in text and "  counted  share: 1\n" in text and "  logged   a: a good record\n" in text
    )

    (out.parent / "mended").touch()
    summary = run.retry(quiet=True).summary()  # the one record that can be mended counts from now on
    assert summary.counts["calls"] == 5 and summary.logged == 5


def test_an_interrupted_run_counts_what_is_committed(out: Path, files: WriteFiles) -> None:
    run = run_on(files({f"{i}": "good" for i in range(8)}), out)
    marker = next(run.path.glob("markers/*/*.json"))
    text = marker.read_text()
    marker.unlink()
    (run.path / "result.json").unlink()
    assert run.summary().counts["calls"] == 4
    # A late duplicate of the chunk, as another attempt at it may leave, changes nothing.
    assert run.resume(quiet=True).summary().counts["calls"] == 8
    marker.write_text(text)
    assert run.summary().counts["calls"] == 8 and run.summary().logged == 8


def test_what_is_taken_over_is_counted_where_it_was_computed(out: Path, files: WriteFiles) -> None:
    data = files({"a": "good"})
    assert run_on(data, out, incremental=True).summary().counts["calls"] == 1
    files({"b": "good"})
    second = run_on(data, out, incremental=True).summary()
    assert second.records["skipped"] == 1 and second.counts["calls"] == 1


def test_a_record_counts_outside_a_run_too(tmp_path: Path) -> None:
    record = sk.Record("a", ("a",), root=str(tmp_path))
    record.count("frames", 3)
    record.count("frames")
    record.log("one\ntwo")
    assert record.notes is not None
    assert (record.notes.sums, record.notes.lines) == ({"frames": 4}, ["one", "two"])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda record: record.count(3), "a name, which is a text, not int"),
        (lambda record: record.count(""), "no name of 1 to 100"),
        (lambda record: record.count("x" * 101), "no name of 1 to 100"),
        (lambda record: record.count("a\x1b[2J"), "printable"),
        (lambda record: record.count("frames", "3"), "takes a number, not str"),
        (lambda record: record.count("frames", float("nan")), "finite"),
        (lambda record: record.log(3), "takes a text, not int"),
        (lambda record: [record.count(f"name {i}") for i in range(NAMES + 1)], "Return what differs"),
    ],
)
def test_what_cannot_be_noted_is_refused(call: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        call(sk.Record("a", ("a",)))


def test_a_name_for_each_record_is_refused_whichever_record_comes_first(out: Path, files: WriteFiles) -> None:
    (out.parent / "work.py").write_text(
        "def rows(record):\n    record.count(record.key)\n    return {'key': record.key}\n"
    )
    with pytest.raises(sk.BudgetExceeded, match="one name too many"):
        run_on(files([f"{i:03}" for i in range(NAMES + 20)]), out, workers=1)
    assert len(sk.open_run(out).summary().counts) == NAMES


def test_lines_are_kept_within_bounds_and_made_safe(out: Path, files: WriteFiles) -> None:
    (out.parent / "work.py").write_text(
        "def rows(record):\n"
        "    record.log('\\x1b[31m' + 'x' * 1000)\n"
        "    record.log('aws_secret_access_key=wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY')\n"
        "    for i in range(98):\n"
        "        record.log(f'line {i}')\n"
        "    return {'key': record.key}\n"
    )
    run = run_on(files([f"{i}" for i in range(30)]), out, workers=1)
    summary = run.summary()
    assert summary.logged == 3000
    assert {line["key"] for line in summary.log} == {"0"}  # of the only chunk, as many as of one record
    assert len(summary.log) == LINES
    first = summary.log[0]["text"]
    assert first.startswith("\\x1b[31mxxx") and first.endswith("x…") and len(first) == LINE_CHARACTERS
    assert "EXAMPLEKEY" not in summary.log[1]["text"] and "EXAMPLEKEY" not in str(summary)
    assert "  logged   ... and 2,995 more lines" in str(summary)
