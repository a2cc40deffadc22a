"""Cleaning: files that nothing needs any more are removed; all that the dataset and other runs need stays."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import in_process
import pytest
from emulators import s3_client

import shardkit as sk
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import RUNS
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

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


class Feed:
    """A folder a day with four records each, and a dataset of them; ``made`` has the ids of the runs, in order."""

    def __init__(self, root: Path, output: str, made: Iterable[str] = ()) -> None:
        self.root, self.output, self.made = root, output, [*made]

    @classmethod
    def begin(cls, root: Path, output: str) -> Feed:
        """One without a dataset yet."""
        feed = cls(root, output)
        (root / "cleaning_work.py").write_text(WORK)
        for day, i in itertools.product(DAYS, range(EACH)):
            feed.put(f"{day}/{i}.txt", f"{day}.{i}")
        return feed

    def put(self, key: str, text: str) -> None:
        path = self.root / "data" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, **fields: Any) -> sk.Run:
        given = {"function": "cleaning_work:rows", "source_dir": self.root, "name": "feed", "workers": 1}
        rules = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "max_failures": "100%", "chunks": "dynamic"}
        done = sk.run(input=self.root / "data", output=self.output, quiet=True, **(given | rules | fields))
        self.made.append(done.run_id)
        return done

    def redo(self) -> str:
        """Change a record of the second day and run; returns the run's id."""
        number = len(self.made)
        self.put(f"{DAYS[1]}/{number % EACH}.txt", f"again {number}")
        return self.run().run_id

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


def redone_twice(root: Path, output: str) -> Feed:
    """A dataset whose second day was made three times."""
    feed = Feed.begin(root, output)
    feed.run()
    for _ in range(2):
        feed.redo()
    return feed


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """One on this machine that tests find as it was made, where it was made; a copy of it; and its runs."""
    root = tmp_path_factory.mktemp("cleaning")
    feed = redone_twice(root, str(root / "out"))
    copy = tmp_path_factory.mktemp("kept") / "copy"
    shutil.copytree(root, copy)
    return root, copy, feed.made


@pytest.fixture
def feed(kept: tuple[Path, Path, list[str]]) -> Feed:
    """A dataset whose second day was made three times, on this machine."""
    root, copy, made = kept
    shutil.rmtree(root)
    shutil.copytree(copy, root)
    return Feed(root, str(root / "out"), made)


@pytest.fixture(params=["local", "s3"])
def feed_in_each(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Feed:
    """The same, and one in a bucket, for what depends on the store: what is listed, locked and removed, and how old it is."""
    if request.param == "local":
        found: Feed = request.getfixturevalue("feed")
        return found
    url, name = request.getfixturevalue("s3_url"), f"cleaning-{next(NUMBERS)}-{os.getpid()}"
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": url}
    for variable, value in known.items():
        monkeypatch.setenv(f"AWS_{variable}", value)
    s3_client(url, "us-east-1").create_bucket(Bucket=name)
    return redone_twice(tmp_path, f"s3://{name}/out")


@pytest.mark.whole
def test_runs_of_a_day_that_is_redone_go_and_the_next_redo_computes_no_more_than_else(feed_in_each: Feed) -> None:
    feed = feed_in_each
    before = feed.everything()
    done = sk.clean(feed.output)
    assert feed.runs() == sorted([feed.made[0], feed.made[-1]])  # the makers of the two days
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
    for _ in range(2):
        last = feed.run(shards=None, incremental=False)
    sk.clean(feed.output)
    assert feed.folder.children(RUNS) == [last.run_id]
    feed.check()


@pytest.mark.whole
def test_what_is_in_quarantine_can_be_retried_after_it(feed: Feed) -> None:
    feed.put(f"{DAYS[1]}/2.txt", "bad")
    feed.run()
    feed.redo()
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
    feed.put(f"{DAYS[1]}/3.txt", "late")
    stopped = fail_in_pass2(feed, monkeypatch)
    done = sk.clean(feed.output)
    assert {stopped, feed.made[-1]} < set(feed.runs())
    assert {run.run_id: run.reason for run in done.runs}[stopped] == "not finished, and may be resumed"
    sk.open_run(feed.output, stopped).resume(quiet=True)
    feed.check()


@pytest.mark.whole
def test_a_run_that_is_not_finished_goes_where_that_is_asked(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed.put(f"{DAYS[1]}/3.txt", "late")
    stopped = fail_in_pass2(feed, monkeypatch)
    sk.clean(feed.output, unfinished=True)
    assert feed.runs() == sorted([feed.made[0], feed.made[-1]])
    assert stopped not in feed.folder.children(RUNS)
    assert sk.open_run(feed.output).run_id == feed.made[-1]
    with pytest.raises(sk.RunNotFound, match=stopped):
        sk.open_run(feed.output, stopped)
    assert feed.run().summary().records["done"] == 1
    feed.check()


@pytest.mark.whole
def test_a_run_at_work_stays(feed_in_each: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_in_each
    stopped = fail_in_pass2(feed, monkeypatch, incremental=False)
    with RunFolder(feed.folder, stopped).lock():
        done = sk.clean(feed.output, unfinished=True)
        assert {run.run_id: run.reason for run in done.runs}[stopped] == "at work"
    assert {feed.made[0], stopped} < set(feed.runs())
    sk.open_run(feed.output, stopped).resume(quiet=True)
    feed.check()


@pytest.mark.whole
def test_a_run_that_begins_to_be_worked_on_meanwhile_stays(feed_in_each: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_in_each
    between = feed.made[1]
    monkeypatch.setattr(RunFolder, "is_locked", lambda _: False)
    with RunFolder(feed.folder, between).lock():
        done = sk.clean(feed.output)
    assert {run.run_id: run.reason for run in done.runs}[between] == "at work"
    assert between in feed.runs()


@pytest.mark.whole
def test_only_what_is_older(feed_in_each: Feed) -> None:
    feed = feed_in_each
    before = feed.everything()
    assert sk.clean(feed.output, older_than="1h").files == 0
    assert feed.everything() == before
    assert sk.clean(feed.output, older_than="0m").files > 0
    with pytest.raises(sk.PipelineError, match=r"'a week' is no time.*Write 30m, 12h, 7d or 2w"):
        sk.clean(feed.output, older_than="a week")


@pytest.mark.whole
def test_one_that_was_interrupted_is_finished_by_the_next(feed_in_each: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_in_each
    feed.redo()
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
    assert feed.redo()
    feed.check()


def test_what_may_be_a_run_that_is_being_planned_stays(feed: Feed) -> None:
    planned = RunFolder(feed.folder, "soon")
    planned.files.write("records.parquet", b"x")
    done = sk.clean(feed.output, unfinished=True)
    assert {run.run_id: run.reason for run in done.runs}["soon"] == "perhaps about to be planned"
    assert planned.files.exists("records.parquet")


def test_an_output_without_runs(tmp_path: Path) -> None:
    with pytest.raises(sk.RunNotFound, match=r"holds no run of shardkit. Give the output"):
        sk.clean(tmp_path)


def test_files_that_cannot_be_removed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed.begin(tmp_path, str(tmp_path / "out"))
    for _ in range(2):
        feed.run(shards=None, incremental=False)
    remove = LocalFolder.remove
    monkeypatch.setattr(LocalFolder, "remove", lambda *of: remove(*of) if of[1] == "plan.json" else None)
    with pytest.raises(sk.StorageError, match=r"cannot be removed. Are you allowed to\? Then clean again"):
        sk.clean(feed.output)


@pytest.mark.whole
def test_on_the_command_line(feed: Feed) -> None:
    shardkit = in_process.command
    told = shardkit("clean", feed.output, "--dry-run").stdout
    assert f"{feed.made[1]}  " in told
    assert f"would go in {feed.output}" in told
    assert "2 runs untouched: still in the dataset." in told
    done = json.loads(shardkit("clean", feed.output, "--json").stdout)
    assert done["files"] == sum(run["files"] for run in done["runs"]) > 0
    assert "There is nothing to remove in" in shardkit("clean", feed.output, "--older-than", "7d").stdout
    assert "is no time" in shardkit("clean", feed.output, "--older-than", "soon", code=2).stderr
