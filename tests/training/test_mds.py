"""Datasets of MDS, read by MosaicML's own StreamingDataset: the rows, the index, and what a switch leaves of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from emulators import s3_client, use_emulator

import shardkit as sk
from shardkit.dataset import switch_steps
from shardkit.dataset.formats import kinds

if TYPE_CHECKING:
    from pathlib import Path

FILES, ROWS = 4, 30
CODE = """
import datetime
import decimal
import io

import numpy as np

def samples(record):
    number = int(record.key.split(".")[0])
    for i in range(30):
        n = number * 30 + i
        yield {
            "n": n,
            "half": np.float32(n / 2),
            "even": n % 2 == 0,
            "text": f"t{n}",
            "raw": bytes([n % 256]) * 900,
            "vector": np.arange(n % 5 + 1, dtype=np.float32),
            "matrix": [[n, 1], [2, 3], [4, 5]],
            "price": decimal.Decimal(n) / 4,
            "day": datetime.date(2020, 1, 1),
            "nested": {"words": ["a", None], "n": n},
            "nothing": None,
        }

def simple(record):
    text = record.read_text()
    for i in range(10):
        yield {"key": record.key, "text": text, "i": i}

def pictures(record):
    from PIL import Image
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), (255, 0, 0)).save(picture, format="PNG")
    yield {"left.png": picture.getvalue(), "png": picture.getvalue(), "other": b"x"}

def cells(record):
    yield {"cell": {"null": None, "ragged": [[1], [2, 3]], "empty": [], "bytes": {"a": b"x"}}[record.key.split(".")[0]] }
    if record.key.startswith("null"):
        yield {"cell": 1}
    if record.key.startswith("empty"):
        yield {"cell": [1.5]}
"""


class World:
    """Records in a folder, and pipelines that make shards of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "functions_for_mds.py").write_text(CODE)

    def write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            (self.root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "data" / name).write_text(text)

    def run(self, out: str = "out", function: str = "samples", **fields: Any) -> sk.Run:
        uri, output = fields.pop("uri", self.root / out), fields.pop("output", {})
        days = fields.pop("days", None)
        return sk.Pipeline(
            name="mds",
            function=f"functions_for_mds:{function}",
            source_dir=self.root,
            input=fields.pop("input", self.root / "data"),
            output={"uri": uri, "format": "mds"} | output,
            **{"workers": 1} | fields,
        ).run(quiet=True, days=days)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.write({f"{number}.txt": "x" for number in range(FILES)})
    return made


def read(streaming: Any, local: Path, **options: Any) -> list[dict[str, Any]]:
    dataset = streaming.StreamingDataset(local=str(local), batch_size=1, shuffle=False, **options)
    samples = [dataset[i] for i in range(len(dataset))]
    del dataset
    streaming.base.util.clean_stale_shared_memory()
    return samples


def digests(run: sk.Run) -> list[str]:
    return [hashlib.sha256(open(path, "rb").read()).hexdigest() for path in run.files()]


def test_its_loader_reads_each_row_as_the_function_gave_it(world: World, streaming: Any) -> None:
    size = {"target_bytes": 30_000, "shuffle": 3}
    run = world.run(output=size)
    assert len(run.files()) > 2
    samples = read(streaming, world.root / "out")
    numbers = [int(sample["n"]) for sample in samples]
    assert sorted(numbers) == list(range(FILES * ROWS)) != numbers
    for sample, n in zip(samples, numbers, strict=True):
        vector, matrix = sample.pop("vector"), sample.pop("matrix")
        assert (vector.dtype, vector.tolist()) == (np.float32, list(range(n % 5 + 1)))
        assert (matrix.dtype, matrix.tolist()) == (np.int64, [[n, 1], [2, 3], [4, 5]])
        assert sample == {
            "n": n,
            "half": n / 2,
            "even": n % 2 == 0,
            "text": f"t{n}",
            "raw": bytes([n % 256]) * 900,
            "price": Decimal(n) / 4,
            "day": "2020-01-01",
            "nested": {"words": ["a", None], "n": n},
            "nothing": None,
        }
    assert sk.check(world.root / "out").ok
    # The same rows make the same bytes, however the work is cut.
    assert digests(world.run("again", workers=3, output=size)) == digests(run)
    with pytest.raises(sk.PipelineError, match=r"samples, not a table.*StreamingDataset"):
        run.dataset()


def test_torch_loads_it_in_batches_and_pictures_are_opened(world: World, streaming: Any) -> None:
    from torch.utils.data import DataLoader

    world.run(function="simple", output={"rows_per_file": 7})
    dataset = streaming.StreamingDataset(local=str(world.root / "out"), batch_size=4, shuffle=True, shuffle_seed=1)
    seen: Counter[tuple[str, int]] = Counter()
    for batch in DataLoader(dataset, batch_size=4, num_workers=2):
        assert batch["i"].shape == (4,)
        seen.update(zip(batch["key"], batch["i"].tolist(), strict=True))
    assert seen == {(f"{number}.txt", i): 1 for number in range(FILES) for i in range(10)}
    del dataset
    world.run("pictures", function="pictures")
    sample = read(streaming, world.root / "pictures")[0]
    assert [sample[name].size for name in ("left.png", "png")] == [(8, 6)] * 2
    assert sample["png"].getpixel((0, 0)) == (255, 0, 0)
    assert sample["other"] == b"x"


class Died(BaseException):
    """What nothing catches: the process is gone for all that it leaves."""


def test_days_are_replaced_together_whatever_dies(
    world: World, streaming: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.root / "data" / "0.txt").unlink()
    days = ["2020-01-01", "2020-01-02"]
    by_day: dict[str, Any] = {
        "function": "simple",
        "input": world.root / "days",
        "shards": {"by": "date", "path": "{Y}-{m}-{d}"},
        "output": {"rows_per_file": 5},
    }

    def write(versions: list[str]) -> None:
        for day, version in zip(days, versions, strict=True):
            (world.root / "days" / day).mkdir(parents=True, exist_ok=True)
            (world.root / "days" / day / "a.txt").write_text(version)

    def texts() -> list[str]:
        return [sample["text"] for sample in read(streaming, world.root / "out")]

    write(["one", "two"])
    world.run(**by_day)
    assert texts() == ["one"] * 10 + ["two"] * 10
    files = {str(path): path.stat().st_ino for path in world.root.glob("out/*/*.mds")}
    write(["one", "other"])
    with monkeypatch.context() as patch:
        patch.setattr(switch_steps, "write_index", lambda *_: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            world.run(days=days[1:], **by_day)
    assert texts() == ["one"] * 10 + ["two"] * 10  # the new files are there, and those of the old index are, too
    run = sk.open_run(world.root / "out")
    assert texts() == ["one"] * 10 + ["other"] * 10
    run.resume(quiet=True)
    kept = {str(path): path.stat().st_ino for path in world.root.glob("out/*/*.mds")}
    assert len(kept) == len(files) == 4
    assert len(kept.items() & files.items()) == 2
    sk.clean(world.root / "out")
    assert texts() == ["one"] * 10 + ["other"] * 10
    assert sk.check(world.root / "out").ok
    index = json.loads((world.root / "out" / "index.json").read_text())
    assert {shard["raw_data"]["basename"].split("/")[0] for shard in index["shards"]} == {
        f"day_partition={day}" for day in days
    }


def test_it_streams_from_s3(
    world: World, streaming: Any, s3_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_emulator(monkeypatch, s3_url)
    monkeypatch.setenv("S3_ENDPOINT_URL", s3_url)  # as streaming calls it
    bucket = f"mds-{os.getpid()}"
    s3_client(s3_url).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    uri = f"s3://{bucket}/out"
    for version in ("first", "second"):
        world.write({f"{number}.txt": version for number in range(FILES)})
        world.run(uri=uri, function="simple", output={"rows_per_file": 15, "partition_by": "key"})
        samples = read(streaming, tmp_path / version, remote=uri)
        assert [sample["text"] for sample in samples] == [version] * FILES * 10
    assert sk.check(uri).ok


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("null", "cannot hold column 'cell': a row has no value in it"),
        ("ragged", "cannot hold column 'cell': lists in it differ in length"),
        ("empty", "cannot hold column 'cell': a list in it is empty"),
        ("bytes", r"cannot hold column 'cell' \(struct<a: binary>\)"),
    ],
)
def test_what_it_cannot_hold_is_named_with_a_cure(world: World, streaming: Any, kind: str, message: str) -> None:
    (world.root / "cells").mkdir()
    (world.root / "cells" / f"{kind}.txt").write_text("x")
    with pytest.raises(sk.PipelineError, match=message) as raised:
        world.run(function="cells", input=world.root / "cells")
    assert raised.value.hint


def test_without_the_library_no_record_is_computed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(sk.PipelineError, match=r"mds needs the library streaming.*shardkit\[mds\]"):
        world.run()
    assert not (world.root / "out").exists()
