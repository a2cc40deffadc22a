"""Days: each is a partition of one dataset, made by itself, and never there twice or half."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import warm
from crashing import TESTS, environment
from test_increments import BY_DAY, WORK, Feed

import shardkit as sk
from shardkit.dataset.current import current_result
from shardkit.macro import make_plan
from shardkit.plan.changes import TAKEN_BY_WORKER
from shardkit.plan.compare import compare
from shardkit.plan.digests import Basis
from shardkit.plan.records import build_records
from shardkit.storage.local_folder import LocalFolder
from shardkit.times import days_since, parse_days

if TYPE_CHECKING:
    from pathlib import Path

SLOW = pytest.mark.slow


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    return Feed(tmp_path / "feed")


# -- which days


@pytest.mark.whole
@pytest.mark.parametrize(
    ("given", "days"),
    [
        (["2020-01-01"], ("2020-01-01",)),
        (["2020-02-28..2020-03-01"], ("2020-02-28", "2020-02-29", "2020-03-01")),
        (["2020-01-02", "2020-01-01..2020-01-02"], ("2020-01-02", "2020-01-01")),
    ],
)
def test_days_and_ranges_of_days(given: list[str], days: tuple[str, ...]) -> None:
    assert parse_days(given) == days


@pytest.mark.parametrize("given", ["2020-13-01", "yesterday", "2020-01-02..2020-01-01", "2020-01-01..", ""])
def test_what_is_no_day_is_refused(given: str) -> None:
    with pytest.raises(sk.PipelineError, match="is no day or range of days|ends before it begins"):
        parse_days([given])


def test_days_since_count_in_the_zone() -> None:
    from datetime import datetime, timezone

    from shardkit.times import zone_of

    late = datetime(2020, 1, 1, 23, 30, tzinfo=timezone.utc)
    assert days_since("1h", zone=timezone.utc, now=late) == ("2020-01-01",)
    paris = zone_of("Europe/Paris")
    assert days_since("2h", zone=paris, now=late.astimezone(paris)) == ("2020-01-01", "2020-01-02")
    assert len(days_since("1w", zone=timezone.utc, now=late)) == 8
    with pytest.raises(sk.PipelineError, match="3d, 12h or 2w"):
        days_since("3y", zone=timezone.utc)


def test_only_the_days_asked_for_are_made(feed: Feed) -> None:
    feed.put_days(4, 2)
    assert len(feed.run(days=["2020-01-01", "2020-01-03..2020-01-09"])) == 6
    assert feed.days() == ["2020-01-01", "2020-01-03", "2020-01-04"]
    assert len(feed.run()) == 2
    feed.check()
    with pytest.raises(sk.InputError, match=r"no records of 2021-01-01; it has 4 days, 2020-01-01 to 2020-01-04"):
        feed.run(days="2021-01-01")
    with pytest.raises(sk.PipelineError, match="has no days to choose"):
        feed.run(days=["2020-01-01"], shards=None)


def test_the_day_is_a_column_and_other_partitions_lie_below_it(feed: Feed) -> None:
    feed.put_days(2, 3)
    feed.run(output={"uri": feed.out, "partition_by": ["v"]})
    table = sk.open_run(feed.out).dataset().to_table()
    assert sorted(set(table["day_partition"].to_pylist())) == ["2020-01-01", "2020-01-02"]
    assert all(path.startswith("day_partition=2020-01-0") and "/v=1/" in path for path in feed.files())
    feed.put("2020-01-02/00.txt", "changed")
    feed.run(output={"uri": feed.out, "partition_by": ["v"]})
    feed.check()


def test_a_column_of_that_name_is_refused_with_the_cure(feed: Feed) -> None:
    feed.put_days(1, 2)
    feed.write_work(WORK.replace('"v": 1', '"day_partition": "mine"'))
    with pytest.raises(sk.PipelineError, match=r"have a column 'day_partition'.*Rename it"):
        feed.run()


@pytest.mark.parametrize(
    ("path", "names"),
    [("{Y}-{m}-{d}/{H}", ["2020-01-01T00", "2020-01-01T01", "2020-01-02T00"]), ("{Y}-{m}", ["2020-01"])],
)
def test_hours_and_months_are_partitions_as_well(feed: Feed, path: str, names: list[str]) -> None:
    for key in ("2020-01-01/00.txt", "2020-01-01/01.txt", "2020-01-02/00.txt"):
        feed.put(key)
    shards = {"by": "date", "path": path}
    feed.run(shards=shards)
    assert feed.days() == names
    feed.put("2020-01-02/00.txt", "changed")
    assert feed.run(shards=shards, days=["2020-01-02"])
    feed.check()


def test_another_zone_moves_what_was_written_at_night(feed: Feed) -> None:
    import os

    feed.put("all/0.txt")
    os.utime(feed.data / "all/0.txt", (1577835000,) * 2)  # 2019-12-31T23:30Z
    feed.run(shards={"by": "date", "column": "modified"})
    assert feed.days() == ["2019-12-31"]
    feed.run(shards={"by": "date", "column": "modified", "zone": "Europe/Paris"})
    assert feed.days() == ["2020-01-01"]
    feed.check()


def test_several_days_in_one_job(feed: Feed) -> None:
    feed.put_days(5, 4)
    shards = BY_DAY | {"max_jobs": 2}
    assert len(feed.run(shards=shards)) == 20
    feed.put("2020-01-04/00.txt", "changed")
    feed.put("2020-01-01/00.txt", "changed")
    assert len(feed.run(shards=shards)) <= 4
    feed.check()


def test_a_day_may_have_no_rows(feed: Feed) -> None:
    feed.put_days(2, 2)
    feed.put("2020-01-03/00.txt", "none")
    assert len(feed.run()) == 5
    assert feed.run() == []
    feed.check()
    for i in range(2):
        feed.put(f"2020-01-02/{i:02d}.txt", "none")
    feed.run()
    assert feed.days() == ["2020-01-01"]
    feed.check()


def test_no_day_may_have_rows(feed: Feed) -> None:
    feed.put("2020-01-03/00.txt", "none")
    feed.run(allow_empty=True)
    assert feed.files() == {}
    assert feed.run(allow_empty=True) == []


# -- what all days have in common


def test_from_no_days_to_days_and_back(feed: Feed) -> None:
    feed.put_days(3, 2)
    feed.run(shards=None)
    feed.check()
    with pytest.raises(sk.PlanMismatch, match=r"another days.*Run all days once, without days, to"):
        feed.run(days=["2020-01-02"])
    feed.run()
    assert feed.days() == ["2020-01-01", "2020-01-02", "2020-01-03"]
    feed.check()
    feed.run(shards=None)
    assert feed.days() == []
    feed.check()


def test_days_cut_by_another_rule_replace_the_old_ones(feed: Feed) -> None:
    feed.put_days(3, 2)
    feed.run(shards=BY_DAY | {"path": "{Y}-{m}-{d}/{H}"})
    with pytest.raises(sk.PlanMismatch, match="another days"):
        feed.run(days=["2020-01-02"])
    feed.run()
    feed.check()


@pytest.mark.whole
def test_another_format_makes_all_days_anew_without_computing(feed: Feed) -> None:
    feed.put_days(3, 2)
    feed.run()
    form = {"uri": feed.out, "format": "jsonl"}
    with pytest.raises(sk.PlanMismatch, match="another format"):
        feed.run(days=["2020-01-02"], output=form)
    assert feed.run(output=form) == []
    assert {path.rpartition(".")[2] for path in feed.files()} == {"jsonl"}
    assert sk.open_run(feed.out).dataset().count_rows() == 6
    assert feed.run(output=form) == []


def test_combine_gets_each_days_rows_and_a_new_one_makes_all_days_anew(feed: Feed) -> None:
    feed.put_days(2, 3)
    feed.run()
    assert feed.run(combine="feed_work:total") == []
    feed.check()
    assert set(sk.open_run(feed.out).dataset().to_table()["n"].to_pylist()) == {3}
    feed.put("2020-01-01/99.txt")
    assert len(feed.run(combine="feed_work:total")) == 1
    table = sk.open_run(feed.out).dataset().to_table().to_pandas()
    assert dict(table.groupby("day_partition")["n"].max()) == {"2020-01-01": 4, "2020-01-02": 3}


def test_a_column_that_appears_later_is_null_before(feed: Feed) -> None:
    feed.put_days(2, 2)
    feed.run(days=["2020-01-01"])
    feed.write_work(WORK.replace('"v": 1', '"v": 1, "w": 0.5'))
    feed.run(days=["2020-01-02"])
    table = sk.open_run(feed.out).dataset().to_table().sort_by("key")
    assert table["w"].to_pylist() == [None, None, 0.5, 0.5]


def test_all_days_have_one_type_for_a_column(feed: Feed) -> None:
    feed.put_days(2, 2)
    feed.write_work(WORK.replace('"v": 1', '"v": None if "2020-01-01" in record.key else 7'))
    feed.run()
    assert sk.open_run(feed.out).dataset().to_table().schema.field("v").type == pa.int64()
    feed.write_work(WORK.replace('"v": 1', '"v": "text"'))
    with pytest.raises(sk.SchemaConflict, match=r"int64 in the days that stay, such as 2020-01-02 and string"):
        feed.run(days=["2020-01-01"])


def test_a_day_without_records_stays_until_all_is_made_anew(feed: Feed) -> None:
    feed.put_days(3, 2)
    feed.run()
    shutil.rmtree(feed.data / "2020-01-01")
    assert feed.run() == []
    assert "2020-01-01) stay in the dataset" in str(feed.pipeline().plan())
    assert len(feed.days()) == 3
    feed.run(days=["2020-01-02"], incremental=False)
    assert len(feed.days()) == 3
    assert len(feed.run(incremental=False)) == 4
    assert len(feed.days()) == 2
    feed.check()


# -- interrupted, at once, killed


def test_an_interrupted_run_of_days_goes_on_with_what_it_took_over(feed: Feed) -> None:
    feed.put_days(2, 6)
    feed.run()
    feed.put("2020-01-02/03.txt", "bad")
    with pytest.raises(sk.BudgetExceeded):
        feed.run(max_failures=0, run_id="second")
    assert "bad" not in feed.rows().values()
    assert sk.open_run(feed.out, "second").summary().records["skipped"] > 0
    (feed.root / "mended").touch()
    sk.open_run(feed.out, "second").retry(quiet=True)
    assert feed.rows()["2020-01-02/03.txt"] == "bad"
    assert len(feed.rows()) == 12


GATED = WORK.replace(
    "    text = Path(record)",
    '    import time\n    (HERE / "begun").touch()\n    while (HERE / "gate").exists():\n        time.sleep(0.005)\n'
    "    text = Path(record)",
)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("incremental", [None, False])
def test_two_runs_on_one_day_and_on_two_days_at_once(feed: Feed, incremental: Any) -> None:
    feed.put_days(2, 2)
    feed.write_work(GATED)
    (feed.root / "gate").touch()
    first = threading.Thread(
        target=lambda: feed.pipeline(incremental=incremental).run(days=["2020-01-01"], quiet=True, run_id="first")
    )
    first.start()
    _wait_for(feed.root / "begun")
    with pytest.raises(sk.RunBusy, match="Another run is making 2020-01-01 .*: first"):
        feed.pipeline(incremental=incremental).run(days=["2020-01-01"], quiet=True, run_id="second")
    other = threading.Thread(target=lambda: feed.pipeline().run(days=["2020-01-02"], quiet=True, run_id="third"))
    other.start()
    _wait_for(feed.out / "_shardkit/runs/third/plan.json")
    (feed.root / "gate").unlink()
    first.join()
    other.join()
    assert feed.rows() == feed.expected()  # whichever of them has switched last
    assert set(feed.files()) == {file["path"] for file in feed.result()["files"]}
    assert len(feed.days()) == 2


def test_a_late_run_does_not_put_an_older_day_back(feed: Feed) -> None:
    """As by a job that merges late, when nobody watches any more and another run has made the day."""
    feed.put_days(1, 3)
    feed.run()
    feed.put("2020-01-01/00.txt", "bad")
    with pytest.raises(sk.BudgetExceeded):
        feed.run(max_failures=0, run_id="late")
    feed.put("2020-01-01/00.txt", "newer")
    feed.run()
    late = sk.open_run(feed.out, "late")
    with pytest.raises(sk.PlanMismatch, match="has been rebuilt by run"):
        late.resume(quiet=True, max_failures="100%")
    from shardkit.dataset.switch import dataset_lock, switch

    with dataset_lock(LocalFolder(feed.out)) as dataset, pytest.raises(sk.PlanMismatch, match="has been rebuilt by"):
        switch(late.folder, feed.result() | {"run_id": "late"}, dataset)
    feed.check()


@pytest.fixture(scope="module")
def before_the_switch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Feed, dict[str, str]]:
    """A dataset, and a run that has redone all records of one of its days and come to its switch; with the rows before."""
    feed = Feed(tmp_path_factory.mktemp("switch") / "feed")
    feed.put_days(2, 2)
    feed.run()
    rows = feed.rows()
    for i in range(2):
        feed.put(f"2020-01-02/{i:02d}.txt", "redone")

    def stop(*_: Any, **__: Any) -> None:
        raise sk.RunInterrupted("stopped")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shardkit.dataset.next_state.switch", stop)
        with pytest.raises(sk.RunInterrupted):
            feed.run(run_id="redo")
    return feed, rows


# What the switch of one redone day of one file consists of; the old file and what was staged go side by side.
STEPS = ["note", "publish", "write", "note", *["remove", "tidy"], "unlink"]


@pytest.mark.whole
@pytest.mark.parametrize("step", range(1, len(STEPS) + 2))
def test_killed_between_any_two_steps_a_reader_never_sees_a_day_twice_or_half(
    before_the_switch: tuple[Feed, dict[str, str]], tmp_path: Path, step: int
) -> None:
    made, before = before_the_switch
    feed = Feed(tmp_path / "feed")
    feed.data, feed.root = made.data, made.root
    shutil.copytree(made.out, feed.out)
    others = {p: s for p, s in feed.files().items() if "2020-01-02" not in p}
    words = [TESTS / "switch_steps.py", step, "kill", "resume", tmp_path / "feed", "redo"]
    seen = []
    with tempfile.TemporaryFile("w+") as out:
        process = warm.start(words, env=environment(), stdout=out, stderr=out)
        while step > len(STEPS) and process.poll() is None:  # between all of its steps
            seen.append(_as_a_reader(feed))
        process.wait()
        out.seek(0)
        said = out.read()
    seen.append(_as_a_reader(feed))
    assert all(rows in (None, before, feed.expected()) for rows in seen)
    if step > len(STEPS):
        steps = said.split()
        assert (process.returncode, [*steps[:4], *sorted(steps[4:6]), *steps[6:]]) == (0, STEPS)
    else:
        assert process.returncode == -signal.SIGKILL
    assert seen[-1] == (feed.expected() if step > 4 else before)
    feed.run()  # or any other command
    feed.check()
    assert others.items() <= feed.files().items()


def _as_a_reader(feed: Feed) -> dict[str, str] | None:
    """What a mere reader finds; None if files were removed during the reading, which raises an error."""
    import pyarrow.parquet as pq

    result = current_result(LocalFolder(feed.out))
    assert result is not None
    try:
        tables = [pq.ParquetFile(feed.out / file["path"]).read(["key", "text"]) for file in result["files"]]
    except FileNotFoundError:
        return None
    rows = pa.concat_tables(tables).to_pydict()
    assert len(set(rows["key"])) == len(rows["key"])
    return dict(zip(rows["key"], rows["text"], strict=True))


@SLOW
def test_jobs_on_an_engine_make_the_same_dataset(feed: Feed, tmp_path: Path) -> None:
    feed.put_days(2, 3)
    engine = sk.Local(root=tmp_path / "engine")
    feed.run(engine=engine)
    feed.check()
    assert feed.run(engine=engine) == []
    feed.put("2020-01-02/01.txt", "changed")
    (feed.data / "2020-01-02/00.txt").unlink()
    plan = feed.pipeline(engine=engine).plan()
    assert plan.content["totals"]["jobs"] == 1
    feed.run(engine=engine)
    feed.check()


# -- many


def listing(records: int, days: int, *, changed: tuple[int, ...] = ()) -> pa.Table:
    """A listing of so many objects, some of which are not what they were."""
    number = np.arange(records)
    day = np.datetime_as_string(np.datetime64("2020-01-01") + number * days // records)
    etags = number.copy()
    etags[list(changed)] += records
    keys = np.char.add(np.char.add(day, "/"), np.char.mod("%09d.jsonl", number))
    return pa.table(
        {"key": pa.array(keys, pa.large_string()), "bytes": np.full(records, 30_000), "etag": etags.astype(str)}
    )


def planned(objects: pa.Table, out: Path, run_id: str, *, workers: int = 2, carry_out: bool = True) -> Any:
    """A plan for the objects, which looks to later runs as if it had been carried out."""
    rule = {"by": "date", "path": "{Y}-{m}-{d}"}
    output = LocalFolder(out)
    records = build_records(objects, shards=rule)
    basis = Basis(by_day=True, work="w", merge="m", form={"days": rule})
    current = current_result(output)
    comparison = compare(records.table, output, current, basis, all_days=True, recompute=False)
    pipeline = {"shards": rule, "input": {"uri": "/in"}, "records": "file", "output": {"schema": None}}
    plan = make_plan(
        records,
        pipeline=pipeline,
        function_digest="f",
        chunks="dynamic",
        workers=workers,
        run_id=run_id,
        created=run_id,
        by_day=True,
        comparison=comparison,
    )
    if carry_out and plan.content["totals"]["records"]:
        _carry_out(plan, output, run_id, current, basis)
    return plan


def _carry_out(plan: Any, output: LocalFolder, run_id: str, current: dict[str, Any] | None, basis: Basis) -> None:
    import json

    from shardkit.runfolder.folder import RunFolder

    folder = RunFolder(output, run_id)
    folder.write_plan(plan.content, plan.records, None, plan.taken_over)
    taken = {(m["shard"], m["chunk"]) for m in plan.taken_over}
    pairs = set(zip(plan.records["shard"].to_pylist(), plan.records["chunk"].to_pylist(), strict=True)) - taken
    for shard, chunk in sorted(pairs):
        there = pc.and_(pc.equal(plan.records["shard"], shard), pc.equal(plan.records["chunk"], chunk))
        part = _write_part(folder.files.child(folder.parts_of(shard)), f"{chunk}", pc.sum(there).as_py())
        marker = {
            "shard": shard,
            "chunk": chunk,
            "attempt": 1,
            "ids": None,
            "parts": [part],
            "quarantine": [],
            "rows": part["rows"],
        }
        folder.write_marker(marker | {"records": {"listed": 1, "done": 1, "quarantined": 0}, "bytes_out": 1})
    made = (current or {}).get("partitions", {})
    made |= {day: {"run": run_id, "work": "w", "merge": "m"} for day in plan.content["partitions"]}
    counts = {"listed": 1, "done": 1, "quarantined": 0, "skipped": 0}
    result = {"run_id": run_id, "name": "n", "by_day": True, "form": basis.form, "partitions": made, "switched": 1}
    result |= {"files": [], "records": counts, "rows": 1, "bytes_in": 1, "bytes_out": 1, "generation": 1}
    output.write("_shardkit/current.json", json.dumps(result | {"format": "parquet", "partition_by": []}).encode())


def _write_part(folder: LocalFolder, base: str, records: int) -> dict[str, Any]:
    """A part in which every record has one row."""
    from shardkit.tables.rows import Result
    from shardkit.workers.parts import PartsWriter

    writer = PartsWriter(folder, base, schema=pa.schema([("v", pa.int64())]), give_up=lambda *_: None)
    for i in range(records):
        writer.add(Result(i, str(i), rows=[{"v": i}]))
    (part,) = writer.close()
    return {"name": part.name, "rows": part.rows, "bytes": part.bytes}


def planned_redos(out: Path, *, redos: int, records: int, workers: int) -> tuple[list[int], list[int]]:
    """How many chunks a day of so many records is in, and how many were computed, redo by redo."""
    order = np.random.default_rng(7).permutation(records).tolist()
    chunks, computed, changed = [], [], ()
    for number in range(redos + 1):
        plan = planned(listing(records, 1, changed=changed), out, f"r{number:04d}", workers=workers)
        chunks.append(plan.content["totals"]["chunks"])
        changes = plan.content["partitions"]["2020-01-01"]
        computed.append(changes["new"] + changes["changed"] + changes["again"])
        changed = (*changed, order[number])
    return chunks, computed[1:]


@pytest.mark.whole
def test_the_chunks_of_a_day_stay_few_however_often_it_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one worker, 128 chunks that are taken over are too many, which a hundred redos come to; 48 come sooner."""
    assert TAKEN_BY_WORKER <= 2 * 64
    most = 48
    monkeypatch.setattr("shardkit.plan.changes.TAKEN_BY_WORKER", most)
    chunks, computed = planned_redos(tmp_path, redos=35, records=1000, workers=1)
    assert chunks[20] == max(chunks[:21]), "that was too soon"
    assert max(chunks) <= most + 2
    assert chunks[-1] < max(chunks), "it never came to that"
    assert sum(computed) / len(computed) < 0.01 * 1000
