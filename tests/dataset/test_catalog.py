"""The Glue catalogue: what is registered after a run, what remains, and queries by Athena."""

from __future__ import annotations

import functools
import secrets
import shutil
import sys
from typing import TYPE_CHECKING, Any

import boto3
import pandas as pd
import pyarrow as pa
import pytest
from emulators import s3_client, use_emulator

import shardkit as sk
from shardkit.dataset.catalog import glue_type, with_names

if TYPE_CHECKING:
    from pathlib import Path


CODE = """
def ads(record):
    text = open(record).read().strip()
    rows = [{"Ad": f"{record.key}-{i}", "pay": 1.5 * i, "country": "FR" if i else None} for i in range(3)]
    return [row | ({"late": text == "late"} if text != "x" else {}) for row in rows]

def clicks(record):
    return [{"Ad": f"{record.key}-{i}", "clicks": 10 * i} for i in range(2)]

def bad(record):
    return {"net pay": 1}

def numbers(record):
    return {"Ad": 1, "pay": 1.0}
"""
DAYS = ("2020-01-01", "2020-01-02", "2020-01-03")


@functools.cache
def glue_of(url: str) -> Any:
    return boto3.client("glue", endpoint_url=url, region_name="eu-west-1")


class Bucket:
    """An S3 bucket and a Glue catalogue on this machine, and pipelines that use them."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.glue = glue_of(url)
        self.name, self.database = f"talent-{secrets.token_hex(4)}", f"features_{secrets.token_hex(4)}"
        self.uri = f"s3://{self.name}"
        s3_client(url).create_bucket(Bucket=self.name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        (root / "functions_for_glue.py").write_text(CODE)
        for day in DAYS[:2]:
            self.write(day)

    def write(self, day: str, text: str = "x") -> None:
        folder = self.root / "data" / day
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.txt").write_text(text)

    def pipeline(self, name: str = "ads", **fields: Any) -> sk.Pipeline:
        return sk.Pipeline(
            **{
                "name": name,
                "function": f"functions_for_glue:{name}",
                "source_dir": self.root,
                "input": self.root / "data",
                "output": f"{self.uri}/{name}",
                "shards": {"by": "date", "path": "{Y}-{m}-{d}"},
                "catalog": self.in_glue(name),
                "workers": 1,
            }
            | fields
        )

    def in_glue(self, table: str) -> dict[str, Any]:
        return {"glue": {"database": self.database, "table": table}}

    def run(self, name: str = "ads", **fields: Any) -> sk.Run:
        return self.pipeline(name, **fields).run(quiet=True)

    def table(self, name: str = "ads") -> Any:
        return self.glue.get_table(DatabaseName=self.database, Name=name)["Table"]

    def columns(self, name: str = "ads") -> dict[str, str]:
        return {column["Name"]: column["Type"] for column in self.table(name)["StorageDescriptor"]["Columns"]}

    def partitions(self, name: str = "ads") -> dict[str, Any]:
        pages = self.glue.get_paginator("get_partitions").paginate(DatabaseName=self.database, TableName=name)
        return {"/".join(found["Values"]): found for page in pages for found in page["Partitions"]}


def _use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from shardkit.storage import buckets as stores

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    use_emulator(monkeypatch, url)
    stores._opened.cache_clear()


@pytest.fixture
def bucket(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket and a database, in an account that all clients of this process and its children use."""
    pytest.importorskip("awswrangler")
    _use(monkeypatch, s3_url)
    return Bucket(tmp_path, s3_url)


# ---- what is registered ------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_run_registers_its_dataset_and_days_and_a_day_that_is_made_again_changes_nothing_else(bucket: Bucket) -> None:
    bucket.run()
    table, partitions = bucket.table(), bucket.partitions()
    assert table["StorageDescriptor"]["Location"] == f"{bucket.uri}/ads/"
    assert table["StorageDescriptor"]["SerdeInfo"]["SerializationLibrary"].endswith("ParquetHiveSerDe")
    assert bucket.columns() == {"ad": "string", "pay": "double", "country": "string"}
    assert [(key["Name"], key["Type"]) for key in table["PartitionKeys"]] == [("day_partition", "string")]
    places = {day: f"{bucket.uri}/ads/day_partition={day}/" for day in DAYS[:2]}
    assert {day: found["StorageDescriptor"]["Location"] for day, found in partitions.items()} == places

    bucket.write(DAYS[1], "x ")
    bucket.pipeline(function="functions_for_glue:ads").run(days=[DAYS[1]], quiet=True)
    after = bucket.partitions()
    assert after[DAYS[0]] == partitions[DAYS[0]]
    assert {day: found["StorageDescriptor"]["Location"] for day, found in after.items()} == places
    assert bucket.table()["PartitionKeys"] == table["PartitionKeys"]


@pytest.mark.whole
def test_later_runs_add_columns_and_days_and_take_nothing_away(bucket: Bucket) -> None:
    bucket.run()
    bucket.write(DAYS[1], "late")
    bucket.write(DAYS[2], "late")
    run = bucket.run()
    wanted = {"ad": "string", "pay": "double", "country": "string", "late": "boolean"}
    assert bucket.columns() == wanted
    assert list(bucket.partitions()) == list(DAYS)
    for found in bucket.partitions().values():  # without it, Athena would have no value of it where there are some
        assert {column["Name"]: column["Type"] for column in found["StorageDescriptor"]["Columns"]} == wanted
    check_others_read(bucket, run)
    # The column goes from the data of all days: it stays in the catalogue, and so do partitions without files.
    for day in DAYS:
        bucket.write(day, "x")
    shutil.rmtree(bucket.root / "data" / DAYS[0])
    bucket.run(incremental=False)
    assert bucket.columns() == wanted
    assert list(bucket.partitions()) == list(DAYS)


def check_others_read(bucket: Bucket, run: sk.Run) -> None:
    """DuckDB and pyarrow read the same table."""
    assert run.sql("SELECT * FROM ads", using="duckdb").equals(run.dataset().to_table().to_pandas())
    # The same through the catalogue's own words: where the table is, and which days it has.
    import pyarrow.dataset as pads

    files, base = run.folder.output.arrow()
    found = [
        pads.dataset(f"{base}/day_partition={day}", filesystem=files)
        .to_table()
        .append_column("day_partition", [[day] * 3])
        for day in bucket.partitions()
    ]
    assert pa.concat_tables(found).to_pandas().equals(run.sql("SELECT * FROM ads ORDER BY ad", using="duckdb"))


@pytest.mark.whole
def test_partition_columns_are_registered_with_their_types(bucket: Bucket) -> None:
    bucket.run(output={"uri": f"{bucket.uri}/ads", "partition_by": ["country", "pay"]}, shards=None)
    assert [(key["Name"], key["Type"]) for key in bucket.table()["PartitionKeys"]] == [
        ("country", "string"),
        ("pay", "string"),
    ]
    assert set(bucket.partitions()) == {"__HIVE_DEFAULT_PARTITION__/0.0", "FR/1.5", "FR/3.0"}
    bucket.run("clicks", output={"uri": f"{bucket.uri}/clicks", "partition_by": "clicks"})
    assert [(key["Name"], key["Type"]) for key in bucket.table("clicks")["PartitionKeys"]] == [
        ("day_partition", "string"),
        ("clicks", "bigint"),
    ]
    assert "2020-01-02/10" in bucket.partitions("clicks")


@pytest.mark.whole
def test_a_dataset_in_one_piece_has_no_partitions(bucket: Bucket) -> None:
    bucket.run(shards=None)
    assert bucket.table()["PartitionKeys"] == []
    assert bucket.partitions() == {}


@pytest.mark.whole
def test_a_catalogue_is_begun_with_ended_and_changed_without_a_new_dataset(bucket: Bucket) -> None:
    from shardkit.dataset.query import Dataset

    def tables(run: sk.Run) -> list[str]:
        glue = Dataset.at(run.folder, None, alone=True).glue
        return [glue["table"]] if glue else []

    run = bucket.run(catalog=None)
    assert tables(run) == []
    assert bucket.run().run_id == run.run_id  # nothing has changed but this
    assert tables(run) == ["ads"]
    assert set(bucket.partitions()) == set(DAYS[:2])
    bucket.run(catalog=bucket.in_glue("other"))
    assert tables(run) == ["other"]
    assert set(bucket.partitions("other")) == set(DAYS[:2])
    bucket.run(catalog=None)
    assert tables(run) == []
    assert run.sql("SELECT count(*) AS n FROM ads").n[0] == 6


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_a_table_of_another_dataset_or_with_other_types_is_left_alone(bucket: Bucket) -> None:
    bucket.run()
    before = bucket.table()
    with pytest.raises(
        sk.CatalogError,
        match=rf"is complete, but .*{bucket.database}\.ads is not up to date.*stands for the files in {bucket.uri}/ads/",
    ):
        bucket.run("clicks", catalog=bucket.in_glue("ads"))
    assert bucket.table() == before
    run = sk.open_run(f"{bucket.uri}/clicks")
    assert run.summary().status == "failed"
    assert len(run.dataset().to_table()) == 4
    run.resume(quiet=True, catalog=bucket.in_glue("clicks"))
    assert run.summary().status == "done"
    assert set(bucket.columns("clicks")) == {"ad", "clicks"}

    # And a column of another type is named.
    with pytest.raises(
        sk.CatalogError, match=r"Column 'ad' is string there, and bigint in the dataset\. Drop the table"
    ):
        bucket.run(function="functions_for_glue:numbers", incremental=False)
    bucket.glue.delete_table(DatabaseName=bucket.database, Name="ads")
    sk.open_run(f"{bucket.uri}/ads").resume(quiet=True)
    assert bucket.columns() == {"ad": "bigint", "pay": "double"}


def test_a_column_that_cannot_be_registered_is_named(bucket: Bucket) -> None:
    with pytest.raises(sk.CatalogError, match=r"column 'net pay' which Athena cannot name\. Let the function"):
        bucket.run("bad")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": "out"}, "catalog: a Glue catalogue is for datasets on S3; output.uri is out."),
        (
            {"output": {"uri": "s3://b/x", "format": "csv"}},
            "catalog: a Glue catalogue needs output.format: parquet, not csv.",
        ),
        (
            {"output": {"uri": "s3://b/x", "schema": {"net pay": "float64"}}},
            "catalog: Athena cannot name the column 'net pay': let the function give it another name.",
        ),
        (
            {"output": {"uri": "s3://b/x", "schema": {"v": "struct<a b: int64>"}}},
            "catalog: column 'v' of output.schema cannot be registered: it has the field 'a b', which Athena cannot name.",
        ),
        ({"catalog": {"glue": {"database": "d"}}}, "catalog.glue.table: this field is missing"),
        ({"catalog": {"glue": {"database": "d", "table": "a-b"}}}, "catalog.glue.table"),
        (
            {"catalog": "glue"},
            'catalog: expected a mapping such as {glue: {database: features, table: ads}}, not "glue"',
        ),
        ({"catalog": {"gleu": {}}}, "catalog.gleu: unknown field; did you mean glue?"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    catalog = {"glue": {"database": "d", "table": "t"}}
    with pytest.raises(sk.PipelineError) as caught:
        sk.Pipeline(**{"function": "a:b", "input": "in", "output": "s3://b/x", "catalog": catalog} | fields)
    assert message in str(caught.value)


def test_without_awswrangler_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "awswrangler", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pipeline = sk.Pipeline(
        function="a:b", input=tmp_path, output="s3://b/x", catalog={"glue": {"database": "d", "table": "t"}}
    )
    with pytest.raises(
        sk.PipelineError, match=r"needs awswrangler, which is not installed\. .*pip install 'shardkit\[athena\]'"
    ):
        pipeline.run(quiet=True)


def test_jobs_install_what_the_catalogue_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit.runs.bundle import _own_requirements

    known = ["numpy>=1.26", 'awswrangler>=3.12; extra == "athena"', 'duckdb>=1.2; extra == "sql"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: known)
    assert _own_requirements(()) == ["numpy>=1.26"]
    assert _own_requirements(("athena",)) == ["numpy>=1.26", "awswrangler>=3.12"]


# ---- types and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (pa.uint32(), "bigint"),
        (pa.float32(), "float"),
        (pa.timestamp("us", "UTC"), "timestamp"),
        (pa.decimal128(10, 2), "decimal(10,2)"),
        (pa.list_(pa.struct([("a", pa.int8()), ("b", pa.large_string())])), "array<struct<a:tinyint,b:string>>"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.map_(pa.string(), pa.date32()), "map<string,date>"),
    ],
    ids=str,
)
def test_types(kind: pa.DataType, name: str) -> None:
    assert glue_type(kind) == name


@pytest.mark.parametrize("kind", [pa.uint64(), pa.duration("us"), pa.time64("us"), pa.list_(pa.uint64())], ids=str)
def test_types_that_the_catalogue_does_not_have(kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match="a Glue catalogue has no type for"):
        glue_type(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.struct([("net pay", pa.float64())]), "the field 'net pay', which Athena cannot name"),
        (pa.list_(pa.struct([("a:b", pa.int8())])), "the field 'a:b', which Athena cannot name"),
        (pa.map_(pa.string(), pa.struct([("a", pa.int8()), ("A", pa.int8())])), "the field 'A', which is there twice"),
    ],
    ids=str,
)
def test_names_inside_that_athena_cannot_read(kind: pa.DataType, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        glue_type(kind)


TABLES = {"shown": ("f", "impressions"), "ads": ("f", "ads"), "other": ("g", "other")}


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT * FROM ads", "SELECT * FROM ads"),
        ("SELECT * FROM Shown", 'WITH "shown" AS (SELECT * FROM "f"."impressions") SELECT * FROM Shown'),
        ('-- all\nselect * from "other"', 'WITH "other" AS (SELECT * FROM "g"."other") -- all\nselect * from "other"'),
        ("WITH t AS (SELECT 1) SELECT * FROM t, shown", 'WITH "shown" AS (SELECT * FROM "f"."impressions"), t AS (SELECT 1) SELECT * FROM t, shown'),
        ("SELECT * FROM g.other, shown_too", "SELECT * FROM g.other, shown_too"),
        ("SHOW TABLES -- shown", "SHOW TABLES -- shown"),
    ],
)  # fmt: skip
def test_names_that_athena_does_not_know_are_explained_to_it(query: str, answer: str) -> None:
    assert with_names(query, TABLES, database="f") == answer


# ---- an Athena that runs -----------------------------------------------------------------------------------------


def as_glue_and_athena_answer() -> boto3.Session:
    """A session that mends two of ministack's answers, which are not those of the service."""
    session = boto3.Session()

    def no_owner(parsed: Any, **_: Any) -> None:
        parsed.get("Table", {}).pop("Owner", None)  # it is empty, which botocore would not let pass

    def place(parsed: Any, **_: Any) -> None:
        answer = parsed["QueryExecution"]
        answer["ResultConfiguration"]["OutputLocation"] += f"/{answer['QueryExecutionId']}.csv"  # where it has put it

    session.events.register("after-call.glue.GetTable", no_owner)
    session.events.register("after-call.athena.GetQueryExecution", place)
    return session


def both(query: str, outputs: str | dict[str, str]) -> pd.DataFrame:
    """The answer of Athena, which DuckDB gives too."""
    athena, duckdb = sk.read_sql(query, outputs), sk.read_sql(query, outputs, using="duckdb")
    pd.testing.assert_frame_equal(athena, duckdb)
    return athena


@pytest.mark.whole
def test_athena_and_duckdb_answer_alike(ministack_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("awswrangler")
    _use(monkeypatch, ministack_url)
    session = as_glue_and_athena_answer()
    monkeypatch.setattr("shardkit.dataset.catalog._session", lambda *_: session)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    own = {"EnforceWorkGroupConfiguration": False}  # which Athena says of it from the beginning
    boto3.client("athena").update_work_group(WorkGroup="primary", ConfigurationUpdates=own)
    bucket = Bucket(tmp_path, ministack_url)
    bucket.run()
    bucket.write(DAYS[1], "late")
    bucket.write(DAYS[2], "late")
    bucket.run()
    bucket.run("clicks")
    outputs = {"ads": f"{bucket.uri}/ads", "clicks": f"{bucket.uri}/clicks"}
    days = both(
        "SELECT CAST(day_partition AS varchar) AS day, count(*) AS n, max(late) AS late, sum(pay) AS pay "
        "FROM ads GROUP BY 1 ORDER BY 1",
        outputs["ads"],
    )
    assert days["day"].tolist() == list(DAYS)
    clicked = both(
        "SELECT CAST(a.day_partition AS varchar) AS day, count(*) AS ads, count(c.ad) AS clicked, "
        "CAST(sum(clicks) AS bigint) AS clicks FROM ads a LEFT JOIN clicks c ON a.ad = c.ad GROUP BY 1 ORDER BY 1",
        outputs,
    )
    assert clicked["ads"].sum() == days["n"].sum()
    with pytest.raises(sk.QueryError, match="Athena cannot answer the query: .*syntax error") as refused:
        sk.read_sql("SELEC 1", outputs["ads"])
    assert "\n" not in str(refused.value)
    left = boto3.client("s3").list_objects_v2(Bucket=bucket.name, Prefix="ads/_shardkit/queries/").get("Contents", [])
    assert not [item["Key"] for item in left if item["Key"].endswith(".csv")]
