"""Schedules: when a pipeline is due, and the loop that runs it then, by a simulated clock."""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from crashing import Project, dying, wait_for

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.hints import Hint
from shardkit.runs.clean import Cleaned, CleanedRun
from shardkit.runs.scheduler import Scheduler, next_times
from shardkit.spec.schedule import Schedule
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UTC = datetime.timezone.utc


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=UTC)


class SimulatedClock:
    """Waiting takes no time; ``events`` are called when it comes to be that time, and Ctrl-C comes at the end."""

    def __init__(self, now: str, end: str) -> None:
        self.time, self.end = at(now), at(end)
        self.waits: list[datetime.datetime] = []

    def now(self) -> datetime.datetime:
        return self.time

    def wait(self, until: datetime.datetime, look: Callable[[], object]) -> None:
        self.waits.append(until)
        look()
        if until > self.end:
            raise KeyboardInterrupt
        self.time = until


class Scheduled:
    """A pipeline whose runs are noted instead of carried out."""

    def __init__(self, root: Path, schedule: Any, *, days: bool = True) -> None:
        (root / "in").mkdir(exist_ok=True)
        shards = {"by": "date", "path": "{Y}-{m}-{d}"} if days else None
        self.pipeline = sk.Pipeline(
            function="f:f", input=root / "in", output=root / "out", shards=shards, schedule=schedule
        )
        self.said: list[str] = []
        self.runs: list[tuple[str, Any]] = []

    def go(
        self,
        monkeypatch: pytest.MonkeyPatch,
        now: str,
        end: str,
        *,
        once: bool = False,
        work: Callable[[SimulatedClock], None] = lambda _: None,
    ) -> SimulatedClock:
        """Keep to the schedule from one time to another."""
        clock = SimulatedClock(now, end)

        def run(_: sk.Pipeline, *, days: Any, run_id: str, quiet: bool) -> Any:
            assert quiet
            self.runs.append((f"{clock.time:%d %H:%M}", days))
            work(clock)
            return _Done(run_id if len(self.runs) == 1 else "earlier")

        monkeypatch.setattr("shardkit.runs.scheduler.start", run)
        scheduler = Scheduler(self.pipeline, say=self.said.append, clock=clock)
        if once:
            scheduler.run(once=True)
        else:
            with pytest.raises(sk.RunInterrupted, match="no run was in progress"):
                scheduler.run()
        return clock

    @property
    def times(self) -> list[str]:
        return [time for time, _ in self.runs]


class _Done:
    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def summary(self) -> Any:
        return type("S", (), {"records": {"done": 1, "quarantined": 0, "skipped": 2}})()


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        ("3h", ["2020-01-01 06:00 UTC", "2020-01-01 09:00 UTC"]),
        ({"every": "1d"}, ["2020-01-02 00:00 UTC", "2020-01-03 00:00 UTC"]),
        ("15 */3 * * *", ["2020-01-01 06:15 UTC", "2020-01-01 09:15 UTC"]),
        ({"cron": "0 5 * * *", "zone": "Europe/Paris"}, ["2020-01-02 05:00 CET", "2020-01-03 05:00 CET"]),
    ],
)
def test_the_next_times(tmp_path: Path, schedule: Any, times: list[str]) -> None:
    pipeline = Scheduled(tmp_path, schedule).pipeline
    found = next_times(pipeline, 2, now=at("2020-01-01T05:30"))
    assert [f"{due:%Y-%m-%d %H:%M %Z}" for due in found] == times


def test_a_zones_clocks_are_put_forward() -> None:
    schedule = Schedule(cron="30 5 * * *", zone="Europe/Paris")
    first = schedule.next(at("2020-03-28T00:00"))
    second = schedule.next(first)
    assert [due.astimezone(UTC).hour for due in (first, second)] == [4, 3]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("3 hours", "no cron expression"),
        ("soon", "expected a time such as 30m, 3h"),
        ("61 * * * *", "is no cron expression"),
        ({"every": "0h"}, "expected a time"),
        ({"since": "2d"}, "expected either every"),
        ({"every": "1h", "cron": "* * * * *"}, "expected either every"),
        ({"every": "1h", "zone": "Mars"}, "no time zone 'Mars'"),
        ({"evry": "1h"}, "did you mean every"),
        (7, "a time such as 3h, a cron expression"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(sk.PipelineError, match=f"schedule.*{message}"):
        sk.Pipeline(function="f:f", input="in", output="out", schedule=schedule)


def test_days_to_redo_are_for_pipelines_with_days() -> None:
    with pytest.raises(sk.PipelineError, match="for a pipeline with days"):
        sk.Pipeline(function="f:f", input="in", output="out", schedule={"every": "1h", "since": "2d"})


def test_an_interval_runs_at_once_and_then_in_its_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = Scheduled(tmp_path, "3h")
    scheduled.go(monkeypatch, "2020-01-01T05:30", "2020-01-01T12:30")
    assert scheduled.times == ["01 05:30", "01 06:00", "01 09:00", "01 12:00"]
    assert "next at 2020-01-01 15:00 UTC" in scheduled.said[-1]
    assert scheduled.said[0].endswith(": 1 records done, 0 quarantined, 2 skipped.")
    assert scheduled.said[2].endswith("run earlier: it is the last one, because nothing has changed since.")


def test_a_cron_expression_waits_for_its_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = Scheduled(tmp_path, "0 6 * * *")
    scheduled.go(monkeypatch, "2020-01-01T05:30", "2020-01-02T07:00")
    assert scheduled.times == ["01 06:00", "02 06:00"]


def test_times_that_a_run_outlasted_are_caught_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def long(clock: SimulatedClock) -> None:
        clock.time += datetime.timedelta(hours=7) * (len(scheduled.runs) == 1)

    scheduled = Scheduled(tmp_path, "0 */3 * * *")
    scheduled.go(monkeypatch, "2020-01-01T05:30", "2020-01-01T15:30", work=long)
    assert scheduled.times == ["01 06:00", "01 13:00", "01 15:00"]


def test_times_missed_while_nothing_ran_are_caught_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = Scheduled(tmp_path, "0 */3 * * *")
    scheduled.go(monkeypatch, "2020-01-01T05:30", "2020-01-01T06:30")
    scheduled.go(monkeypatch, "2020-01-03T05:30", "2020-01-03T06:30")
    assert scheduled.times == ["01 06:00", "03 05:30", "03 06:00"]


def test_errors_are_told_and_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: SimulatedClock) -> None:
        if len(scheduled.runs) == 1:
            raise sk.InputError("The input is empty.", hint="Fill it.")
        if len(scheduled.runs) == 2:
            raise ZeroDivisionError("a bug")

    scheduled = Scheduled(tmp_path, "0 * * * *")
    scheduled.go(monkeypatch, "2020-01-01T00:30", "2020-01-01T03:30", work=fail)
    assert scheduled.times == ["01 01:00", "01 02:00", "01 03:00"]
    told = [line for line in scheduled.said if "failed" in line]
    assert told == [
        "2020-01-01 01:00 the run failed: The input is empty. Fill it.",
        "2020-01-01 02:00 the run failed: ZeroDivisionError: a bug",
    ]


def test_an_interrupted_run_ends_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: SimulatedClock) -> None:
        raise sk.RunInterrupted("Run it was interrupted.")

    scheduled = Scheduled(tmp_path, "3h")
    with pytest.raises(sk.RunInterrupted, match="Run it was interrupted"):
        scheduled.go(monkeypatch, "2020-01-01T00:30", "2020-01-09T00:30", once=True, work=interrupt)


def test_the_days_to_redo_are_of_the_time_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = Scheduled(tmp_path, {"cron": "0 12 * * *", "since": "1d"})
    scheduled.go(monkeypatch, "2020-01-02T00:00", "2020-01-03T13:00")
    assert [days for _, days in scheduled.runs] == [("2020-01-01", "2020-01-02"), ("2020-01-02", "2020-01-03")]


@pytest.mark.parametrize("schedule", ["3h", "0 */3 * * *"])
def test_a_last_run_that_is_far_ahead_keeps_the_next_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    made = Scheduled(tmp_path, schedule, days=False)
    LocalFolder(tmp_path / "out").write("_shardkit/schedule.json", b'{"last": "2036-01-01T00:00:00+00:00"}')
    made.go(monkeypatch, "2026-10-01T01:00", "2026-10-01T07:00")
    assert made.times == ["01 03:00", "01 06:00"]


def test_once_runs_only_what_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = Scheduled(tmp_path, "3h", days=False)
    for now in ("2020-01-01T05:30", "2020-01-01T05:40", "2020-01-01T06:10", "2020-01-01T06:20"):
        clock = scheduled.go(monkeypatch, now, "2020-01-01T07:00", once=True)
        assert clock.waits == []
    assert scheduled.times == ["01 05:30", "01 06:10"]
    assert scheduled.runs[0][1] is None
    assert sum("next at" in line for line in scheduled.said) == 2


def test_one_schedule_for_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(_: SimulatedClock) -> None:
        with pytest.raises(sk.RunBusy, match="Another schedule is running"):
            Scheduler(scheduled.pipeline, say=print, clock=SimulatedClock("2020-01-01", "2020-01-02")).run(once=True)

    scheduled = Scheduled(tmp_path, "3h")
    scheduled.go(monkeypatch, "2020-01-01T05:30", "2020-01-01T07:00", once=True, work=second)
    assert scheduled.times == ["01 05:30"]
    assert LocalFolder(tmp_path / "out").exists("_shardkit/schedule.json")


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "2020-01-01.txt").write_text("x")
    (tmp_path / "scheduled_work.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    content = {"function": "scheduled_work:rows", "input": "in", "output": "out", "workers": 1}
    yaml = tmp_path / "p.yaml"
    yaml.write_text(json.dumps(content))
    refused = CliRunner().invoke(cli, ["schedule", "next", str(yaml)])
    assert refused.exit_code == 2
    assert "has no schedule" in refused.output
    yaml.write_text(json.dumps(content | {"schedule": {"every": "3h"}}))
    said = CliRunner().invoke(cli, ["schedule", "next", str(yaml), "--count", "2"])
    assert [line[-7:] for line in said.output.splitlines()] == [":00 UTC"] * 2
    done = CliRunner().invoke(cli, ["schedule", "run", str(yaml), "--once"])
    assert done.exit_code == 0, done.output
    assert "1 records done" in done.output
    again = CliRunner().invoke(cli, ["schedule", "run", str(yaml), "--once"])
    assert "next at" in again.output


def test_old_runs_are_cleaned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cleaning(*, finds: Any) -> list[str]:
        asked: list[Any] = []

        def clean_folder(output: Any, *, older_than: str) -> Any:
            asked.append((output.uri, older_than))
            if isinstance(finds, Exception):
                raise finds
            return Cleaned(output.uri, dry_run=False, runs=finds)

        monkeypatch.setattr("shardkit.runs.clean.clean_folder", clean_folder)
        scheduled = Scheduled(tmp_path, {"every": "1d", "clean": "7d"})
        scheduled.go(monkeypatch, "2020-01-01 05:00", "2020-01-01 06:00")
        assert asked == [(str(tmp_path / "out"), "7d")]
        (tmp_path / "out/_shardkit/schedule.json").unlink()
        return scheduled.said

    assert "  12 files of old runs removed, 1.5 MB." in cleaning(finds=[CleanedRun("a", 12, 1_500_000, 0, "")])
    assert not any("removed" in said for said in cleaning(finds=[]))
    said = cleaning(finds=sk.StorageError("the disk is gone"))
    assert "2020-01-01 05:00 old runs could not be removed: the disk is gone" in said
    assert any("next at" in line for line in said)


def test_sigterm_ends_it_between_runs(tmp_path: Path) -> None:
    project = Project(tmp_path)
    yaml = tmp_path / "p.yaml"
    yaml.write_text(json.dumps({"function": "f:f", "input": "data", "output": "out", "schedule": "0 0 29 2 *"}))
    with dying(project.start("schedule", "run", yaml)) as command:
        wait_for(lambda: "next at" in command.stderr.read_text())
        command.process.terminate()
        done = command.wait()
    assert done.code == 130
    assert "The schedule has ended; no run was in progress." in done.stderr


def test_a_timer_hears_that_a_run_has_failed(tmp_path: Path) -> None:
    """What calls ``--once`` knows only the exit code."""
    (tmp_path / "in").mkdir()
    content = {"function": "f:f", "input": "in", "output": "out", "schedule": "3h"}
    yaml = tmp_path / "p.yaml"
    yaml.write_text(json.dumps(content))
    failed = CliRunner().invoke(cli, ["schedule", "run", str(yaml), "--once"])
    assert failed.exit_code == 2
    assert failed.output.startswith("Error: ")
    assert "sk.open_run" not in failed.output


def test_a_schedule_advises_in_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: SimulatedClock) -> None:
        raise sk.RunFailed(
            "Too many failed.", hint=Hint("Then: sk.open_run('out').retry()", "Then: shardkit retry out")
        )

    scheduled = Scheduled(tmp_path, "0 * * * *")
    scheduled.go(monkeypatch, "2020-01-01T00:30", "2020-01-01T01:30", work=fail)
    assert "2020-01-01 01:00 the run failed: Too many failed. Then: shardkit retry out" in scheduled.said
