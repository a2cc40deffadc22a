"""What a function may return: it is in the dataset as it is, or only its record is quarantined, naming the column."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import itertools
import json
import math
import re
import types
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardkit as sk
from shardkit.dataset.source import read_source
from shardkit.errors import SchemaConflict
from shardkit.storage.base import File
from shardkit.storage.local_folder import LocalFolder
from shardkit.tables.rows import collect
from shardkit.tables.values import to_array
from shardkit.workers.parts import PartsWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import WriteFiles

D = decimal.Decimal
DAY = dt.date(2020, 1, 2)
NOON = dt.datetime(2020, 1, 2, 12, 30, 15, 123456)
UTC = dt.timezone.utc
NAN = math.nan
NS = pd.Timestamp("2020-01-02 03:04:05.123456789")


class Answer(enum.IntEnum):
    YES = 1


class Text(str, enum.Enum):
    A = "a"


class Odd:
    """A value that no column can hold."""


def frame(column: str, values: Any, **options: Any) -> pd.DataFrame:
    return pd.DataFrame({column: values}, **options)


def nested(value: Any, depth: int) -> Any:
    return nested([value], depth - 1) if depth else value


def generated(column: str) -> Iterator[dict[str, Any]]:
    for i in range(3):
        yield {column: i}


def raising(column: str) -> Iterator[dict[str, Any]]:
    yield {column: 1}
    raise ValueError("after one row")


# A case's function takes the column's name. What is expected are the values of that column, or whole rows.
ARRIVES: dict[str, tuple[Callable[[str], Any], list[Any]]] = {
    "none": (lambda c: None, []),
    "empty-dict": (lambda c: {}, []),
    "empty-list": (lambda c: [], []),
    "empty-generator": (lambda c: (x for x in ()), []),
    "empty-frame": (lambda c: pd.DataFrame(), []),
    "frame-without-rows": (lambda c: frame(c, []), []),
    "frame-without-columns": (lambda c: pd.DataFrame(index=range(3)), []),
    "table-without-rows": (lambda c: pa.table({c: pa.array([], pa.int64())}), []),
    "dict": (lambda c: {c: 1}, [1]),
    "dicts": (lambda c: [{c: 1}, {c: 2}], [1, 2]),
    "tuple-of-dicts": (lambda c: ({c: 1}, {c: 2}), [1, 2]),
    "dicts-and-nothing": (lambda c: [None, {c: 1}, {}, None, {c: 2}], [1, 2]),
    "generator": (generated, [0, 1, 2]),
    "mapping": (lambda c: types.MappingProxyType({c: 1}), [1]),
    "mappings": (lambda c: [collections.OrderedDict([(c, 1)]), collections.ChainMap({c: 2})], [1, 2]),
    "frame": (lambda c: frame(c, [1, 2]), [1, 2]),
    "frame-with-odd-index": (lambda c: frame(c, [1, 2], index=[7, 9]), [1, 2]),
    "frame-with-named-index": (
        lambda c: frame(c, [1, 2], index=pd.Index(["a", "b"], name="index of frame")),
        [{"index of frame": "a", "frame-with-named-index": 1}, {"index of frame": "b", "frame-with-named-index": 2}],
    ),
    "frame-indexed-by-a-column": (lambda c: frame(c, [1, 2]).set_index(c, drop=False), [1, 2]),
    "frame-with-levels": (
        lambda c: frame(c, [1], index=pd.MultiIndex.from_tuples([("x", 5)], names=["level of frame", None])),
        [{"level of frame": "x", "frame-with-levels": 1}],
    ),
    "frame-with-numbers-for-names": (lambda c: pd.DataFrame([[1, 2]]), [{"0": 1, "1": 2}]),
    "frames": (lambda c: [frame(c, [1]), frame(c, [2, 3])], [1, 2, 3]),
    "table": (lambda c: pa.table({c: [1, 2]}), [1, 2]),
    "table-with-metadata": (lambda c: pa.table({c: [1]}).replace_schema_metadata({"a": "b"}), [1]),
    "record-batch": (lambda c: pa.RecordBatch.from_pydict({c: [1, 2]}), [1, 2]),
    "a-bit-of-all": (lambda c: [{c: 1}, pa.table({c: [2]}), frame(c, [3]), {c: 4}, pa.RecordBatch.from_pydict({c: [5]})], [1, 2, 3, 4, 5]),
    "rows-that-differ": (
        lambda c: [{c: 1}, {"other of rows": "x"}, {c: 2, "other of rows": "y"}],
        [{"rows-that-differ": 1}, {"other of rows": "x"}, {"rows-that-differ": 2, "other of rows": "y"}],
    ),
    "odd names": (lambda c: {"ü \n%='\"": 1, "": 2}, [{"ü \n%='\"": 1, "": 2}]),
    # values
    "bools": (lambda c: [{c: True}, {c: None}, {c: np.bool_(0)}], [True, None, False]),
    "ints": (lambda c: [{c: -(2**63)}, {c: 2**63 - 1}], [-(2**63), 2**63 - 1]),
    "unsigned": (lambda c: {c: np.uint64(2**64 - 1)}, [2**64 - 1]),
    "int-enum": (lambda c: {c: Answer.YES}, [1]),
    "floats": (lambda c: [{c: 1.5}, {c: NAN}, {c: None}, {c: math.inf}], [1.5, NAN, None, math.inf]),
    "ints-and-floats": (lambda c: [{c: 1}, {c: 2.5}], [1.0, 2.5]),
    "ints-and-nan": (lambda c: [{c: 1}, {c: NAN}], [1.0, NAN]),
    "numpy-scalars": (lambda c: [{c: np.int32(1)}, {c: np.int64(2)}, {c: 3}], [1, 2, 3]),
    "numpy-floats": (lambda c: [{c: np.float32(1.5)}, {c: 2.5}, {c: np.int8(3)}], [1.5, 2.5, 3.0]),
    "numpy-small": (lambda c: {c: np.int8(5)}, [5]),
    "half-floats": (lambda c: {c: np.float16(1.5)}, [1.5]),
    "text": (lambda c: [{c: "ü\U0001f600\n\0"}, {c: ""}, {c: np.str_("x")}, {c: Text.A}], ["ü\U0001f600\n\0", "", "x", "a"]),
    "bytes": (lambda c: [{c: b"\xff\0"}, {c: bytearray(b"a")}, {c: memoryview(b"b")}], [b"\xff\0", b"a", b"b"]),
    "uuids": (lambda c: [{c: uuid.UUID(int=1)}, {c: None}], [str(uuid.UUID(int=1)), None]),
    "dates": (lambda c: {c: DAY}, [DAY]),
    "datetimes": (lambda c: [{c: NOON}, {c: pd.Timestamp(NOON)}], [NOON, NOON]),
    "aware-datetimes": (lambda c: {c: NOON.replace(tzinfo=UTC)}, [NOON.replace(tzinfo=UTC)]),
    "zones": (
        lambda c: [{c: NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=h)))} for h in (1, 2)],
        [NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=h))) for h in (1, 2)],
    ),
    "nanoseconds": (lambda c: [{c: NS}, {c: NOON}], [NS, pd.Timestamp(NOON)]),
    "numpy-times": (lambda c: [{c: np.datetime64("2020-01-02T03:04:05.5")}, {c: np.datetime64("NaT")}], [dt.datetime(2020, 1, 2, 3, 4, 5, 500000), None]),
    "numpy-days": (lambda c: {c: np.datetime64("2020-01-02")}, [DAY]),
    "numpy-units": (
        lambda c: [{c: np.datetime64("2020-01-02T03:04:05", "s")}, {c: np.datetime64("2020-01-02T03:04:05.123456789", "ns")}],
        [pd.Timestamp("2020-01-02 03:04:05"), NS],
    ),
    "not-a-time": (lambda c: [{c: pd.NaT}, {c: NOON}, {c: pd.NA}], [None, NOON, None]),
    "only-not-a-time": (lambda c: {c: pd.NaT, "beside not-a-time": 1}, [{"beside not-a-time": 1}]),
    "missing-text": (lambda c: [{c: NAN}, {c: "a"}], [None, "a"]),
    "times": (lambda c: {c: dt.time(1, 2, 3, 4)}, [dt.time(1, 2, 3, 4)]),
    "durations": (lambda c: {c: dt.timedelta(days=1, microseconds=5)}, [dt.timedelta(days=1, microseconds=5)]),
    "numpy-durations": (lambda c: [{c: np.timedelta64(1, "s")}, {c: np.timedelta64(5, "ms")}], [dt.timedelta(seconds=1), dt.timedelta(milliseconds=5)]),
    "decimals": (lambda c: [{c: D("1.1")}, {c: D("100.25")}, {c: 7}], [D("1.10"), D("100.25"), D("7.00")]),
    "lists": (lambda c: [{c: [1, 2]}, {c: []}, {c: (3,)}, {c: None}], [[1, 2], [], [3], None]),
    "arrays": (lambda c: [{c: np.array([1.5, 2])}, {c: np.array([], "f4")}, {c: [3.0]}], [[1.5, 2.0], [], [3.0]]),
    "sets": (lambda c: {c: {5}}, [[5]]),
    "structs": (lambda c: [{c: {"a": 1, "b": {"x": "y"}}}, {c: {"a": None}}], [{"a": 1, "b": {"x": "y"}}, {"a": None, "b": None}]),
    "lists-of-structs": (lambda c: {c: [{"a": 1}, {"b": 2.5}]}, [[{"a": 1, "b": None}, {"a": None, "b": 2.5}]]),
    "empty-structs": (lambda c: [{c: {}}, {c: {"a": 1}}], [None, {"a": 1}]),
    "only-empty-structs": (lambda c: {c: {}, "beside empty-structs": 1}, [{"beside empty-structs": 1}]),
    "only-nulls": (lambda c: [{c: None}, {c: None, "beside nulls": 1}], [{}, {"beside nulls": 1}]),
    "categorical": (lambda c: frame(c, pd.Categorical(["x", "y", "x"])), ["x", "y", "x"]),
    "dictionary-table": (lambda c: pa.table({c: pa.array(["x", "y"]).dictionary_encode()}), ["x", "y"]),
    "frame-nan": (lambda c: frame(c, [1.5, NAN]), [1.5, None]),
    "frame-objects": (lambda c: frame(c, ["a", None, NAN], dtype=object), ["a", None, None]),
    "frame-nullable": (lambda c: frame(c, pd.array([1, None], "Int64")), [1, None]),
    "frame-times": (lambda c: frame(c, pd.to_datetime(["2020-01-02 12:30:15.123456", None])), [NOON, None]),
    "deep": (lambda c: {c: nested(1, 30)}, [nested(1, 30)]),
    "large-text": (lambda c: {c: "x" * 5_000_000}, ["x" * 5_000_000]),
}  # fmt: skip

# What is quarantined, and what its message says.
REFUSED: dict[str, tuple[Callable[[str], Any], str]] = {
    "a-number": (lambda c: 5, "the function returned int; it must return a DataFrame"),
    "a-text": (lambda c: "text", "the function returned str"),
    "an-object": (lambda c: Odd(), "the function returned Odd"),
    "a-class": (lambda c: Odd, "the function returned type"),
    "a-series": (lambda c: pd.Series([1]), "the function returned Series"),
    "an-array": (lambda c: np.zeros(3), "the function yielded float64; it must yield dicts"),
    "list-of-lists": (lambda c: [[1]], "the function yielded list"),
    "list-of-texts": (lambda c: ["a"], "the function yielded str"),
    "raises-late": (raising, "after one row"),
    "a-number-for-a-name": (lambda c: {1: "x"}, "a row has the key 1, which is int; column names must be str"),
    "a-name-that-is-no-text": (lambda c: {"\ud800 ": 1}, r"column '\\ud800 ' cannot be stored: .*surrogates not allowed"),
    "two-columns-of-one-name": (lambda c: pa.table([[1], [2]], [c, c]), "two columns share the name 'two-columns-of-one-name'"),
    "two-frame-columns": (lambda c: pd.DataFrame([[1, 2]], columns=[c, c]), "two-frame-columns"),
    "index-like-a-column": (lambda c: frame(c, [1], index=pd.Index([2], name=c)), "the index and a column are both named 'index-like-a-column', with different values: rename one"),
    "huge": (lambda c: {c: 2**64}, "column 'huge' cannot be stored: .*too"),
    "object": (lambda c: {c: Odd()}, "column 'object' cannot be stored: Could not convert .*Odd"),
    "complex": (lambda c: {c: 1j}, "column 'complex' cannot be stored"),
    "frozenset": (lambda c: {c: frozenset([1])}, "column 'frozenset' cannot be stored"),
    "surrogates": (lambda c: {c: "\ud800"}, "column 'surrogates' cannot be stored: .*surrogates"),
    "matrix": (lambda c: {c: np.zeros((2, 2))}, "column 'matrix' cannot be stored: .*1-dimensional"),
    "nested-keys": (lambda c: {c: {1: 2}}, "column 'nested-keys' cannot be stored: .*key"),
    "nested-object": (lambda c: {c: [{"x": Odd()}]}, "column 'nested-object' cannot be stored"),
    "offset": (lambda c: {c: pd.DateOffset(months=1)}, "column 'offset' cannot be stored as month_day_nano_interval"),
    "interval-table": (lambda c: pa.table({"fine": [1], c: pa.array([(1, 2, 3)], pa.month_day_nano_interval())}), "column 'interval-table' cannot be"),
    "frame-object": (lambda c: frame(c, [Odd()]), "frame-object"),
    "frame-mixture": (lambda c: frame(c, [1, "a"]), "frame-mixture"),
    "frame-surrogates": (lambda c: frame(c, ["\ud800"], dtype=object), "surrogates"),
    "much-too-deep": (lambda c: {c: nested(1, 900)}, "column 'much-too-deep' cannot be stored: .*recursion"),
    "text-and-int": (lambda c: [{c: "a"}, {c: 1}], "column 'text-and-int' cannot be stored: it mixes int and str"),
    "bool-and-int": (lambda c: [{c: True}, {c: 1}], "it mixes bool and int"),
    "text-and-bytes": (lambda c: [{c: "a"}, {c: b"b"}], "it mixes bytes and str"),
    "date-and-datetime": (lambda c: [{c: DAY}, {c: NOON}], "it mixes date and datetime"),
    "naive-and-aware": (lambda c: [{c: NOON}, {c: NOON.replace(tzinfo=UTC)}], "it mixes datetime and datetime with time zone"),
    "nested-dates": (lambda c: {c: [DAY, NOON]}, "it mixes date and datetime"),
    "nested-bytes": (lambda c: [{c: {"x": ["a"]}}, {c: {"x": [b"b"]}}], "it mixes bytes and str"),
    "list-and-number": (lambda c: [{c: [1]}, {c: 1}], "it mixes int and list"),
    "float-and-decimal": (lambda c: [{c: 1.5}, {c: D(1)}], "it mixes decimal and float"),
    "too-large-for-a-float": (lambda c: [{c: 1.5}, {c: 2**53 + 1}], "column 'too-large-for-a-float' cannot be stored: .*9007199254740993"),
}  # fmt: skip
if int(pa.__version__.split(".")[0]) >= 26:  # earlier ones store what is nested as deep as Python lets it be
    REFUSED["too-deep"] = (lambda c: {c: nested(1, 60)}, "column 'too-deep' cannot be stored as list.*nested")

FUNCTIONS = {name: case[0] for name, case in (ARRIVES | REFUSED).items()}


def by_case(functions: dict[str, Callable[[str], Any]]) -> Callable[[sk.Record], Any]:
    return lambda record: functions[record.key](record.key)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.floating):  # a half float, with some versions of pyarrow
        left = float(left)
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return (type(left) is type(right) and bool(left == right)) or (isinstance(left, dt.datetime) and left == right)


@pytest.fixture(scope="module", params=["one-chunk", "many-chunks"])
def everything(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> sk.Run:
    """All cases in one run; they must not get in each other's way, in the same chunk or in others."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "data").mkdir()
    for name in FUNCTIONS:
        (folder / "data" / name).write_text("x")
    chunks = {"workers": 1, "chunks": "even"} if request.param == "one-chunk" else {"workers": 2}
    return sk.run(by_case(FUNCTIONS), folder / "data", folder / "out", max_failures="100%", quiet=True, **chunks)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows_by_case(everything: sk.Run) -> dict[str, list[dict[str, Any]]]:
    table = everything.dataset().to_table()
    found, start = {}, 0
    for name in sorted(ARRIVES):
        count = len(ARRIVES[name][1])
        found[name] = table.slice(start, count).to_pylist()
        start += count
    assert start == len(table)
    return found


@pytest.mark.whole
@pytest.mark.parametrize("name", ARRIVES)
def test_arrives_as_it_is(rows_by_case: dict[str, list[dict[str, Any]]], name: str) -> None:
    expected = [
        row if isinstance(row, dict) and name not in {"structs", "empty-structs"} else {name: row}
        for row in ARRIVES[name][1]
    ]
    found = rows_by_case[name]
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        for column, value in row.items():
            assert same(value, wanted.get(column)), f"{column}: {value!r}, expected {wanted.get(column)!r}"


@pytest.mark.parametrize("name", REFUSED)
def test_only_that_record_is_quarantined(everything: sk.Run, name: str) -> None:
    entries = [entry for entry in everything.quarantine() if entry["key"] == name]
    assert len(entries) == 1
    assert re.search(REFUSED[name][1], entries[0]["message"]), entries[0]["message"]
    if name == "raises-late":
        assert entries[0]["error"] == "ValueError"
        assert 'raise ValueError("after one row")' in entries[0]["traceback"]


def test_the_ledger_balances(everything: sk.Run) -> None:
    summary = everything.summary()
    assert summary.records == {
        "listed": len(FUNCTIONS),
        "done": len(ARRIVES),
        "quarantined": len(REFUSED),
        "skipped": 0,
    }
    assert summary.rows == sum(len(rows) for _, rows in ARRIVES.values())


def test_types(everything: sk.Run) -> None:
    schema = everything.dataset().schema
    expected = {
        "dict": "int64", "unsigned": "uint64", "numpy-small": "int8", "half-floats": "halffloat", "text": "string", "bytes": "binary",
        "dates": "date32[day]", "datetimes": "timestamp[us]", "aware-datetimes": "timestamp[us, tz=UTC]",
        "nanoseconds": "timestamp[ns]", "durations": "duration[us]", "times": "time64[us]", "decimals": "decimal128(5, 2)",
        "categorical": "string", "structs": "struct<a: int64, b: struct<x: string>>", "only-nulls": "null", "only-not-a-time": "null",
    }  # fmt: skip
    found = {name: re.sub(r"(item|element): ", "", str(schema.field(name).type)) for name in expected}
    assert found | {"categorical": found["categorical"].removeprefix("large_")} == expected


def test_columns_are_in_the_order_of_their_first_appearance(files: WriteFiles, tmp_path: Path) -> None:
    def rows(record: sk.Record) -> Any:
        return {"1": [{"b": 1, "a": 1}, {"c": 1}], "2": {"d": 1, "a": 2}, "3": pd.DataFrame({"e": [1], "b": [1]})}[
            record.key
        ]

    for chunks, workers in (("even", 1), ("dynamic", 2)):
        run = sk.run(rows, files(["1", "2", "3"]), tmp_path / chunks, chunks=chunks, workers=workers, quiet=True)
        assert run.dataset().schema.names == ["b", "a", "c", "d", "e"]


def test_a_function_that_returns_nothing_ever(files: WriteFiles, tmp_path: Path) -> None:
    run = sk.run(lambda record: None, files(["a", "b"]), tmp_path / "out", quiet=True, workers=1, allow_empty=True)
    assert run.summary().records["done"] == 2
    assert (run.summary().rows, run.summary().files) == (0, 0)
    assert run.dataset().to_table().num_rows == 0


# ---- a schema of the user's own --------------------------------------------------------------------------------

SCHEMA = {
    "i": "int64",
    "f": "double",
    "s": "string",
    "d": "date32",
    "t": "timestamp[us, tz=UTC]",
    "l": "list<int32>",
    "st": "struct<a: int64>",
    "n": "decimal128",
}
del SCHEMA["n"]

FITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({"i": None}, {}),
    "missing-columns": ({"i": 1}, {"i": 1}),
    "int-for-float": ({"f": 1}, {"f": 1.0}),
    "whole-float-for-int": ({"i": 2.0}, {"i": 2}),
    "text-for-int": ({"i": "12"}, {"i": 12}),
    "int-for-text": ({"s": 12}, {"s": "12"}),
    "date-for-time": ({"t": DAY}, {"t": dt.datetime(2020, 1, 2, tzinfo=UTC)}),
    "text-for-time": ({"t": "2020-01-02T12:30:15.123456Z"}, {"t": NOON.replace(tzinfo=UTC)}),
    "midnight-for-date": ({"d": dt.datetime(2020, 1, 2)}, {"d": DAY}),
    "text-for-date": ({"d": "2020-01-02"}, {"d": DAY}),
    "lists": ({"l": [1, 2]}, {"l": [1, 2]}),
    "whole-floats": ({"l": [1.0]}, {"l": [1]}),
    "empty-list": ({"l": []}, {"l": []}),
    "array": ({"l": np.array([5], "i8")}, {"l": [5]}),
    "struct": ({"st": {"a": 1}}, {"st": {"a": 1}}),
    "struct-without-field": ({"st": {}}, {}),
    "no-time": ({"t": pd.NaT, "i": pd.NA}, {}),
}  # fmt: skip
DOES_NOT_FIT: dict[str, tuple[dict[str, Any], str]] = {
    "fraction": ({"i": 2.5}, "column 'i'.*2.5"),
    "nan": ({"i": NAN}, "column 'i'.*nan"),
    "word": ({"i": "x"}, "column 'i'.*x"),
    "too-large": ({"l": [2**40]}, "column 'l'.*1099511627776"),
    "huge": ({"i": 2**63}, "column 'i'"),
    "time-for-date": ({"d": NOON}, "column 'd'.*lost"),
    "text-that-is-no-time": ({"t": "yesterday"}, "column 't'.*yesterday"),
    "unknown-column": ({"i": 1, "x": 1}, "column 'x' is not in output.schema"),
    "unknown-field": ({"st": {"a": 1, "b": 2}}, "column 'st' has a field 'b' that output.schema does not name"),
    "list-for-int": ({"i": [1]}, "column 'i'"),
    "int-for-list": ({"l": 1}, "column 'l'"),
    "object": ({"s": 1j}, "column 's'"),
}


@pytest.mark.parametrize("as_frame", [False, True], ids=["dicts", "frames"])
def test_a_given_schema_wins_and_what_does_not_fit_is_quarantined(
    files: WriteFiles, tmp_path: Path, *, as_frame: bool
) -> None:
    rows = {name: case[0] for name, case in (FITS | DOES_NOT_FIT).items()}
    if as_frame:  # a frame cannot tell None from NaN, nor hold arrays as one row's value
        rows = {name: row for name, row in rows.items() if name not in {"nan"}}

    def function(record: sk.Record) -> Any:
        row = rows[record.key]
        return (
            pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in row.items()}) if as_frame else row
        )

    folder = files(list(rows))
    run = sk.run(function, folder, tmp_path / "out", schema=SCHEMA, max_failures="100%", quiet=True, workers=1)
    table = run.dataset().to_table()
    assert [str(t) for t in table.schema.types][:5] == [
        "int64",
        "double",
        "string",
        "date32[day]",
        "timestamp[us, tz=UTC]",
    ]
    assert table.schema.names == list(SCHEMA)
    quarantine = {entry["key"]: entry["message"] for entry in run.quarantine()}
    assert set(quarantine) == {name for name in DOES_NOT_FIT if name in rows}
    for name, message in quarantine.items():
        assert re.search(DOES_NOT_FIT[name][1], message), f"{name}: {message}"
    found = table.to_pylist()
    for name, row in zip(sorted(FITS), found, strict=True):
        assert row == dict.fromkeys(SCHEMA) | FITS[name][1], name


def test_a_record_that_does_not_fit_leaves_no_rows_behind(files: WriteFiles, tmp_path: Path) -> None:
    def rows(record: sk.Record) -> Iterator[dict[str, Any]]:
        yield {"i": 1}
        yield {"i": "x" if record.key == "b" else 2}

    for fields in ({}, {"schema": {"i": "int64"}}):
        output = tmp_path / f"out{len(fields)}"
        run = sk.run(rows, files(["a", "b", "c"]), output, workers=1, max_failures=1, quiet=True, **fields)
        assert run.dataset().to_table()["i"].to_pylist() == [1, 2, 1, 2]
        assert [entry["key"] for entry in run.quarantine()] == ["b"]


# ---- the outcome does not hang on which records are converted together ------------------------------------------

POOL: dict[str, Any] = {
    "int": 1, "negative": -1, "large": 2**60, "float": 1.5, "nan": NAN, "None": None, "text": "s", "bytes": b"b", "bool": True,
    "date": DAY, "datetime": NOON, "aware": NOON.replace(tzinfo=UTC), "zone": NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=1))),
    "timestamp": pd.Timestamp(NOON), "nanoseconds": NS, "NaT": pd.NaT, "time": dt.time(1), "duration": dt.timedelta(1),
    "decimal": D("1.1"), "wide-decimal": D("12345.678"), "int8": np.int8(1), "int16": np.int16(1), "int64": np.int64(1),
    "uint8": np.uint8(1), "uint64": np.uint64(1), "float32": np.float32(1.5), "float16": np.float16(1.5), "float64": np.float64(1.5),
    "np-bool": np.bool_(1), "np-s": np.datetime64("2020-01-01T00:00:00", "s"), "np-ns": np.datetime64("2020-01-01", "ns"),
    "np-day": np.datetime64("2020-01-01"), "np-duration": np.timedelta64(1, "ms"), "list": [1], "floats": [1.5], "texts": ["a"],
    "nothing": [], "nulls": [None], "tuple": (1,), "array": np.array([1]), "array-f4": np.array([1.5], "f4"), "array-i1": np.array([1], "i1"),
    "blobs": [b"a"], "dates": [DAY], "datetimes": [NOON], "struct": {"a": 1}, "struct-float": {"a": 1.5}, "struct-more": {"a": 1, "b": "x"},
    "struct-text": {"a": "x"}, "empty": {}, "structs": [{"a": 1}], "structs-dates": [{"a": DAY}], "structs-times": [{"a": NOON}],
    "uuid": uuid.UUID(int=1),
}  # fmt: skip


PLAIN = re.compile(r"(item|element): ")  # what the values of a list are called differs, and does not matter


def written(folder: Path, base: str, group: list[tuple[int, Any]]) -> list[File]:
    """The parts of a chunk with one value a record."""
    home = LocalFolder(folder)
    given_up: list[Any] = []
    writer = PartsWriter(home, base, schema=None, give_up=lambda _, error: given_up.append(error))
    for index, value in group:
        writer.add(collect({"x": value, "index": index}, index, f"record-{index}"))
    parts = [File(home, part.name) for part in writer.close()]
    assert not given_up
    return parts


def outcome(parts: list[File], *, widen_ints: bool = False) -> tuple[str, Any]:
    """The outcome for the values of some parts: a type and values, or an error."""
    try:
        source = read_source(parts, schema=None, widen_ints=widen_ints)
    except SchemaConflict as error:
        return "conflict", re.sub(r"record-(\d+)", "a record", PLAIN.sub("", str(error)))
    try:
        table = pa.concat_tables(source.tables()).sort_by("index")
    except SchemaConflict:
        return "does not fit", None
    return PLAIN.sub("", str(source.schema.field("x").type)), [str(v) for v in table["x"].to_pylist()]


# Values are held together by their kind: those of a kind meet each other in ways of their own, those of other kinds as
# each of their kind does. So every value meets every other of its kind, and some of each other kind.
KINDS = (
    "int negative large float nan None bool decimal wide-decimal int8 int16 int64 uint8 uint64 float32 float16 float64 np-bool",
    "text bytes uuid",
    "date datetime aware zone timestamp nanoseconds NaT np-s np-ns np-day",
    "time duration np-duration",
    "list floats texts nothing nulls tuple array array-f4 array-i1 blobs dates datetimes structs structs-dates structs-times",
    "struct struct-float struct-more struct-text empty",
)
FROM_EACH = "int float None text bytes datetime duration list struct"


def test_each_value_has_a_kind() -> None:
    assert sorted(" ".join(KINDS).split()) == sorted(POOL)


def pairs_of_values() -> Iterator[tuple[str, str]]:
    """Two values in one order, which changes from pair to pair."""
    places, some = {name: place for place, name in enumerate(POOL)}, set(FROM_EACH.split())
    kinds = {name: kind for kind in KINDS for name in kind.split()}
    for one, other in itertools.combinations_with_replacement(POOL, 2):
        if kinds[one] == kinds[other] or {one, other} & some:
            yield (one, other) if (places[one] + places[other]) % 2 else (other, one)


@pytest.mark.slow
def test_two_values_come_to_the_same_together_and_apart(tmp_path: Path) -> None:
    alone = {
        (index, name): written(tmp_path, f"{index}-{name}", [(index, value)])
        for index in range(2)
        for name, value in POOL.items()
    }
    differences = []
    for number, (left, right) in enumerate(pairs_of_values()):
        one_chunk = written(tmp_path, "both", [(0, POOL[left]), (1, POOL[right])])
        two_chunks = alone[0, left] + alone[1, right]
        # Numbers meet each other in both ways, and others in turn.
        both_ways = {left, right} <= set(KINDS[0].split())
        for widen_ints in (False, True) if both_ways else (number % 2 == 0,):
            together, apart = (outcome(parts, widen_ints=widen_ints) for parts in (one_chunk, two_chunks))
            if together != apart:
                differences.append(f"{left}, {right}, {widen_ints=}: {together} together, {apart} apart")
    assert not differences, "\n".join(differences[:20]) + f"\n{len(differences)} in all"


@pytest.mark.whole
def test_many_values_come_to_the_same_however_they_are_cut(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    names = [name for name in POOL if name not in {"empty"}]
    for _ in range(24):
        some = random.choice(names, size=random.integers(1, 4), replace=False)
        values = list(enumerate(POOL[name] for name in random.choice(some, size=8)))
        cut = int(random.integers(1, 8))
        found = []
        for groups in ([values], [[v] for v in values], [values[:cut], values[cut:]]):
            chunks = [written(tmp_path, f"chunk{number}", group) for number, group in enumerate(groups)]
            found.append(outcome(list(itertools.chain(*chunks))))
        kinds = [kind if kind in {"conflict", "does not fit"} else (kind, rows) for kind, rows in found]
        assert kinds[0] == kinds[1] == kinds[2], list(some)


# ---- without pandas --------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize(
    "values",
    [
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(),
        st.text(st.characters(exclude_categories=())),  # half a surrogate pair is not text
        st.integers(-(2**63), 2**63 - 1).map(np.int64),
        st.floats(allow_nan=False).map(np.float64),
        st.nothing(),
    ],
    ids=["bool", "int64", "int", "float", "text", "surrogates", "numpy-int", "numpy-float", "none"],
)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_simple_values_become_what_pyarrow_makes_of_them(values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    check_against_pyarrow(data.draw(st.lists(st.none() | values, max_size=20)))


@pytest.mark.parametrize(
    "column",
    [
        [],
        [None, None],
        [None, True, False],
        [2**63 - 1, None, -(2**63)],
        [2**63],
        [-(2**63) - 1, 1],
        [2**64, None],
        [math.inf, -math.inf, -0.0, None, 5e-324],
        ["", "\0", None, "\U0001f600"],
        ["a", "\ud800"],
        [np.int64(2**63 - 1), None, np.int64(-(2**63))],
        [np.float64(math.inf), None, np.float64(-0.0)],
    ],
    ids=repr,
)
def test_the_least_and_the_largest_too(column: list[Any]) -> None:
    check_against_pyarrow(column)


def check_against_pyarrow(column: list[Any]) -> None:
    """A column of simple values is what pyarrow makes of them, or the same error."""
    try:
        expected = pa.array(column)
    except (OverflowError, UnicodeEncodeError, pa.ArrowException) as error:
        with pytest.raises(type(error)):
            to_array(column, None, several=False)
    else:
        found = to_array(column, None, several=False)
        found.validate(full=True)
        assert found.equals(expected)


@pytest.mark.whole
def test_a_worker_loads_pandas_only_where_it_is_needed(files: WriteFiles, tmp_path: Path, bare_workers: None) -> None:
    def plain(record: sk.Record) -> dict[str, Any]:
        import sys

        return {"key": record.key, "count": 1, "share": 0.5, "none": None, "pandas": "pandas" in sys.modules}

    run = sk.run(plain, files([f"{i}.txt" for i in range(40)]), tmp_path / "out", workers=2, chunks="even", quiet=True)
    assert run.dataset().to_table()["pandas"].to_pylist() == [False] * 40


# ---- memory ----------------------------------------------------------------------------------------------------

LARGE: dict[str, Callable[[sk.Record], Any]] = {
    "dict": lambda record: {"text": record.key + "x" * 1_000_000},
    "nested": lambda record: {"texts": [{"a": record.key + "x" * 100_000} for _ in range(10)]},
    "dicts": lambda record: [{"text": f"{record.key}-{n}" + "x" * 10_000} for n in range(100)],
    "frame": lambda record: pd.DataFrame({"text": [f"{record.key}-{n}" + "x" * 10_000 for n in range(100)]}),
}


@pytest.mark.whole
@pytest.mark.parametrize("name", LARGE)
def test_a_worker_holds_one_row_group_and_not_a_chunk(files: WriteFiles, tmp_path: Path, name: str) -> None:
    folder = files([f"{n:03d}" for n in range(160)])
    run = sk.run(LARGE[name], folder, tmp_path / "out", workers=1, chunks="even", quiet=True)
    markers = [json.loads(path.read_text()) for path in run.path.glob("markers/*/*.json")]
    assert len(markers) == 1
    assert markers[0]["peak_memory_bytes"] < 330_000_000
