"""When, where and for how long each record was worked on, as a run's markers say it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import shardkit as sk
from shardkit.runfolder.timings import RunTimings
from shardkit.tables.number_text import numbers_of, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

# Says in its rows when it was called; what else it does, the record says.
WORK = """
import os, time
from pathlib import Path
HERE = Path(__file__).parent

def rows(record):
    begin = time.time()
    word = record.read_text()
    time.sleep(0.02)
    if word == "bad" and not (HERE / "mended").exists():
        raise ValueError("bad")
    if word == "kill" or (word == "once" and not (HERE / "killed").exists()):
        (HERE / "killed").touch()
        os._exit(9)
    if word == "unusable":
        return {"key": object()}
    return [{"key": record.key, "begin": begin, "pid": os.getpid()}] * (3 if word == "three" else 1)
"""
# Ends once each of two records has begun, so that two workers are at it.
MEET = """
import time
from pathlib import Path
HERE = Path(__file__).parent

def rows(record):
    (HERE / f"begun-{record.key}").touch()
    deadline = time.monotonic() + 30
    while len(list(HERE.glob("begun-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    return {"key": record.key}
"""
WORDS = {"a": "x", "b": "bad", "c": "three", "d": "once", "e": "kill", "f": "unusable", "g": "x"}


@pytest.mark.whole
def test_each_record_says_when_where_and_for_how_long(tmp_path: Path, files: WriteFiles) -> None:
    data = files(WORDS)
    (tmp_path / "work.py").write_text(WORK)
    before = time.time()
    run = sk.run(
        "work:rows",
        data,
        tmp_path / "out",
        source_dir=tmp_path,
        workers=2,
        quiet=True,
        max_failures=3,
        chunks="even",
    )
    after = time.time()
    frame = run.timings().set_index("record")
    assert sorted(frame.index) == sorted(WORDS)
    failed = {"b", "e", "f"}
    assert set(frame.index[frame["outcome"] == "quarantined"]) == failed
    assert frame["rows"].to_dict() == {"a": 1, "b": 0, "c": 3, "d": 1, "e": 0, "f": 0, "g": 1}
    assert frame["bytes"].to_dict() == {key: len(word) for key, word in WORDS.items()}
    assert frame["worker"].notna().all()
    assert frame["job"].isna().all() and set(frame["attempt"]) == {1}
    rows = run.dataset().to_table().to_pandas().drop_duplicates("key").set_index("key")
    begin = frame["begin"].astype("int64") / 1e6
    for key in rows.index:
        assert begin[key] - 0.1 <= rows["begin"][key] <= begin[key] + frame["seconds"][key] + 0.1
    slept = frame.drop("e")["seconds"]  # the moment in which a process died is known only roughly
    assert slept.between(0.02, after - before).all()
    assert begin.min() >= before and (begin + frame["seconds"]).max() <= after + 0.1

    (tmp_path / "mended").touch()
    again = run.retry(quiet=True, max_failures=3).timings()
    tries = again[again["record"] == "b"]
    assert list(tries["outcome"]) == ["quarantined", "done"]
    assert list(tries["attempt"]) == [1, 2] and tries["begin"].is_monotonic_increasing
    assert len(again) == len(WORDS) + len(failed)


@pytest.mark.whole
def test_workers_are_told_apart(tmp_path: Path, files: WriteFiles) -> None:
    (tmp_path / "meet.py").write_text(MEET)
    run = sk.run(
        "meet:rows", files(["a", "b"]), tmp_path / "out", source_dir=tmp_path, quiet=True, workers=2, chunks="even"
    )
    assert run.timings()["worker"].nunique() == 2


def test_chunks_say_the_same_in_short(tmp_path: Path, files: WriteFiles) -> None:
    data = files(WORDS)
    (tmp_path / "work.py").write_text(WORK)
    run = sk.run(
        "work:rows",
        data,
        tmp_path / "out",
        source_dir=tmp_path,
        workers=2,
        quiet=True,
        max_failures=3,
        chunks="even",
    )
    timings = RunTimings.of(run.folder)
    records, chunks = timings.records.to_pandas(), timings.chunks.to_pandas()
    assert chunks["begin"].is_monotonic_increasing and (chunks["end"] >= chunks["begin"]).all()
    for name, summed in {"records": "record", "rows": "rows", "bytes_in": "bytes"}.items():
        column = records.groupby("chunk")[summed]
        counted = column.count() if name == "records" else column.sum()
        assert chunks.groupby("chunk")[name].sum().to_dict() == counted.to_dict()
    assert chunks["quarantined"].sum() == 3 and (chunks["peak_memory_bytes"] > 1 << 20).all()
    ends = records["begin"] + pd.to_timedelta(records["seconds"], "s")
    whole = chunks.groupby("chunk")["end"].max()
    assert all(ends[i] <= whole[records["chunk"][i]] + pd.Timedelta("50ms") for i in records.index)
    # Of one worker, chunks follow each other.
    for _, own in chunks.groupby("worker", observed=True):
        assert (own["begin"].iloc[1:].to_numpy() >= own["end"].iloc[:-1].to_numpy()).all()


def test_what_is_taken_over_was_timed_in_its_own_run(tmp_path: Path, files: WriteFiles) -> None:
    data = files({"a": "1", "b": "2"})
    (tmp_path / "plain.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    pipeline = sk.Pipeline(
        function="plain:rows", input=data, output=tmp_path / "out", source_dir=str(tmp_path), incremental=True
    )
    first = pipeline.run(quiet=True)
    assert sorted(first.timings()["record"]) == ["a", "b"]
    files({"c": "3"})
    second = pipeline.run(quiet=True)
    assert second.summary().records["skipped"] == 2
    assert list(second.timings()["record"]) == ["c"]
    assert sorted(first.timings()["record"]) == ["a", "b"]


@pytest.mark.parametrize("change", ["gone", "other text", "fewer numbers"])
def test_a_marker_without_good_timings_still_counts(change: str, tmp_path: Path, files: WriteFiles) -> None:
    (tmp_path / "plain.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    run = sk.run(
        "plain:rows", files(["a", "b"]), tmp_path / "out", source_dir=tmp_path, quiet=True, workers=1, chunks="even"
    )
    (path,) = run.path.glob("markers/*/*.json")
    marker = json.loads(path.read_text())
    del marker["crc32"]
    if change == "gone":
        del marker["timings"]
    else:
        marker["timings"]["rows"] = "no numbers" if change == "other text" else text_of(np.array([1]))
    path.write_text(json.dumps(marker))
    frame = run.timings()
    assert list(frame["record"]) == ["a", "b"]
    assert frame[["begin", "seconds", "rows"]].isna().all(axis=None)
    assert run.summary().records["done"] == 2


@pytest.mark.parametrize(
    "numbers", [[], [0], [127, -128], [128], [-129, 1], [1 << 15], [1 << 31], [-(1 << 63), (1 << 63) - 1]]
)
def test_numbers_are_packed_as_text(numbers: list[int]) -> None:
    assert numbers_of(text_of(np.array(numbers, np.int64))).tolist() == numbers


@pytest.mark.parametrize("text", ["", "i3:AAAA", "i2:AAA", "i2:A", "f8:AAAA", "i2:ä", "i4:AQ=="])
def test_other_text_holds_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="numbers|base64|buffer|decode|ascii|padding|ASCII"):
        numbers_of(text)
