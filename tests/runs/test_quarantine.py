"""The quarantine of a dataset of days, which runs of other days leave alone: it is shown and can be retried."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from test_increments import BY_DAY, Feed

import shardkit as sk
from shardkit.cli.app import cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.whole


def feed_of_three_runs(root: Path, **of_the_first_two: Any) -> Feed:
    """Run ``first`` made three days, two with a bad record; ``second`` rebuilt the second day, ``third`` a new one."""
    feed = Feed(root)
    feed.put_days(3, 2)
    feed.put("2020-01-01/00.txt", "bad")
    feed.put("2020-01-02/01.txt", "bad")
    feed.run(run_id="first", **of_the_first_two)
    feed.put("2020-01-02/02.txt", "new")
    feed.run(run_id="second", **of_the_first_two)
    feed.put("2020-01-04/00.txt", "new")
    feed.run(run_id="third")
    return feed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    """The feed of all tests but one, and beside it a copy."""
    made = feed_of_three_runs(tmp_path_factory.mktemp("quarantine") / "feed")
    shutil.copytree(made.root, made.root.with_name("as it was"))
    return made


@pytest.fixture
def feed(made: Feed) -> Feed:
    """The feed as it was, in the place that its plans know."""
    shutil.rmtree(made.root)
    shutil.copytree(made.root.with_name("as it was"), made.root)
    return made


def mend(feed: Feed) -> None:
    """Make the function succeed on the bad records."""
    (feed.root / "mended").touch()
    (feed.root / "trace").write_text("")


def computed(feed: Feed) -> list[str]:
    return sorted((feed.root / "trace").read_text().split())


def expected(feed: Feed) -> dict[str, str]:
    return {str(path.relative_to(feed.data)): path.read_text() for path in feed.data.glob("*/*")}


def test_records_of_days_that_other_runs_have_made_are_listed(feed: Feed) -> None:
    failures = sk.open_run(feed.out).failures()
    assert dict(zip(failures["key"], failures["run"], strict=True)) == {
        "2020-01-01/00.txt": "first",
        "2020-01-02/01.txt": "second",
    }
    assert sk.open_run(feed.out, "third").failures().empty
    assert len(sk.open_run(feed.out, "first").failures()) == 2


def test_status_and_failures_tell_of_them(feed: Feed) -> None:
    status = CliRunner().invoke(cli, ["status", str(feed.out)]).output
    assert f"2 records of other days are in quarantine: shardkit failures {feed.out}" in status
    assert sk.open_run(feed.out).summary().to_dict()["quarantined_elsewhere"] == 2
    shown = CliRunner().invoke(cli, ["failures", str(feed.out)]).output
    assert "2020-01-01/00.txt" in shown and "2020-01-02/01.txt" in shown
    assert "2 records of run third and 2 others that made days of the dataset are in quarantine." in shown


def test_one_of_another_run_is_replayed_as_that_run_had_it(feed: Feed) -> None:
    run = sk.open_run(feed.out)
    with pytest.raises(ValueError, match="^bad$"):
        run.replay("2020-01-01/00.txt")
    mend(feed)
    tried = run.replay("2020-01-01/00.txt")
    assert [record.rows for record in tried.records] == [1]
    with pytest.raises(sk.InputError, match="There is no record"):  # as it is done, it is not among this run's
        run.replay("2020-01-01/01.txt")


def test_a_retry_is_of_all_of_them_and_of_nothing_else(feed: Feed) -> None:
    mend(feed)
    run = sk.open_run(feed.out).retry(quiet=True)
    assert computed(feed) == ["2020-01-01/00.txt", "2020-01-02/01.txt"]
    assert feed.rows() == expected(feed)
    table = run.dataset().to_table()
    assert dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)) == expected(feed)
    latest = sk.open_run(feed.out)
    assert latest.failures().empty and latest.summary().quarantined_elsewhere == 0
    assert latest.dataset().count_rows() == len(expected(feed))
    assert feed.run() == []


def test_what_fails_again_stays_in_quarantine(feed: Feed) -> None:
    sk.open_run(feed.out).retry(quiet=True)
    assert len(sk.open_run(feed.out).failures()) == 2
    assert feed.rows() == {key: text for key, text in expected(feed).items() if text != "bad"}


def test_a_retry_over_budget_can_be_made_again(feed: Feed) -> None:
    with pytest.raises(sk.BudgetExceeded):
        sk.open_run(feed.out).retry(quiet=True, max_failures=0)
    mend(feed)
    sk.open_run(feed.out).retry(quiet=True)
    assert feed.rows() == expected(feed)


def test_an_older_run_is_retried_for_the_days_that_are_still_its_own(feed: Feed) -> None:
    mend(feed)
    sk.open_run(feed.out, "first").retry(quiet=True)
    assert computed(feed) == ["2020-01-01/00.txt"]
    rows = expected(feed)
    del rows["2020-01-02/01.txt"]
    assert feed.rows() == rows
    assert sk.open_run(feed.out).summary().records == {"listed": 4, "done": 4, "quarantined": 0, "skipped": 0}


def test_a_day_that_was_dropped_since_does_not_come_back(feed: Feed) -> None:
    for path in (feed.data / "2020-01-03").iterdir():
        path.unlink()
    feed.run(incremental=False, days=None, run_id="fourth")
    mend(feed)
    sk.open_run(feed.out).retry(quiet=True)
    assert "2020-01-03" not in feed.days()
    assert feed.rows() == expected(feed)


def test_of_a_run_that_has_no_day_left_nothing_is_retried(feed: Feed) -> None:
    feed.run(incremental=False, run_id="fourth")
    with pytest.raises(sk.PlanMismatch, match="rebuilt by run fourth"):
        sk.open_run(feed.out, "first").retry(quiet=True)


@pytest.mark.slow
def test_jobs_retry_them_too(tmp_path: Path) -> None:
    one_job = {"engine": sk.Local(root=tmp_path / "engine"), "shards": BY_DAY | {"max_jobs": 1}}
    feed = feed_of_three_runs(tmp_path / "feed", **one_job)
    mend(feed)
    sk.open_run(feed.out).retry(quiet=True)
    assert feed.rows() == expected(feed)
    assert sk.open_run(feed.out).failures().empty
