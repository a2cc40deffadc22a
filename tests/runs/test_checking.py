"""`shardkit check`: a dataset compared with the notes on it and with its ledgers."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from emulators import s3_client
from test_kept_rows import BY_DAY, Project, edit

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.dataset.merge import Merge
from shardkit.dataset.writer import Layout
from shardkit.runs.alone import combine_folders, preprocess

if TYPE_CHECKING:
    from pathlib import Path

WORK = """
def rows(record):
    if record.path.stem == "x":
        raise ValueError("x")
    return {"key": record.path.stem, "group": "a"}

def half(batches):
    for batch in batches:
        yield batch.slice(0, len(batch) // 2)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days; of the first a record has gone since, so that the rows of others in its part are taken over."""
    project = Project(tmp_path_factory.mktemp("check"), **BY_DAY, max_failures="100%")
    (project.root / "kept_work.py").write_text(WORK)
    project.put("abcdex")
    project.put("fg", "2020-01-02")
    output = {"format": "csv", "rows_per_file": 2}
    project.run(output=output, run_id="first")
    project.remove("b")
    project.run(output=output, run_id="second")
    assert project.keys() == "acdefg"
    return project.out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def check(out: Path, *options: str, code: int = 1) -> str:
    done = CliRunner().invoke(cli, ["check", str(out), *options])
    assert done.exit_code == code, done.output
    return done.output


def a_file(out: Path, day: str = "2020-01-01") -> Path:
    return min(out.glob(f"day_partition={day}/*"))


def test_all_is_right(out: Path) -> None:
    assert check(out, code=0) == f"{out} is as it was written: 3 files, 6 rows of 7 records.\n"
    told = json.loads(check(out, "--json", code=0))
    assert told["ok"] is True and told["faults"] == [] and told["rows"] == 6
    assert sk.check(out).ok


def test_a_file_is_gone(out: Path) -> None:
    a_file(out).unlink()
    told = check(out)
    assert "is gone. Make it again: shardkit run PIPELINE.yaml --date 2020-01-01 --set incremental=false" in told
    assert "is gone. Make it again: pipeline.replace(incremental=False).run(days=['2020-01-01'])" in str(sk.check(out))
    assert told.endswith("1 fault in " + str(out) + " (3 files, 6 rows of 7 records).\n")
    assert [fault["what"] for fault in json.loads(check(out, "--json"))["faults"]] == [told.partition(". Make")[0]]


def test_a_file_has_another_size(out: Path) -> None:
    a_file(out).write_text('"key"\n')
    assert "has 6 bytes, and" in check(out)


def test_a_file_has_other_rows(out: Path) -> None:
    path = a_file(out)
    path.write_bytes(path.read_bytes().rstrip(b"\n").replace(b"\n", b" ", 2) + b"\n")
    assert "rows, and 2 are noted" in check(out)


@pytest.mark.parametrize("name", ["part-00000-first.csv", "day_partition=2020-01-01/part-00000-first.csv"])
def test_a_file_of_an_earlier_run_beside_them(out: Path, name: str) -> None:
    shutil.copy(a_file(out), out / name)
    assert f"{name} is no file of the dataset" in check(out)


def test_what_is_not_of_a_dataset_is_nobodys_business(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    (out / "_temporary").mkdir()
    (out / "_temporary" / "part-00000-x.csv").write_text("")
    assert check(out, code=0)


def test_the_numbers_of_the_result_are_others(out: Path) -> None:
    edit(out / "_shardkit" / "current.json", lambda c: c["records"].update(done=5))
    assert "Of run second the dataset notes" in check(out)
    edit(out / "_shardkit" / "current.json", lambda c: c["partitions"]["2020-01-01"].update(quarantined=2))
    assert "2 records are noted to be in quarantine, and 1 are" in check(out)
    edit(out / "_shardkit" / "current.json", lambda c: c.update(rows=7))
    assert "has 6 rows in its files, and 7 are noted" in check(out)


def test_rows_are_noted_that_are_in_no_file(out: Path) -> None:
    noted = out / "_shardkit" / "runs" / "second" / "contents.json"

    def shift(content: Any) -> None:
        for pieces in content["files"].values():
            pieces[0][1] = [[0, 2]]

    edit(noted, shift)
    assert "files of 2020-01-01 hold the rows" in check(out)


def test_rows_of_a_record_that_has_gone_count(out: Path) -> None:
    def shift(content: Any) -> None:
        for part in (part for marker in content["markers"] for part in marker["parts"]):
            part["spans"] = [[0, part["rows"]]]

    edit(out / "_shardkit" / "runs" / "second" / "taken_over.json", shift)
    assert "has rows of records that do not count, or lacks some of those that do" in check(out)


def test_a_marker_is_gone(out: Path) -> None:
    shutil.rmtree(out / "_shardkit" / "runs" / "first" / "markers")
    told = check(out)
    assert "Of run first 2 records are neither done nor in quarantine" in told and "2020-01-02 has 2 rows" in told


def test_of_a_run_that_is_gone_the_files_alone_are_compared(out: Path) -> None:
    shutil.rmtree(out / "_shardkit" / "runs" / "first" / "markers")
    (out / "_shardkit" / "runs" / "first" / "plan.json").unlink()
    told = check(out, code=0)
    assert "Not compared with the records: the folder of run first is gone, which has made 2020-01-02.\n" in told
    a_file(out, "2020-01-02").unlink()
    assert "is gone" in check(out)


def test_what_an_earlier_version_has_not_noted_is_not_compared(out: Path) -> None:
    def forget(content: Any) -> None:
        for partition in content["partitions"].values():
            del partition["rows"]

    edit(out / "_shardkit" / "current.json", forget)
    assert check(out, code=0).count("\n") == 1  # because the notes say which rows of which parts they are
    for path in (out / "_shardkit" / "runs").glob("*/contents.json"):
        path.unlink()
    assert "an earlier version has not noted how many rows" in check(out, code=0)


def test_a_retry_that_has_not_ended_is_no_fault_of_the_dataset(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made.parent, tmp_path / "all")
    out = tmp_path / "all" / "out"
    edit(out / "_shardkit" / "runs" / "second" / "plan.json", lambda c: c["pipeline"].update(source_dir=str(tmp_path)))
    edit(
        out / "_shardkit" / "runs" / "second" / "plan.json",
        lambda c: c["pipeline"]["input"].update(uri=str(tmp_path / "all" / "data")),
    )
    edit(out / "_shardkit" / "runs" / "second" / "plan.json", lambda c: c["pipeline"]["output"].update(uri=str(out)))
    (tmp_path / "kept_work.py").write_text(WORK.replace('"x"', '"y"') + "\ndef broken(batches):\n    raise OSError\n")
    with pytest.raises(sk.CombineError):
        sk.open_run(out, "second").retry(quiet=True, combine="kept_work:broken")
    assert "run second is gone on with, and failed, since it has made 2020-01-01" in check(out, code=0)


def test_there_is_no_dataset(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["check", str(tmp_path)])
    assert done.exit_code == 2 and "holds no dataset" in done.output


@pytest.mark.whole
@pytest.mark.parametrize(
    ("output", "combine"),
    [
        ({}, None),
        ({"format": "arrow"}, "kept_work:half"),
        ({"format": "jsonl", "target_bytes": 100}, None),
        ({"partition_by": ["group"]}, None),
        ({"partition_by": ["group"]}, "kept_work:half"),
    ],
    ids=str,
)
def test_datasets_of_all_kinds_are_right(tmp_path: Path, output: dict[str, Any], combine: str | None) -> None:
    project = Project(tmp_path, max_failures="100%")
    (project.root / "kept_work.py").write_text(WORK)
    project.put("abcdex")
    project.run(output=output, combine=combine)
    checked = sk.check(project.out)
    assert checked.ok and not checked.not_compared and checked.rows == (5 if combine is None else 2)


def test_the_passes_alone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put("abc")
    preprocess("kept_work:rows", project.data, tmp_path / "parts", source_dir=tmp_path, quiet=True, workers=1)
    assert sk.check(tmp_path / "parts").ok
    done = CliRunner().invoke(cli, ["pass2", "--input", str(tmp_path / "parts"), "--output", str(project.out), "-q"])
    assert done.exit_code == 0, done.output
    assert sk.check(project.out).ok and sk.check(project.out).rows == 3
    part = next((tmp_path / "parts").glob("part-*"))
    twin = part.with_name(part.name.replace("part-00000", "part-00001"))
    for harm, why in (
        (lambda: shutil.copy(part, twin), "is not a file of the dataset there"),
        (part.unlink, "is gone"),
    ):
        harm()
        with pytest.raises(sk.InputError, match=why):
            combine_folders([tmp_path / "parts"], project.out, Merge(Layout("parquet", 100, None, ())), quiet=True)
        twin.unlink(missing_ok=True)
    assert sk.check(project.out).rows == 3


@pytest.mark.whole
@pytest.mark.parametrize("format", ["parquet", "csv"])  # one that is read by its footer, one from its beginning
def test_in_a_bucket(format: str, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": s3_url}
    for variable, value in known.items():
        monkeypatch.setenv(f"AWS_{variable}", value)
    s3, bucket = s3_client(s3_url, "us-east-1"), f"checking-{format}-{os.getpid()}"
    s3.create_bucket(Bucket=bucket)
    project, output = Project(tmp_path, **BY_DAY), {"uri": f"s3://{bucket}/out", "format": format, "rows_per_file": 4}
    project.put("abcde")
    project.run(output=output)
    project.remove("b")
    project.run(output=output)
    project.put("f")
    run = project.run(output=output)
    assert sorted(run.dataset().to_table()["key"].to_pylist()) == list("acdef")
    assert sk.check(run.output_uri).ok
    result = run.folder.result()
    assert result is not None
    s3.delete_object(Bucket=bucket, Key=f"out/{result['files'][0]['path']}")
    assert next(fault.what.rpartition("/")[2] for fault in sk.check(run.output_uri).faults).endswith("is gone")
