"""Datasets of Lance, read by Lance itself: the rows, and a version for each switch."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import warm
from crashing import TESTS, Project, environment
from emulators import s3_client, use_emulator
from test_switch import KILLED, WORK, copy_of, rows_of_version

import shardkit as sk
from shardkit.dataset import lance_expiry, switch_steps

CODE = """
import datetime
import decimal

import numpy as np
import pyarrow as pa

def samples(record):
    number = int(record.key.split(".")[0])
    for i in range(300):
        n = number * 300 + i
        yield {
            "n": n,
            "half": n / 2,
            "vector": np.full(8, n, np.float32),
            "text": None if n % 3 else f"words and words {n} " * 20,
            "raw": bytes([n % 256]) * 200,
            "day": datetime.date(2020, 1, 1),
            "nested": {"words": ["a", str(n)], "deep": [{"x": n, "y": [n]}]},
            "price": decimal.Decimal(n) / 4,
        }

def simple(record):
    text = record.read_text()
    for i in range(4):
        yield {"key": record.key, "text": text} | ({"more": i} if text.startswith("other") else {})

def typed(record):
    yield {"key": record.key, "value": 1.5 if record.read_text() == "other" else 1}

def mapped(record):
    return pa.table({"cell": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))})
"""


class World:
    """Records in a folder, and pipelines that make Lance of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        (root / "functions_for_lance.py").write_text(CODE)

    def write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            (self.root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "data" / name).write_text(text)

    def run(self, out: Path | str = "out", function: str = "simple", **fields: Any) -> sk.Run:
        output, days = fields.pop("output", {}), fields.pop("days", None)
        uri = out if "://" in str(out) else self.root / out
        return sk.Pipeline(
            name="lance",
            function=f"functions_for_lance:{function}",
            source_dir=self.root,
            input=self.root / "data",
            output={"uri": uri, "format": "lance"} | output,
            **{"workers": 1} | fields,
        ).run(quiet=True, days=days)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def lance() -> Any:
    return pytest.importorskip("lance")


def texts(lance: Any, uri: Any, **options: Any) -> list[str]:
    return lance.dataset(str(uri), **options).to_table()["text"].to_pylist()  # type: ignore[no-any-return]


def digests(run: sk.Run) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in run.files()]


def test_lance_reads_each_row_as_the_function_gave_it(world: World, lance: Any) -> None:
    world.write({f"{number}.txt": "x" for number in range(4)})
    size = {"target_bytes": 200_000, "shuffle": 3}
    run = world.run(function="samples", output=size)
    assert len(run.files()) > 2
    dataset = lance.dataset(str(world.out))
    rows = dataset.to_table().to_pylist()
    assert sorted(row["n"] for row in rows) == list(range(1200)) != [row["n"] for row in rows]
    for row in rows:
        n = row["n"]
        assert row["vector"] == [n] * 8
        assert row["text"] == (None if n % 3 else f"words and words {n} " * 20)
        assert row["raw"] == bytes([n % 256]) * 200
        assert row["nested"] == {"words": ["a", str(n)], "deep": [{"x": n, "y": [n]}]}
        assert (row["half"], row["price"] * 4, str(row["day"])) == (n / 2, n, "2020-01-01")
    assert dataset.take([7, 3], columns=["n"])["n"].to_pylist() == [rows[7]["n"], rows[3]["n"]]
    assert dataset.to_table(filter="n < 3", columns=["n"]).num_rows == 3
    assert sk.check(world.out).ok
    # The same rows make the same bytes, however the work is cut.
    again = world.run("again", function="samples", workers=3, output=size)
    assert digests(run) == digests(again)
    with pytest.raises(sk.PipelineError, match=r"read by Lance.*lance\.dataset"):
        run.dataset()


def test_torch_loads_it_in_batches(world: World, lance: Any) -> None:
    pytest.importorskip("torch", reason="there is no build of PyTorch without CUDA here")
    from lance.torch.data import LanceDataset
    from torch.utils.data import DataLoader

    world.write({"0.txt": "x"})
    world.run(function="samples", output={"rows_per_file": 100})
    loader = DataLoader(LanceDataset(str(world.out), batch_size=32, columns=["n", "half"]), batch_size=None)
    batches = list(loader)
    assert sorted(n for batch in batches for n in batch["n"].tolist()) == list(range(300))


class Died(BaseException):
    """What nothing catches: the process is gone for all that it leaves."""


def died(*_: Any) -> Any:
    raise Died


def test_days_are_replaced_in_one_version_whatever_dies(
    world: World, lance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_day: dict[str, Any] = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "output": {"rows_per_file": 2}}
    world.write({"2020-01-01/a.txt": "one", "2020-01-02/a.txt": "two"})
    first = world.run(**by_day)
    old = ["one"] * 4 + ["two"] * 4
    assert texts(lance, world.out) == old
    before = old
    for step in ("write_index", "_tidy"):
        world.write({"2020-01-02/a.txt": f"other {step}"})
        new = ["one"] * 4 + [f"other {step}"] * 4
        with monkeypatch.context() as patch:
            patch.setattr(switch_steps, step, died)
            with pytest.raises(Died):
                world.run(days=["2020-01-02"], **by_day)
        assert texts(lance, world.out) == (before if step == "write_index" else new)
        run = sk.open_run(world.out)  # which finishes what had begun
        assert texts(lance, world.out) == new
        before = new
    rows = lance.dataset(str(world.out)).to_table().to_pylist()
    assert [row["more"] for row in rows] == [None] * 4 + [0, 1, 2, 3]  # days that stay lack a column
    assert sk.check(world.out).ok
    # A version is one switch, and says which run has made it.
    dataset = lance.dataset(str(world.out))
    assert [version["version"] for version in dataset.versions()] == [1, 2, 3]
    assert dataset.schema.metadata[b"shardkit.run-id"].decode() == run.run_id
    assert lance.dataset(str(world.out), version=1).schema.metadata[b"shardkit.run-id"].decode() == first.run_id
    assert texts(lance, world.out, version=1) == old

    # Old versions stay for some days; then `clean` lets them go, but those with a tag.
    assert "snapshot" not in str(sk.clean(world.out))
    monkeypatch.setattr(lance_expiry, "KEPT", timedelta(0))
    dataset.tags.create("training", 1)
    would = sk.clean(world.out, dry_run=True).snapshots
    cleaned = sk.clean(world.out).snapshots
    assert would == cleaned
    assert cleaned is not None and (cleaned.expired, cleaned.files) == ({lance_expiry.NAME: 1}, 2)
    assert [version["version"] for version in lance.dataset(str(world.out)).versions()] == [1, 3]
    assert texts(lance, world.out, version="training") == old
    assert texts(lance, world.out) == new
    assert len(list((world.out / "data").iterdir())) == 6


def test_killed_within_the_switch_readers_see_the_old_or_the_new_version(tmp_path: Path, lance: Any) -> None:
    project = Project(tmp_path / "project")
    project.write_function(WORK)
    project.write_records(["x"] * 4)
    (project.root / "version").write_text("first")
    project.run(workers=1, rows_per_file=3, run_id="first", format="lance")
    (project.root / "version").write_text("second")
    steps = ["note", *["publish"] * 3, "write", "note", "index", "tidy", "unlink"]
    for step in (steps.index("publish") + 2, steps.index("index") + 1, steps.index("tidy") + 1, len(steps) + 1):
        killed = copy_of(project.root, tmp_path / f"killed-{step}")
        words = [TESTS / "switch_steps.py", str(step), "kill", "run", str(killed.root), "second", "lance"]
        done = warm.run(words, env=environment(), timeout_s=60)
        if step > len(steps):
            assert (done.returncode, done.stdout.split()) == (0, steps)
        else:
            assert done.returncode == KILLED
        seen = "second" if step > steps.index("tidy") else "first"
        assert lance.dataset(str(killed.out)).to_table().to_pylist() == rows_of_version(seen)
        assert sk.open_run(killed.out).summary().status == "done"  # what had begun is finished
        dataset = lance.dataset(str(killed.out))
        assert dataset.to_table().to_pylist() == rows_of_version("second")
        assert [version["version"] for version in dataset.versions()] == [1, 2]
        assert sk.check(killed.out).ok


def test_other_formats_and_lance_replace_each_other(world: World, lance: Any) -> None:
    world.write({"a.txt": "one"})
    world.run(output={"format": "parquet"})
    world.run()
    assert texts(lance, world.out) == ["one"] * 4
    assert not list(world.out.glob("*.parquet"))
    world.write({"a.txt": "two"})
    world.run()
    world.run(output={"format": "parquet"})
    left = {path.relative_to(world.out).parts[0] for path in world.out.rglob("*") if path.is_file()}
    assert len(left) == 2 and "_shardkit" in left
    assert sk.check(world.out).ok
    world.run()
    (world.out / "_versions").joinpath("latest_version_hint.json").unlink()
    for path in (world.out / "_versions").iterdir():
        path.unlink()
    assert [
        fault.what.endswith("_versions does not list the files of the dataset") for fault in sk.check(world.out).faults
    ] == [True]
    sk.open_run(world.out).resume(quiet=True)
    assert texts(lance, world.out) == ["two"] * 4


def test_who_was_paused_commits_no_version(world: World, lance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write({"a.txt": "one"})
    world.run()
    write = switch_steps.write_index

    def paused(output: Any, result: Any, is_present: Any) -> bool:
        def others_commit() -> bool:
            lance.dataset(str(world.out)).delete("text = 'one'")
            return bool(is_present())

        return write(output, result, others_commit)

    world.write({"a.txt": "two"})
    monkeypatch.setattr(switch_steps, "write_index", paused)
    with pytest.raises(sk.LockLost, match="another run has switched it"):
        world.run()
    assert texts(lance, world.out) == []
    monkeypatch.undo()
    sk.open_run(world.out)
    assert texts(lance, world.out) == ["two"] * 4


def test_it_is_made_and_read_in_s3(world: World, lance: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_emulator(monkeypatch, s3_url)
    bucket = f"lance-{os.getpid()}"
    s3_client(s3_url).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    uri = f"s3://{bucket}/out"
    options = {"storage_options": {"endpoint": s3_url, "allow_http": "true"}}
    for version in ("one", "two"):
        world.write({f"{number}.txt": version for number in range(2)})
        world.run(uri, output={"rows_per_file": 3})
        assert texts(lance, uri, **options) == [version] * 8
    assert texts(lance, uri, version=1, **options) == ["one"] * 8
    assert sk.check(uri).ok


def test_what_it_cannot_hold_is_named_with_a_cure(world: World, lance: Any) -> None:
    world.write({"2020-01-01/a.txt": "one", "2020-01-02/a.txt": "two"})
    with pytest.raises(sk.PipelineError, match=r"lance cannot hold column 'cell' \(map<") as raised:
        world.run(function="mapped")
    assert raised.value.hint
    for output, message in (
        ({"partition_by": "key"}, "files of Lance are not in folders of partitions"),
        ({"uri": "gs://bucket/out"}, "on this machine or in S3, not in gs://bucket/out"),
    ):
        with pytest.raises(sk.PipelineError, match=message):
            world.run(output=output)
    by_day: dict[str, Any] = {
        "shards": {"by": "date", "path": "{Y}-{m}-{d}"},
        "function": "typed",
        "output": {"widen_ints": True},
    }
    world.run("days", **by_day)
    world.write({"2020-01-02/a.txt": "other"})
    with pytest.raises(
        sk.SchemaConflict, match=r"Column 'value' is double in the days that are made, and int64 in those"
    ):
        world.run("days", days=["2020-01-02"], **by_day)
    assert lance.dataset(str(world.root / "days")).to_table()["value"].to_pylist() == [1, 1]
