"""Every type of NumPy, pandas and Arrow: alone, without values, beside each other, and in an unchanged day."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import itertools
import re
import uuid
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import shardkit as sk
from shardkit.dataset.source import read_source
from shardkit.errors import SchemaConflict
from shardkit.storage.base import File
from shardkit.storage.local_folder import LocalFolder
from shardkit.tables.rows import collect
from shardkit.workers.parts import PartsWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import WriteFiles

D = decimal.Decimal
DAY = dt.date(2020, 1, 2)
NOON = dt.datetime(2020, 1, 2, 12, 30, 15, 123456)
UTC = dt.timezone.utc
NS = pd.Timestamp("2020-01-02 03:04:05.123456789")
REQUIRED = pa.struct([pa.field("a", pa.int32(), nullable=False)])
RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["a", None]))


def masked(values: list[float], kind: str) -> Any:
    return np.ma.array(values, mask=[i == 0 for i in range(len(values))], dtype=kind)


def objects(*values: Any) -> pd.Series[Any]:
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return pd.Series(column)


# Columns of Arrow, each with a null; they are read back as they are, but where a second list says what they are then.
ARROW: dict[str, pa.Array] = {
    **{name: pa.array([1, None], pa.type_for_alias(name)) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")},
    "uint64": pa.array([2**64 - 1, None], pa.uint64()),
    "bool": pa.array([True, None]),
    "float16": pa.array([np.float16(1.5), None], pa.float16()),
    "float32": pa.array([1.5, None], pa.float32()),
    "float64": pa.array([1.5, None]),
    "string": pa.array(["x", None]),
    "large_string": pa.array(["x", None], pa.large_string()),
    "string_view": pa.array(["x", None], pa.string_view()),
    "binary": pa.array([b"\xff", None]),
    "binary_view": pa.array([b"\xff", None], pa.binary_view()),
    "fixed bytes": pa.array([b"\xff", None], pa.binary(1)),
    "date32": pa.array([DAY, None]),
    "date64": pa.array([DAY, None], pa.date64()),
    "time32": pa.array([dt.time(1, 2, 3), None], pa.time32("s")),
    "time64": pa.array([dt.time(1, 2, 3, 4), None], pa.time64("us")),
    "seconds": pa.array([dt.datetime(2020, 1, 2), None], pa.timestamp("s")),
    "microseconds": pa.array([dt.datetime(9999, 1, 2), None], pa.timestamp("us")),
    "nanoseconds": pa.array([NS.value, None], pa.timestamp("ns")),
    "zoned": pa.array([NOON.replace(tzinfo=UTC), None], pa.timestamp("us", "UTC")),
    "duration": pa.array([dt.timedelta(1), None], pa.duration("us")),
    "decimal": pa.array([D("1.10"), None]),
    "decimal32": pa.array([D("1.10"), None], pa.decimal32(5, 2)),
    "decimal256": pa.array([D("1.10"), None], pa.decimal256(50, 2)),
    "dictionary": pa.array(["x", None]).dictionary_encode(),
    "runs": RUNS,
    "list": pa.array([[1, None], None]),
    "list of float32": pa.array([[1.5], None], pa.list_(pa.float32())),
    "large_list": pa.array([[1], None], pa.large_list(pa.int8())),
    "list_view": pa.array([[1], None], pa.list_view(pa.int8())),
    "fixed list": pa.array([[1.5, 2], None], pa.list_(pa.float32(), 2)),
    "fixed list inside": pa.array([{"v": [1.5, 2]}, {"v": None}], pa.struct([("v", pa.list_(pa.float32(), 2))])),
    "list of dictionary": pa.ListArray.from_arrays([0, 2, 2], pa.array(["x", None]).dictionary_encode()),
    "struct": pa.array([{"a": 1, "b": "x"}, None]),
    "required inside": pa.array([{"a": 1}, None], REQUIRED),
    "list of required": pa.array([[{"a": 1}], None], pa.list_(pa.field("x", REQUIRED, nullable=False))),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None])),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())),
    "null": pa.nulls(2),
}  # fmt: skip

# Columns of frames and values of dicts, and what they are once they are stored.
OTHERS: dict[str, tuple[Any, list[Any]]] = {
    "periods": (pd.Series(pd.PeriodIndex(["2020-01", None], freq="M")), ["2020-01", None]),
    "period objects": (objects(pd.Period("2020Q1"), None), ["2020Q1", None]),
    "intervals": (pd.Series(pd.arrays.IntervalArray.from_tuples([(0, 1), None])), ["(0.0, 1.0]", None]),
    "categories": (pd.Series(pd.Categorical(["x", None])), ["x", None]),
    "intervals as categories": (pd.Series(pd.cut([1, float("nan")], [0, 1, 2])), ["(0.0, 1.0]", None]),
    "sparse": (pd.Series(pd.arrays.SparseArray([0, 1])), [0, 1]),
    "big-endian": (pd.Series(np.array([1.5, 2], ">f4")), [1.5, 2]),
    "Int64": (pd.Series(pd.array([1, None], "Int64")), [1, None]),
    "boolean": (pd.Series(pd.array([True, None], "boolean")), [True, None]),
    "Float32": (pd.Series(pd.array([1.5, None], "Float32")), [1.5, None]),
    "strings": (pd.Series(pd.array(["x", None], "string")), ["x", None]),
    "arrow-backed": (pd.Series(pd.array([D("1.10"), None], pd.ArrowDtype(pa.decimal128(5, 2)))), [D("1.10"), None]),
    "zoned times": (pd.Series(pd.to_datetime(["2020-01-02", None], utc=True)), [dt.datetime(2020, 1, 2, tzinfo=UTC), None]),
    "uuid objects": (objects(uuid.UUID(int=1), None), [str(uuid.UUID(int=1)), None]),
    "masked objects": (objects(masked([9, 1.5], "f4"), None), [[None, 1.5], None]),
    "big-endian objects": (objects(np.array([1.5], ">f4"), None), [[1.5], None]),
    "masked inside objects": (objects({"a": [masked([9, 2], "i2")]}, None), [{"a": [[None, 2]]}, None]),
    "date objects": (objects(DAY, None), [DAY, None]),
    "decimal objects": (objects(D("1.1"), float("nan")), [D("1.1"), None]),
}  # fmt: skip
EXPECTED = {name: column.to_pylist() for name, column in ARROW.items()}
EXPECTED |= {"bool8": [True, None], "json": ['{"a": 1}', None]}
VALUES: dict[str, tuple[Any, Any]] = {
    "masked": (masked([9, 1.5], "f4"), [None, 1.5]),
    "masked integers": (masked([9, 2], "u1"), [None, 2]),
    "masked alone": (np.ma.masked, None),
    "masked inside": ({"a": [masked([9, 2], "i2")]}, {"a": [[None, 2]]}),
    "masked nothing": (np.ma.array([1.5], mask=[False]), [1.5]),
    "big-endian": (np.array([1.5], ">f4"), [1.5]),
    "no dimension": (np.array(5), 5),
    "period": (pd.Period("2020-01-02", "D"), "2020-01-02"),
    "interval": (pd.Interval(0, 1), "(0, 1]"),
    "float32": (np.float32(1.5), 1.5),
    "bytes": (np.bytes_(b"x"), b"x"),
    "text": (np.str_("x"), "x"),
}

# What is refused, by the name of its column.
REFUSED: dict[str, Callable[[], Any]] = {
    "periods of Arrow": lambda: pa.Table.from_pandas(frame_of(pd.period_range("2020", periods=1, freq="M"))),
    "tensors": lambda: pa.table({"v": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((1, 2, 2)))}),
    "not registered": lambda: pa.table([[600]], schema=pa.schema([pa.field("v", pa.int64(), metadata={"ARROW:extension:name": "x.y"})])),
    "not registered, inside": lambda: pa.table([[[600]]], schema=pa.schema([("v", pa.list_(pa.field("x", pa.int64(), metadata={"ARROW:extension:name": "x.y"})))])),
    "months and days": lambda: pa.table({"v": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}),
    "days that are none": lambda: pa.table({"v": pa.array([5], pa.date64())}),
    "unions": lambda: pa.table({"v": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["x"])])}),
    "complex": lambda: frame_of(np.array([1j])),
    "dates and times": lambda: frame_of(objects(DAY, NOON)),
    "bytes and texts": lambda: frame_of(objects(b"x", "x")),
    "matrices": lambda: frame_of(objects(np.ma.zeros((2, 2)))),
    "periods inside": lambda: frame_of(objects([pd.Period("2020")])),
}  # fmt: skip


def frame_of(column: Any) -> pd.DataFrame:
    return pd.DataFrame({"v": column})


def everything(key: str) -> tuple[pa.Table, pd.DataFrame]:
    """All columns, as a table and a frame of two rows."""
    frame = {f"pandas {name}": column for name, (column, _) in OTHERS.items()}
    return pa.table(ARROW | {"key": [key] * 2}), pd.DataFrame(frame | {"key": key})


def rows(record: sk.Record) -> Any:
    table, frame = everything(record.key)
    if record.key.endswith("nothing"):  # most columns are there, and have no value
        return [table.slice(1), frame.iloc[1:2]]
    if record.key.endswith("values"):
        return {"key": record.key} | {f"value {name}": value for name, (value, _) in VALUES.items()}
    return [table, frame] if record.key.endswith("all") else {"key": record.key}


def values_of(table: pa.Table, name: str) -> list[Any]:
    return [value for value in table[name].to_pylist() if value is not None]


@pytest.mark.whole
def test_every_type_is_read_back_by_all_readers_and_stays_with_its_day(files: WriteFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def run() -> sk.Run:
        shards = {"by": "date", "path": "{Y}-{m}-{d}"}
        return sk.run(rows, tmp_path / "data", out, shards=shards, workers=1, chunks="even", max_failures=0, quiet=True)

    files([f"2020-01-01/{name}" for name in ("a nothing", "all", "key", "values")])
    first = run().dataset().schema
    files(["2020-01-02/all"])
    second = run()
    assert second.dataset().schema == first  # the new day has the types of that which stays
    table = second.dataset().to_table()
    expected = EXPECTED | {f"pandas {name}": then for name, (_, then) in OTHERS.items()}
    whole = table.filter(pc.ends_with(table["key"], "all"))
    wrong = {
        name: (found, values * 2)
        for name, then in expected.items()
        if (found := bare(values_of(whole, name))) != (values := bare([v for v in then if v is not None])) * 2
    }
    assert not wrong
    for name, (_, then) in VALUES.items():
        assert values_of(table, f"value {name}") == [then] * (then is not None), name
    kinds = {name: table.schema.field(name).type for name in ARROW}
    assert not any(pa.types.is_fixed_size_list(kind) or pa.types.is_dictionary(kind) for kind in kinds.values())
    assert kinds["list of float32"] == pa.list_(pa.float32())
    for path in out.glob("day_partition=*/*.parquet"):
        read = pq.read_schema(path)
        others = [field for field in read if field.type != first.field(field.name).type]
        assert not others
    assert len(pd.read_parquet(out)) == len(table) == 2 + 4 + 1 + 1 + 4
    counted = duckdb.sql(f"select count(int8), count(\"fixed list\") from '{out}/*/*.parquet'").fetchall()
    assert counted == [(2, 2)]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stored_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(TypeError, match=r"column 'v' cannot be stored"):
        collect(REFUSED[name](), 0, "a")


# ---- each beside each other --------------------------------------------------------------------------------------


def chunk(folder: Path, base: str, tables: dict[int, pa.Table]) -> list[File]:
    """The parts of a chunk with these records' tables, by the records' numbers."""
    writer = PartsWriter(LocalFolder(folder), base, schema=None, give_up=_raise)
    for number, table in tables.items():
        writer.add(collect(table, number, f"r{number}"))
    return [File(LocalFolder(folder), part.name) for part in writer.close()]


def combined(parts: list[File], **how: Any) -> pa.Table:
    """What becomes of parts."""
    source = read_source(parts, **({"schema": None, "widen_ints": False} | how))
    return pa.concat_tables([source.schema.empty_table(), *source.tables()])


def merged(folder: Path, given: list[pa.Table], *, chunks: int, **how: Any) -> pa.Table:
    """What becomes of records' tables, in one chunk or in one each."""
    numbered = dict(enumerate(given))
    cut = [numbered] if chunks == 1 else [{number: table} for number, table in numbered.items()]
    parts = [part for number, tables in enumerate(cut) for part in chunk(folder, f"{number:06d}", tables)]
    return combined(parts, **how)


def _raise(result: Any, error: Exception) -> None:
    raise AssertionError(result) from error


def record_of(name: str, number: int) -> pa.Table:
    """The table of the first or the second record, with a column of that type."""
    return pa.table({"key": [f"{number}a", f"{number}b"], "v": ARROW[name]})


def together(folder: Path, alone: dict[tuple[str, int], list[File]], one: str, other: str) -> list[Any]:
    """The values of both records; nothing if the error names the conflict, with a cure that works.

    ``alone`` are the parts of the records in chunks of their own.
    """
    one_chunk = chunk(folder, "both", {0: record_of(one, 0), 1: record_of(other, 1)})
    outcomes = []
    for parts in (one_chunk, alone[one, 0] + alone[other, 1]):
        try:
            outcomes.append(sorted(combined(parts).to_pylist(), key=lambda row: row["key"]))
        except SchemaConflict as conflict:
            outcomes.append([])
            check_conflict(conflict, functools.partial(combined, parts))
    assert outcomes[0] == outcomes[1]  # whichever records come into one chunk
    return [row["v"] for row in outcomes[0]]


def check_conflict(conflict: SchemaConflict, again: Callable[..., pa.Table]) -> None:
    """Check that the message names the column and the records, and that its advice works."""
    assert re.match(r"Column 'v(\[\]|\.\w+)*' is .+ in r0 and .+ in r1\.", conflict.message), conflict.message
    if "widen_ints" in conflict.hint:
        assert again(widen_ints=True).num_rows == 4
    elif "--set" in conflict.hint:
        assert again(schema={"key": "string", "v": "string"}).num_rows == 4


def bare(values: list[Any]) -> list[Any]:
    """The values, with structs without the fields that only others have."""
    return [{k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value for value in values]


# Types of a kind meet each other in ways of their own, those of other kinds as each of their kind does. So every type is
# beside every other of its kind, and beside some of each other kind.
KINDS: tuple[set[str], ...] = (
    {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"},
    {"decimal", "decimal32", "decimal256", "bool", "bool8", "int64", "uint64", "float64"},
    {"string", "large_string", "string_view", "dictionary", "runs", "json", "binary", "binary_view", "fixed bytes"},
    {"date32", "date64", "seconds", "microseconds", "nanoseconds", "zoned"},
    {"time32", "time64", "duration", "nanoseconds"},
    {
        "list",
        "list of float32",
        "large_list",
        "list_view",
        "fixed list",
        "list of dictionary",
        "list of required",
        "map",
    },
    {"struct", "fixed list inside", "required inside", "map"},
    {"null"},
)
FROM_EACH = {"int64", "float64", "string", "microseconds", "list", "struct", "null"}


def test_each_type_has_a_kind() -> None:
    assert set().union(*KINDS) == set(ARROW)


def pairs_of_types() -> Iterator[tuple[str, str]]:
    """Types that are beside each other; each is beside itself, too."""
    for one, other in itertools.combinations_with_replacement(ARROW, 2):
        if {one, other} & FROM_EACH or any({one, other} <= kind for kind in KINDS):
            yield one, other


@pytest.mark.slow
def test_types_beside_each_other_hold_all_values_or_the_conflict_is_named(tmp_path: Path) -> None:
    alone = {
        (name, number): chunk(tmp_path, f"{name}-{number}", {number: record_of(name, number)})
        for name in ARROW
        for number in range(2)
    }
    for one, other in pairs_of_types():
        found = bare(together(tmp_path, alone, one, other))
        expected = bare(EXPECTED[one] + EXPECTED[other])
        assert found in ([], expected), (one, other)
        if one == other or "null" in {one, other}:
            assert found == expected, (one, other)


BIG = 2**64 - 1
UNITED: dict[str, tuple[pa.Array, pa.Array, pa.DataType]] = {
    "uint64 that fit": (pa.array([1, -1]), pa.array([5, None], pa.uint64()), pa.int64()),
    "uint64 beside what has no sign": (pa.array([1, None]), pa.array([BIG, 1], pa.uint64()), pa.uint64()),
    "uint64 beside less than nothing": (pa.array([-1, 1]), pa.array([BIG, 1], pa.uint64()), pa.decimal128(20, 0)),
    "uint64 in lists": (pa.array([[-1], []]), pa.array([[BIG], [1]], pa.list_(pa.uint64())), pa.list_(pa.decimal128(20, 0))),
    "near times": (pa.array([NOON, None]), pa.array([NS.value, 0], pa.timestamp("ns")), pa.timestamp("ns")),
    "far times": (pa.array([dt.datetime(9999, 1, 1), NOON]), pa.array([1000, 0], pa.timestamp("ns")), pa.timestamp("us")),
    "far durations": (pa.array([10**9, 0], pa.duration("s")), pa.array([10**9, 0], pa.duration("ns")), pa.duration("ns")),
    "farther durations": (pa.array([10**12, 0], pa.duration("s")), pa.array([10**9, 0], pa.duration("ns")), pa.duration("us")),
    "times of day": (pa.array([dt.time(1), None]), pa.array([1, 2], pa.time32("s")), pa.time64("us")),
    "fixed bytes": (pa.array([b"a", None], pa.binary(1)), pa.array([b"ab", None], pa.binary(2)), pa.binary()),
    "nothing of a type": (pa.nulls(2, pa.timestamp("ns")), pa.array(["x", None]), pa.string()),
    "nothing of two": (pa.nulls(2, pa.timestamp("ns")), pa.nulls(2, pa.int8()), pa.timestamp("ns")),
    "maps": (pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())), pa.array([[("b", 300)], []], pa.map_(pa.string(), pa.int64())), pa.map_(pa.string(), pa.int64())),
}  # fmt: skip


@pytest.mark.parametrize("name", UNITED)
def test_the_values_choose_the_type_where_types_alone_do_not_tell(tmp_path: Path, name: str) -> None:
    left, right, kind = UNITED[name]
    for chunks in (1, 2):
        tables = [pa.table({"key": ["a", "b"], "v": left}), pa.table({"key": ["c", "d"], "v": right})]
        table = merged(tmp_path, tables, chunks=chunks).sort_by("key")
        assert table.schema.field("v").type == kind
        assert table["v"].to_pylist() == left.to_pylist() + right.to_pylist()


def test_times_that_no_unit_holds_are_a_conflict_with_its_reason(tmp_path: Path) -> None:
    far, fine = pa.array([dt.datetime(9999, 1, 1)] * 2), pa.array([NS.value, 0], pa.timestamp("ns"))
    with pytest.raises(
        SchemaConflict, match=r"No unit holds the values of both: .* resume\(\*\*\{'output\.schema': \{'v': 'string'"
    ):
        merged(tmp_path, [pa.table({"v": far}), pa.table({"v": fine})], chunks=2)


def drifting(count: int, kinds: list[Callable[[int], Any]]) -> list[pa.Table]:
    """Records of twelve columns, each of one of the kinds, by chance."""
    chance = np.random.default_rng(1)
    return [
        pa.table({"key": [f"{i:04d}"]} | {f"c{j}": [kinds[int(chance.integers(len(kinds)))](i)] for j in range(12)})
        for i in range(count)
    ]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("kinds", "how"),
    [
        ([lambda i: i, lambda i: i + 0.5], {"widen_ints": True}),
        ([lambda i: i, lambda i: f"t{i}"], {"schema": {"key": "string", **{f"c{j}": "string" for j in range(12)}}}),
    ],
    ids=["integers and floats", "integers and texts"],
)
def test_types_that_drift_make_few_parts_and_lose_nothing(
    tmp_path: Path, kinds: list[Callable[[int], Any]], how: dict[str, Any]
) -> None:
    tables = drifting(100, kinds)
    with pytest.raises(SchemaConflict, match=r"Column 'c\d+' is int64 in r\d+ and"):
        merged(tmp_path, tables, chunks=1)
    assert len(list(tmp_path.glob("*.parquet"))) <= 8
    text = "schema" in how
    found = {row["key"]: row for row in merged(tmp_path, tables, chunks=1, **how).to_pylist()}
    for row in (table.to_pylist()[0] for table in tables):
        assert found[row["key"]] == {name: str(value) if text else value for name, value in row.items()}
