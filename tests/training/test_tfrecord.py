"""Datasets of TFRecord, read by TensorFlow's own loader."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from sample_runs import World

import shardkit as sk
from shardkit.dataset.formats.tf_records import TfRecord

FILES, ROWS = 4, 30
CODE = """
import datetime

import numpy as np

def samples(record):
    number = int(record.key.split(".")[0])
    for i in range(30):
        n = number * 30 + i
        yield {
            "n": n,
            "even": n % 2 == 0,
            "half": n / 2,
            "vector": np.arange(n % 3, dtype=np.float32),
            "text": None if n % 3 else f"t\\u00e9{n}",
            "words": ["a", str(n)],
            "raw": bytes([n % 256]) * 900,
            "day": datetime.date(2020, 1, 1),
        }

def matrix(record):
    yield {"cell": [[1, 2], [3, 4]]}

def struct(record):
    yield {"cell": {"a": 1}}

def null(record):
    yield {"cell": [1, None]}

def large(record):
    yield {"cell": np.uint64(1 << 63)}
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, CODE, files=FILES, format="tfrecord")


def test_its_loader_reads_each_row_as_the_function_gave_it(world: World) -> None:
    tf = pytest.importorskip("tensorflow")
    run = world.run(target_bytes=30_000, shuffle=3)
    assert len(run.files()) > 2
    one, many = tf.io.FixedLenFeature, tf.io.VarLenFeature
    features = {
        "n": one([], tf.int64),
        "even": one([], tf.int64),
        "half": one([], tf.float32),
        "vector": many(tf.float32),
        "text": one([], tf.string, default_value=""),
        "words": many(tf.string),
        "raw": one([], tf.string),
        "day": one([], tf.string),
    }
    numbers = []
    records = tf.data.TFRecordDataset(run.files())
    for example in records.map(lambda record: tf.io.parse_single_example(record, features)):
        n = int(example["n"])
        numbers.append(n)
        assert (int(example["even"]), float(example["half"])) == (n % 2 == 0, n / 2)
        assert example["vector"].values.numpy().tolist() == list(range(n % 3))
        assert example["text"].numpy().decode() == ("" if n % 3 else f"té{n}")
        assert example["words"].values.numpy().tolist() == [b"a", str(n).encode()]
        assert example["raw"].numpy() == bytes([n % 256]) * 900
        assert example["day"].numpy() == b"2020-01-01"
    assert sorted(numbers) == list(range(FILES * ROWS)) != numbers
    without_text = next(n for n in numbers if n % 3)
    record = next(iter(records.skip(numbers.index(without_text)))).numpy()
    assert "text" not in tf.train.Example.FromString(record).features.feature
    # The same rows make the same bytes, however the work is cut.
    again = world.run("again", workers=3, target_bytes=30_000, shuffle=3)
    assert [digest(path) for path in run.files()] == [digest(path) for path in again.files()]
    with pytest.raises(sk.PipelineError, match=r"examples, not a table.*TFRecordDataset"):
        run.dataset()


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_its_rows_are_counted_without_tensorflow(world: World) -> None:
    pytest.importorskip("tensorflow")
    run = world.run(rows_per_file=50)
    path = Path(run.files()[0])
    with pa.OSFile(str(path)) as file:
        assert TfRecord().count_rows(file) == 50
    assert sk.check(world.root / "out").ok
    content = path.read_bytes()
    at = content.index(bytes([7]) * 900)
    path.write_bytes(content[: at - 40] + content[at - 39 :] + b"x")  # as long as before, one byte moved
    assert sk.check(world.root / "out").faults[0].what.endswith("cannot be read")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("matrix", r"cannot hold column 'cell' \(list<.*int64>>\): an example has flat lists"),
        ("struct", "cannot hold column 'cell'"),
        ("null", "cannot hold column 'cell': a list in it holds a null"),
        ("large", "cannot hold column 'cell': a number is too large"),
    ],
)
def test_what_it_cannot_hold_is_named_with_a_cure(world: World, function: str, message: str) -> None:
    pytest.importorskip("tensorflow")
    with pytest.raises(sk.PipelineError, match=message) as raised:
        world.run(function=function)
    assert raised.value.hint


def test_a_full_disk_is_an_error_of_the_storage() -> None:
    pytest.importorskip("tensorflow")
    table = pa.table({"raw": [b"x" * 100_000] * 100})
    writer = TfRecord().writer(Path("/dev/full"), table.schema, threads=1)
    with pytest.raises(sk.StorageError, match="No space left on device"):
        writer.write(table)
