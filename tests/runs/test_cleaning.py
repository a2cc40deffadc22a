"""Cleaning: files that nothing needs any more are removed; all that the dataset and other runs need stays."""

from __future__ import annotations

import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from emulators import s3_client

import shardkit as sk
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import RUNS
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import RunCommand

    from shardkit.storage.base import Folder

NUMBERS = itertools.count()
WORK = """
from pathlib import Path

def rows(record):
    text = Path(record).read_text()
    if text == "bad" and not (Path(__file__).parent / "mended").exists():
        raise ValueError("bad")
    return {"key": record.key, "text": text}
"""
DAYS, EACH = ("2020-01-01", "2020-01-02"), 4


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for a dataset: on this machine, and in a bucket."""
    if request.param == "local":
        return str(tmp_path / "out")
    url, name = request.getfixturevalue("s3_url"), f"cleaning-{next(NUMBERS)}-{os.getpid()}"
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": url}
    for variable, value in known.items():
        monkeypatch.setenv(f"AWS_{variable}", value)
    s3_client(url, "us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/out"


class Feed:
    """A folder a day with four records each, and a dataset of them."""

    def __init__(self, root: Path, output: str) -> None:
        self.root, self.output = root, output
        (root / "cleaning_work.py").write_text(WORK)
        for day, i in itertools.product(DAYS, range(EACH)):
            self.put(f"{day}/{i}.txt", f"{day}.{i}")

    def put(self, key: str, text: str) -> None:
        path = self.root / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, **fields: Any) -> sk.Run:
        given = {"function": "cleaning_work:rows", "source_dir": self.root, "name": "feed", "workers": 1}
        rules = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "max_failures": "100%", "chunks": "dynamic"}
        return sk.run(input=self.root / "data", output=self.output, quiet=True, **(given | rules | fields))

    def redo(self, times: int) -> list[str]:
        """Change a record of the second day and run, so many times; returns the runs' ids."""
        found = []
        for i in range(times):
            self.put(f"{DAYS[1]}/{i % EACH}.txt", f"again {i}")
            found.append(self.run().run_id)
        return found

    @property
    def folder(self) -> Folder:
        return folder(self.output)

    def runs(self) -> list[str]:
        """The runs that are there."""
        return [name for name in self.folder.children(RUNS) if RunFolder(self.folder, name).exists()]

    def check(self) -> None:
        """The dataset is that of the input, and nothing is missing."""
        expected = {str(p.relative_to(self.root / "data")): p.read_text() for p in self.root.glob("data/*/*")}
        table = sk.open_run(self.output).dataset().to_table()
        assert dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)) == expected
        assert len(table) == len(expected)

    def everything(self) -> dict[str, int]:
        return {entry.key: entry.bytes for entry in self.folder.entries()}


@pytest.fixture
def feed(tmp_path: Path, output: str) -> Feed:
    return Feed(tmp_path, output)


@pytest.mark.whole
def test_runs_of_a_day_that_is_redone_go_and_the_next_redo_computes_no_more_than_else(feed: Feed) -> None:
    first = feed.run().run_id
    redone = feed.redo(3)
    before = feed.everything()
    done = sk.clean(feed.output)
    assert feed.runs() == sorted([first, redone[-1]])  # the makers of the two days
    assert sum(before.values()) - sum(feed.everything().values()) == done.bytes > 0
    assert len(before) - len(feed.everything()) == done.files
    feed.check()
    feed.put(f"{DAYS[1]}/3.txt", "changed")
    feed.put(f"{DAYS[0]}/3.txt", "changed too")
    assert feed.run().summary().records == {"listed": 8, "done": 2, "quarantined": 0, "skipped": 6}
    feed.check()
    assert sk.clean(feed.output).files > 0
    assert sk.clean(feed.output).files == 0
    feed.check()
    assert len(feed.runs()) == 1


@pytest.mark.whole
def test_a_dry_run_tells_the_same_and_removes_nothing(feed: Feed) -> None:
    feed.run()
    feed.redo(2)
    before = feed.everything()
    told = sk.clean(feed.output, dry_run=True)
    assert feed.everything() == before
    assert told.files > 0
    done = sk.clean(feed.output)
    assert (done.runs, done.files, done.bytes) == (told.runs, told.files, told.bytes)
    assert "would go" in str(told)
    assert "removed" in str(done)


@pytest.mark.whole
def test_whole_datasets_that_are_replaced_leave_one_run(feed: Feed) -> None:
    for _ in range(3):
        last = feed.run(shards=None, incremental=False)
    sk.clean(feed.output)
    assert feed.folder.children(RUNS) == [last.run_id]
    feed.check()


@pytest.mark.whole
def test_what_is_in_quarantine_can_be_retried_after_it(feed: Feed) -> None:
    feed.put(f"{DAYS[1]}/3.txt", "bad")
    feed.run()
    feed.redo(2)
    sk.clean(feed.output)
    (feed.root / "mended").touch()
    again = sk.open_run(feed.output).retry(quiet=True)
    assert again.summary().records["quarantined"] == 0
    expected = len(list(feed.root.glob("data/*/*")))
    assert len(again.dataset().to_table()) == expected


def fail_in_pass2(feed: Feed, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> str:
    """A run that computes its records, and makes no dataset of them; returns its id."""

    def stop(*_: Any, **__: Any) -> None:
        raise sk.RunInterrupted("stopped")

    before = set(feed.runs())
    with monkeypatch.context() as patch:
        patch.setattr("shardkit.dataset.merge.write_merged", stop)
        with pytest.raises(sk.RunInterrupted):
            feed.run(**fields)
    (made,) = set(feed.runs()) - before
    return made


@pytest.mark.whole
def test_a_run_that_is_not_finished_stays_with_what_it_has_taken_over(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.run()
    redone = feed.redo(2)
    feed.put(f"{DAYS[1]}/3.txt", "late")
    stopped = fail_in_pass2(feed, monkeypatch)
    done = sk.clean(feed.output)
    assert {stopped, redone[-1]} < set(feed.runs())
    assert {run.run_id: run.reason for run in done.runs}[stopped] == "not finished, and may be resumed"
    sk.open_run(feed.output, stopped).resume(quiet=True)
    feed.check()


@pytest.mark.whole
def test_a_run_that_is_not_finished_goes_where_that_is_asked(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = feed.run().run_id
    feed.put(f"{DAYS[1]}/3.txt", "late")
    stopped = fail_in_pass2(feed, monkeypatch)
    sk.clean(feed.output, unfinished=True)
    assert feed.folder.children(RUNS) == [kept]
    assert sk.open_run(feed.output).run_id == kept
    with pytest.raises(sk.RunNotFound, match=stopped):
        sk.open_run(feed.output, stopped)
    assert feed.run().summary().records["done"] == 1
    feed.check()


@pytest.mark.whole
def test_a_run_at_work_stays(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    first = feed.run().run_id
    feed.redo(1)
    stopped = fail_in_pass2(feed, monkeypatch, incremental=False)
    with RunFolder(feed.folder, stopped).lock():
        done = sk.clean(feed.output, unfinished=True)
        assert {run.run_id: run.reason for run in done.runs}[stopped] == "at work"
    assert {first, stopped} < set(feed.runs())
    sk.open_run(feed.output, stopped).resume(quiet=True)
    feed.check()


@pytest.mark.whole
def test_a_run_that_begins_to_be_worked_on_meanwhile_stays(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed.run()
    (between, _) = feed.redo(2)
    monkeypatch.setattr(RunFolder, "is_locked", lambda _: False)
    with RunFolder(feed.folder, between).lock():
        done = sk.clean(feed.output)
    assert {run.run_id: run.reason for run in done.runs}[between] == "at work"
    assert between in feed.runs()


@pytest.mark.whole
def test_only_what_is_older(feed: Feed) -> None:
    feed.run()
    feed.redo(2)
    before = feed.everything()
    assert sk.clean(feed.output, older_than="1h").files == 0
    assert feed.everything() == before
    assert sk.clean(feed.output, older_than="0m").files > 0
    with pytest.raises(sk.PipelineError, match=r"'a week' is no time.*Write 30m, 12h, 7d or 2w"):
        sk.clean(feed.output, older_than="a week")


@pytest.mark.whole
def test_one_that_was_interrupted_is_finished_by_the_next(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed.run()
    feed.redo(3)
    left = iter(range(4))

    def failing(remove: Callable[..., None]) -> Callable[..., None]:
        def instead(place: Folder, *keys: Any) -> None:
            if next(left, None) is None and RUNS in place.uri:
                raise sk.StorageError("the network is gone")
            remove(place, *keys)

        return instead

    with monkeypatch.context() as patch:
        patch.setattr("shardkit.storage.objects.REMOVED_AT_ONCE", 2)
        for name in ("remove", "_remove"):
            if hasattr(feed.folder, name):
                patch.setattr(type(feed.folder), name, failing(getattr(type(feed.folder), name)))
        with pytest.raises(sk.StorageError, match="the network is gone"):
            sk.clean(feed.output)
    feed.check()
    monkeypatch.setattr("shardkit.runs.clean.BEING_PLANNED_S", 0.0)
    sk.clean(feed.output)
    assert sk.clean(feed.output).files == 0
    assert len(feed.runs()) == 2
    feed.check()
    assert feed.redo(1)
    feed.check()


def test_what_may_be_a_run_that_is_being_planned_stays(feed: Feed) -> None:
    feed.run()
    planned = RunFolder(feed.folder, "soon")
    planned.files.write("records.parquet", b"x")
    done = sk.clean(feed.output, unfinished=True)
    assert {run.run_id: run.reason for run in done.runs}["soon"] == "perhaps about to be planned"
    assert planned.files.exists("records.parquet")


def test_an_output_without_runs(tmp_path: Path) -> None:
    with pytest.raises(sk.RunNotFound, match=r"holds no run of shardkit. Give the output"):
        sk.clean(tmp_path)


def test_files_that_cannot_be_removed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(tmp_path, str(tmp_path / "out"))
    for _ in range(2):
        feed.run(shards=None, incremental=False)
    remove = LocalFolder.remove
    monkeypatch.setattr(LocalFolder, "remove", lambda *of: remove(*of) if of[1] == "plan.json" else None)
    with pytest.raises(sk.StorageError, match=r"cannot be removed. Are you allowed to\? Then clean again"):
        sk.clean(feed.output)


@pytest.mark.whole
def test_on_the_command_line(tmp_path: Path, shardkit: RunCommand) -> None:
    feed = Feed(tmp_path, str(tmp_path / "out"))
    feed.run()
    (between, _) = feed.redo(2)
    told = shardkit("clean", "out", "--dry-run").stdout
    assert f"{between}  " in told
    assert "would go in out" in told.replace(str(tmp_path) + "/", "")
    assert "2 runs untouched: still in the dataset." in told
    done = json.loads(shardkit("clean", "out", "--json").stdout)
    assert done["files"] == sum(run["files"] for run in done["runs"]) > 0
    assert "There is nothing to remove in" in shardkit("clean", "out", "--older-than", "7d").stdout
    assert "is no time" in shardkit("clean", "out", "--older-than", "soon", code=2).stderr
