"""Runs as Hugging Face's datasets opens them: mapped, converted or streamed, with the columns of folders."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import pickle
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pytest
from emulators import s3_client, use_emulator

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
import datetime
import pyarrow as pa

def rows(record):
    day, _, number = record.key.removesuffix(".txt").partition("/")
    for i in range(30):
        n = int(number) * 30 + i
        yield {
            "n": n, "text": None if n % 2 else f"t{n}", "picture": b"\\xff\\xd8" + bytes([n % 256]) * (n % 50), "embedding": [n / 2, 1.0],
            "when": datetime.datetime(2020, 1, 1, n % 24), "inside": {"a": [n], "b": None},
        }

def texts(record):
    for row in rows(record):
        del row["picture"]
        yield row

def kinds(record):
    import test_hugging_face
    yield test_hugging_face.KINDS

def odd(record):
        yield pa.table({"pairs": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))})
"""
SECRET = "neither in a cache nor on the way"
D = decimal.Decimal
KINDS = pa.table(
    {
        "small": pa.array([1, None], pa.uint8()),
        "half": pa.array([1.5, None], pa.float16()),
        "long text": pa.array(["x", None], pa.large_string()),
        "fixed": pa.array([b"ab", None], pa.binary(2)),
        "date": pa.array([datetime.date(2020, 1, 2), None]),
        "time": pa.array([datetime.time(1, 2, 3, 4), None]),
        "zoned": pa.array([datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), None]),
        "took": pa.array([datetime.timedelta(1), None]),
        "price": pa.array([D("1.10"), None]),
        "large price": pa.array([D("1.10"), None], pa.decimal256(50, 2)),
        "long list": pa.array([[1], None], pa.large_list(pa.int8())),
        "structs": pa.array([[{"a": 1, "b": ["x"]}], None]),
        "nothing": pa.nulls(2),
    }
)
DAYS, FILES = ("2020-01-01", "2020-01-02"), 3


class World:
    """Files of two days."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "functions_for_datasets.py").write_text(CODE)
        for number in range(FILES * len(DAYS)):
            path = root / "data" / DAYS[number // FILES] / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")

    def pipeline(self, uri: Any = None, function: str = "rows", *, days: bool = True, **output: Any) -> sk.Pipeline:
        return sk.Pipeline(
            name="out",
            function=f"functions_for_datasets:{function}",
            source_dir=self.root,
            input=self.root / "data",
            output={"uri": uri or self.root / "out", **output},
            shards={"by": "date", "path": "{Y}-{m}-{d}"} if days else None,
            workers=1,
        )

    def run(self, uri: Any = None, **how: Any) -> sk.Run:
        return self.pipeline(uri, **how).run(quiet=True)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return World(tmp_path)


def expected(*, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in {
                "n": n,
                "text": None if n % 2 else f"t{n}",
                "picture": b"\xff\xd8" + bytes([n % 256]) * (n % 50),
                "embedding": [n / 2, 1.0],
                "when": datetime.datetime(2020, 1, 1, n % 24),
                "inside": {"a": [n], "b": None},
                "day_partition": DAYS[n // (FILES * 30)],
            }.items()
            if name not in without
        }
        for n in range(FILES * len(DAYS) * 30)
    ]


def digests(run: sk.Run) -> list[str]:
    found = []
    for path in run.files():
        with open(path, "rb") as file:
            found.append(hashlib.sha256(file.read()).hexdigest())
    return found


def test_shards_are_mapped_where_they_lie(world: World, tmp_path: Path) -> None:
    run = world.run(format="hf", rows_per_file=50)
    found = run.hf()
    assert found.to_list() == expected()
    assert [file["filename"] for file in found.cache_files] == run.files()
    assert not (tmp_path / "cache").exists()  # nothing was converted
    assert found.features["embedding"] == datasets.List(datasets.Value("float64"))
    assert run.hf(columns=["day_partition", "n"])[100] == {"day_partition": "2020-01-02", "n": 100}
    assert pickle.loads(pickle.dumps(found))[-1] == expected()[-1]
    one = datasets.Dataset.from_file(run.files()[0])  # the library's own way to open a shard
    assert one.to_list() == expected(without=("day_partition",))[:50]
    assert one.features == run.hf(columns=[*one.column_names]).features
    assert sk.check(world.root / "out").ok
    with pytest.raises(sk.PipelineError, match=r"for the library datasets.*run\.hf\(\)"):
        run.dataset()
    with pytest.raises(sk.PipelineError, match="no column 'm'"):
        run.hf(columns=["m"])


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl", "webdataset"])
def test_other_formats_are_converted_once(world: World, tmp_path: Path, format: str) -> None:
    without = ("picture",) if format == "jsonl" else ()
    run = world.run(format=format, rows_per_file=50, function="texts" if without else "rows")
    found = run.hf()
    assert found.to_list() == expected(without=without)
    converted = found.cache_files
    assert all(file["filename"].startswith(str(tmp_path / "cache")) for file in converted)
    assert run.hf().cache_files == converted
    # Another run is another dataset, and keeps nothing of the old one.
    again = world.run(format=format, shuffle=1, function="texts" if without else "rows").hf()
    assert again.cache_files != converted
    assert sorted(again["n"]) == list(range(180)) != list(again["n"])


@pytest.mark.parametrize("format", ["hf", "parquet"])
def test_a_stream_has_a_shard_for_each_file(world: World, tmp_path: Path, format: str) -> None:
    run = world.run(format=format, rows_per_file=50)
    found = run.hf(streaming=True)
    assert list(found) == expected()
    assert found.num_shards == len(run.files()) == 4
    assert [row["n"] for row in found.shard(2, 1)] == list(range(90, 180))
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    state = found.state_dict()
    rows = iter(found)
    first = [next(rows) for _ in range(70)]
    state = found.state_dict()
    again = run.hf(streaming=True)
    again.load_state_dict(state)
    assert first + list(again) == expected()
    assert {row["n"] for row in found.shuffle(seed=1, buffer_size=20)} == set(range(180))


def test_a_day_that_is_made_again_and_one_with_other_types(world: World) -> None:
    world.run(format="hf", widen_ints=True)
    (world.root / "functions_for_datasets.py").write_text(CODE.replace('"n": n,', '"n": n / 2, "new": "x",'))
    run = world.pipeline(format="hf", widen_ints=True).run(days=["2020-01-02"], quiet=True)
    found = run.hf()
    assert found["n"][:2] == [0.0, 1.0]
    assert found["n"][90:92] == [45.0, 45.5]
    assert found["new"][89:91] == [None, "x"]
    assert list(run.hf(streaming=True)) == found.to_list()


def test_the_same_rows_make_the_same_bytes(world: World, tmp_path: Path) -> None:
    first = world.run(tmp_path / "first", format="hf", rows_per_file=50, days=False)
    pipeline = world.pipeline(tmp_path / "second", format="hf", rows_per_file=50, days=False)
    again = pipeline.replace(workers=3, chunks="dynamic").run(quiet=True)
    assert digests(first) == digests(again)


def test_what_is_made_of_a_mapped_run_is_cached(world: World, tmp_path: Path) -> None:
    run = world.run(format="hf")
    doubled = [run.hf(columns=["n", "day_partition"]).map(lambda row: {"n": 2 * row["n"]}) for _ in range(2)]
    assert doubled[0].cache_files == doubled[1].cache_files
    assert doubled[1]["n"][:] == [2 * n for n in range(180)]


def test_every_type_but_maps_is_read_back(world: World) -> None:
    run = world.run(format="hf", function="kinds", days=False)
    assert run.hf().to_list() == list(run.hf(streaming=True)) == KINDS.to_pylist() * 6


def test_what_datasets_cannot_hold_is_refused(world: World) -> None:
    with pytest.raises(sk.PipelineError, match=r"output.format: hf cannot hold column 'pairs' \(map"):
        world.run(format="hf", function="odd")


@pytest.mark.parametrize("format", ["hf", "parquet"])
def test_objects_are_read_by_ones_own_access(
    world: World, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    use_emulator(monkeypatch, s3_url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    bucket = f"datasets-{format}"
    s3_client(s3_url).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    run = world.run(f"s3://{bucket}/out", format=format, rows_per_file=50)
    assert run.hf().to_list() == expected()
    assert list(run.hf(streaming=True)) == expected()
    sent = pickle.dumps(run.hf(streaming=True))  # as to another process, which looks for credentials itself
    assert SECRET.encode() not in sent
    assert list(pickle.loads(sent)) == expected()
    assert not [
        file for file in (tmp_path / "cache").rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()
    ]
