"""max_failures: how many records a run may lose, and how it is resumed once the user has seen why."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest
from crashing import TESTS, Project, check_ledger, rows_of
from zoo import content

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = pytest.mark.whole
# Fails at every record whose file says so.
STRICT = """
from pathlib import Path

def features(record):
    text = Path(record).read_text()
    if text == "bad":
        raise ValueError(f"{record.key} is bad")
    return [{"key": record.key, "length": len(text)}] * 2
"""
# The same, mended.
LENIENT = STRICT.replace('text == "bad"', "False")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write_function(STRICT)
    return made


def keys(project: Project) -> list[str]:
    """Each record's key as often as it has rows in the dataset."""
    return sorted(row["key"] for row in project.rows())


@pytest.mark.parametrize(
    ("records", "allowed", "may_fail"),
    [
        (40, 0, 0),
        (40, 2, 2),
        (40, "5%", 2),
        (41, "5%", 3),  # 2.05 is rounded up
        (40, "0.1%", 1),
        (40, "0%", 0),
        (4, "100%", 4),
    ],
)
def test_how_many_records_may_fail(records: int, allowed: int | str, may_fail: int) -> None:
    given = sk.Pipeline(function="work:features", input="data", output="out", max_failures=allowed)
    assert given.limits().max_quarantined(records) == may_fail


@pytest.mark.parametrize(
    ("records", "bad", "allowed", "done"),
    [
        pytest.param(20, 2, 2, True, marks=WHOLE),
        pytest.param(20, 3, 2, False, marks=WHOLE),
        (20, 2, "5%", False),
        (21, 2, "5%", True),  # 1.05 is rounded up
    ],
)
def test_as_many_records_may_fail_as_allowed(
    project: Project, records: int, bad: int, allowed: int | str, *, done: bool
) -> None:
    project.write_records(["bad"] * bad + ["good"] * (records - bad))
    if done:
        run = project.run(max_failures=allowed, workers=1)
        assert check_ledger(run).records["quarantined"] == bad
        return
    with pytest.raises(sk.BudgetExceeded, match=rf"{bad} of {records} records are quarantined.*r000.txt.*is bad"):
        project.run(max_failures=allowed, workers=1)
    summary = sk.open_run(project.out).summary()
    assert summary.status == "failed"
    assert "max_failures" in (summary.message or "")
    assert project.data_files() == []


@pytest.mark.whole
def test_a_run_over_budget_is_mended_and_retried_as_its_message_says(project: Project) -> None:
    project.write_records({f"r{i:02d}.txt": "bad" if i % 5 == 0 else "good" for i in range(20)})
    failed = project.command(*project.run_arguments(workers=2), "--json", expect=1)
    assert failed.summary["status"] == "failed"
    assert failed.summary["records"]["quarantined"] > 1  # the default of 1 % is one
    commands = [line.split(": ", 1)[1] for line in failed.stderr.splitlines() if ": shardkit " in line]
    see, retry, resume = (shlex.split(command)[1:] for command in commands)
    assert (see[0], retry[0], resume[0]) == ("failures", "retry", "resume")
    listed = project.command(*see, "--traceback")
    assert "r00.txt is bad" in listed.stdout
    assert "work.py" in listed.stdout
    # Not mended: the same again.
    again = project.command(*retry, expect=1)
    assert "max_failures" in again.stderr
    project.write_function(LENIENT)
    project.command(*retry)
    assert keys(project) == [f"r{i:02d}.txt" for i in range(20) for _ in range(2)]
    summary = check_ledger(sk.open_run(project.out))
    assert (summary.status, summary.records["done"], summary.rows) == ("done", 20, 40)


def test_a_run_over_budget_goes_on_as_it_is(project: Project) -> None:
    project.write_records(["bad", "good", "good", "bad", "good"] * 3)
    project.command(*project.run_arguments(max_failures=0), expect=1)
    done = project.command("resume", project.out, "--set", "max_failures=100%", "--json")
    assert done.summary["status"] == "done"
    assert done.summary["records"] == {"listed": 15, "done": 9, "quarantined": 6, "skipped": 0}
    assert len(keys(project)) == 18
    assert "within max_failures" in done.stderr


def test_within_the_budget_retry_makes_the_dataset_anew(project: Project) -> None:
    project.write_records(["good", "bad", "good", "bad"])
    run = project.run(max_failures="50%")
    assert check_ledger(run).records["quarantined"] == 2
    before = project.data_files()
    (project.data / "r003.txt").write_text("good")  # one is mended, the other is not
    run.retry(quiet=True)
    assert keys(project) == sorted(["r000.txt", "r002.txt", "r003.txt"] * 2)
    assert [entry["key"] for entry in run.quarantine()] == ["r001.txt"]
    assert not set(before) & set(project.data_files())
    project.write_function(LENIENT)
    run.retry(quiet=True)
    assert keys(project) == [f"r00{i}.txt" for i in range(4) for _ in range(2)]
    assert run.quarantine() == []
    assert len(project.data_files()) == 1


def test_the_run_stops_early_and_keeps_the_evidence(project: Project) -> None:
    calls = project.root / "calls"
    calls.mkdir()
    project.write_function(
        "import time\nfrom pathlib import Path\n"
        "def features(record):\n"
        f"    Path({str(calls)!r}, record.key).touch()\n"
        "    time.sleep(0.02)\n"
        "    raise ValueError(record.key)\n"
    )
    project.write_records(["bad"] * 400)
    with pytest.raises(sk.BudgetExceeded):
        project.run(max_failures=3, workers=2, chunks="even")
    called = {path.name for path in calls.iterdir()}
    assert 3 < len(called) < 300
    failures = sk.open_run(project.out).quarantine()
    assert {entry["key"] for entry in failures} == called  # what was tried is on record
    assert all("work.py" in entry["traceback"] for entry in failures)


@pytest.mark.parametrize("deadly", ["sleeps", "segfaults"])
def test_what_failed_in_a_chunk_is_on_record_though_its_worker_dies(project: Project, deadly: str) -> None:
    """The budget is exceeded while the chunk is in progress, and then its worker dies."""
    project.write_records([content(kind) for kind in ("good", "raises", "raises", deadly, "good", "good", "good")])
    fields: dict[str, Any] = {"function": "zoo:features", "source_dir": TESTS, "chunks": "even", "workers": 1}
    with pytest.raises(sk.BudgetExceeded, match=r"records are quarantined"):
        project.run(**fields, max_failures=1, timeout=1.0)
    failed = sk.open_run(project.out)
    assert {"r001.txt", "r002.txt"} <= {entry["key"] for entry in failed.quarantine()}
    finished = failed.resume(quiet=True, max_failures="100%")
    assert check_ledger(finished).records == {"listed": 7, "done": 4, "quarantined": 3, "skipped": 0}
    assert [row["key"] for row in rows_of(finished)] == ["r005.txt"] + ["r006.txt"] * 2


@WHOLE
def test_failures_are_not_counted_twice_when_their_chunk_is_begun_again(project: Project) -> None:
    """Within the budget, although workers with failures to their name have died."""
    kinds = ["raises", "raises", "segfaults", "raises", "leaves", "good", "good", "good"]
    project.write_records([content(kind) for kind in kinds] * 3)
    run = project.run(function="zoo:features", source_dir=TESTS, workers=3, chunks="even", max_failures=15)
    assert check_ledger(run).records == {"listed": 24, "done": 9, "quarantined": 15, "skipped": 0}
