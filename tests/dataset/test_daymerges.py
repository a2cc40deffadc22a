"""Days that are merged by their own jobs: pass 2 takes those that are still right, and merges the others itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jobs_here
import pytest
from job_runs import JobProject

import shardkit as sk
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORK = """
import os, signal
from pathlib import Path
import pyarrow as pa

ROOT = Path({root!r})

def features(record):
    text = Path(record).read_text()
    if text == "bad" and not (ROOT / "mended").exists():
        raise ValueError("bad")
    if text == "more":
        return {{"key": record.key, "text": text, "more": 1}}
    return {{"key": record.key, "text": text if text != "nothing" else None}}

def total(batches):
    if (ROOT / "deadly").exists():
        (ROOT / "deadly").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (ROOT / "broken").exists():
        raise RuntimeError("combine is broken")
    for batch in batches:
        yield batch.append_column("n", pa.array([batches.num_rows] * batch.num_rows))
"""
DAYS = ("2020-01-01", "2020-01-02", "2020-01-03")


class Feed(JobProject):
    """A folder a day with four records each, whose days are merged by jobs."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write_function(WORK.format(root=str(root)))
        for day in DAYS:
            for i in range(4):
                self.put(day, i, f"{day}.{i}")

    def put(self, day: str, i: int, text: str) -> None:
        (self.data / day).mkdir(exist_ok=True)
        (self.data / day / f"{i}.txt").write_text(text)

    def make(self, **fields: Any) -> sk.Run:
        shards = {"by": "date", "path": "{Y}-{m}-{d}"}
        return self.run_jobs(**({"shards": shards, "workers": 1, "max_failures": "100%"} | fields))

    def said(self, run: sk.Run, job: str = "merge") -> str:
        """What a job has said, by default that of pass 2."""
        return "\n".join(run.logs(job))

    def check(self, **more: Any) -> None:
        """The dataset is that of the input, by the run and by the files that are there."""
        expected = {}
        for path in self.data.glob("*/*.txt"):
            if (text := path.read_text()) != "bad":
                expected[str(path.relative_to(self.data))] = text if text != "nothing" else None
        run = sk.open_run(self.out)
        rows = run.dataset().to_table().to_pylist()
        assert {row["key"]: row["text"] for row in rows} == expected
        assert len(rows) == len(expected)
        for name, value in more.items():
            assert {row[name] for row in rows} == value
        there = {str(p.relative_to(self.out)) for p in self.out.rglob("*.parquet") if "_shardkit" not in p.parts}
        result = run.folder.result()
        assert result is not None
        assert {file["path"] for file in result["files"]} == there
        assert not LocalFolder(run.path).entries("dataset")
        assert sk.check(self.out).ok


@pytest.fixture
def feed_of_processes(tmp_path: Path) -> Iterator[Feed]:
    """A feed whose jobs are processes."""
    made = Feed(tmp_path)
    yield made
    made.end()


@pytest.fixture
def feed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Feed:
    """A feed whose jobs this process does, one after another."""
    jobs_here.use(monkeypatch)
    return Feed(tmp_path)


@pytest.mark.whole
def test_each_job_merges_its_day_and_pass_2_takes_all(feed: Feed) -> None:
    run = feed.make()
    assert "3 days merged where they were computed, 0 here." in feed.said(run)
    feed.check()
    feed.put(DAYS[1], 0, "changed")
    again = feed.make()
    assert "1 day merged where they were computed, 0 here." in feed.said(again)
    assert again.summary().records == {"listed": 4, "done": 1, "quarantined": 0, "skipped": 3}
    feed.check()


@pytest.mark.whole
def test_a_job_with_several_days_merges_each(feed: Feed) -> None:
    run = feed.make(shards={"by": "date", "path": "{Y}-{m}-{d}", "max_jobs": 2})
    assert len(run.jobs()) == 3
    assert "3 days merged where they were computed, 0 here." in feed.said(run)
    feed.check()


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [3, 1])
def test_full_files_of_before_are_kept(feed: Feed, jobs: int) -> None:
    output = {"uri": str(feed.out), "rows_per_file": 2}
    shards = {"by": "date", "path": "{Y}-{m}-{d}", "max_jobs": jobs}
    feed.make(output=output, shards=shards)
    before = {day: {path.name for path in feed.out.glob(f"day_partition={day}/*")} for day in DAYS}
    assert [len(names) for names in before.values()] == [2, 2, 2]
    for day in DAYS[:2]:
        feed.put(day, 3, "changed")
    run = feed.make(output=output, shards=shards)
    assert "2 days merged where they were computed" in feed.said(run)
    for day in DAYS:
        kept = before[day] & {path.name for path in feed.out.glob(f"day_partition={day}/*")}
        assert len(kept) == (1 if day in DAYS[:2] else 2)
    feed.check()
    for day in DAYS:
        feed.put(day, 0, "changed too")  # what a day's files hold is known even if a job has written them
    feed.make(output=output, shards=shards)
    feed.check()


@pytest.mark.whole
def test_days_with_other_columns_are_merged_by_pass_2(feed: Feed) -> None:
    feed.put(DAYS[2], 1, "more")
    for i in range(4):
        feed.put(DAYS[1], i, "nothing")
    run = feed.make()
    assert "1 day merged where they were computed, 2 here." in feed.said(run)
    feed.check(more={None, 1})
    schema = run.dataset().schema
    assert [str(schema.field(name).type) for name in ("key", "text", "more")] == ["string", "string", "int64"]


@pytest.mark.whole
def test_a_retry_merges_the_days_of_its_records_again(feed: Feed) -> None:
    feed.put(DAYS[0], 2, "bad")
    run = feed.make()
    feed.check()
    files = {path.name for path in feed.out.glob("day_partition=*/*")}
    feed.mend()
    feed.put(DAYS[0], 2, "bad")
    run.retry(quiet=True)
    assert run.summary().records == {"listed": 12, "done": 12, "quarantined": 0, "skipped": 0}
    assert len(run.dataset().to_table()) == 12
    assert files.isdisjoint({path.name for path in feed.out.glob("day_partition=*/*")})


@pytest.mark.whole
def test_what_a_combine_does_is_done_by_the_days_jobs_and_its_error_is_told_by_pass_2(feed: Feed) -> None:
    (feed.root / "broken").touch()
    with pytest.raises(sk.RunFailed, match="combine is broken"):
        feed.make(combine="work:total")
    run = sk.open_run(feed.out)
    assert "The days are left to pass 2: combine: work:total raised RuntimeError" in feed.said(run, "00001")
    (feed.root / "broken").unlink()
    run.resume(quiet=True)
    feed.check(n={4})
    feed.put(DAYS[0], 0, "changed")
    again = feed.make(combine="work:total")
    assert "1 day merged where they were computed" in feed.said(again)
    feed.check(n={4})


@pytest.mark.whole
def test_a_job_that_is_killed_while_it_merges_does_so_in_its_next_attempt(feed_of_processes: Feed) -> None:
    feed = feed_of_processes
    (feed.root / "deadly").touch()
    run = feed.make(combine="work:total")
    assert sorted(len(job["attempts"]) for job in run.jobs()) == [1, 1, 1, 2]
    assert "3 days merged where they were computed, 0 here." in feed.said(run)
    feed.check(n={4})


@pytest.mark.whole
def test_what_was_merged_in_another_way_than_is_asked_now_is_merged_again(feed: Feed) -> None:
    feed.put(DAYS[0], 0, "bad")
    with pytest.raises(sk.BudgetExceeded):
        feed.make(max_failures=0)
    run = sk.open_run(feed.out)
    assert list(run.path.glob("merged/*.json"))
    run.resume(quiet=True, max_failures=5, **{"output.rows_per_file": 1})
    assert "merged by their own jobs" not in feed.said(run)
    assert len(list(feed.out.glob("day_partition=*/*"))) == 11
    feed.check()


@pytest.mark.whole
def test_what_is_no_more_as_it_was_is_merged_again(feed: Feed) -> None:
    gone, shorter, of_others, untouched = DAYS[1], DAYS[2], "2020-01-04", "2020-01-05"
    feed.put(DAYS[0], 0, "bad")
    for day in (of_others, untouched):
        feed.put(day, 0, day)
    with pytest.raises(sk.BudgetExceeded):
        feed.make(max_failures=0)
    run = sk.open_run(feed.out)
    files = {day: next(run.path.glob(f"dataset/day_partition={day}/*.parquet")) for day in (gone, shorter)}
    files[gone].unlink()
    files[shorter].write_bytes(files[shorter].read_bytes()[:-1])
    note = run.path / "merged" / f"{of_others}.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"basis": "another"}))
    run.resume(quiet=True, max_failures=5)
    assert "1 day merged where they were computed, 4 here." in feed.said(run)
    feed.check()


@pytest.mark.whole
def test_a_job_that_is_done_again_leaves_the_files_of_one_attempt(feed: Feed) -> None:
    feed.put(DAYS[0], 0, "bad")
    with pytest.raises(sk.BudgetExceeded):
        feed.make(max_failures=0)
    run = sk.open_run(feed.out)
    late = run.path / "dataset" / f"day_partition={DAYS[1]}" / "part-00000-late.parquet"
    late.write_bytes(b"of an attempt that was taken for dead")
    run.resume(quiet=True, max_failures=5)
    feed.check()
