"""Functions of batches: whose rows are whose, and that only the guilty record of a batch is put aside."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from crashing import LINUX

import shardkit as sk
from shardkit.plan.chunks import assign_chunks
from shardkit.plan.sizes import CHUNK_RECORDS
from shardkit.workers.answers import by_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from conftest import WriteFiles

pytestmark = LINUX
COUNT = 30
GUILTY = ["f07", "f21"]


def row(record: sk.Record) -> dict[str, Any]:
    return {"key": record.key, "text": record.read_text()}


def one_a_record(records: list[sk.Record]) -> list[dict[str, Any]]:
    assert type(records) is list
    return [row(record) for record in records]


def pairs(records: list[sk.Record]) -> Iterable[tuple[sk.Record, dict[str, Any]]]:
    for record in reversed(records):  # the order of the rows is the records' all the same
        yield record, row(record)


def groups(records: list[sk.Record]) -> Any:
    return pd.DataFrame([row(record) for record in records]).groupby("key", sort=False)


def lists_and_tables(records: list[sk.Record]) -> list[Any]:
    return [pa.table({name: [value] for name, value in row(record).items()}) for record in records]


def sizes(records: list[sk.Record]) -> list[dict[str, Any]]:
    return [row(record) | {"size": len(records), "pid": os.getpid()} for record in records]


def raises(records: list[sk.Record]) -> list[dict[str, Any]]:
    for record in records:
        record.count("seen")
        if record.key in GUILTY:
            raise ValueError("bad")
    return one_a_record(records)


def exits(records: list[sk.Record]) -> list[dict[str, Any]]:
    if any(record.key in GUILTY for record in records):
        os._exit(3)
    return one_a_record(records)


def hangs(records: list[sk.Record]) -> list[dict[str, Any]]:
    if any(record.key == GUILTY[0] for record in records):
        time.sleep(600)
    return one_a_record(records)


def one_cannot_be_stored(records: list[sk.Record]) -> list[Any]:
    return [object() if record.key in GUILTY else row(record) for record in records]


def needs_memory(records: list[sk.Record]) -> list[dict[str, Any]]:
    if len(records) > 4:
        raise MemoryError
    return one_a_record(records)


@pytest.fixture
def data(files: WriteFiles) -> Path:
    return files({f"f{number:02d}": f"text {number}" for number in range(COUNT)})


def rows_of(run: sk.Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.dataset().to_table().to_pylist()
    return rows


@pytest.mark.parametrize("function", [one_a_record, pairs, groups, lists_and_tables, needs_memory])
def test_the_dataset_is_that_of_single_records(data: Path, tmp_path: Path, function: Callable[..., Any]) -> None:
    run = sk.run(function, data, tmp_path / "out", batch=8, workers=1, quiet=True)
    assert rows_of(run) == [{"key": f"f{number:02d}", "text": f"text {number}"} for number in range(COUNT)]
    assert not run.quarantine()


def test_batches_are_as_large_as_asked(data: Path, tmp_path: Path) -> None:
    run = sk.run(sizes, data, tmp_path / "out", batch=8, workers=2, quiet=True)
    assert [each["size"] for each in rows_of(run)] == [8] * 24 + [6] * 6
    times = run.timings().sort_values("begin")
    assert (times["seconds"] > 0).all()
    first = times[:8]  # each record has its share of the batch's time, one after the other
    gaps = first["begin"].iloc[1:].to_numpy() - first["begin"].iloc[:-1].to_numpy()
    assert np.allclose(gaps / np.timedelta64(1, "s"), first["seconds"].iloc[:-1], atol=1e-5)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("function", "guilty", "error"),
    [
        (raises, GUILTY, "ValueError"),
        (one_cannot_be_stored, GUILTY, "TypeError"),
        (exits, GUILTY, "WorkerDied"),
        (hangs, GUILTY[:1], "TimeoutError"),
    ],
)
def test_only_the_guilty_record_is_put_aside(
    data: Path, tmp_path: Path, function: Callable[..., Any], guilty: list[str], error: str
) -> None:
    timeout = 0.5 if function is hangs else 60
    options: dict[str, Any] = {"workers": 2 if function is exits else 1, "max_failures": 2, "timeout": timeout}
    run = sk.run(function, data, tmp_path / "out", batch=8, quiet=True, **options)
    assert {entry["key"]: entry["error"] for entry in run.quarantine()} == dict.fromkeys(guilty, error)
    good = [number for number in range(COUNT) if f"f{number:02d}" not in guilty]
    assert rows_of(run) == [{"key": f"f{number:02d}", "text": f"text {number}"} for number in good]
    if function is raises:  # in the batch and by itself, but it counts once
        assert run.summary().counts == {"seen": len(good)}


def test_whose_rows_are_whose() -> None:
    a, b = sk.Record("a", ("a",)), sk.Record("b", ("b",))
    assert by_record(None, [a, b]) == [None, None]
    assert by_record([{"x": 1}, None], [a, b]) == [{"x": 1}, None]
    assert by_record(({"x": 1}, [{"x": 2}, {"x": 3}]), [a, b]) == [{"x": 1}, [{"x": 2}, {"x": 3}]]
    assert by_record([(b, {"x": 1})], [a, b]) == [None, {"x": 1}]
    assert by_record([("b", {"x": 1}), ("a", {"x": 2})], [a, b]) == [{"x": 2}, {"x": 1}]
    first, second = by_record(iter([(a, {"x": 1}), (b, None), (a, [{"x": 2}])]), [a, b])
    assert (list(first), second) == ([{"x": 1}, {"x": 2}], None)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"x": [1, 2]}, "returned dict for a batch of 2 records"),
        (pd.DataFrame({"x": [1, 2]}), r"returned one DataFrame for a batch of 2 records: .*, as frame.groupby"),
        (pa.table({"x": [1, 2]}), "returned one Table"),
        ("ab", "returned str"),
        (5, "returned int"),
        ([{"x": 1}], "a list of 1 items for a batch of 2 records, and whose they are is not said"),
        ([{"x": 1}] * 3, "a list of 3 items"),
        (iter([{"x": 1}, {"x": 2}]), "gave dict for a batch of 2 records, and whose it is is not said"),
        ([("c", {"x": 1})], "gave rows of 'c', which is no record of its batch"),
    ],
)
def test_an_answer_that_may_be_anybodys_is_refused(returned: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        by_record(returned, [sk.Record("a", ("a",)), sk.Record("b", ("b",))])


def test_chunks_are_whole_batches() -> None:
    sizes = np.bincount(assign_chunks(np.full(1000, 50), how="dynamic", workers=2, at_once=64))
    assert (sizes[:-1] % 64 == 0).all() and sizes.sum() == 1000
    assert np.bincount(assign_chunks(np.full(9000, 50), how="dynamic", workers=1, at_once=4999)).tolist() == [
        4999,
        4001,
    ]
    assert np.bincount(assign_chunks(np.full(9000, 50), how="dynamic", workers=1)).max() <= CHUNK_RECORDS


def test_a_size_that_cannot_be() -> None:
    with pytest.raises(sk.PipelineError, match="batch"):
        sk.Pipeline(function=row, input="in", output="out", batch=0)


def test_a_record_is_tried_as_a_batch_of_its_own(data: Path, tmp_path: Path) -> None:
    pipeline = sk.Pipeline(function=raises, input=str(data), output=str(tmp_path / "out"), batch=8)
    tried = pipeline.try_records(["f03", GUILTY[0]])
    assert [(each.rows, each.message) for each in tried.records] == [(1, ""), (0, "ValueError: bad")]
    assert "Each record is a batch of its own here; a run makes batches of 8." in str(tried)
    assert pipeline.sample(10, quiet=True).sampled == 10


class Breaks:
    def __init__(self) -> None:
        raise RuntimeError("no weights")

    def __call__(self, records: list[sk.Record]) -> None:
        """Never called."""


def test_a_class_that_cannot_be_made_ends_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(sk.PipelineError, match=r"Breaks cannot be loaded: RuntimeError: no weights(.|\n)*in __init__"):
        sk.run(Breaks, data, tmp_path / "out", batch=8, workers=2, quiet=True)
