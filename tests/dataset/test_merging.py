"""Pass 2: one schema, files of the size asked for, formats and partitions that others read, combine, limited memory."""

from __future__ import annotations

import datetime as dt
import decimal
import functools
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import warm

import shardkit as sk
from shardkit.dataset.merge import Merge
from shardkit.dataset.source import read_source
from shardkit.dataset.writer import Layout
from shardkit.runs.alone import combine_folders
from shardkit.storage.base import File
from shardkit.storage.local_folder import LocalFolder
from shardkit.tables.rows import collect
from shardkit.workers.parts import PartsWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import WriteFiles

    from shardkit.dataset.combine import Batches

WAYS: list[dict[str, Any]] = [{"chunks": "even", "workers": 1}, {"chunks": "dynamic", "workers": 1}]
ways = pytest.mark.parametrize("way", WAYS, ids=["one-chunk", "many-chunks"])


def run_of(folder: Path, rows: dict[str, Any], output: str = "out", **fields: Any) -> sk.Run:
    """A run whose records return what ``rows`` says, by key."""
    data = folder / "data"
    for key in rows:
        (data / key).parent.mkdir(parents=True, exist_ok=True)
        (data / key).write_text("x")
    # A callable's value is made in the worker, so that it can be a generator.
    return sk.run(
        lambda record: rows[record.key]() if callable(rows[record.key]) else rows[record.key],
        data, folder / output, **({"quiet": True, "workers": 1, "name": "merging"} | fields),
    )  # fmt: skip


def merge_by(column: str) -> Merge:
    return sk.Pipeline(function="a:b", input=".", output={"uri": "out", "partition_by": column}).merge()


def dataset_files(run: sk.Run, suffix: str = "parquet") -> list[Path]:
    return sorted(p for p in run.output.rglob(f"*.{suffix}") if "_shardkit" not in p.parts)


def column(run: sk.Run, name: str) -> list[Any]:
    return run.dataset().to_table()[name].to_pylist()  # type: ignore[no-any-return]


def types_of(run: sk.Run) -> dict[str, str]:
    return {f.name: str(f.type).replace("element: ", "").replace("item: ", "") for f in run.dataset().schema}


# ---- schemas ---------------------------------------------------------------------------------------------------

FRAME = pd.DataFrame

UNIFIED: dict[str, tuple[list[Any], str]] = {
    "nulls first": ([{"x": None}, {"x": None}, {"x": "a"}], "string"),
    "nulls last": ([{"x": 1}, {"x": None}], "int64"),
    "nulls in a frame": ([FRAME({"x": [math.nan, math.nan]}), {"x": "a"}], "string"),
    "nulls in a list": ([{"x": []}, {"x": [None]}, {"x": [1]}], "list<int64>"),
    "nulls in a struct": ([{"x": {"a": None}}, {"x": {"a": "s"}}], "struct<a: string>"),
    "absent first": ([{"y": 1}, {"x": dt.date(2020, 1, 1)}], "date32[day]"),
    "int32 and int64": ([pa.table({"x": pa.array([1], pa.int32())}), {"x": 1}], "int64"),
    "int8 and uint8": ([pa.table({"x": pa.array([1], pa.int8())}), pa.table({"x": pa.array([1], pa.uint8())})], "int16"),
    "float32 and float64": ([pa.table({"x": pa.array([1], pa.float32())}), {"x": 1.5}], "double"),
    "units": ([pa.table({"x": pa.array([0], pa.timestamp("s"))}), pa.table({"x": pa.array([0], pa.timestamp("ns"))})], "timestamp[ns]"),
    "durations": ([{"x": dt.timedelta(1)}, {"x": np.timedelta64(1, "ns")}], "duration[ns]"),
    "zones": ([{"x": dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)}, {"x": dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1)))}], "timestamp[us, tz=UTC]"),
    "decimals": ([{"x": decimal.Decimal("1.25")}, {"x": decimal.Decimal(1000)}], "decimal128(6, 2)"),
    "texts": ([{"x": "a"}, pa.table({"x": pa.array(["b"], pa.large_string())})], "large_string"),
    "categories": ([FRAME({"x": pd.Categorical(["a"])}), FRAME({"x": pd.Categorical(["b"])}), {"x": "c"}], "string"),
    "structs": ([{"x": {"a": 1}}, {"x": {"b": "s", "a": 2.5}}], "struct<a: double, b: string>"),
    "ints in lists": ([{"x": [1]}, {"x": [2.5]}], "list<double>"),
}  # fmt: skip


@pytest.mark.whole
@ways
def test_schemas_are_unified(tmp_path: Path, way: dict[str, Any]) -> None:
    rows: dict[str, Any] = {}
    for name, (results, _) in UNIFIED.items():
        for n, result in enumerate(results):
            key = f"{name}-{n}"
            if isinstance(result, dict):
                rows[key] = {name if k == "x" else f"{name} {k}": v for k, v in result.items()}
            elif isinstance(result, pd.DataFrame):
                rows[key] = result.rename(columns={"x": name})
            else:
                rows[key] = result.rename_columns([name])
    found = types_of(run_of(tmp_path, rows, **way))
    assert {name: found[name].removeprefix("large_") if name == "categories" else found[name] for name in UNIFIED} == {
        name: kind for name, (_, kind) in UNIFIED.items()
    }


def test_columns_that_appear_later(tmp_path: Path) -> None:
    rows = {
        f"{n:02d}": {"n": n} | ({"late": n} if n >= 15 else {}) | ({"early": n} if n < 5 else {}) for n in range(20)
    }
    for way in WAYS:
        run = run_of(tmp_path, rows, way["chunks"], **way)
        assert run.dataset().schema.names == ["n", "early", "late"]
        assert column(run, "late") == [None] * 15 + [15, 16, 17, 18, 19]
        assert column(run, "early") == [0, 1, 2, 3, 4] + [None] * 15


CONFLICTS: dict[str, tuple[Any, Any, str, str]] = {
    "int-float": ({"x": 1}, {"x": 1.5}, "int64", "double"),
    "text-int": ({"x": "a"}, {"x": 1}, "string", "int64"),
    "bool-int": ({"x": True}, {"x": 1}, "bool", "int64"),
    "text-bytes": ({"x": "a"}, {"x": b"a"}, "string", "binary"),
    "date-datetime": ({"x": dt.date(2020, 1, 1)}, {"x": dt.datetime(2020, 1, 1, 3)}, "date32[day]", "timestamp[us]"),
    "naive-aware": ({"x": dt.datetime(2020, 1, 1)}, {"x": dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)}, "timestamp[us]", "timestamp[us, tz=UTC]"),
    "list-int": ({"x": [1]}, {"x": 1}, "list<element: int64>", "int64"),
    "frame-int-float": (FRAME({"x": [1]}), FRAME({"x": [1.5]}), "int64", "double"),
    "frame-and-dict": (FRAME({"x": [1]}), {"x": 1.5}, "int64", "double"),
}  # fmt: skip


def merged_schema(folder: Path, rows: dict[str, Any], *, chunks: str) -> pa.Schema:
    """The schema of records that return what ``rows`` says, all in one chunk, or each in its own."""
    folder.mkdir()
    home, parts = LocalFolder(folder), []
    groups = [list(rows)] if chunks == "even" else [[key] for key in rows]
    for number, keys in enumerate(groups):
        writer = PartsWriter(
            home, f"{number:06d}", schema=None, give_up=lambda key, error: pytest.fail(f"{key}: {error}")
        )
        for index, key in enumerate(keys):
            writer.add(collect(rows[key], index, key))
        parts += [File(home, part.name) for part in writer.close()]
    return read_source(parts, schema=None, widen_ints=False).schema


@pytest.mark.whole
@pytest.mark.parametrize("name", CONFLICTS)
def test_a_real_conflict_names_column_types_and_records(tmp_path: Path, name: str) -> None:
    left, right, left_type, right_type = CONFLICTS[name]
    for way, first, second in [("even", left, right), ("dynamic", right, left)]:
        rows = {"p/1": {"y": 1}, "p/2": first, "p/3": {"x": None, "y": 1}, "p/4": second, "p/5": first, "p/6": second}
        merging = functools.partial(merged_schema, tmp_path / way, rows, chunks=way)
        if name == "int-float":  # the same in a whole run
            merging = functools.partial(run_of, tmp_path / way, rows, workers=1, chunks=way)
        with pytest.raises(sk.SchemaConflict) as raised:
            merging()
        text = str(raised.value)
        expected = {left_type: "p/2", right_type: "p/4"} if first is left else {right_type: "p/2", left_type: "p/4"}
        for kind, record in expected.items():
            assert f"{kind} in {record}" in text, text
        assert text.startswith("Column 'x' is ")
    assert raised.value.exit_code == 1


@pytest.mark.whole
@pytest.mark.parametrize("first", ["ints", "floats"])
def test_int_and_float_do_not_hang_on_batches(tmp_path: Path, first: str) -> None:
    """More rows than are converted at once, in a single chunk: the conflict must be found all the same."""
    ints = [{"x": n} for n in range(5000)]
    floats = [{"x": n + 0.5} for n in range(5000)]
    for number, shape in enumerate(
        (
            [ints, floats],
            [ints[:10], floats[:10]],
            [ints[:10], ints, floats[:10]],
            [ints[:1] + floats[:1], ints[:1]],
        )
    ):
        rows = {f"{n}": part for n, part in enumerate(shape if first == "ints" else shape[::-1])}
        with pytest.raises(sk.SchemaConflict, match=r"Column 'x' is (int64|double) in \d and (int64|double) in \d"):
            merged_schema(tmp_path / f"{number}", rows, chunks="even")


def test_ints_beside_floats_in_one_record_are_floats(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"1": [{"x": 1}, {"x": 2.5}], "2": [{"x": 2.5}], "3": [{"x": None}, {"x": 0.5}, {"x": 3}]})
    assert types_of(run) == {"x": "double"}
    assert column(run, "x") == [1, 2.5, 2.5, None, 0.5, 3]


class Touching:
    """Returns an int or a float, and leaves a trace of each call."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __call__(self, record: sk.Record) -> dict[str, Any]:
        with self.trace.open("a") as file:
            file.write(record.key)
        return {"key": record.key, "x": 1 if record.key < "5" else 1.5}


MENDED: list[tuple[dict[str, Any], str]] = [
    ({"output.widen_ints": True, "output.schema": None}, "double"),
    ({"output.widen_ints": False, "output.schema": {"key": "string", "x": "double"}}, "double"),
    ({"output.widen_ints": False, "output.schema": {"key": "string", "x": "string"}}, "string"),
]


@pytest.mark.whole
def test_a_conflict_is_mended_by_pass_2_alone(files: WriteFiles, tmp_path: Path) -> None:
    folder = files([str(n) for n in range(10)])
    conflict = r"resume\(\*\*{'output.widen_ints': True}\)"
    with pytest.raises(sk.SchemaConflict, match=conflict):
        sk.run(Touching(tmp_path / "trace"), folder, tmp_path / "out", quiet=True, workers=2)
    run = sk.open_run(tmp_path / "out")
    markers = {path: path.stat().st_mtime_ns for path in run.path.rglob("markers/*/*.json")}
    for settings, kind in MENDED:
        assert run.summary().status == "failed"
        run.resume(quiet=True, **settings)
        assert run.summary().status == "done"
        assert types_of(run)["x"] == kind
        assert [float(x) for x in column(run, "x")] == [1] * 5 + [1.5] * 5
        with pytest.raises(sk.SchemaConflict, match=conflict):
            run.resume(quiet=True, **{"output.widen_ints": False, "output.schema": None})
    assert len((tmp_path / "trace").read_text()) == 10
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("markers/*/*.json")} == markers


def test_widen_ints_from_the_start(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"1": {"x": 1}, "2": {"x": 2.5}, "3": FRAME({"x": [3]})}, widen_ints=True)
    assert types_of(run) == {"x": "double"}
    assert column(run, "x") == [1, 2.5, 3]


def test_a_value_that_a_later_schema_cannot_take(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"1": {"x": "7"}, "2": {"x": "seven"}})
    with pytest.raises(sk.SchemaConflict, match=r"column 'x'.*seven"):
        run.resume(quiet=True, **{"output.schema": {"x": "int64"}})
    assert run.summary().status == "failed"
    assert column(run, "x") == ["7", "seven"]  # the dataset is as it was
    with pytest.raises(sk.SchemaConflict, match=r"column 'x', which is not in output.schema"):
        run.resume(quiet=True, **{"output.schema": {"y": "int64"}})
    run.resume(quiet=True)
    assert run.summary().status == "done"


def test_integers_that_no_float_can_hold_are_not_rounded(tmp_path: Path) -> None:
    with pytest.raises(sk.SchemaConflict, match=r"column 'x'.*9007199254740993"):
        run_of(tmp_path, {"1": {"x": 2**53 + 1}, "2": {"x": 0.5}}, widen_ints=True)


# ---- how the dataset is cut ------------------------------------------------------------------------------------


CUTS = [*(("parquet", n) for n in (1, 60, 250, 10**6)), ("jsonl", 60), ("csv", 250), ("arrow", 60)]


@pytest.mark.whole
def test_rows_per_file_is_exact(tmp_path: Path) -> None:
    rows = {f"{n}": [{"n": 25 * n + i} for i in range(25)] for n in range(10)}
    run = run_of(tmp_path, rows, workers=2)
    few = run_of(tmp_path / "few", {"0": rows["0"]})  # for a file a row
    for kind, rows_per_file in CUTS:
        cut = few if rows_per_file == 1 else run
        cut.resume(quiet=True, **{"output.format": kind, "output.rows_per_file": rows_per_file})
        names = dataset_files(cut, kind)
        counts = [len(read(path)) for path in names]
        total = 25 if cut is few else 250
        rest = total % rows_per_file
        assert counts == [rows_per_file] * (total // rows_per_file) + [rest] * (rest > 0)
        assert [int(n) for path in names for n in read(path)["n"]] == list(range(total))
        assert cut.summary().files == len(names)


def read(path: Path) -> pd.DataFrame:
    """A file of the dataset as pandas sees it."""
    if path.suffix == ".arrow":
        return pa.ipc.open_file(path).read_pandas()
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".parquet": pd.read_parquet, ".csv": pd.read_csv, ".jsonl": lambda p: pd.read_json(p, lines=True),
    }  # fmt: skip
    return readers[path.suffix](path)


def noise(rows: int, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({"x": random.integers(0, 2**62, rows), "y": random.random(rows)})


@pytest.mark.whole
def test_target_bytes_is_about_right(tmp_path: Path) -> None:
    run = run_of(tmp_path, {f"{n}": (lambda n=n: noise(10_000, n)) for n in range(20)}, target_bytes="250KB")
    sizes = [path.stat().st_size for path in dataset_files(run)]
    assert len(sizes) > 8
    assert all(187_500 < size < 325_000 for size in sizes[:-1])
    assert sum(pq.read_metadata(path).num_rows for path in dataset_files(run)) == 200_000


@pytest.mark.whole
def test_rows_per_file_and_target_bytes_together(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"1": lambda: noise(100_000, 1)}, target_bytes="10MB", rows_per_file=30_000)
    assert [pq.read_metadata(path).num_rows for path in dataset_files(run)] == [30_000] * 3 + [10_000]


@pytest.mark.whole
def test_the_order_of_rows_is_that_of_the_records(tmp_path: Path) -> None:
    rows = {f"{n % 7}/{n:03d}": [{"key": f"{n % 7}/{n:03d}", "i": i} for i in range(n % 5)] for n in range(35)}
    expected = [row for key in sorted(rows) for row in rows[key]]
    many = {"workers": 2}
    for n, way in enumerate(
        [WAYS[0], many | {"rows_per_file": 13}, many | {"shards": {"depth": 1}}, many | {"target_bytes": 500}]
    ):
        run = run_of(tmp_path, rows, f"out{n}", **way)
        assert run.dataset().to_table().to_pylist() == expected
    first, second = (run_of(tmp_path, rows, f"again{n}", chunks="balanced", workers=2) for n in range(2))
    assert first.dataset().to_table().equals(second.dataset().to_table())


@pytest.mark.parametrize("rows_per_file", [1 << 20, 7_001])
def test_small_and_large_parts_stay_in_order(tmp_path: Path, rows_per_file: int) -> None:
    sizes, first = [*range(1, 60), 50_000, 3, 0, 9_000, 4_000, 70_000, *([100] * 150)], 0
    (tmp_path / "parts").mkdir()
    for i, size in enumerate(sizes):
        pq.write_table(pa.table({"n": range(first, first + size)}), tmp_path / "parts" / f"{i:04d}.parquet")
        first += size
    merge = Merge(Layout("parquet", rows_per_file, None, ()))
    run = combine_folders([tmp_path / "parts"], tmp_path / "out", merge, quiet=True)
    assert column(run, "n") == list(range(first))
    assert len(dataset_files(run)) == -(-first // rows_per_file)


@pytest.mark.whole
def test_parquet_files_are_as_readers_like_them(tmp_path: Path) -> None:
    def rows(n: int) -> pa.Table:
        return noise(50_000, n).append_column("kind", pa.array([f"kind-{i % 5}" for i in range(50_000)]))

    run = run_of(tmp_path, {f"{n}": (lambda n=n: rows(n)) for n in range(4)})
    (path,) = dataset_files(run)
    footer = pq.read_metadata(path)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    assert 2 <= len(groups) <= 4
    for group in groups:
        assert 50_000 <= group.num_rows <= 131_072
        for i in range(group.num_columns):
            chunk = group.column(i)
            assert chunk.compression == "ZSTD"
            assert chunk.is_stats_set
            assert chunk.statistics.has_min_max
            assert chunk.statistics.null_count == 0
    assert footer.metadata is None or not any(b"shardkit" in key for key in footer.metadata)
    assert "PLAIN_DICTIONARY" in groups[0].column(2).encodings or "RLE_DICTIONARY" in groups[0].column(2).encodings


@pytest.mark.whole
def test_wide_rows_make_small_row_groups(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, {f"{n}": (lambda n=n: [{"text": f"{n}-{i}" + "x" * 100_000} for i in range(100)]) for n in range(6)}
    )
    (path,) = dataset_files(run)
    footer = pq.read_metadata(path)
    assert max(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)) < 50_000_000
    assert footer.num_row_groups <= 6  # one for each part, of 10 MB: they are copied


# ---- formats ---------------------------------------------------------------------------------------------------

ODD_TEXTS = [
    "plain",
    "",
    "new\nline",
    'quote"d',
    "comma,",
    "ü\U0001f600",
    "\t",
    " space ",
    "NULL",
    "null",
    "\\N",
    "\r\n",
    "'",
    None,
]
ODD = {
    f"{n:02d}": {"n": n, "text": text, "f": n / 3, "b": n % 2 == 0, "d": dt.date(2020, 1, n + 1), "empty": None}
    for n, text in enumerate(ODD_TEXTS)
}


def test_parquet_is_read_by_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    run = run_of(
        tmp_path,
        ODD
        | {
            "99": {
                "n": 99,
                "l": [1, 2],
                "s": {"a": "x"},
                "t": dt.datetime(2020, 1, 1, 2, 3, 4, 5),
                "dec": decimal.Decimal("1.50"),
            }
        },
    )
    found = duckdb.sql(f"select n, text, f, b, d, l, s.a, t, dec from '{run.output}/*.parquet' order by n").fetchall()
    for n, text in enumerate(ODD_TEXTS):
        assert found[n] == (n, text, n / 3, n % 2 == 0, dt.date(2020, 1, n + 1), None, None, None, None)
    assert found[-1] == (
        99,
        None,
        None,
        None,
        None,
        [1, 2],
        "x",
        dt.datetime(2020, 1, 1, 2, 3, 4, 5),
        decimal.Decimal("1.50"),
    )


def test_json_lines(tmp_path: Path) -> None:
    special = {
        "n": 99, "f": math.nan, "inf": math.inf, "l": [1, None], "s": {"a": [{"b": "ü"}]}, "t": dt.datetime(2020, 1, 1, 2, 3, 4, 5),
        "z": dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc), "dec": decimal.Decimal("1.50"), "big": 2**62, "td": dt.timedelta(seconds=1.5),
        "time": dt.time(1, 2), "ns": pd.Timestamp("2020-01-01 00:00:00.123456789"),
    }  # fmt: skip
    run = run_of(tmp_path, ODD | {"99": special}, format="jsonl")
    (path,) = dataset_files(run, "jsonl")
    rows = [
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
        for line in path.read_text("utf-8").split("\n")[:-1]
    ]
    assert [row["text"] for row in rows[:-1]] == ODD_TEXTS
    assert {name: value for name, value in rows[-1].items() if value is not None} == {
        "n": 99, "l": [1, None], "s": {"a": [{"b": "ü"}]}, "t": "2020-01-01T02:03:04.000005", "z": "2020-01-01T00:00:00+00:00",
        "dec": "1.50", "big": 2**62, "td": 1.5, "time": "01:02:00", "ns": "2020-01-01T00:00:00.123456789",
    }  # fmt: skip
    assert run.dataset().to_table()["n"].to_pylist() == [*range(len(ODD_TEXTS)), 99]
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select count(*), max(n) from read_json('{path}')").fetchall() == [(len(ODD) + 1, 99)]


@pytest.mark.whole
def test_csv(tmp_path: Path) -> None:
    run = run_of(tmp_path, ODD, format="csv", rows_per_file=5)
    names = dataset_files(run, "csv")
    assert len(names) == 3
    frames = pd.concat([pd.read_csv(path, keep_default_na=False) for path in names])
    assert frames["text"].tolist() == ["" if text is None else text for text in ODD_TEXTS]
    assert frames["d"].tolist()[0] == "2020-01-01"
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"select text, b, f from read_csv('{run.output}/*.csv', header=true, quote='\"', escape='\"', nullstr='') order by n"
    ).fetchall()
    assert [row[0] for row in found] == [text or None for text in ODD_TEXTS]
    assert [row[1] for row in found] == [n % 2 == 0 for n in range(len(ODD_TEXTS))]
    table = run.dataset().to_table()
    assert table["text"].to_pylist() == ODD_TEXTS
    assert table["n"].to_pylist() == list(range(len(ODD_TEXTS)))


def test_texts_that_look_like_numbers_stay_texts_in_csv(tmp_path: Path) -> None:
    run = run_of(tmp_path, {f"{n}": {"code": f"{n:03d}", "n": n} for n in range(3)}, format="csv")
    assert column(run, "code") == ["000", "001", "002"]
    assert column(run, "n") == [0, 1, 2]


def test_arrow(tmp_path: Path) -> None:
    run = run_of(tmp_path, ODD | {"99": {"n": 99, "blob": b"\xff", "l": [1]}}, format="arrow")
    (path,) = dataset_files(run, "arrow")
    table = pa.ipc.open_file(path).read_all()
    assert table["text"].to_pylist()[:-1] == ODD_TEXTS
    assert table["blob"].to_pylist()[-1] == b"\xff"
    assert run.dataset().to_table().equals(table)


@pytest.mark.whole
def test_rows_of_several_megabytes(tmp_path: Path) -> None:
    texts = [letter * 3_000_000 for letter in "ab"]
    run = run_of(tmp_path, {letter: {"text": text} for letter, text in zip("ab", texts, strict=True)})
    for kind in ("parquet", "jsonl", "csv", "arrow"):
        if kind != "parquet":
            run.resume(quiet=True, **{"output.format": kind})
        assert len(dataset_files(run, kind)) == 1
        assert column(run, "text") == texts


REFUSED: list[tuple[str, str, str]] = [
    ("csv", "list", r"CSV cannot hold column 'list' \(list.*Use parquet, arrow or jsonl"),
    ("csv", "struct", r"CSV cannot hold column 'struct' \(struct"),
    ("csv", "binary", r"CSV cannot hold column 'binary' \(binary"),
    ("jsonl", "binary", r"JSON Lines cannot hold column 'binary' \(binary.*Use parquet or arrow"),
    ("jsonl", "bytes inside", r"JSON Lines cannot hold column 'bytes inside' \(struct.*binary"),
]
HARD: dict[str, Any] = {"list": [1], "struct": {"a": 1}, "binary": b"b", "bytes inside": {"a": [{"b": b"b"}]}}


@pytest.mark.whole
def test_what_a_format_cannot_hold(tmp_path: Path) -> None:
    def only(batches: Batches, name: str) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield batch.select([name])

    rows = {"1": {"y": 1}, "2": HARD}
    with pytest.raises(sk.ShardkitError, match=REFUSED[0][2]):
        run_of(tmp_path, rows, format="csv")
    run = sk.open_run(tmp_path / "out")
    for kind, name, message in REFUSED:
        with pytest.raises(sk.ShardkitError, match=message):
            run.resume(quiet=True, combine=functools.partial(only, name=name), **{"output.format": kind})
        assert run.summary().status == "failed"
    run.resume(quiet=True, combine=None, **{"output.format": "arrow"})
    assert {name: column(run, name)[-1] for name in HARD} == HARD


# ---- partitions ------------------------------------------------------------------------------------------------

ODD_PARTITIONS = [
    "plain",
    "with space",
    "a=b",
    "a/b",
    "..",
    "%2F",
    "ü",
    "a:b",
    "a,b",
    "*",
    "?",
    "#",
    "x" * 80,
    "'",
    '"',
    "\\",
    "a\nb",
    None,
    "{}",
    "+",
]


def test_partitions_are_read_back(tmp_path: Path) -> None:
    rows = {
        f"{n:02d}": [{"site": site, "day": dt.date(2020, 1, 1 + n % 3), "n": n * 10 + i} for i in range(3)]
        for n, site in enumerate(ODD_PARTITIONS)
    }
    run = run_of(tmp_path, rows, partition_by=["site", "day"])
    expected = sorted(
        (n * 10 + i, site, str(dt.date(2020, 1, 1 + n % 3))) for n, site in enumerate(ODD_PARTITIONS) for i in range(3)
    )
    folders = {path.parent.relative_to(run.output).as_posix() for path in dataset_files(run)}
    assert len(folders) == len(ODD_PARTITIONS)
    assert "site=__HIVE_DEFAULT_PARTITION__/day=2020-01-03" in folders
    assert all(pq.read_schema(path).names == ["n"] for path in dataset_files(run))
    own = run.dataset().to_table().to_pylist()
    assert sorted((row["n"], row["site"], str(row["day"])) for row in own) == expected
    assert types_of(run) == {"n": "int64", "site": "string", "day": "date32[day]"}
    duckdb = pytest.importorskip("duckdb")
    query = f"from read_parquet('{run.output}/*/*/*.parquet', hive_partitioning=true, hive_types_autocast=false)"
    assert sorted(duckdb.sql(f"select n, site, day {query}").fetchall()) == expected
    table = pads.dataset(run.output, partitioning="hive").to_table()
    assert sorted(table["n"].to_pylist()) == [row[0] for row in expected]
    assert table["site"].null_count == 3


def test_partitions_by_numbers_and_truths(tmp_path: Path) -> None:
    rows = {f"{n}": {"year": 2000 + n % 2, "ok": n % 3 == 0, "n": n} for n in range(12)}
    run = run_of(tmp_path, rows, partition_by=["year", "ok"], rows_per_file=2)
    assert {path.parent.relative_to(run.output).as_posix() for path in dataset_files(run)} == {
        f"year={year}/ok={ok}" for year in (2000, 2001) for ok in ("true", "false")
    }
    assert max(pq.read_metadata(path).num_rows for path in dataset_files(run)) == 2
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"select n, year, ok from read_parquet('{run.output}/*/*/*.parquet', hive_partitioning=true)"
    ).fetchall()
    assert sorted(found) == [(n, 2000 + n % 2, "true" if n % 3 == 0 else "false") for n in range(12)]


def test_a_partition_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    run = run_of(tmp_path, {f"{n}": {"site": f"{n:03d}", "n": n} for n in range(3)}, partition_by="site")
    assert run.dataset().to_table().to_pylist() == [{"n": n, "site": f"{n:03d}"} for n in range(3)]


def test_rows_of_a_partition_stay_in_order(tmp_path: Path) -> None:
    rows = {f"{n:03d}": [{"part": (n + i) % 4, "n": n, "i": i} for i in range(10)] for n in range(50)}
    run = run_of(tmp_path, rows, partition_by="part", workers=2)
    for part in range(4):
        table = pa.concat_tables([pq.ParquetFile(p).read() for p in sorted((run.output / f"part={part}").iterdir())])
        assert table.sort_by([("n", "ascending"), ("i", "ascending")]).equals(table)


MANY_PARTITIONS = """
import resource, sys
import pyarrow as pa, shardkit as sk
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
parts, rows = int(sys.argv[1]), int(sys.argv[2])
def make(record):
    n = int(record.key)
    return pa.table({"part": [i % parts for i in range(rows)], "n": [n * rows + i for i in range(rows)]})
run = sk.run(make, "data", "out", partition_by="part", workers=1, quiet=True)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(run.summary().files, run.summary().rows, int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
def test_more_partitions_than_open_files(files: WriteFiles, tmp_path: Path) -> None:
    files([str(n) for n in range(8)])
    done = warm.run(["-c", MANY_PARTITIONS, 250, 2_500], cwd=tmp_path, env=os.environ, timeout_s=120)
    assert done.returncode == 0, done.stderr
    count, rows, megabytes = map(int, done.stdout.split())
    assert rows == 20_000
    assert count == 250  # not one more for every batch
    assert megabytes < 200
    table = pa.concat_tables([pq.ParquetFile(p).read() for p in (tmp_path / "out" / "part=7").iterdir()])
    assert table["n"].to_pylist() == [n * 2_500 + i for n in range(8) for i in range(7, 2_500, 250)]


@pytest.mark.whole
def test_many_partitions_of_which_few_are_open_and_little_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardkit.dataset.writer.PARTITIONS_OPEN", 3)
    monkeypatch.setattr("shardkit.dataset.writer.PARTITIONS_BYTES", 4_000)
    chance = np.random.default_rng(1)
    (tmp_path / "parts").mkdir()
    rows = [{"part": int(part), "n": n, "text": "x" * n} for n, part in enumerate(chance.zipf(1.3, 600) % 12)]
    for i in range(60):
        pq.write_table(pa.Table.from_pylist(rows[10 * i : 10 * i + 10]), tmp_path / "parts" / f"{i:02d}.parquet")
    monkeypatch.setattr("shardkit.dataset.source.PIECE_ROWS", 10)
    run = combine_folders([tmp_path / "parts"], tmp_path / "out", merge_by("part"), quiet=True)
    table = run.dataset().to_table().sort_by("n").select(["part", "n", "text"])
    assert table.to_pylist() == rows


@pytest.mark.whole
def test_what_cannot_be_a_partition(tmp_path: Path) -> None:
    refused: list[tuple[Any, str]] = [
        ("absent", r"output.partition_by: there is no column 'absent'.*There are a, b, l"),
        (["a", "b", "l"], r"output.partition_by: every column is a partition"),
        ("l", r"output.partition_by: column 'l' is list.*cannot name a folder"),
    ]
    with pytest.raises(sk.PipelineError, match=refused[0][1]):
        run_of(tmp_path, {"1": {"a": 1, "b": 2, "l": [1]}}, partition_by=refused[0][0])
    run = sk.open_run(tmp_path / "out")
    for partition_by, message in refused:
        with pytest.raises(sk.PipelineError, match=message):
            run.resume(quiet=True, **{"output.partition_by": partition_by})
    run.resume(quiet=True, **{"output.partition_by": ["a"]})
    assert column(run, "a") == [1]


def test_partitions_in_other_formats(tmp_path: Path) -> None:
    run = run_of(tmp_path, {f"{n}": {"part": f"p{n % 2}", "n": n} for n in range(6)}, partition_by="part")
    for kind in ("jsonl", "csv", "arrow"):
        run.resume(quiet=True, **{"output.format": kind})
        assert {path.parent.name for path in dataset_files(run, kind)} == {"part=p0", "part=p1"}
        rows = run.dataset().to_table().to_pylist()
        assert sorted((row["n"], row["part"]) for row in rows) == [(n, f"p{n % 2}") for n in range(6)]


# ---- combine ---------------------------------------------------------------------------------------------------

PATIENTS = {
    f"p{n}/{i}": [{"patient": f"p{n}", "hr": float(10 * n + i)} for _ in range(5)] for n in range(6) for i in range(4)
}


@pytest.mark.whole
def test_combine_normalises_by_two_passes(tmp_path: Path) -> None:
    def normalise(batches: Batches) -> Iterator[pa.RecordBatch]:
        count = total = squares = 0.0
        for batch in batches:
            values = batch["hr"].to_numpy()
            count, total, squares = count + len(values), total + values.sum(), squares + (values**2).sum()
        mean, deviation = total / count, math.sqrt(squares / count - (total / count) ** 2)
        assert count == batches.num_rows
        assert batches.schema.names == ["patient", "hr"]
        for batch in batches:
            yield batch.append_column("z", pa.array((batch["hr"].to_numpy() - mean) / deviation))

    run = run_of(tmp_path, PATIENTS, combine=normalise, workers=2)
    for n, fields in enumerate([{}, {"output.rows_per_file": 50}]):
        if fields:
            run.resume(quiet=True, **fields)
        z = np.array(column(run, "z"))
        assert abs(z.mean()) < 1e-9
        assert abs(z.std() - 1) < 1e-9
        assert column(run, "patient") == [row["patient"] for key in sorted(PATIENTS) for row in PATIENTS[key]]
        assert [pq.read_metadata(p).num_rows for p in dataset_files(run)] == ([120] if n == 0 else [50, 50, 20])


def test_combine_splits_by_patient_into_partitions(tmp_path: Path) -> None:
    def split(batches: Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            test = pc.is_in(batch["patient"], pa.array(["p1", "p4"]))
            yield batch.append_column("split", pc.if_else(test, "test", "train"))

    run = run_of(tmp_path, PATIENTS, combine=split, partition_by="split")
    found = run.dataset().to_table().group_by("split").aggregate([("patient", "distinct"), ("hr", "count")]).to_pylist()
    assert {row["split"]: (set(row["patient_distinct"]), row["hr_count"]) for row in found} == {
        "test": ({"p1", "p4"}, 40), "train": ({"p0", "p2", "p3", "p5"}, 80),
    }  # fmt: skip


@pytest.mark.whole
def test_combine_may_return_one_table_or_frame_or_fewer_rows(tmp_path: Path) -> None:
    def statistics(batches: Batches) -> pa.Table:
        return pa.Table.from_batches(list(batches)).group_by("patient").aggregate([("hr", "mean")])

    def frame(batches: Batches) -> pd.DataFrame:
        return pd.DataFrame({"rows": [batches.num_rows], "unknown": [math.nan]})

    def nothing(batches: Batches) -> Iterator[pa.RecordBatch]:
        yield from ()

    run = run_of(tmp_path, PATIENTS, combine=statistics)
    assert column(run, "hr_mean") == [1.5, 11.5, 21.5, 31.5, 41.5, 51.5]
    run.resume(quiet=True, combine=frame)
    assert column(run, "rows") == [120]
    assert types_of(run) == {"rows": "int64", "unknown": "double"}
    assert run.resume(quiet=True, combine=nothing, allow_empty=True).summary().rows == 0


def raising(batches: Batches) -> Iterator[pa.RecordBatch]:
    yield next(iter(batches))
    raise ValueError("no such luck")


def differing(batches: Batches) -> Iterator[pa.Table]:
    yield pa.table({"a": [1]})
    yield pa.table({"a": ["x"]})


def growing(batches: Batches) -> Iterator[pa.Table]:
    yield pa.table({"a": [1]})
    yield pa.table({"a": [1], "b": [2]})


BAD_COMBINES: dict[str, tuple[Callable[[Batches], Any], type[Exception], str]] = {
    "raising": (raising, sk.CombineError, r"(?s)raising raised ValueError: no such luck.*in raising.*pass 1 is not done again"),
    "not-iterable": (lambda b: 5, sk.PipelineError, r"returned int.*must yield record batches, Tables or DataFrames"),
    "none": (lambda b: None, sk.PipelineError, r"returned NoneType.*must yield record batches"),
    "dicts": (lambda b: [{"a": 1}], sk.PipelineError, r"yielded dict.*must yield record batches"),
    "differing": (differing, sk.SchemaConflict, r"differing yielded batches that differ.*column 'a'"),
    "growing": (growing, sk.SchemaConflict, r"growing yielded batches that differ.*'b'"),
}  # fmt: skip


@pytest.mark.whole
def test_a_combine_that_fails(tmp_path: Path) -> None:
    function, error, message = BAD_COMBINES["raising"]
    with pytest.raises(error, match=message):
        run_of(tmp_path, PATIENTS, combine=function)
    run = sk.open_run(tmp_path / "out")
    assert run.summary().status == "failed"
    assert not dataset_files(run)
    for function, error, message in BAD_COMBINES.values():
        with pytest.raises(error, match=message):
            run.resume(quiet=True, combine=function)
        assert run.summary().status == "failed"
        assert not dataset_files(run)
    assert run.resume(quiet=True, combine=None).summary().rows == 120


def test_a_combine_that_was_sent_by_value_is_there_for_resume(tmp_path: Path) -> None:
    def negate(batches: Batches) -> Iterator[pa.Table]:
        for batch in batches:
            yield pa.table({"n": pc.negate(batch["n"])})

    with pytest.raises(sk.BudgetExceeded):
        run_of(tmp_path, {"1": {"n": 1}, "2": 5}, combine=negate, max_failures=0)
    assert column(sk.open_run(tmp_path / "out").resume(quiet=True, max_failures=1), "n") == [-1]


def test_combine_by_name(tmp_path: Path, files: WriteFiles) -> None:
    code = files(
        {"combine_by_name.py": "def double(batches):\n    for _ in range(2):\n        yield from batches\n"}, "code"
    )
    data = files(["a", "b"])
    run = sk.run(
        lambda r: {"k": r.key},
        data,
        tmp_path / "out",
        combine="combine_by_name:double",
        source_dir=code,
        quiet=True,
        workers=1,
    )
    assert column(run, "k") == ["a", "b", "a", "b"]
    with pytest.raises(sk.PipelineError, match=r"combine.*defines no 'doubl'.*Did you mean combine_by_name:double"):
        sk.run(
            lambda r: {"k": r.key},
            data,
            tmp_path / "out2",
            combine="combine_by_name:doubl",
            source_dir=code,
            quiet=True,
        )
    assert not (tmp_path / "out2").exists()  # it fails before any work is done


# ---- memory, and parts that are gone ---------------------------------------------------------------------------

# A quarter of what the program holds at a time, so that a quarter of the rows is too much for it to hold all of them.
MERGE = """
import sys
from pathlib import Path
import shardkit as sk
from shardkit.dataset import part_files, source, writer
from shardkit.runs.alone import combine_folders
from shardkit.tables import rowgroups
for module in (part_files, source, writer, rowgroups):
    for name, value in vars(module).items():
        if name.startswith(("COPIED_", "DECODED_", "KEPT_", "PARTITIONS_", "PIECE_", "ROW_GROUP_", "STEP_", "WIDE_GROUP_")):
            setattr(module, name, value // 4)
merge = lambda out: sk.Pipeline(function="a:b", input=".", output={"uri": out} | eval(sys.argv[1])).merge()
def megabytes(name):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith(name))
combine_folders(["little"], "before", merge("before"), quiet=True)  # loads what any merge does
Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
before = megabytes("VmRSS")
run = combine_folders(["parts"], "out", merge("out"), quiet=True)
print(megabytes("VmHWM") - before, run.summary().rows)
"""


def numbers() -> pa.Table:
    """Random ones, which are as large in a file as in memory, and others, which take less time to write."""
    random = np.random.default_rng(1)
    return pa.table({f"c{i}": random.random(125_000) if i < 4 else np.zeros(125_000) for i in range(12)})


def wide_rows() -> pa.Table:
    return pa.table({"text": [f"{i}-" + "x" * 40_000 for i in range(312)], "n": range(312)})


def texts() -> pa.Table:
    """With partitions that all have rows everywhere, and such that nearly all rows are in one."""
    count = range(50_000)
    skewed = [i // 50 % 30 if i % 50 == 0 else -1 for i in count]
    return pa.table({"text": [f"{i}-" + "x" * 300 for i in count], "even": [i % 30 for i in count], "skewed": skewed})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "fields", "at_most_mb"),
    [
        (numbers, {"target_bytes": "16MB"}, 75),
        (wide_rows, {"format": "arrow"}, 75),
        (texts, {"format": "arrow"}, 60),
        (texts, {"partition_by": "even"}, 90),
        (texts, {"partition_by": "skewed"}, 102),
    ],
    ids=["numbers", "wide rows", "texts", "partitions", "skewed partitions"],
)
def test_much_is_merged_in_bounded_memory(
    tmp_path: Path, make: Callable[[], pa.Table], fields: dict[str, Any], at_most_mb: int
) -> None:
    table, parts = make(), tmp_path / "parts"
    compression = "none" if make is numbers else "zstd"  # which finds nothing to do in random numbers
    for folder, rows in (("little", table.slice(0, 100)), ("parts", table)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "0.parquet"
        pq.write_table(rows, path, row_group_size=-(-len(rows) // 3), compression=compression)
    for n in range(1, 5):
        os.link(parts / "0.parquet", parts / f"{n}.parquet")
    done = warm.run(["-c", MERGE, repr(fields)], cwd=tmp_path, env=os.environ, timeout_s=300)
    assert done.returncode == 0, done.stderr
    megabytes, merged = map(int, done.stdout.split())
    assert merged == 5 * len(table)
    assert megabytes < at_most_mb


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_part_that_is_gone_is_named(tmp_path: Path, how: str) -> None:
    run = run_of(tmp_path, {f"{n}": {"n": n} for n in range(6)}, workers=2)
    part = sorted(run.path.rglob("parts/*/*.parquet"))[2]
    if how == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(
        sk.LedgerError, match=rf"Run {run.run_id}: the committed part {re.escape(str(part))} is missing or not of its"
    ) as raised:
        run.resume(quiet=True, **{"output.rows_per_file": 2})
    marker = re.search(r"Delete the marker (\S+) under (\S+), then resume", str(raised.value))
    assert marker is not None
    assert column(run, "n") == list(range(6))  # the dataset is as it was
    Path(marker[2], f"{marker[1]}.json").unlink()
    run.resume(quiet=True)
    assert column(run, "n") == list(range(6))


def test_no_rows_at_all_in_every_format(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"1": None}, allow_empty=True)
    for kind in ("parquet", "jsonl", "csv", "arrow"):
        run.resume(quiet=True, **{"output.format": kind})
        assert (run.summary().rows, run.summary().files) == (0, 0)
        assert run.dataset().to_table().num_rows == 0
