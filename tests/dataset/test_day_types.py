"""Column types of unchanged days, which are noted as text: they are read back exactly, and new days keep to them."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shardkit as sk
from shardkit.dataset.source import one_schema
from shardkit.tables.type_text import printed_type, schema_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import WriteFiles

DAY = dt.date(2020, 1, 2)
# What two records of the day that stays have, and those of the new day too.
SAME: dict[str, pa.Array] = {
    "lists of float32": pa.array([[1.5], None], pa.list_(pa.float32())),
    "structs with float32": pa.array([{"x": 1.5}, None], pa.struct([("x", pa.float32())])),
    "decimals": pa.array([decimal.Decimal("1.10"), None]),
    "maps": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int16())),
    "dates in lists": pa.array([[DAY], None]),
    "half floats": pa.array(np.array([1.5, 2], "f2")),
    "fixed bytes": pa.array([b"ab", None], pa.binary(2)),
    "milliseconds": pa.array([dt.datetime(2020, 1, 2), None], pa.timestamp("ms", "UTC")),
    "deep": pa.array([[{"a": [np.float32(1)]}], []], pa.list_(pa.struct([("a", pa.list_(pa.float32()))]))),
}


def make(function: Callable[[sk.Record], Any], data: Path, out: Path) -> sk.Run:
    shards = {"by": "date", "path": "{Y}-{m}-{d}"}
    return sk.run(function, data, out, shards=shards, workers=1, quiet=True)


def forget_whole_schema(out: Path) -> None:
    """Leave the results as they were written before they had the whole schema."""
    for path in [out / "_shardkit/current.json", *out.glob("_shardkit/runs/*/result.json")]:
        content = json.loads(path.read_text())
        assert content.pop("schema")
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("age", ["of now", "of old"])
def test_a_new_day_has_the_types_of_those_that_stay(files: WriteFiles, tmp_path: Path, age: str) -> None:
    table = pa.table(SAME)
    data = files(["2020-01-01/a", "2020-01-02/a"])
    make(lambda record: table, data, tmp_path / "out")
    if age == "of old":
        forget_whole_schema(tmp_path / "out")
    files(["2020-01-02/b"])
    run = make(lambda record: table, data, tmp_path / "out")
    files_of_days = sorted((tmp_path / "out").glob("*/*.parquet"))
    schemas = [pq.read_schema(path).remove_metadata() for path in files_of_days]
    assert len(schemas) == 2
    assert schemas[0] == schemas[1] == table.schema
    found = run.dataset().to_table()
    assert found.schema == pa.schema([*table.schema, pa.field("day_partition", pa.string())])
    assert found.drop_columns("day_partition").to_pylist() == table.to_pylist() * 3


@pytest.mark.parametrize("age", ["of now", "of old"])
def test_a_conflict_with_the_days_that_stay_is_named(files: WriteFiles, tmp_path: Path, age: str) -> None:
    def rows(record: sk.Record) -> dict[str, Any]:
        return {"v": decimal.Decimal("1.10") if record.key.startswith("2020-01-01") else "1.10 EUR"}

    data = files(["2020-01-01/a"])
    make(rows, data, tmp_path / "out")
    if age == "of old":
        forget_whole_schema(tmp_path / "out")
    files(["2020-01-02/a"])
    with pytest.raises(
        sk.SchemaConflict, match=r"Column 'v' is decimal128\(3, 2\) in the days that stay, .* and string in"
    ):
        make(rows, data, tmp_path / "out")


@pytest.mark.parametrize("kind", pa.table(SAME).schema.types, ids=str)
def test_no_type_that_stays_is_passed_over(kind: pa.DataType) -> None:
    days = {"the days that stay": schema_of({"columns": {"v": str(kind)}}), "2020": pa.schema([("v", pa.string())])}
    with pytest.raises(sk.SchemaConflict, match="Column 'v.*in the days that stay and string in 2020"):
        one_schema(days, widen_ints=False)


@pytest.mark.parametrize("kind", [*pa.table(SAME).schema.types, pa.list_(pa.float32(), 4), pa.large_list(pa.float16()),
                                  pa.timestamp("us", "Europe/Paris"), pa.list_(pa.field("x", pa.int8(), nullable=False)),
                                  pa.struct([pa.field("a b", pa.int8(), nullable=False), pa.field("c", pa.float32())]),
                                  pa.decimal256(70, -2), pa.time32("s"), pa.duration("ms")], ids=str)  # fmt: skip
def test_types_are_read_back_from_their_print(kind: pa.DataType) -> None:
    assert printed_type(str(kind)) == kind
    assert schema_of({"columns": {"v": str(kind), "day": "string"}}, without=["day"]) == pa.schema([("v", kind)])


def test_what_was_printed_and_cannot_be_read_is_left_out() -> None:
    assert schema_of({"columns": {"a": "extension<x.y>", "b": "int8"}}) == pa.schema([("b", pa.int8())])
