"""Datasets for training: rows in a seeded order, and shards that WebDataset's own loader reads."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from sample_runs import World

import shardkit as sk
from shardkit.dataset import shuffle
from shardkit.dataset.shuffle import shuffled
from shardkit.runs import bundle

if TYPE_CHECKING:
    from pathlib import Path

FILES, ROWS = 6, 40
CODE = """
import datetime

ROWS = 40

def samples(record):
    number = int(record.key.split(".")[0])
    for i in range(ROWS):
        n = number * ROWS + i
        yield {"jpg": b"\\xff\\xd8" + bytes([n % 256]) * 2000, "embedding": [n / 2, 1.0], "n": n, "text": None if n % 2 else f"t{n}",
               "day": datetime.date(2020, 1, 1)}

def keyed(record):
    for i, row in enumerate(samples(record)):
        yield row | {"__key__": f"{record.key.split('.')[0]}/{i}"}

def pointed(record):
    yield {"__key__": "a.b", "jpg": b"x"}

def hidden(record):
    yield {"_jpg": b"x"}

def nested(record):
    yield {"both": {"image": b"x"}}
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, CODE, files=FILES)


def order_of(run: sk.Run) -> list[int]:
    return run.dataset().to_table()["n"].to_pylist()  # type: ignore[no-any-return]


# ---- the order of the rows ---------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_same_seed_gives_the_same_order_however_the_work_is_cut(world: World) -> None:
    plain = order_of(world.run("plain"))
    first = world.run("first", shuffle=7, rows_per_file=100)
    assert order_of(first) == order_of(world.run("second", shuffle=7, workers=3))
    assert sorted(order_of(first)) == plain == list(range(FILES * ROWS))
    assert order_of(first) != plain
    assert order_of(world.run("other", shuffle=8)) != order_of(first)
    assert [len(table) for table in map(pa.parquet.read_table, first.files())] == [100, 100, 40]
    assert sk.check(world.root / "first").ok
    assert first.verify(sample=2).is_reproducible
    with pytest.raises(sk.PipelineError, match=r"output\.shuffle has put the rows in another order"):
        first.origin(0)
    # Another seed is another dataset: an increment does not keep files of the old order.
    assert order_of(world.run("first", shuffle=8, rows_per_file=100)) == order_of(world.run("other", shuffle=8))


def test_a_shuffle_through_files_is_the_same_as_one_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"n": range(10_000), "text": ["x" * (i % 50) for i in range(10_000)]})

    def order(step: int, size_bytes: int) -> list[int]:
        pieces = (table.slice(start, step) for start in range(0, len(table), step))
        made = pa.concat_tables(shuffled(pieces, seed=3, size_bytes=size_bytes))
        assert made.schema == table.schema
        assert made["text"].to_pylist() == ["x" * (n % 50) for n in made["n"].to_pylist()]
        return made["n"].to_pylist()  # type: ignore[no-any-return]

    whole = order(10_000, 0)
    monkeypatch.setattr(shuffle, "RANGE_BYTES", 1000)
    assert order(10_000, 20_000) == order(777, 1_000_000) == whole
    assert abs(np.corrcoef(whole, range(10_000))[0, 1]) < 0.05
    assert list(shuffled(iter([]), seed=1, size_bytes=5000)) == []


# ---- WebDataset --------------------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_loader_of_webdataset_reads_what_was_written(world: World) -> None:
    wds = pytest.importorskip("webdataset")
    run = world.run(format="webdataset", target_bytes=100_000, shuffle=1)
    assert len(run.files()) > 1
    assert run.summary().rows == FILES * ROWS
    samples = list(wds.WebDataset(run.files(), shardshuffle=False).decode())
    assert len({sample["__key__"] for sample in samples}) == len(samples) == FILES * ROWS
    for sample in samples:
        n = sample["json"]["n"]
        assert sample["jpg"] == b"\xff\xd8" + bytes([n % 256]) * 2000
        assert sample["embedding.npy"].tolist() == [n / 2, 1.0]
        assert sample["json"] == {"n": n, "text": None if n % 2 else f"t{n}", "day": "2020-01-01"}
    numbers = [sample["json"]["n"] for sample in samples]
    assert sorted(numbers) == list(range(FILES * ROWS))
    assert numbers != sorted(numbers)
    assert sk.check(world.root / "out").ok

    # The same rows make the same bytes, whatever has cut the work and whenever it runs.
    again = world.run("again", format="webdataset", target_bytes=100_000, shuffle=1, workers=3)
    assert [digest(path) for path in run.files()] == [digest(path) for path in again.files()]


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


@pytest.mark.whole
def test_keys_of_the_function_and_what_webdataset_cannot_hold(world: World) -> None:
    wds = pytest.importorskip("webdataset")
    run = world.run(function="keyed", format="webdataset")
    keys = [sample["__key__"] for sample in wds.WebDataset(run.files(), shardshuffle=False)]
    assert keys == [f"{number}/{i}" for number in range(FILES) for i in range(ROWS)]
    with pytest.raises(sk.PipelineError, match=r"samples, not a table.*WebDataset\(run.files\(\)\)"):
        run.dataset()
    for function, message in (
        ("pointed", "the key 'a.b' will not do: a point ends it"),
        ("hidden", "column '_jpg' cannot be the extension"),
        ("nested", "cannot hold column 'both'"),
    ):
        with pytest.raises(sk.PipelineError, match=message):
            world.run(function, function=function, format="webdataset")
    report = json.loads(json.dumps(run.summary().to_dict()))
    assert report["rows"] == FILES * ROWS


def test_libraries_that_are_not_there_are_named_before_any_record_is_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("webdataset", "datasets", "torch"):
        monkeypatch.setitem(sys.modules, library, None)
    for kind, library in (("webdataset", "webdataset"), ("hf", "datasets")):
        with pytest.raises(sk.PipelineError, match=rf"needs the library {library}, .*'shardkit\[{kind}\]'"):
            world.run(kind, format=kind)
        assert not (world.root / kind).exists()
    run = world.run(rows_per_file=100)
    with pytest.raises(sk.PipelineError, match=r"run\.hf\(\) needs the library datasets.*'shardkit\[hf\]'"):
        run.hf()
    with pytest.raises(sk.PipelineError, match=r"run\.torch\(\) needs PyTorch"):
        run.torch()


def test_a_library_that_cannot_be_imported_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = world.root / "libraries" / "streaming"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(broken.parent))
    with pytest.raises(
        sk.PipelineError, match="cannot be imported: operator torchvision::nms does not exist"
    ) as caught:
        world.run(format="mds")
    assert "import streaming" in caught.value.hint


@pytest.mark.parametrize(("format", "extras"), [("hf", ["hf"]), ("webdataset", ["webdataset"]), ("parquet", [])])
def test_jobs_elsewhere_install_the_library_of_their_format(
    world: World, monkeypatch: pytest.MonkeyPatch, format: str, extras: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bundle, "_own_requirements", asked.extend)
    pipeline = sk.Pipeline(
        function="functions_for_training:samples",
        source_dir=world.root,
        input=world.root / "data",
        output={"uri": world.root / "out", "format": format},
    )
    bundle.upload_code(pipeline.output_folder(), pipeline, pipeline.function_ref(), dry_run=True)
    assert asked == extras


def test_seeds_that_will_not_do(tmp_path: Path) -> None:
    for seed in (-1, "x", True):
        with pytest.raises(sk.PipelineError, match=r"output\.shuffle"):
            sk.Pipeline(function="a:b", input=tmp_path, output={"uri": tmp_path / "out", "shuffle": seed})
