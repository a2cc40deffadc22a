"""Whole runs over lists, reports of S3 Inventory and several inputs, here and in a bucket."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from click.testing import CliRunner

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.runs.driver_policy import _inputs
from shardkit.runs.requests import check_engine
from shardkit.storage.objects import ObjectFolder

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = itertools.count()
WORK = """
import json
from pathlib import Path

def rows(record):
    with (Path(__file__).parent / "trace").open("a") as trace:
        trace.write(record.key + "\\n")
    texts = [Path(path).read_text() for path in record.paths]
    return {"key": record.key, "text": "+".join(texts), "meta": json.dumps(record.meta), "bytes": record.bytes}

def by_name(key):
    return Path(key).stem if key.endswith((".hea", ".dat")) else None
"""


class World:
    """A folder with code, files and lists, and a bucket if there is one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "listed_work.py").write_text(WORK)
        self.bucket = ""
        self.client: Any = None

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def put(self, key: str, text: str | bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=text)
        return self.client.head_object(Bucket=self.bucket, Key=key)["ETag"].strip('"')

    def pipeline(self, input: Any, **fields: Any) -> sk.Pipeline:
        defaults = {"name": "listed", "workers": 1, "source_dir": self.root, "output": self.root / "out"}
        return sk.Pipeline(function="listed_work:rows", input=input, **(defaults | fields))

    def run(self, input: Any, **fields: Any) -> sk.Run:
        (self.root / "trace").unlink(missing_ok=True)
        return self.pipeline(input, **fields).run(quiet=True)

    def traced(self) -> list[str]:
        return sorted((self.root / "trace").read_text().split()) if (self.root / "trace").exists() else []


def rows_of(run: sk.Run) -> dict[str, tuple[str, Any]]:
    return {row["key"]: (row["text"], json.loads(row["meta"])) for row in run.dataset().to_table().to_pylist()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def stored(world: World, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> World:
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": s3_url}
    for name, value in known.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    world.bucket = f"listed-{next(NUMBERS)}-{os.getpid()}"
    world.client = boto3.client("s3", endpoint_url=s3_url)
    world.client.create_bucket(Bucket=world.bucket)
    return world


def test_a_record_has_what_its_row_says_and_is_computed_again_when_that_changes(world: World) -> None:
    for name in "abc":
        world.write(f"data/{name}.txt", name)
    world.write("list.csv", "uri,label\ndata/a.txt,001\ndata/b.txt,002\n")
    fields = {"incremental": True}
    run = world.run({"manifest": world.root / "list.csv"}, **fields)
    assert rows_of(run) == {"data/a.txt": ("a", {"label": "001"}), "data/b.txt": ("b", {"label": "002"})}
    world.write("list.csv", "uri,label\ndata/a.txt,001\ndata/b.txt,changed\ndata/c.txt,\n")
    run = world.run({"manifest": world.root / "list.csv"}, **fields)
    assert world.traced() == ["data/b.txt", "data/c.txt"], "the row of a is as it was"
    assert rows_of(run)["data/b.txt"] == ("b", {"label": "changed"})
    assert sk.open_run(world.root / "out").replay("data/c.txt").records[0].table["meta"].to_pylist() == [
        '{"label": ""}'
    ]


def test_a_file_that_is_gone_is_a_failure_of_its_record(world: World, shardkit: Any) -> None:
    world.write("data/a.txt", "a")
    world.write("list.txt", "a.txt\ngone.txt\n")
    given = {"uri": world.root / "data", "manifest": world.root / "list.txt"}
    plan = str(world.pipeline(given).plan())
    assert "2 rows in" in plan and "missing  1 file of the list: gone.txt; reading will fail for each" in plan
    run = world.run(given, max_failures=1)
    assert rows_of(run) == {"a.txt": ("a", {})}
    assert run.failures()[["key", "error"]].values.tolist() == [["gone.txt", "FileNotFoundError"]]


def test_lists_of_keys_to_include_and_exclude(world: World) -> None:
    for name in ("p/a.txt", "p/b.txt", "q/c.txt"):
        world.write(f"data/{name}", name)
    world.write("wanted.csv", "key,reviewer\np/a.txt,x\nq/c.txt,y\n")
    world.write("bad.txt", "q/c.txt\nnever-there.txt\n")
    given = {"uri": world.root / "data", "include_list": world.root / "wanted.csv"}
    assert set(rows_of(world.run(given))) == {"p/a.txt", "q/c.txt"}
    assert set(rows_of(world.run(given | {"exclude_list": world.root / "bad.txt"}))) == {"p/a.txt"}
    world.write("wanted.csv", "key\np/a.txt\np/typo.txt\n")
    with pytest.raises(
        sk.InputError, match=r"1 of the 2 files that .*wanted\.csv names are not in the input .*p/typo\.txt"
    ):
        world.run(given)


def test_several_inputs_and_a_record_that_is_in_two_of_them(world: World) -> None:
    world.write("heads/r1.hea", "head 1")
    world.write("heads/r2.hea", "head 2")
    world.write("signals/2026/r1.dat", "signal 1")
    world.write("signals/2026/r2.dat", "signal 2")
    world.write("list.csv", "key,label\nr1.hea,x\nr2.hea,y\n")
    parts = [
        {"uri": world.root / "heads", "manifest": world.root / "list.csv"},
        {"uri": world.root / "signals", "pattern": []},
    ]
    run = world.run(parts, records="listed_work:by_name")
    assert rows_of(run) == {
        "r1": ("head 1+signal 1", {"label": "x"}),
        "r2": ("head 2+signal 2", {"label": "y"}),
    }
    assert run.replay("r1").records[0].table["bytes"].to_pylist() == [14]
    keys = set(rows_of(world.run([world.root / "heads", str(world.root / "signals" / "2026")])))
    assert keys == {"heads/r1.hea", "heads/r2.hea", "2026/r1.dat", "2026/r2.dat"}
    with pytest.raises(sk.PipelineError, match="two inputs are named heads"):
        world.pipeline([world.root / "heads", world.root / "x" / "heads"])
    with pytest.raises(sk.PipelineError, match=r"input\.parts: with several inputs, uri is a field of each"):
        world.pipeline({"uri": "x", "parts": [{"uri": "heads"}]})


def test_inputs_in_yaml_count_from_its_folder_and_go_on_elsewhere(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("p/a/x.txt", "x")
    world.write("p/b/y.txt", "y")
    world.write("p/list.txt", "x.txt\n")
    text = """
input: [{uri: a, manifest: list.txt, name: first}, b]
function: listed_work:rows
source_dir: ..
output: ../out
workers: 1
"""
    world.write("p/pipeline.yaml", text)
    monkeypatch.chdir(world.root)
    assert CliRunner().invoke(cli, ["run", "p/pipeline.yaml", "--quiet"]).exit_code == 0
    assert set(rows_of(sk.open_run(world.root / "out"))) == {"first/x.txt", "b/y.txt"}
    other = "input=[p/a, {uri: p/b, name: second}]"
    shown = CliRunner().invoke(cli, ["plan", "p/pipeline.yaml", "--set", other])
    assert "over a: " in shown.stdout and "second: " in shown.stdout


def test_days_from_the_keys_of_a_list(world: World) -> None:
    for day in (1, 2):
        world.write(f"data/2026-01-0{day}/x.txt", str(day))
    world.write("list.jsonl", "".join(json.dumps({"key": f"2026-01-0{d}/x.txt"}) + "\n" for d in (2, 1)))
    given = {"uri": world.root / "data", "manifest": world.root / "list.jsonl"}
    run = world.run(given, shards={"by": "date", "path": "{Y}-{m}-{d}"})
    assert {path.parent.name for path in (world.root / "out").glob("*/*.parquet")} == {
        "day_partition=2026-01-01",
        "day_partition=2026-01-02",
    }
    assert len(rows_of(run)) == 2


# ---- in a bucket


def test_a_list_in_a_bucket_asks_only_for_what_it_lacks(
    stored: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    etags = {name: stored.put(f"in/{name}.txt", name) for name in "abc"}
    start = f"s3://{stored.bucket}/in"
    rows = [
        "uri,bytes,etag",
        f"{start}/a.txt,1,{etags['a']}",
        f"{start}/b.txt,1,",
        f"{start}/c.txt,,",
        f"{start}/no.txt,,",
    ]
    stored.put("lists/today.csv", "\n".join(rows))
    asked: list[str] = []
    look = ObjectFolder.look
    monkeypatch.setattr(ObjectFolder, "look", lambda self, key: [asked.append(key), look(self, key)][1])
    monkeypatch.setattr(ObjectFolder, "objects", None)  # nothing is listed
    monkeypatch.setattr("shardkit.storage.listed.MANY_ASKED", 2)
    given = {"manifest": f"s3://{stored.bucket}/lists/today.csv"}
    run = stored.run(given, max_failures=1)
    assert sorted(asked) == ["in/c.txt", "in/no.txt"], "sizes are needed always, etags for increments alone"
    assert set(rows_of(run)) == {"in/a.txt", "in/b.txt", "in/c.txt"}
    assert run.failures()["key"].tolist() == ["in/no.txt"]
    assert "today.csv" not in capsys.readouterr().err
    asked.clear()
    stored.run(given | {"uri": start}, incremental=True, max_failures=1)
    assert sorted(asked) == ["b.txt", "c.txt", "no.txt"]
    assert "today.csv does not say how large 3 files are, or their etags" in capsys.readouterr().err
    stored.put("in/a.txt", "changed since")
    run = stored.run(given | {"uri": start}, max_failures=2)
    assert sorted(run.failures()["error"]) == ["FileNotFoundError", "ObjectChanged"]


def test_an_inventory_and_a_listing_are_the_same_input(stored: World) -> None:
    names = ["2026/01/a b.txt", "2026/01/é.txt", "2026/02/c.txt"]
    etags = {name: stored.put(f"in/{name}", name) for name in names}
    lines = [
        f'"{stored.bucket}","in/{quoted}","{size}","2026-01-01T00:00:00.000Z","{etag}"'
        for quoted, size, etag in (
            ("2026/01/a+b.txt", 15, etags[names[0]]),
            ("2026/01/%C3%A9.txt", 14, etags[names[1]]),
            ("2026/02/c.txt", 13, etags[names[2]]),
        )
    ]
    data = gzip.compress(
        "\n".join([*lines, f'"{stored.bucket}","elsewhere/x","1","2026-01-01T00:00:00.000Z","e"']).encode()
    )
    stored.put("reports/all/data/1.csv.gz", data)
    manifest = {
        "sourceBucket": stored.bucket,
        "destinationBucket": f"arn:aws:s3:::{stored.bucket}",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, Size, LastModifiedDate, ETag",
        "files": [{"key": "reports/all/data/1.csv.gz", "size": len(data)}],
    }
    stored.put("reports/all/2026-01-03T01-00Z/manifest.json", json.dumps(manifest))
    start = f"s3://{stored.bucket}/in"
    fields = {"incremental": True, "shards": {"by": "directory", "depth": 2}}
    stored.run(start, **fields)
    given = {"uri": start, "manifest": f"s3://{stored.bucket}/reports/all/2026-01-03T01-00Z/manifest.json"}
    plan = str(stored.pipeline(given, **fields).plan())
    assert "nothing has changed in 3 records; nothing to do" in plan
    run = stored.run(given | {"exclude": "c.txt"}, name="other", output=f"s3://{stored.bucket}/out", **fields)
    assert set(rows_of(run)) == {"2026/01/a b.txt", "2026/01/é.txt"}


@pytest.mark.whole
def test_jobs_read_several_inputs_without_their_lists(stored: World) -> None:
    stored.put("in/a.txt", "a")
    stored.write("here/b.txt", "b")
    stored.put("lists/l.csv", f"uri,label\ns3://{stored.bucket}/in/a.txt,first\n")
    parts = [{"name": "far", "manifest": f"s3://{stored.bucket}/lists/l.csv"}, stored.root / "here"]
    run = stored.run(parts, engine="local", shards={"by": "directory"}, requirements_mode="none")
    assert rows_of(run) == {"far/in/a.txt": ("a", {"label": "first"}), "here/b.txt": ("b", {"label": None})}
    with pytest.raises(sk.PipelineError, match="this pipeline has several"):
        stored.run(parts, engine="local", input_mode="download", requirements_mode="none")


def test_what_a_driver_may_read_and_what_a_notebook_shows(world: World) -> None:
    parts = [
        {"name": "all", "uri": "s3://b/in", "manifest": "s3://reports/b/all/2026-01-03T01-00Z/manifest.json"},
        {"name": "some", "uri": "s3://c/x", "manifest": "s3://lists/today.csv", "exclude_list": "s3://lists/not.txt"},
    ]
    pipeline = world.pipeline(parts, output="s3://b/out")
    assert _inputs(pipeline) == (
        [("b", "in/"), ("c", "x/")],
        ["reports/b/all/*", "lists/today.csv", "lists/not.txt", "c/x/*"],
    )
    shown = pipeline._repr_html_()
    assert "s3://b/in, s3://c/x" in shown
    with pytest.raises(sk.PipelineError, match=r"input\.manifest: .*l\.csv is on this machine, where a driver"):
        _inputs(world.pipeline({"uri": "s3://b", "manifest": world.root / "l.csv"}, output="s3://b/out"))
    with pytest.raises(sk.PipelineError, match=r"this pipeline has several|folder of this machine"):
        check_engine(pipeline.replace(input_mode="download", engine={"kind": "local"}))
