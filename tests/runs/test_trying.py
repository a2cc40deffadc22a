"""Records that are run in the foreground: tried before a run, and replayed as a run had them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import in_process
import pytest
from crashing import LINUX

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

WORK = """
import os

def rows(record):
    print("at", record.key, "in", os.getpid())
    text = record.read_text()
    record.count("letters", len(text))
    if text.startswith("bad"):
        raise ValueError(f"bad {record.key}")
    if text.startswith("many"):
        return ({"key": record.key, "n": n} for n in range(20_000))
    if text.startswith("unusable"):
        return 3
    if text.startswith("odd"):
        return {"key": object()}
    if text.startswith("big"):
        held = bytearray(64 << 20)
        return {"key": record.key, "n": len(held)}
    return {"key": record.key, "n": len(text)}
"""
PIPELINE = "name: try\ninput: data/\nfunction: work:rows\noutput: out/\nworkers: 2\nmax_failures: 90%\n"


@pytest.fixture
def here(tmp_path: Path, files: WriteFiles, monkeypatch: pytest.MonkeyPatch) -> Path:
    files({f"{size:02}.txt": "x" * size for size in range(1, 31)})
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pipeline() -> sk.Pipeline:
    return sk.Pipeline.from_yaml("pipeline.yaml")


def write(name: str, text: str) -> None:
    with open(f"data/{name}", "w") as file:
        file.write(text)


def command(*words: str, code: int = 0) -> str:
    return in_process.command(*words, code=code).output


def without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", text)


# ---- try -------------------------------------------------------------------------------------------------------


def test_a_number_of_records_are_of_all_sizes_with_the_largest(here: Path) -> None:
    before = sorted(here.rglob("*"))
    tried = pipeline().try_records(5)
    assert [record.bytes for record in tried.records] == [1, 8, 15, 23, 30]
    assert [record.bytes for record in pipeline().try_records(1).records] == [30]
    assert len(pipeline().try_records(100).records) == 30
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before  # nothing is written


def test_rows_types_costs_and_what_all_would_take(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("40.txt", "big")
    tried = pipeline().try_records(["07.txt", "40.txt"])
    assert tried.rows.to_dict("records") == [{"key": "07.txt", "n": 7}, {"key": "40.txt", "n": 64 << 20}]
    assert tried.types == {"key": "string", "n": "int64"}
    assert tried.counts == {"letters": 10}
    small, big = tried.records
    assert small.peak_memory_bytes < 30 << 20 < 60 << 20 < big.peak_memory_bytes < 90 << 20
    assert "All 31 records of 468 B would take about " in tried.estimate
    assert tried.estimate.endswith("with 2 workers, and give about 31 rows.")
    assert f"at 07.txt in {os.getpid()}" in capsys.readouterr().out  # here, where prints and debuggers work


def test_only_the_first_of_many_rows_are_kept(here: Path) -> None:
    write("many.txt", "many")
    (record,) = pipeline().try_record("many.txt").records
    assert record.rows == 20_000
    assert record.table is not None and len(record.table) == 1000


def test_one_record_raises_what_the_function_raises(here: Path) -> None:
    write("bad.txt", "bad")
    with pytest.raises(ValueError, match=r"bad bad\.txt") as caught:
        pipeline().try_record("bad.txt")
    assert caught.traceback[-1].name == "rows"


@pytest.mark.parametrize("word", ["unusable", "odd"])
def test_unusable_values_have_the_message_that_a_run_has(word: str, here: Path) -> None:
    write("w.txt", word)
    with pytest.raises(TypeError) as caught:
        pipeline().try_record("w.txt")
    run = pipeline().run(quiet=True)
    assert without_addresses(run.quarantine()[0]["message"]) == without_addresses(str(caught.value))


def test_several_records_show_their_errors_beside_the_rows(here: Path) -> None:
    write("bad.txt", "bad")
    write("w.txt", "unusable")
    text = command("try", "pipeline.yaml", "bad.txt", "w.txt", "05.txt", code=1)
    assert "ValueError: bad bad.txt" in text and 'raise ValueError(f"bad {record.key}")' in text
    assert "TypeError: the function returned int" in text
    assert "1 row\n" in text and "key: string\n" in text and "05.txt  5" in text
    assert "counted letters: 5\n" in text and "runs/" not in text


def test_types_that_contradict_each_other_are_named_as_the_merge_names_them(here: Path) -> None:
    (here / "work.py").write_text(
        "def rows(record):\n    return {'v': 1 if record.bytes < 9 else 1.5, 'k': record.key}\n"
    )
    tried = pipeline().try_records(["05.txt", "10.txt"])
    assert tried.conflict == "Column 'v' is int64 in 05.txt and double in 10.txt."
    assert tried.types == {"v": "int64 or double", "k": "string"} and len(tried.rows) == 2
    assert tried.conflict in str(tried) and "int64 or double" in tried._repr_html_()
    with pytest.raises(sk.SchemaConflict, match="Column 'v' is int64 in"):
        pipeline().run(quiet=True)
    widened = pipeline().replace(output={"widen_ints": True}).try_records(["05.txt", "10.txt"])
    assert widened.conflict == "" and widened.types["v"] == "double"


def test_the_command_takes_a_number_or_a_function_without_a_file(here: Path) -> None:
    assert command("try", "pipeline.yaml", "-n", "2").count("1 row\n") == 2
    words = ["--function", "work:rows", "--input", "data/", "--output", "out/"]
    assert "05.txt" in command("try", "05.txt", *words)
    assert "Did you mean 05.txt?" in command("try", "pipeline.yaml", "05.tx", code=2)
    assert "expected 1 or more" in command("try", "pipeline.yaml", "-n", "0", code=2)
    assert "Give keys, or -n." in command("try", "pipeline.yaml", "05.txt", "-n", "2", code=2)


@pytest.mark.whole
@LINUX
@pytest.mark.parametrize("where", ["after an error", "at a breakpoint"])
def test_a_debugger_looks_around_in_the_function(where: str, here: Path) -> None:
    write("bad.txt", "bad")
    options = ["--pdb"]
    if where == "at a breakpoint":
        (here / "work.py").write_text(
            WORK.replace('    record.count("letters"', '    breakpoint()\n    record.count("letters"')
        )
        options = []
    done = subprocess.run(
        [sys.executable, "-m", "shardkit", "try", "pipeline.yaml", "bad.txt", *options],
        input="p 'text is', text\nq\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "('text is', 'bad')" in done.stdout
    assert "Traceback" not in done.stderr


# ---- replay ----------------------------------------------------------------------------------------------------


def test_a_failure_is_replayed_as_failures_says(here: Path) -> None:
    write("a bad.txt", "bad")
    run = pipeline().run(quiet=True)
    last = command("failures", "out").splitlines()[-1]
    assert last == f"Run the first again, here: shardkit replay {here}/out 'a bad.txt' --run-id {run.run_id}"
    text = command("replay", "out", "a bad.txt", code=1)
    assert "ValueError: bad a bad.txt" in text and "With work:rows as the run had it." in text
    with pytest.raises(ValueError, match="bad a bad"):
        sk.open_run("out").replay("a bad.txt")
    assert run.replay("05.txt").rows["n"].tolist() == [5]
    assert "There is no record" in command("replay", "out", "nowhere", code=2)


def test_files_that_have_changed_since_are_named(here: Path) -> None:
    run = pipeline().run(quiet=True)
    write("05.txt", "changed")
    tried = run.replay("05.txt")
    assert tried.notes[-1] == "05.txt has changed since it was listed."
    assert tried.rows["n"].tolist() == [7]


def test_a_function_that_has_changed_since_is_not_taken_for_the_old_one(here: Path) -> None:
    run = pipeline().run(quiet=True)
    (here / "work.py").write_text(WORK.replace("len(text)}", "-1}"))
    with pytest.raises(sk.PlanMismatch, match="kept no copy of it") as caught:
        run.replay("05.txt")
    assert "current=True" in str(caught.value)
    assert "add --current" in command("replay", "out", "05.txt", code=2)
    assert run.replay("05.txt", current=True).rows["n"].tolist() == [-1]


@pytest.mark.whole
def test_jobs_and_functions_sent_by_value_keep_the_function(here: Path) -> None:
    """The code of the jobs has the source as it was; a function from a notebook is in the run folder."""
    run = pipeline().replace(requirements_mode="none").run(sk.Local(root=here / "engine"), quiet=True)
    (here / "work.py").write_text(WORK.replace("len(text)}", "-1}"))
    assert run.replay("05.txt").rows["n"].tolist() == [5]
    assert run.replay("05.txt", current=True).rows["n"].tolist() == [-1]

    space: dict[str, Any] = {"__name__": "__main__"}
    exec(WORK, space)
    sent = sk.run(space["rows"], "data/", "out2/", workers=1, quiet=True)
    assert sent.replay("05.txt").rows["n"].tolist() == [5]


def test_settings_are_those_of_the_run(here: Path) -> None:
    run = pipeline().replace(output={"schema": {"key": "string", "n": "float64"}}).run(quiet=True)
    assert run.replay("05.txt").types == {"key": "string", "n": "double"}
