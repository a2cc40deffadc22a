"""A run that gives no row fails, and leaves the dataset as it was."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from crashing import Project, rows_of

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.runs.alone import preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

GOOD = "def features(record):\n    return {'key': record.key}\n"
FORGETFUL = "def features(record):\n    {'key': record.key}\n"
BROKEN = "def features(record):\n    raise ValueError(record.key)\n"
SOME = "def features(record):\n    return {'key': record.key} if record.key == 'r001.txt' else None\n"
BY_DAY = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "name": "feed"}


def no_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from (batch.slice(0, 0) for batch in batches)


def begun(root: Path) -> Project:
    """Three records, and a function that gives a row for each."""
    made = Project(root)
    made.write_records(["a", "b", "c"])
    made.write_function(GOOD)
    return made


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return begun(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of them."""
    made = begun(tmp_path_factory.mktemp("good"))
    made.run(workers=1)
    return made.out


@pytest.mark.parametrize(
    ("source", "fields", "says"),
    [
        (FORGETFUL, {}, "the function gave no row of 3 records.*what was there stays.*end with a return"),
        (FORGETFUL, {"incremental": True}, "gave no row of 3 records"),
        (GOOD, {"combine": no_rows}, "no_rows left no row of 3 records"),
        (BROKEN, {"max_failures": "100%"}, "all 3 records are quarantined.*r000.txt: ValueError: r000.txt"),
        (BROKEN, {"max_failures": "100%", "allow_empty": True}, "all 3 records are quarantined"),
    ],
)
def test_a_good_dataset_is_not_replaced_by_nothing(
    project: Project, good: Path, source: str, fields: dict[str, Any], says: str
) -> None:
    shutil.copytree(good, project.out)
    before = project.data_files()
    project.write_function(source)
    with pytest.raises(sk.NothingMade, match=f"(?s){says}") as caught:
        project.run(workers=1, **fields)
    assert project.data_files() == before
    assert caught.value.run is not None
    summary = caught.value.run.summary()
    assert (summary.status, summary.reason) == ("failed", caught.value.message)


def test_an_empty_dataset_is_made_where_that_is_meant(project: Project) -> None:
    project.write_function(FORGETFUL)
    with pytest.raises(sk.NothingMade, match="allow_empty: true") as caught:
        project.run(workers=1)
    assert caught.value.run is not None
    done = caught.value.run.resume(quiet=True, allow_empty=True)  # as the error says
    assert (done.summary().status, rows_of(done)) == ("done", [])
    assert project.run(workers=1, allow_empty=True).summary().rows == 0


def test_records_without_rows_beside_others_are_done(project: Project) -> None:
    project.write_function(SOME)
    run = project.run(workers=1)
    assert (run.summary().records["done"], rows_of(run)) == (3, [{"key": "r001.txt"}])


def test_a_day_without_rows_beside_others_is_done(project: Project) -> None:
    project.write_records({"2020-01-01.txt": "", "2020-01-02.txt": ""})
    project.write_function("def features(record):\n    return [{'v': 1}] if '02' in record.key[8:] else []\n")
    run = project.run(workers=1, pattern="2020*", **BY_DAY)
    assert [row["day_partition"] for row in rows_of(run)] == ["2020-01-02"]
    project.write_function("def features(record):\n    [{'v': 1}]\n")
    before = project.data_files()
    pipeline = sk.Pipeline(
        function="work:features",
        source_dir=project.root,
        input={"uri": project.data, "pattern": "2020*"},
        output=project.out,
        **BY_DAY,
    )
    with pytest.raises(sk.NothingMade, match="gave no row of 1 record"):  # of one day too, if the function is new
        pipeline.run(days=["2020-01-02"], quiet=True)
    assert project.data_files() == before


def test_the_passes_alone(project: Project) -> None:
    preprocess("work:features", project.data, project.root / "parts", source_dir=project.root, quiet=True)
    project.write_function(FORGETFUL)
    with pytest.raises(sk.NothingMade):
        preprocess("work:features", project.data, project.root / "parts", source_dir=project.root, quiet=True)
    given = {"source_dir": project.root, "quiet": True, "allow_empty": True}
    preprocess("work:features", project.data, project.root / "empty", **given)
    both = ["pass2", "--input", str(project.root / "empty"), "--output", str(project.out), "--quiet", "--json"]
    refused = CliRunner().invoke(cli, both)
    assert (refused.exit_code, json.loads(refused.stdout)["status"]) == (1, "failed")
    assert "gave no row" in json.loads(refused.stdout)["reason"]
    assert "add --allow-empty" in refused.stderr
    assert CliRunner().invoke(cli, [*both, "--allow-empty"]).exit_code == 0


@pytest.mark.whole
def test_on_an_engine(project: Project) -> None:
    project.write_function(FORGETFUL)
    with pytest.raises(sk.NothingMade, match="gave no row of 3 records") as caught:
        project.run(workers=1, engine="local")
    assert caught.value.run is not None
    done = caught.value.run.resume(quiet=True, allow_empty=True)
    assert (done.summary().status, done.summary().rows) == ("done", 0)
