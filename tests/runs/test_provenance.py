"""Where rows come from, whether they come out the same again, and what a changed function would change."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from click.testing import CliRunner
from crashing import Project

import shardkit as sk
from shardkit.cli.app import cli

if TYPE_CHECKING:
    from pathlib import Path

# A row a line: `2 a` gives the number 2 and the text a; a number that is left out changes the types of a part.
WORK = """
import random

def features(record):
    for n, line in enumerate(open(record)):
        number, _, text = line.strip().partition(" ")
        row = {"n": n, "text": text, "half": int(number) / 2}
        yield row if text != "wide" else row | {"n": n + 0.5, "more": n}

def unsteady(record):
    for row in features(record):
        yield row | {"half": row["half"] + random.random()}

def other(record):
    for row in features(record):
        if row["text"] == "gone":
            continue
        if row["text"] == "bad":
            raise ValueError("no such text")
        yield row | {"half": row["half"] * 2 if row["n"] % 2 else row["half"], "seen": True}
        if row["text"] == "twice":
            yield row | {"seen": False}
"""
RECORDS = {
    "a": ["1 one"],
    "b": ["2 two", "3 three", "4 gone", "5 five"],
    "c": [],
    "d": ["6 wide", "7 seven", "8 twice", "9 nine"],
    "e": [f"{n} many" for n in range(40)],
    "f": ["1 bad", "2 two"],
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write_records({f"{name}.txt": "".join(f"{line}\n" for line in lines) for name, lines in RECORDS.items()})
    project.write_function(WORK)
    return project


def run_of(project: Project, **fields: Any) -> sk.Run:
    return project.run(**({"widen_ints": True, "chunks": "even", "workers": 1} | fields))


def origins(run: sk.Run, count: int) -> list[tuple[str, int]]:
    return [(found.record, found.record_row) for found in (run.origin(row) for row in range(count))]


def expected(*names: str) -> list[tuple[str, int]]:
    return [(f"{name}.txt", n) for name in names or RECORDS for n in range(len(RECORDS[name]))]


@pytest.mark.parametrize("output", [{"rows_per_file": 7}, {"target_bytes": 2000}], ids=["rows", "bytes"])
@pytest.mark.whole
def test_each_row_leads_to_its_record(project: Project, output: dict[str, Any]) -> None:
    run = run_of(project, workers=2, **output)
    table = run.dataset().to_table()
    found = origins(run, len(table))
    assert sorted(found) == sorted(expected())
    for (record, row), text in zip(found, table["text"].to_pylist(), strict=True):
        assert RECORDS[record.removesuffix(".txt")][row].partition(" ")[2] == text
    last = run.folder.result()["files"][-1]  # type: ignore[index]
    assert run.origin(0, file=last["path"]).file_row == 0
    assert run.origin(len(table) - 1) == run.origin(last["rows"] - 1, file=last["path"])
    with pytest.raises(sk.InputError, match=f"There is no row {len(table)}: the dataset has {len(table)} rows"):
        run.origin(len(table))
    with pytest.raises(sk.InputError, match=r"no file other\.parquet"):
        run.origin(0, file="other.parquet")


def test_after_increments_rows_lead_to_the_runs_that_have_computed_them(project: Project) -> None:
    first = run_of(project, incremental=True, rows_per_file=10, run_id="first")
    project.write_records({"b.txt": "7 new\n", "g.txt": "8 new\n"})
    os.utime(project.data / "b.txt", ns=(1, 1))
    run = run_of(project, incremental=True, rows_per_file=10, run_id="second")
    texts = run.dataset().to_table()["text"].to_pylist()
    rows = [run.origin(row) for row in range(len(texts))]
    computed = {found.record: found.run_id for found in rows}
    assert computed == {"a.txt": "first", "d.txt": "first", "e.txt": "first", "f.txt": "first"} | {
        "b.txt": "second",
        "g.txt": "second",
    }
    assert [found.record for found, text in zip(rows, texts, strict=True) if text == "new"] == ["b.txt", "g.txt"]
    assert sorted(run.verify(sample=20).same) == [f"{name}.txt" for name in "abcdefg"]
    with pytest.raises(sk.RunReplaced):
        first.dataset()


def test_where_the_order_is_another_the_rows_say_it_themselves(project: Project) -> None:
    run = run_of(project, partition_by=["text"])
    with pytest.raises(sk.PipelineError, match=r"output\.partition_by has put the rows in another order") as caught:
        run.origin(3)
    assert "output.origin: true" in caught.value.hint
    table = run_of(project, partition_by=["text"], origin=True, run_id="two").dataset().to_table()
    rows = table.select(["origin_record", "origin_run", "text"]).to_pylist()
    assert {row["origin_run"] for row in rows} == {"two"}
    given = {(f"{name}.txt", line.partition(" ")[2]) for name, lines in RECORDS.items() for line in lines}
    assert {(row["origin_record"], row["text"]) for row in rows} == given


def test_rows_say_where_they_come_from_beside_a_schema_and_in_increments(project: Project) -> None:
    schema = {"n": "float64", "text": "string", "half": "float32", "more": "int64"}
    fields: dict[str, Any] = {"schema": schema, "origin": True, "incremental": True}
    run_of(project, run_id="one", **fields)
    project.write_records({"g.txt": "8 new\n"})
    run = run_of(project, run_id="two", **fields)
    rows = run.dataset().to_table().to_pylist()
    assert [(row["origin_record"], row["origin_run"]) for row in rows if row["text"] == "new"] == [("g.txt", "two")]
    assert {row["origin_run"] for row in rows if row["text"] != "new"} == {"one"}
    assert list(rows[0]) == [*schema, "origin_record", "origin_run"]
    assert run.verify().is_reproducible


def test_a_column_of_that_name_is_refused(project: Project) -> None:
    project.write_function("def features(record):\n    return {'origin_run': 1}\n")
    with pytest.raises(sk.PipelineError, match="column 'origin_run', which output.origin adds"):
        run_of(project, origin=True)


def test_what_is_reproducible_and_what_is_not(project: Project) -> None:
    verified = run_of(project).verify()
    assert verified.is_reproducible
    assert str(verified) == "6 of 6 records give the same rows again."
    run = run_of(project, function="work:unsteady", name="features")
    verified = run.verify(sample=3)
    assert len(verified.same) + len(verified.different) == 3
    assert list(verified.differences.columns) == ["half"]
    assert verified.differences.columns["half"].largest
    assert not verified.is_reproducible
    assert "half: 100.0% of the rows, such as row 0 of" in str(verified)
    done = CliRunner().invoke(cli, ["verify", str(project.out), "--json"])
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert (answer["reproducible"], answer["rows"]["changed"], answer["same"]) == (False, 51, 1)


def test_what_has_changed_since_is_not_compared_and_what_fails_is_told(project: Project) -> None:
    project.write_function(
        WORK + "\nimport os\ndef features(record, whole=features):\n"
        "    if os.environ.get('FAILS') == record.key: raise OSError('none')\n"
        "    return list(whole(record))\n"
    )
    run = run_of(project)
    project.write_records({"b.txt": "9 other\n"})
    (project.data / "a.txt").unlink()
    os.environ["FAILS"] = "e.txt"
    try:
        verified = run.verify()
    finally:
        del os.environ["FAILS"]
    assert sorted(verified.changed) == ["a.txt", "b.txt"]
    assert verified.failed == {"e.txt": "OSError: none"}
    assert sorted(verified.same) == ["c.txt", "d.txt", "f.txt"]


def test_a_function_that_has_changed_cannot_be_verified_and_its_changes_are_shown(project: Project) -> None:
    run_of(project)
    project.write_function(
        WORK.replace("def features", "def before")
        .replace("def other", "def features")
        .replace("for row in features(record)", "for row in before(record)")
    )
    with pytest.raises(sk.PlanMismatch, match="source of work:features has changed") as caught:
        sk.open_run(project.out).verify()
    assert "diff()" in caught.value.hint
    pipeline = sk.Pipeline(function="work:features", source_dir=project.root, input=project.data, output=project.out)
    difference = pipeline.diff()
    assert sorted(difference.different) == ["a.txt", "b.txt", "d.txt", "e.txt"]  # all have a new column
    assert difference.failed == {"f.txt": "ValueError: no such text"}
    assert difference.same == ["c.txt"]
    found = difference.differences
    assert (found.added, found.removed) == (1, 1)
    assert found.new_columns == {"seen": "bool"}
    assert list(found.columns) == ["half"]
    assert found.columns["half"].rows == 2 + 3 + 20
    assert found.columns["half"].largest == pytest.approx(0.5)
    assert not difference.is_empty
    assert difference.all_s > 0
    text = str(difference)
    assert "4 of 6 records would give other rows." in text
    assert "rows     1 added, 1 removed" in text
    assert "f.txt: ValueError: no such text" in text
    before = sorted(path for path in project.out.rglob("*"))
    done = CliRunner().invoke(
        cli,
        [
            *("diff", "--function", "work:features", "--source-dir", str(project.root), "--input", str(project.data)),
            *("--output", str(project.out), "--sample", "2", "--json"),
        ],
    )
    assert done.exit_code == 1
    assert json.loads(done.stdout)["new_columns"] == {"seen": "bool"}
    assert sorted(path for path in project.out.rglob("*")) == before


def test_a_function_that_has_not_changed_changes_nothing(project: Project) -> None:
    run_of(project)
    pipeline = sk.Pipeline(function="work:features", source_dir=project.root, input=project.data, output=project.out)
    assert pipeline.diff(sample=3).is_empty
    with pytest.raises(sk.PipelineError, match="0 records are no sample"):
        pipeline.diff(sample=0)
    with pytest.raises(sk.PipelineError, match=r"records was 'file' in run .* and is 'stem': these are other records"):
        pipeline.replace(records="stem").diff()
    with pytest.raises(sk.RunNotFound, match="holds no dataset"):
        pipeline.replace(output=project.root / "nowhere").diff()


def test_the_command_says_where_a_row_comes_from(project: Project) -> None:
    run_of(project)
    done = CliRunner().invoke(cli, ["origin", str(project.out), "3"])
    assert done.exit_code == 0
    assert "is row 2 of the record b.txt" in done.stdout
    answer = json.loads(CliRunner().invoke(cli, ["origin", str(project.out), "3", "--json"]).stdout)
    assert (answer["record"], answer["record_row"], answer["file_row"]) == ("b.txt", 2, 3)


def test_of_days_each_row_leads_to_the_run_that_made_its_day(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_function(WORK)
    for day in ("2020-01-01", "2020-01-02"):
        (project.data / day).mkdir()
        project.write_records({f"{day}/{i}.txt": f"{i} {day}\n" for i in range(3)})
    fields = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "rows_per_file": 2}
    run_of(project, run_id="first", **fields)
    project.write_records({"2020-01-02/3.txt": "7 late\n"})
    run = run_of(project, run_id="second", **fields)
    rows = run.dataset().to_table(columns=["text", "half"]).to_pylist()
    found = [run.origin(row) for row in range(len(rows))]
    assert [(each.record[:10], each.run_id) for each in found] == [
        *[("2020-01-01", "first")] * 3,
        *[("2020-01-02", "first")] * 3,
        ("2020-01-02", "second"),
    ]
    assert rows[-1]["text"] == "late"
    assert found[-1].record == "2020-01-02/3.txt"
    verified = run.verify()
    assert sorted(verified.same) == sorted(
        path.relative_to(project.data).as_posix() for path in project.data.rglob("*.txt")
    )


def test_of_pieces_of_a_file_and_of_batches(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records({"all.txt": "".join(f"{n} {'x' * (n % 5)}\n" for n in range(300))})
    project.write_function(
        "def features(records):\n    return [[{'line': line.strip()} for line in open(record)] for record in records]\n"
    )
    run = run_of(project, records={"inside": "lines", "target_bytes": 500}, batch=3, origin=True)
    rows = run.dataset().to_table().to_pylist()
    assert len({row["origin_record"] for row in rows}) > 3
    for number in (0, 150, 299):
        found = run.origin(number)
        assert found.record == rows[number]["origin_record"]
        start, _, end = found.record.rpartition(":")[2].partition("-")
        text = (project.data / "all.txt").read_text()
        assert rows[number]["line"] in text[int(start) - 8 if int(start) else 0 : int(end) + 8]
    assert run.verify().is_reproducible


@pytest.mark.whole
def test_input_and_output_in_a_store(project: Project, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"ENDPOINT_URL_S3": s3_url, "ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}
    for name, value in own.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="provenance")
    for path in project.data.iterdir():
        s3.put_object(Bucket="provenance", Key=f"in/{path.name}", Body=path.read_bytes())
    fields: dict[str, Any] = {"source_dir": project.root, "widen_ints": True, "workers": 1, "quiet": True}
    run = sk.run("work:features", "s3://provenance/in/", "s3://provenance/out/", **fields)
    texts = run.dataset().to_table()["text"].to_pylist()
    for row in (0, 3, 20, 50):
        found = run.origin(row)
        assert RECORDS[found.record.removesuffix(".txt")][found.record_row].partition(" ")[2] == texts[row]
    s3.put_object(Bucket="provenance", Key="in/a.txt", Body=b"9 other\n")
    verified = run.verify()
    assert sorted(verified.same) == [f"{name}.txt" for name in "bcdef"]
    assert list(verified.changed) == ["a.txt"]
    s3.delete_object(Bucket="provenance", Key="in/b.txt")
    assert sorted(run.verify().changed) == ["a.txt", "b.txt"]
