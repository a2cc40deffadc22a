"""Datasets in text formats are read back with the types of the result, even if a file begins with nulls."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

VALUES: dict[str, Any] = {
    "int": 2**60,
    "float": 1.5,
    "bool": True,
    "text": "007",
    "decimal": decimal.Decimal("1.10"),
    "time": dt.datetime(2020, 1, 2, 3, 4, 5, 6),
    "zoned": dt.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone.utc),
}
NESTED: dict[str, Any] = {"list": [1, 2], "struct": {"a": [1.5], "b": "x"}, "map": [{"key": "a", "value": 1}]}


def rows(record: sk.Record) -> Any:
    if record.key < "b":
        return {"key": record.key}
    nested = {name: value for name, value in NESTED.items() if name != "map"}
    text = pa.Table.from_pylist([{"key": record.key} | VALUES | nested])
    return text.append_column("map", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())))


def flat(record: sk.Record) -> Any:
    return rows(record) if record.key < "b" else {"key": record.key} | VALUES | {"date": dt.date(2020, 1, 2)}


@pytest.mark.whole
@pytest.mark.parametrize("rows_per_file", [1, None])
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_columns_have_their_types_whichever_file_has_a_value(
    files: WriteFiles, tmp_path: Path, format: str, rows_per_file: int | None
) -> None:
    function, expected = (
        (rows, VALUES | NESTED) if format == "jsonl" else (flat, VALUES | {"date": dt.date(2020, 1, 2)})
    )
    data = files(["a1", "a2", "b"])
    run = sk.run(
        function,
        data,
        tmp_path / "out",
        format=format,
        rows_per_file=rows_per_file,
        workers=1,
        chunks="even",
        quiet=True,
    )
    found = run.dataset().to_table().sort_by("key").to_pylist()
    assert [row["key"] for row in found] == ["a1", "a2", "b"]
    assert {name: value for name, value in found[2].items() if name != "key"} == expected
    assert set(found[0].values()) == {"a1", None}
    asked = sk.read_sql("SELECT sum(float) AS f, max(text) AS t FROM dataset", tmp_path / "out")
    assert asked.to_dict("records") == [{"f": 1.5, "t": "007"}]
    assert run.summary().files == (3 if rows_per_file else 1)
