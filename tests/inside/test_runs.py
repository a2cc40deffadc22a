"""Runs over records inside files: what holds for files holds for pieces of them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from test_archives import tar_of

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

WORK = """
import json, os, signal
from pathlib import Path

HERE = Path(__file__).parent

def rows(record):
    mended = (HERE / "mended").exists()
    with (HERE / "trace").open("a") as trace:
        trace.write(record.key + "\\n")
    with open(record) as lines:
        for line in lines:
            n = json.loads(line)["n"]
            if n == 555 and not mended:
                raise ValueError(f"bad {n}")
            if n == 777 and not mended:
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"n": n, "key": record.key, "start": record.range[0] if record.range else None}

def sample(record):
    label, picture = record.paths
    return {"key": record.key, "label": int(label.read_text()), "bytes": len(picture.read_bytes()), "member": record.member}
"""


def lines_of(numbers: Any) -> str:
    return "".join(json.dumps({"n": n}) + "\n" for n in numbers)


class World:
    def __init__(self, root: Path) -> None:
        self.root, self.data, self.out = root, root / "data", root / "out"
        self.data.mkdir()
        (root / "inside_work.py").write_text(WORK)

    def pipeline(self, **fields: Any) -> sk.Pipeline:
        given = {"function": "inside_work:rows", "source_dir": self.root, "input": self.data, "output": self.out}
        given |= {"records": {"inside": "lines", "target_bytes": 1000}, "workers": 2, "max_failures": "100%"}
        return sk.Pipeline(**(given | fields))

    def run(self, **fields: Any) -> sk.Run:
        (self.root / "trace").write_text("")
        return self.pipeline(**fields).run(quiet=True)

    def called(self) -> list[str]:
        return sorted((self.root / "trace").read_text().split())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def numbers(run: sk.Run) -> list[int]:
    values: list[int] = sorted(run.dataset().to_table(columns=["n"])["n"].to_pylist())
    return values


@pytest.mark.whole
def test_failures_retry_replay_and_try_are_of_pieces(world: World) -> None:
    (world.data / "big.jsonl").write_text(lines_of(range(1000)))
    run = world.run()
    assert run.timings()["bytes"].sum() == (world.data / "big.jsonl").stat().st_size
    failures = run.failures()
    assert sorted(failures["error"]) == ["ValueError", "WorkerDied"]
    bad = failures.set_index("error")["key"]["ValueError"]
    start, _, end = bad.removeprefix("big.jsonl:").partition("-")
    assert int(end) - int(start) <= 1000
    missing = set(range(1000)) - set(numbers(run))
    assert {555, 777} <= missing
    assert len(missing) < 300
    tried = world.pipeline().try_records([bad])
    assert [record.message for record in tried.failed] == ["ValueError: bad 555"]
    with pytest.raises(ValueError, match="bad 555"):
        run.replay(bad)
    (world.root / "mended").touch()
    (world.root / "trace").write_text("")
    again = run.retry(quiet=True)
    assert world.called() == sorted(failures["key"])
    assert numbers(again) == list(range(1000))


@pytest.mark.whole
def test_only_pieces_of_files_that_have_changed_are_computed_again(world: World) -> None:
    (world.root / "mended").touch()
    for name, begin in (("a", 0), ("b", 500)):
        (world.data / f"{name}.jsonl").write_text(lines_of(range(begin, begin + 500)))
    world.run(incremental=True)
    first = world.called()
    assert len(first) > 10
    with (world.data / "b.jsonl").open("a") as file:
        file.write(lines_of(range(1000, 1100)))
    run = world.run(incremental=True)
    assert {key.partition(":")[0] for key in world.called()} == {"b.jsonl"}
    assert numbers(run) == list(range(1100))
    os.utime(world.data / "a.jsonl", ns=(0, 0))
    run = world.run(incremental=True)
    assert {key.partition(":")[0] for key in world.called()} == {"a.jsonl"}
    assert numbers(run) == list(range(1100))
    run = world.run(incremental=True, records={"inside": "lines", "target_bytes": 3000})
    assert numbers(run) == list(range(1100))


@pytest.fixture
def bucket(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("ENDPOINT_URL", s3_url)):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"inside-{tmp_path.name.lower().replace('_', '-')}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.mark.whole
def test_samples_of_a_tar_in_s3(world: World, bucket: str) -> None:
    samples = {f"{n:04d}": (str(n).encode(), b"x" * n) for n in range(20)}
    members = {f"{key}.{suffix}": parts[n] for key, parts in samples.items() for n, suffix in enumerate(("cls", "jpg"))}
    data = tar_of(members)
    boto3.client("s3").put_object(Bucket=bucket, Key="in/train-000.tar", Body=data)
    boto3.client("s3").put_object(Bucket=bucket, Key="in/bad.tar", Body=b"bad" * 1000)
    run = world.run(
        function="inside_work:sample",
        input=f"s3://{bucket}/in",
        output=f"s3://{bucket}/out",
        records={"inside": "tar", "pattern": "*.jpg"},
        workers=1,
    )
    frame = run.dataset().to_table().to_pandas().sort_values("key", ignore_index=True)
    assert frame["key"].tolist() == [f"train-000.tar/{key}" for key in samples]
    assert frame["label"].tolist() == frame["bytes"].tolist() == list(range(20))
    assert set(frame["member"].str[-4:]) == {".jpg"}
    assert run.failures()["key"].tolist() == ["bad.tar"]
    assert "cannot be read as a tar archive" in run.failures()["message"][0]


@pytest.mark.whole
def test_jobs_share_one_file(world: World) -> None:
    (world.root / "mended").touch()
    long = json.dumps({"n": 1000, "pad": "x" * 3500}) + "\n"  # longer than a piece: there are pieces without a line
    (world.data / "big.jsonl").write_text(lines_of(range(500)) + long + lines_of(range(500, 1000)))
    run = world.run(engine="local", shards={"by": "size", "count": 2}, workers=1)
    assert numbers(run) == list(range(1001))
    keys = run.dataset().to_table(columns=["key"])["key"].unique()
    assert len(keys) < run.summary().records["done"]
    assert run.summary().records["done"] == -(-(world.data / "big.jsonl").stat().st_size // 1000)
