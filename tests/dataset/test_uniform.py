"""All files of a dataset of days have one schema, whichever run wrote them, because readers take any file's for all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import duckdb
import pandas as pd
import pyarrow.dataset as pads
import pytest
from test_increments import BY_DAY

import shardkit as sk
from shardkit.dataset.current import current_result
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

WORK = """
import json
def rows(record):
    return [json.loads(line) for line in open(record)]

def marked(batches):
    for batch in batches:
        yield batch.append_column("of", batch.column("id"))
"""


class Days:
    """An input of JSON Lines, a file a day, and the dataset of it."""

    def __init__(self, root: Path, **fields: Any) -> None:
        self.root, self.data, self.out = root, root / "in", root / "out"
        self.fields = {"shards": BY_DAY, "workers": 1, "source_dir": root, "function": "day_work:rows"} | fields
        self.data.mkdir()
        (root / "day_work.py").write_text(WORK)

    def put(self, day: int, *rows: dict[str, Any]) -> None:
        (self.data / f"2024-01-{day:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, **fields: Any) -> sk.Run:
        pipeline = sk.Pipeline(input=self.data, **({"output": self.out} | self.fields | fields))
        return pipeline.run(days=fields.pop("days", None), quiet=True)

    def files(self) -> dict[str, int]:
        return {str(p.relative_to(self.out)): p.stat().st_mtime_ns for p in self.out.glob("day_partition=*/*")}

    def result(self) -> dict[str, Any]:
        result = current_result(LocalFolder(self.out))
        assert result is not None
        return result

    def rows(self, *columns: str) -> list[tuple[Any, ...]]:
        table = sk.open_run(self.out).dataset().to_table()
        assert {file["path"] for file in self.result()["files"]} == set(self.files())
        return sorted(zip(*(table[name].to_pylist() for name in columns), strict=True))


@pytest.fixture
def days(tmp_path: Path) -> Days:
    """Two days of ids and numbers; a third, in the input, has decimals and a new column."""
    days = Days(tmp_path)
    days.put(1, {"id": 1, "n": 5}, {"id": 2, "n": 6})
    days.put(2, {"id": 3, "n": 7})
    days.run()
    days.put(3, {"id": 4, "n": 5.5, "rate": 0.25})
    return days


def test_every_reader_sees_a_column_that_came_later_and_a_type_that_grew(days: Days) -> None:
    days.run(output={"uri": days.out, "widen_ints": True})
    expected = [(1, 5.0, None), (2, 6.0, None), (3, 7.0, None), (4, 5.5, 0.25)]
    assert days.rows("id", "n", "rate") == expected
    for file in sorted(days.out.glob("*/*.parquet")):
        schema = pads.dataset(file).schema
        assert {field.name: str(field.type) for field in schema} == {"id": "int64", "n": "double", "rate": "double"}
    frame = pd.read_parquet(days.out).sort_values("id")
    assert frame["rate"].isna().tolist() == [True, True, True, False]
    assert pads.dataset(days.out, partitioning="hive").to_table()["n"].to_pylist() == [5.0, 6.0, 7.0, 5.5]
    told = duckdb.sql(f"SELECT id, n, rate FROM '{days.out}/*/*.parquet' ORDER BY id").fetchall()
    assert told == expected


def test_where_no_column_is_new_no_other_file_is_touched(days: Days) -> None:
    before = days.files()
    days.put(3, {"id": 4, "n": 8})
    days.run()
    assert before.items() <= days.files().items()


def test_a_file_that_was_written_anew_is_kept_when_its_day_is_made_again(tmp_path: Path) -> None:
    days = Days(tmp_path, output={"uri": tmp_path / "out", "rows_per_file": 2})
    (days.data / "2024-01-01").mkdir()
    for i in range(4):
        (days.data / "2024-01-01" / f"{i}.jsonl").write_text(json.dumps({"id": i}) + "\n")
    days.run()
    days.put(2, {"id": 9, "extra": "x"})
    days.run()
    full = days.files()
    (days.data / "2024-01-01" / "4.jsonl").write_text('{"id": 4}\n')
    days.run()
    assert full.items() <= days.files().items()
    assert days.rows("id", "extra") == [(0, None), (1, None), (2, None), (3, None), (4, None), (9, "x")]
    sk.clean(days.out)
    (days.data / "2024-01-01" / "5.jsonl").write_text('{"id": 5}\n')
    days.run()
    assert [row[0] for row in days.rows("id")] == [0, 1, 2, 3, 4, 5, 9]


@pytest.mark.parametrize("format", ["csv", "jsonl", "arrow"])
def test_other_formats(tmp_path: Path, format: str) -> None:
    days = Days(tmp_path, output={"uri": tmp_path / "out", "format": format})
    days.put(1, {"id": 1, "text": ""}, {"id": 2, "text": None}, {"id": 3, "text": "007"})
    days.run()
    days.put(2, {"id": 4, "text": "x", "more": True})
    days.run()
    assert days.rows("id", "text", "more") == [(1, "", None), (2, None, None), (3, "007", None), (4, "x", True)]
    if format == "csv":
        assert {file.read_text().partition("\n")[0] for file in days.out.glob("*/*.csv")} == {'"id","text","more"'}


def test_partitions_below_the_days(tmp_path: Path) -> None:
    days = Days(tmp_path, output={"uri": tmp_path / "out", "partition_by": ["kind"]})
    days.put(1, {"id": 1, "kind": "a"}, {"id": 2, "kind": "b"})
    days.run()
    days.put(2, {"id": 3, "kind": "a", "more": 1.5})
    days.run()
    table = pads.dataset(days.out, partitioning="hive").to_table()
    rows = sorted(zip(table["id"].to_pylist(), table["kind"].to_pylist(), table["more"].to_pylist(), strict=True))
    assert rows == [(1, "a", None), (2, "b", None), (3, "a", 1.5)]


def test_a_combine_that_gives_other_columns_than_before(tmp_path: Path) -> None:
    days = Days(tmp_path, combine="day_work:marked")
    days.put(1, {"id": 1, "old": 1})
    days.run()
    days.put(2, {"id": 2, "new": 2})
    days.run()
    expected = [(1, 1, None, 1), (2, None, 2, 2)]
    frame = pd.read_parquet(days.out).sort_values("id")
    assert sorted(frame.columns) == ["day_partition", "id", "new", "of", "old"]
    assert len(frame) == 2
    told = duckdb.sql(f"SELECT id, old, new, of FROM '{days.out}/*/*.parquet' ORDER BY id").fetchall()
    assert told == expected


def test_a_dataset_that_was_made_without_that_promise_gets_it(days: Days) -> None:
    path = days.out / "_shardkit" / "current.json"
    days.put(3, {"id": 4, "n": 8, "rate": 0.25})
    days.run()
    result = json.loads(path.read_text())
    for file in result["files"]:
        if file["partition"] != "2024-01-03":  # as a version without the promise left them
            table = pads.dataset(days.out / file["path"]).to_table().drop_columns(["rate"])
            pads_write(table, days.out / file["path"])
            file["bytes"] = (days.out / file["path"]).stat().st_size
    del result["uniform"]
    path.write_text(json.dumps(result))
    days.put(4, {"id": 5, "n": 9, "rate": None})
    days.run()
    assert {tuple(pads.dataset(file).schema.names) for file in days.out.glob("*/*.parquet")} == {("id", "n", "rate")}
    assert days.rows("id", "rate") == [(1, None), (2, None), (3, None), (4, 0.25), (5, None)]


def pads_write(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def test_types_with_nothing_in_common_leave_the_dataset_as_it_was(tmp_path: Path) -> None:
    days = Days(tmp_path, combine="day_work:marked")
    days.put(1, {"id": 1, "v": 1})
    days.run()
    before = days.files()
    days.put(2, {"id": 2, "v": "text"})
    with pytest.raises(
        sk.SchemaConflict, match=r"Column 'v' is int64 in 2024-01-01 \(which stays\) and .*string in the days"
    ):
        days.run()
    assert days.files() == before
    assert pd.read_parquet(days.out)["id"].tolist() == [1]
