"""Row groups that pass 2 copies: what is copied, that others read it, and that it is the same as if encoded again."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shardkit as sk
from shardkit.dataset import source, writer
from shardkit.dataset.merge import Merge
from shardkit.dataset.writer import Layout
from shardkit.runs.alone import combine_folders
from shardkit.tables import rowgroups
from shardkit.tables.thrift import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I32,
    I64,
    LIST,
    STRUCT,
    TRUE,
    Field,
    read_struct,
    write_struct,
)
from shardkit.workers import parts

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 8_750  # enough to be copied
GROUP_ROWS = 1 << 14  # of the largest row groups
AS_PASS_1: dict[str, Any] = {"compression": "zstd", "compression_level": 1}


# The sizes by which row groups are made and copied are an eighth of what they are, so that an eighth of the rows goes the
# same ways.
SIZES = (
    *("ROW_GROUP_ROWS", "ROW_GROUP_BYTES", "WIDE_GROUP_BYTES", "SEVERAL_THREADS_BYTES", "DICTIONARY_SAMPLE_ROWS"),
    *("PIECE_ROWS", "PIECE_BYTES", "STEP_BYTES", "DECODED_ROWS", "DECODED_BYTES"),
)
SHRUNK = [
    (module, name, vars(module)[name] // 8)
    for module in (parts, rowgroups, source, writer)
    for name in SIZES
    if name in vars(module)
]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in SHRUNK:
        monkeypatch.setattr(*change)


@functools.cache
def simple(rows: int, seed: int = 0) -> pa.Table:
    """A table of numbers, texts that repeat, texts that do not, and lists."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 1000, rows)
    ends = np.concatenate([[0], np.cumsum(numbers % 4)]).astype(np.int32)
    gone = rng.random(rows) < 0.1
    return pa.table(
        {
            "n": pa.array(np.arange(rows) + seed * rows),
            "kind": pa.array(np.char.add("kind-", (numbers % 7).astype(str)), pa.string(), mask=gone),
            "text": pa.array(np.char.add("text ", rng.integers(0, 1 << 60, rows).astype(str)), pa.string(), mask=gone),
            "list": pa.ListArray.from_arrays(ends, pa.array(np.arange(ends[-1]) % 50)),
        }
    )


@functools.cache
def of_all_kinds(rows: int, seed: int = 0) -> pa.Table:
    """A table with nulls, of columns that Parquet stores in different ways."""
    table, rng = simple(rows, seed), np.random.default_rng(seed)
    numbers, gone = rng.integers(0, 1000, rows), rng.random(rows) < 0.1
    others = {
        "number": pa.array(numbers, pa.int32(), mask=gone),
        "small": pa.array(numbers % 100, pa.uint8(), mask=gone),
        "real": pa.array(rng.normal(size=rows), mask=gone),
        "truth": pa.array(numbers > 500, mask=gone),
        "bytes": pa.array(numbers.astype(str)).cast(pa.binary()),
        "day": pa.array(numbers, pa.int32()).cast(pa.date32()),
        "moment": pa.array(numbers, pa.timestamp("us", tz="UTC"), mask=gone),
        "while": pa.array(numbers, pa.duration("ms")),
        "price": pa.array(numbers).cast(pa.decimal128(21, 2)),
        "struct": pa.StructArray.from_arrays(
            [pa.array(numbers), table["list"].combine_chunks()], names=["a", "b"], mask=pa.array(gone)
        ),
    }
    for name, column in others.items():
        table = table.append_column(name, column)
    return table


def merged(folder: Path, tables: list[pa.Table], *, rows_per_file: int = 1 << 20, **options: Any) -> list[Path]:
    """The files that pass 2 makes of parts with these rows, written as pass 1 does but for ``options``."""
    (folder / "parts").mkdir()
    for i, table in enumerate(tables):
        pq.write_table(table, folder / "parts" / f"{i:04d}.parquet", **(AS_PASS_1 | options))
    merge = Merge(Layout("parquet", rows_per_file, None, ()))
    run = combine_folders([folder / "parts"], folder / "out", merge, quiet=True)
    return sorted(run.output.glob("*.parquet"))


def groups_of(path: Path) -> list[Any]:
    footer = pq.read_metadata(path)
    return [footer.row_group(i) for i in range(footer.num_row_groups)]


def described(group: Any) -> list[dict[str, Any]]:
    """What a footer says of a row group, but for where it is."""
    places = {"file_offset", "data_page_offset", "dictionary_page_offset"}
    columns = (group.column(i).to_dict() for i in range(group.num_columns))
    return [{name: value for name, value in column.items() if name not in places} for column in columns]


def chunk_bytes(path: Path, group: Any) -> list[bytes]:
    content, found = path.read_bytes(), []
    for column in map(group.column, range(group.num_columns)):
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        found.append(content[start : start + column.total_compressed_size])
    return found


def read(paths: list[Path]) -> pa.Table:
    return pa.concat_tables(map(pq.read_table, paths))


@pytest.mark.whole
def test_a_large_row_group_is_copied_as_it_is(tmp_path: Path) -> None:
    tables = [of_all_kinds(ROWS, 0), of_all_kinds(2 * ROWS, 1), of_all_kinds(200, 2), of_all_kinds(ROWS, 3)]
    (path,) = merged(tmp_path, tables, row_group_size=ROWS)
    assert read([path]).equals(pa.concat_tables(tables))
    parts = sorted((tmp_path / "parts").iterdir())
    there = [(part, group) for part in parts for group in groups_of(part)]
    for group, (part, original) in zip(groups_of(path), there, strict=True):
        assert group.num_rows == original.num_rows
        if group.num_rows == ROWS:
            assert described(group) == described(original)
            assert chunk_bytes(path, group) == chunk_bytes(part, original)
    ours = pq.read_schema(path)
    assert ours.equals(tables[0].schema) and not ours.metadata


@pytest.mark.whole
def test_others_read_it(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    table = of_all_kinds(ROWS).drop_columns(["while"])  # which is a number to others
    (path,) = merged(tmp_path, [table, table.slice(0, 100), table])
    expected = pa.concat_tables([table, table.slice(0, 100), table])
    found = pa.table(duckdb.sql(f"select * from read_parquet('{path}')"))
    for name in expected.column_names:
        assert found[name].cast(expected[name].type).combine_chunks().equals(expected[name].combine_chunks()), name
    asked = duckdb.sql(f"select count(*) from read_parquet('{path}') where n >= 8600 and struct.a > 500").fetchall()
    wanted = pa.concat_tables([expected]).to_pandas()
    assert asked == [(int(((wanted.n >= 8600) & wanted.struct.map(lambda s: bool(s) and s["a"] > 500)).sum()),)]


@pytest.mark.whole
@pytest.mark.parametrize("rows_per_file", [ROWS, 12_500, 3_750, 1])
def test_files_are_cut_where_they_are_asked_to_be(tmp_path: Path, rows_per_file: int) -> None:
    size = ROWS if rows_per_file > 1 else 40
    tables = [pa.table({"n": np.arange(start, start + size)}) for start in range(0, 3 * size, size)]
    paths = merged(tmp_path, tables, rows_per_file=rows_per_file)
    assert [pq.read_metadata(path).num_rows for path in paths[:-1]] == [rows_per_file] * (len(paths) - 1)
    assert np.array_equal(read(paths)["n"], np.arange(3 * size))


@pytest.mark.whole
@pytest.mark.parametrize(
    "options",
    [
        {"compression": "snappy", "compression_level": None},
        {"compression": "none", "compression_level": None},
        {"write_statistics": False},
        {"write_statistics": ["n"]},
        {"row_group_size": 125},
        {"row_group_size": 1 << 17},
        {"use_compliant_nested_type": False},
        {"store_schema": False},
        {"data_page_version": "2.0", "write_page_index": True, "write_page_checksum": True},
    ],
    ids=str,
)
def test_whatever_the_parts_are_like_the_dataset_is_as_readers_like_it(tmp_path: Path, options: dict[str, Any]) -> None:
    tables = [simple(ROWS * 2, seed) for seed in range(2)]
    (path,) = merged(tmp_path, tables, **options)
    assert read([path]).equals(pa.concat_tables(tables))
    groups = groups_of(path)
    assert all(GROUP_ROWS // 2 <= group.num_rows <= GROUP_ROWS for group in groups[:-1])
    for group in groups:
        for column in map(group.column, range(group.num_columns)):
            assert column.compression == "ZSTD" and column.is_stats_set and column.statistics.has_min_max
            assert not column.has_offset_index and not column.has_column_index


def test_parts_of_other_types_are_encoded_again(tmp_path: Path) -> None:
    numbers = pa.array([n % 100 for n in range(ROWS)])
    kinds = [pa.int64(), pa.int32(), pa.int64(), pa.uint8()]
    (path,) = merged(tmp_path, [pa.table({"x": numbers.cast(kind)}) for kind in kinds])
    found = pq.read_table(path)
    assert found.schema.field("x").type == pa.int64()
    assert found["x"].to_pylist() == numbers.to_pylist() * 4


def test_a_column_that_comes_later_and_durations_that_are_stored_alike(tmp_path: Path) -> None:
    seconds = pa.table({"x": pa.array(range(ROWS), pa.duration("s"))})
    nanoseconds = pa.table({"x": pa.array(range(ROWS), pa.duration("ns")), "y": pa.array(range(ROWS))})
    (path,) = merged(tmp_path, [seconds, nanoseconds])
    found = pq.read_table(path)
    assert found["x"].cast(pa.int64()).to_pylist() == [n * 10**9 for n in range(ROWS)] + list(range(ROWS))
    assert found["y"].to_pylist() == [None] * ROWS + list(range(ROWS))


def test_what_another_library_wrote_is_encoded_again(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    (tmp_path / "parts").mkdir()
    duckdb.sql(f"copy (select range n, range % 7 as k from range({ROWS})) to '{tmp_path}/parts/a.parquet' (codec zstd)")
    run = combine_folders(
        [tmp_path / "parts"], tmp_path / "out", Merge(Layout("parquet", 1 << 20, None, ())), quiet=True
    )
    (path,) = run.output.glob("*.parquet")
    assert pq.read_metadata(path).created_by.startswith("parquet-cpp-arrow")
    assert pq.read_table(path)["n"].to_pylist() == list(range(ROWS))


# A module of its own, for workers would import all that this one does. They write in small row groups, too.
WORK = f"""
from pathlib import Path
import numpy as np
import pyarrow as pa
from shardkit.tables import rowgroups
from shardkit.workers import parts

def numbered(record):  # so many rows as the record's file says
    parts.ROW_GROUP_ROWS = rowgroups.ROW_GROUP_ROWS = {GROUP_ROWS}
    first, count = map(int, Path(record).read_text().split())
    return pa.table({{"n": np.arange(first, first + count), "key": pa.repeat(record.key, count)}})
"""


def of_record(key: str, first: int, count: int) -> pa.Table:
    return pa.table({"n": np.arange(first, first + count), "key": pa.repeat(key, count)})


@pytest.mark.whole
@pytest.mark.parametrize("chunks", ["even", "dynamic"])
def test_of_a_large_part_that_is_taken_over_only_what_counts(tmp_path: Path, chunks: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (tmp_path / "row_group_work.py").write_text(WORK)
    for i in range(8):
        (data / f"{i}").write_text(f"{i * ROWS} {ROWS}")
    pipeline = sk.Pipeline(
        function="row_group_work:numbered",
        source_dir=tmp_path,
        input={"uri": data},
        output={"uri": tmp_path / "out"},
        chunks=chunks,
        workers=2,
        name="large",
        incremental=True,
    )
    first = pipeline.run(quiet=True)
    assert np.array_equal(np.sort(first.dataset().to_table()["n"]), np.arange(8 * ROWS))
    parts = list(first.path.rglob("parts/*/*.parquet"))
    assert all(column.is_stats_set for part in parts for group in groups_of(part) for column in [group.column(0)])
    (data / "3").write_text(f"{100 * ROWS} 10")
    (data / "5").unlink()
    second = pipeline.run(quiet=True)
    assert second.summary().records["skipped"] == 6
    expected = [np.arange(i * ROWS, (i + 1) * ROWS) for i in (0, 1, 2, 4, 6, 7)]
    expected.append(np.arange(100 * ROWS, 100 * ROWS + 10))
    assert np.array_equal(np.sort(second.dataset().to_table()["n"]), np.concatenate(expected))


class Growing:
    """A dataset of records of 2,500 rows, rebuilt whenever some of them have changed."""

    def __init__(self, folder: Path, **output: Any) -> None:
        self.data, self.out = folder / "data", folder / "out"
        self.data.mkdir()
        (folder / "row_group_work.py").write_text(WORK)
        self.firsts: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.puts = 0
        self.pipeline = sk.Pipeline(
            function="row_group_work:numbered", source_dir=folder, input={"uri": self.data}, output={"uri": self.out} | output, workers=1, name="growing",
            incremental=True,
        )  # fmt: skip

    def put(self, key: str) -> None:
        self.puts += 1
        self.firsts[key], self.counts[key] = self.puts * 10**6, 2_500 - self.puts
        (self.data / key).write_text(f"{self.firsts[key]} {self.counts[key]}")

    def remove(self, key: str) -> None:
        (self.data / key).unlink()
        del self.firsts[key], self.counts[key]

    def run(self) -> list[Path]:
        """The files after a run, of which all rows are those that the records have now."""
        run = self.pipeline.run(quiet=True)
        found = run.dataset().to_table().sort_by("n")
        expected = pa.concat_tables(
            of_record(key, first, self.counts[key])
            for key, first in sorted(self.firsts.items(), key=lambda item: item[1])
        )
        assert found.select(["n", "key"]).equals(expected)
        return sorted(self.out.glob("*.parquet"))


@pytest.mark.slow
def test_row_groups_without_a_changed_row_are_copied_run_after_run(tmp_path: Path) -> None:
    growing, dice = Growing(tmp_path), random.Random(5)
    for number in range(20):
        growing.put(f"{number:02d}")
    (path,) = growing.run()
    for turn in range(5):
        before = {tuple(chunk_bytes(path, group)) for group in groups_of(path)}
        changed = dice.choice(sorted(growing.firsts))
        growing.put(changed)
        if turn % 3 == 1:
            growing.remove(dice.choice(sorted(growing.firsts)))
        if turn % 4 == 2:
            growing.put(f"new-{turn}")
        (path,) = growing.run()
        groups = groups_of(path)
        copied = before & {tuple(chunk_bytes(path, group)) for group in groups}
        assert len(copied) >= len(before) - 3, turn  # one or two have a changed row, and the last is short
        assert all(group.num_rows > GROUP_ROWS // 4 for group in groups[:-1]), "the groups fall to pieces"


@pytest.mark.slow
def test_several_files_are_made_anew_of_what_is_left_of_them(tmp_path: Path) -> None:
    growing, dice = Growing(tmp_path, rows_per_file=7_450), random.Random(6)
    for number in range(20):
        growing.put(f"{number:02d}")
    before = set(growing.run())
    assert len(before) == 7
    for _ in range(4):
        growing.put(dice.choice(sorted(growing.firsts)))
        after = set(growing.run())
        assert len(after) == 7
        assert len(after & before) >= 3  # of others are the one or two that the record is in, its neighbour's, the last
        before = after


@pytest.mark.whole
@pytest.mark.parametrize("harm", ["other bytes", "gone", "other rows"])
def test_a_file_that_is_not_what_it_was_is_made_of_the_parts(tmp_path: Path, harm: str) -> None:
    growing = Growing(tmp_path)
    for number in range(8):
        growing.put(f"{number:02d}")
    (path,) = growing.run()
    if harm == "other bytes":
        path.write_bytes(b"x" * path.stat().st_size)
    elif harm == "gone":
        path.unlink()
    else:
        pq.write_table(pa.table({"n": range(10)}), path)
    growing.put("03")
    growing.run()


# ---- the footer's protocol --------------------------------------------------------------------------------------

VALUES = st.deferred(
    lambda: st.one_of(
        st.sampled_from([Field(TRUE, None), Field(FALSE, None)]),
        st.integers(0, 255).map(lambda n: Field(BYTE, n)),
        st.integers(-(2**31), 2**31 - 1).map(lambda n: Field(I32, n)),
        st.integers(-(2**63), 2**63 - 1).map(lambda n: Field(I64, n)),
        st.binary(min_size=8, max_size=8).map(lambda b: Field(DOUBLE, b)),
        st.binary(max_size=200).map(lambda b: Field(BINARY, b)),
        STRUCTS.map(lambda s: Field(STRUCT, s)),
        st.lists(st.integers(-5, 2**40), max_size=20).map(lambda items: Field(LIST, (I64, items))),
        st.lists(st.sampled_from([1, 2]), max_size=20).map(lambda items: Field(LIST, (TRUE, items))),
        st.lists(STRUCTS, max_size=3).map(lambda items: Field(LIST, (STRUCT, items))),
    )
)
STRUCTS: st.SearchStrategy[dict[int, Field]] = st.dictionaries(st.integers(1, 1000), VALUES, max_size=4)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy
@given(STRUCTS)
def test_a_struct_is_written_as_it_was_read(struct: dict[int, Field]) -> None:
    data = write_struct(struct)
    assert read_struct(data) == struct
    assert write_struct(read_struct(data)) == data
    for end in range(0, len(data), 1 + len(data) // 100):
        with pytest.raises(ValueError, match="ends in the middle"):
            read_struct(data[:end])


def test_a_footer_is_written_as_it_was_read(tmp_path: Path) -> None:
    pq.write_table(of_all_kinds(1000), tmp_path / "a.parquet", row_group_size=60, write_page_index=True)
    content = (tmp_path / "a.parquet").read_bytes()
    footer = content[-8 - int.from_bytes(content[-8:-4], "little") : -8]
    assert write_struct(read_struct(footer)) == footer


@pytest.mark.parametrize("data", [b"", b"\x1b\x01\x88\x00", b"\x1d\x00"], ids=["nothing", "a map", "no type"])
def test_what_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ValueError, match="in the middle|field of type"):
        read_struct(data)
