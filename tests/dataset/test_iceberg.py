"""A dataset as an Iceberg table: what readers of the table see, whatever happens to the runs that write it."""

from __future__ import annotations

import itertools
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pytest
import warm
from emulators import use_emulator
from in_process import InProcess

import shardkit as sk
from shardkit.dataset.iceberg import expiry, snapshots
from shardkit.dataset.iceberg.types import read_as, stored_type

pytest.importorskip("pyiceberg")

from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NoSuchTableError

if TYPE_CHECKING:
    from pathlib import Path

    from pyiceberg.table import Table

DAYS = ("2020-01-01", "2020-01-02", "2020-01-03")
TABLE = "features.ads"
ROWS = 4
CODE = """
import datetime, json
import numpy as np
import pandas as pd
import pyarrow as pa

def ads(record):
    return [json.loads(line) for line in open(record)]

def small(record):  # numbers of 32 bits until a file says otherwise
    rows = [json.loads(line)["v"] for line in open(record)]
    return pa.table({"v": pa.array(rows, pa.int64() if rows[0] > 2 else pa.int32())})

def text(record):
    return [{"v": str(json.loads(line)["v"])} for line in open(record)]

def typed(record):
    zone = datetime.timezone(datetime.timedelta(hours=2))
    return pa.table({
        "u8": pa.array([200], pa.uint8()), "u64": pa.array([2**40], pa.uint64()), "i8": pa.array([-5], pa.int8()),
        "half": pa.array([0.5], pa.float16()), "ns": pd.to_datetime(["2020-01-02 03:04:05.000006"]).as_unit("ns"),
        "paris": pa.array([0], pa.timestamp("ms", "Europe/Paris")), "time": pa.array([1000], pa.time32("ms")),
        "nothing": pa.nulls(1), "nested": [{"a": 1, "b": None}], "lists": [[{"c": None, "d": "x"}]],
        "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
    })
"""


class Killed(BaseException):
    """The end of a process, as far as one process can have it and go on."""


class World:
    """A pipeline whose dataset is a table, and the table as another program sees it."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        (root / "functions_for_iceberg.py").write_text(CODE)
        for day in DAYS[:2]:
            self.write(day, 1)

    def write(self, day: str, v: object, **more: object) -> None:
        folder = self.root / "data" / day
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.txt").write_text("\n".join(json.dumps({"ad": i, "v": v, **more}) for i in range(ROWS)))

    def pipeline(self, function: str = "ads", *, keep: str = "5d", **fields: Any) -> sk.Pipeline:
        return sk.Pipeline(
            **{
                "name": "ads",
                "function": f"functions_for_iceberg:{function}",
                "source_dir": self.root,
                "input": self.root / "data",
                "output": self.out,
                "shards": {"by": "date", "path": "{Y}-{m}-{d}"},
                "catalog": {"iceberg": {"table": TABLE, "keep": keep}},
                "workers": 1,
            }
            | fields
        )

    def run(self, function: str = "ads", **fields: Any) -> sk.Run:
        return self.pipeline(function, **fields).run(quiet=True)

    def catalog(self) -> Any:
        return load_catalog("shardkit", type="sql", uri=f"sqlite:///{self.out}/_shardkit/iceberg/catalog.sqlite")

    def table(self) -> Table:
        return self.catalog().load_table(TABLE)

    def seen(self, run: str | None = None) -> dict[str, list[Any]]:
        """The values of ``v`` by day, in the table as it is, or as a run has left it."""
        table = self.table()
        ids = [s.snapshot_id for s in table.snapshots() if snapshots.run_of(s) == run]
        rows = table.scan(snapshot_id=ids[-1] if run is not None else None).to_arrow().to_pylist()
        return values_by_day(rows)

    def dataset(self) -> dict[str, list[Any]]:
        return values_by_day(sk.read_sql("SELECT * FROM dataset", self.out).to_dict("records"))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.out)) for path in self.out.glob("day_*/*.parquet")}


def values_by_day(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    by_day: dict[str, list[Any]] = {}
    for row in rows:
        by_day.setdefault(row["day_partition"], []).append(row["v"])
    return dict(sorted(by_day.items()))


def days(*values: object) -> dict[str, list[object]]:
    return {day: [value] * ROWS for day, value in zip(DAYS, values, strict=False)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---- one snapshot a run ------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_each_run_is_one_snapshot_of_the_files_that_it_has_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.run()
    table = world.table()
    assert [field.name for field in table.schema().fields] == ["ad", "v", "day_partition"]
    assert {file["file_path"] for file in table.inspect.files().to_pylist()} == {
        f"file://{world.out}/{path}" for path in world.files()
    }
    assert world.seen() == days(1, 1)
    untouched = {path: (world.out / path).stat() for path in world.files()}

    world.write(DAYS[1], 2)
    world.write(DAYS[2], 3)
    second = world.run()
    summaries = [snapshot.summary.additional_properties for snapshot in world.table().snapshots() if snapshot.summary]
    assert [summary["shardkit.run-id"] for summary in summaries] == [first.run_id, second.run_id]
    assert (summaries[1]["added-data-files"], summaries[1]["deleted-data-files"]) == ("2", "1")
    assert world.seen() == world.dataset() == days(1, 2, 3)
    # Nothing was rewritten or removed: the first snapshot is as it was.
    assert all((world.out / path).stat() == before for path, before in untouched.items())
    assert world.seen(first.run_id) == days(1, 1)
    assert sk.check(world.out).ok

    # Earlier states by their run, in Python and on the command line.
    query = "SELECT sum(v)::INT AS v FROM dataset"
    assert second.sql(query)["v"][0] == (1 + 2 + 3) * ROWS
    assert second.sql(query, as_of=first.run_id)["v"][0] == 2 * ROWS
    asked = ["query", query, "--output", world.out, "--as-of", first.run_id, "--format", "csv"]
    assert InProcess(monkeypatch)(world.root, *asked).stdout.splitlines() == ["v", str(2 * ROWS)]
    with pytest.raises(
        sk.RunNotFound, match=f"no snapshot of run 1999.* It has those of {second.run_id}, {first.run_id}"
    ):
        sk.read_sql(query, world.out, as_of="1999")
    assert first.dataset().count_rows() == 2 * ROWS  # its files are there, so the run itself can be read too

    # A run without changes, and a resumption, make no snapshot; nor does a pass 2 of this folder read old files.
    world.run()
    second.resume(quiet=True)
    assert len(world.table().snapshots()) == 2
    InProcess(monkeypatch)(world.root, "pass2", "--input", world.out, "--output", world.root / "merged", "--quiet")
    assert sk.open_run(world.root / "merged").dataset().count_rows() == 3 * ROWS


@pytest.mark.whole
def test_a_reader_in_a_loop_sees_no_redo_half(world: World) -> None:
    world.run()
    ended, seen = threading.Event(), set()

    def read() -> None:
        while not ended.wait(0.25):
            rows = world.seen()
            assert {day: len(values) for day, values in rows.items()} == dict.fromkeys(DAYS[:2], ROWS), rows
            seen.add(tuple(v for values in rows.values() for v in sorted(set(values))))

    faults: list[BaseException] = []

    def reading() -> None:
        try:
            read()
        except BaseException as error:  # a thread's errors would be lost
            faults.append(error)

    reader = threading.Thread(target=reading)
    reader.start()
    redos = 20  # or more, until it has read some of them
    for version in itertools.count(2):
        world.write(DAYS[0], version)
        world.write(DAYS[1], version)
        world.run()
        if faults or (version > redos and len(seen) > 3):
            break
    ended.set()
    reader.join()
    assert not faults, faults
    assert len(world.table().snapshots()) == version
    assert seen <= {(each, each) for each in range(1, version + 1)}


# ---- ends in the middle ------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_end_around_the_commit_leaves_no_snapshot_out_and_makes_none_twice(
    world: World, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.run()
    world.write(DAYS[1], 2)
    commit = snapshots._commit

    def ending(*arguments: Any) -> None:
        if moment == "after":
            commit(*arguments)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "_commit", ending)
        with pytest.raises(Killed):
            world.run()
    assert world.dataset() == days(1, 2)  # the switch was made
    assert world.seen() == (days(1, 2) if moment == "after" else days(1, 1))
    run = sk.open_run(world.out).resume(quiet=True)
    assert world.seen() == days(1, 2)
    assert [snapshots.run_of(s) for s in world.table().snapshots()] == [first.run_id, run.run_id]


@pytest.mark.whole
def test_a_process_that_is_killed_as_it_commits_costs_nothing(world: World) -> None:
    code = (
        "import os, sys; from pathlib import Path; sys.path[:0] = [{tests!r}, {here!r}]; from test_iceberg import World; "
        "from pyiceberg.catalog.sql import SqlCatalog; import pyiceberg.catalog.sql as sql; "
        "sql.SqlCatalog._write_metadata = lambda *_, **__: os.kill(os.getpid(), 9); World(Path({root!r})).run()"
    )
    here = os.path.dirname(__file__)
    made = code.format(tests=os.path.dirname(here), here=here, root=str(world.root))
    assert warm.run(["-c", made], cwd=world.root, env=dict(os.environ), timeout_s=120).returncode == -9
    with pytest.raises(NoSuchTableError):
        world.table()
    # Another run ends before the killed one is resumed: its snapshot has both.
    world.write(DAYS[1], 2)
    world.run()
    assert world.seen() == world.dataset() == days(1, 2)
    assert len(world.table().snapshots()) == 1


@pytest.mark.whole
def test_commits_of_others_in_between_are_no_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run()
    world.write(DAYS[1], 2)
    describe, others = snapshots.data_files, iter(range(2))

    def in_between(*arguments: Any) -> Any:
        if next(others, None) is not None:  # a program that rewrites the table's files, as compaction does
            table = world.table()
            table.overwrite(table.scan().to_arrow())
        return describe(*arguments)

    monkeypatch.setattr(snapshots, "data_files", in_between)
    monkeypatch.setattr(snapshots, "WAIT_S", 0.001)
    run = world.run()
    assert next(others, None) is None
    assert world.seen() == days(1, 2)
    assert [snapshots.run_of(s) for s in world.table().snapshots()].count(run.run_id) == 1

    # What was rewritten since is left alone until the dataset changes.
    table = world.table()
    table.overwrite(table.scan().to_arrow())
    before = table.current_snapshot()
    world.run()
    assert world.table().current_snapshot() == before


@pytest.mark.whole
def test_runs_of_different_days_side_by_side(world: World) -> None:
    path = world.root / "ads.yaml"
    content = world.pipeline().to_dict() | {"output": {"uri": str(world.out)}}
    path.write_text(
        json.dumps(
            {name: content[name] for name in ("name", "input", "function", "shards", "catalog")}
            | {"source_dir": str(world.root), "output": str(world.out), "workers": 1}
        )
    )
    words = ["-m", "shardkit", "run", path, "--quiet", "--date"]
    with (world.root / "output").open("w") as log:
        options: Any = {"cwd": world.root, "env": dict(os.environ), "stdout": log, "stderr": log}
        started = [warm.start([*words, day], **options) for day in DAYS[:2]]
    assert [process.wait(120) for process in started] == [0, 0]
    assert world.seen() == world.dataset() == days(1, 1)
    assert len(world.table().snapshots()) in {1, 2}  # one may have found the other's switch made already


# ---- columns and types -------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_schema_grows_and_no_file_is_rewritten_for_it(world: World) -> None:
    first = world.run("small")
    (old,) = [path for path in world.files() if DAYS[0] in path]
    before = (world.out / old).stat()
    world.write(DAYS[1], 2**40)
    world.run("small")
    assert str(world.table().schema().find_type("v")) == "long"
    assert world.seen() == world.dataset() == days(1, 2**40)
    assert (world.out / old).stat() == before
    assert (
        str(world.table().scan(snapshot_id=world.table().snapshots()[0].snapshot_id).projection().find_type("v"))
        == "int"
    )
    assert world.seen(first.run_id) == days(1, 1)

    # A column that appears later, and one that never had a value; the third day was made after it.
    world.write(DAYS[1], 2, late="x", never=None)
    world.run("ads", incremental=False)
    world.write(DAYS[2], 3)
    world.run("ads")
    rows = world.table().scan().to_arrow()
    assert rows.column_names == ["v", "day_partition", "ad", "late"]
    late = {row["day_partition"]: row["late"] for row in rows.to_pylist()}
    assert late == {DAYS[0]: None, DAYS[1]: "x", DAYS[2]: None}

    # A type that Iceberg does not widen is refused before anything is switched.
    with pytest.raises(sk.CatalogError, match="stays as it was.*Column 'v' is string") as refused:
        world.run("text", incremental=False)
    assert "output.schema" in refused.value.hint
    assert world.seen() == world.dataset() == days(1, 2, 3)
    assert world.files() >= {old}
    run = world.pipeline("text", output={"uri": world.out, "schema": {"v": "int64"}}, incremental=False).run(quiet=True)
    assert run.summary().status == "done"
    assert world.seen() == days(1, 2, 3)


@pytest.mark.whole
def test_columns_are_stored_in_types_that_iceberg_has(world: World) -> None:
    world.run("typed", shards=None)
    row = world.table().scan().to_arrow().to_pylist()[0]
    assert row.pop("paris").isoformat() == "1970-01-01T00:00:00+00:00"
    assert row.pop("ns").isoformat() == "2020-01-02T03:04:05.000006"
    assert row.pop("time").isoformat() == "00:00:01"
    assert row == {
        "u8": 200, "u64": 2**40, "i8": -5, "half": 0.5, "nested": {"a": 1}, "lists": [{"d": "x"}], "embedding": [1.0, 2.0],
    }  # fmt: skip
    stored = sk.open_run(world.out).dataset().to_table().to_pylist()[0]
    assert stored["u64"] == 2**40
    assert "nothing" not in stored


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (pa.null(), None),
        (pa.list_(pa.null()), None),
        (pa.uint16(), pa.int32()),
        (pa.uint32(), pa.int64()),
        (pa.timestamp("ns", "Asia/Tokyo"), pa.timestamp("us", "UTC")),
        (pa.map_(pa.string(), pa.float16()), pa.map_(pa.string(), pa.float32())),
        (pa.decimal128(38, 2), pa.decimal128(38, 2)),
        (pa.large_list(pa.struct([("a", pa.int8()), ("b", pa.null())])), pa.large_list(pa.struct([("a", pa.int32())]))),
    ],
)
def test_stored_types(kind: pa.DataType, stored: pa.DataType | None) -> None:
    assert stored_type(kind) == stored


def test_types_that_iceberg_lacks_and_files_that_it_reads() -> None:
    for kind in (pa.duration("s"), pa.decimal256(50, 2), pa.struct([("a", pa.month_day_nano_interval())])):
        with pytest.raises(ValueError, match="Iceberg has no type"):
            stored_type(kind)
    schema = pa.schema([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.float64()), ("d", pa.string())])))])
    assert read_as(pa.schema([("a", pa.int32())]), schema)
    assert read_as(pa.schema([("b", pa.large_list(pa.struct([("c", pa.float32())])))]), schema)
    assert not read_as(pa.schema([("a", pa.float64())]), schema)
    assert not read_as(pa.schema([("e", pa.int64())]), schema)


# ---- what expires ------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_clean_removes_what_no_kept_snapshot_needs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = world.run()
    for version in (2, 3, 4):
        world.write(DAYS[1], version)
        world.run(keep="0m" if version == 4 else "5d")
    table = world.table()
    table.manage_snapshots().create_tag(table.snapshots()[1].snapshot_id, "training").commit()
    (world.out / f"day_partition={DAYS[1]}" / "mine.parquet").write_bytes(b"x")
    before = world.files()
    kept = {path for path in before if "mine" in path or DAYS[0] in path}

    would = sk.clean(world.out, dry_run=True).snapshots
    assert would is not None
    assert would.expired == {TABLE: 2}
    assert world.files() == before

    def ending(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(expiry, "_not_needed", ending)
        with pytest.raises(Killed):
            sk.clean(world.out)
    assert len(world.table().snapshots()) == 2  # they have expired, and their files are still there
    assert world.files() == before

    done = sk.clean(world.out)
    assert done.snapshots is not None
    assert (done.snapshots.files, done.snapshots.bytes) == (would.files, would.bytes) == (2, would.bytes)
    one_of_each = [path for path in world.files() if DAYS[1] in path and "mine" not in path]
    assert len(one_of_each) == 2  # of the tagged snapshot, and of the present one
    assert world.files() > kept
    assert world.seen() == days(1, 4)
    tagged = table.scan().use_ref("training").to_arrow().to_pylist()
    assert values_by_day(tagged) == days(1, 2)
    metadata = world.out / "_shardkit" / "iceberg" / TABLE / "metadata"
    assert len(list(metadata.glob("snap-*.avro"))) == 2
    with pytest.raises(sk.RunNotFound, match="or it has expired"):
        sk.read_sql("SELECT 1", world.out, as_of=first.run_id)
    assert sk.check(world.out).ok
    assert not sk.clean(world.out).snapshots


@pytest.mark.whole
def test_a_pipeline_that_has_left_its_table_does_not_break_it(world: World) -> None:
    world.run()
    world.write(DAYS[1], 2)
    world.run(catalog=None)
    assert world.dataset() == days(1, 2)
    assert world.seen() == days(1, 1)  # as it was, and whole
    sk.clean(world.out)
    assert world.seen() == days(1, 1)
    world.catalog().drop_table(TABLE)
    done = sk.clean(world.out)
    assert done.snapshots is not None and done.snapshots.files == 1
    assert world.dataset() == days(1, 2)
    # And back: the table is made again, of the dataset as it is.
    world.run()
    assert world.seen() == days(1, 2)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ({}, "expected either glue or iceberg"),
        ({"iceberg": {"table": "a.b"}, "glue": {"database": "a", "table": "b"}}, "expected either glue or iceberg"),
        ({"iceberg": {}}, "catalog.iceberg.table: this field is missing"),
        ({"iceberg": {"table": "ads"}}, "a namespace and a name, such as features.ads"),
        ({"iceberg": {"table": "a.b", "keep": "soon"}}, "'soon' is no length of time"),
        (
            {"iceberg": {"table": "a.b", "properties": {"token": "abcdefgh"}}},
            "token looks like a secret.*PYICEBERG_CATALOG",
        ),
        ({"iceberg": {"table": "a.b", "properties": {"uri": "postgresql://u:pw1234@h/db"}}}, "secret"),
    ],
)
def test_settings_that_will_not_do(world: World, catalog: dict[str, Any], message: str) -> None:
    with pytest.raises(sk.PipelineError, match=message) as refused:
        world.pipeline(catalog=catalog)
    assert "pw1234" not in str(refused.value)
    assert "abcdefgh" not in str(refused.value)


def test_places_that_will_not_do(world: World) -> None:
    for output, message in (
        ({"uri": world.out, "format": "csv"}, "an Iceberg table needs output.format: parquet"),
        ({"uri": "gs://bucket/out"}, "on this machine or on S3"),
        ({"uri": world.root / "out #1"}, "a folder's name has '#'"),
    ):
        with pytest.raises(sk.PipelineError, match=message):
            world.pipeline(output=output)
    properties = world.pipeline(catalog={"iceberg": {"table": "a.b", "properties": {"echo": True, "pool_size": 5}}})
    assert properties.to_dict()["catalog"]["iceberg"]["properties"] == {"echo": "true", "pool_size": "5"}


@pytest.mark.whole
def test_tables_of_others_are_left_alone(world: World) -> None:
    world.out.mkdir()
    (world.out / "_shardkit" / "iceberg").mkdir(parents=True)
    catalog = world.catalog()
    catalog.create_namespace("features")
    catalog.create_table(TABLE, schema=pa.schema([("v", pa.int64())]), location=f"file://{world.root}/other")
    with pytest.raises(sk.CatalogError, match="stands for data of others"):
        world.run()
    catalog.drop_table(TABLE)
    world.run()
    assert world.seen() == days(1, 1)
    with pytest.raises(sk.CatalogError, match="partitioned by day_partition, the dataset by day_partition, ad"):
        world.run(output={"uri": world.out, "partition_by": "ad"}, incremental=False)


@pytest.mark.whole
def test_a_catalogue_that_fails_fails_the_run_and_a_resumption_makes_up_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = {"iceberg": {"table": TABLE, "properties": {"type": "sql", "uri": "sqlite:////nowhere/at/all.sqlite"}}}
    with pytest.raises(sk.CatalogError, match="stays as it was.*unable to open database"):
        world.run(catalog=elsewhere)
    assert not world.files()
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "data_files", lambda *_: 1 / 0)
        with pytest.raises(sk.CatalogError, match="complete, but the Iceberg table features.ads is not up to date"):
            world.run()
    assert world.dataset() == days(1, 1)
    run = sk.open_run(world.out).resume(quiet=True)
    assert run.summary().status == "done"
    assert world.seen() == days(1, 1)


# ---- in a Glue catalogue, on S3 ----------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_table_in_glue_of_a_dataset_on_s3(world: World, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit.storage import buckets as stores

    use_emulator(monkeypatch, s3_url)
    stores._opened.cache_clear()
    name = f"iceberg-{os.getpid()}"
    boto3.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    output, table = f"s3://{name}/ads", f"db_{os.getpid()}.ads"
    fields = {"output": output, "catalog": {"iceberg": {"table": table, "keep": "0m", "properties": {"type": "glue"}}}}
    with pytest.raises(sk.PipelineError, match="no settings are given for the Iceberg catalogue"):
        world.run(output=output, catalog={"iceberg": {"table": table}})
    first = world.run(**fields)
    world.write(DAYS[1], 2)
    second = world.run(**fields)
    access = {"s3.endpoint": s3_url, "s3.access-key-id": "x", "s3.secret-access-key": "y", "client.region": "eu-west-1"}

    def loaded() -> Table:
        return load_catalog("any", type="glue", **access).load_table(table)

    assert values_by_day(loaded().scan().to_arrow().to_pylist()) == days(1, 2)
    assert [snapshots.run_of(snapshot) for snapshot in loaded().snapshots()] == [first.run_id, second.run_id]
    assert loaded().location() == f"{output}/_shardkit/iceberg/{table}"
    assert second.sql("SELECT max(v) AS v FROM ads", as_of=first.run_id)["v"][0] == 1
    done = sk.clean(output)
    assert done.snapshots is not None
    assert (done.snapshots.expired, done.snapshots.files) == ({table: 1}, 1)
    assert values_by_day(loaded().scan().to_arrow().to_pylist()) == days(1, 2)
    assert "secret" not in str(
        boto3.client("s3").get_object(Bucket=name, Key="ads/_shardkit/iceberg.json")["Body"].read()
    )
