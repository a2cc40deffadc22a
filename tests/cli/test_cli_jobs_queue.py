"""``shardkit jobs``: the queue on the command line."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from simulated_service import SimulatedService

from shardkit.cli import jobs_look
from shardkit.cli.app import cli
from shardkit.cli.jobs import jobs as group
from shardkit.jobs import SimulatedClock, SQLiteStore, drive
from shardkit.jobs.history import BY
from shardkit.jobs.job import STATUSES

if TYPE_CHECKING:
    from pathlib import Path

REQUEST = {"ProcessingResources": {"ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2}}}


class Line:
    """The command line with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "jobs.sqlite"
        (folder / "request.json").write_text(json.dumps(REQUEST))

    def __call__(self, *arguments: str, code: int = 0, **options: Any) -> Any:
        runner, given = CliRunner(), {"SHARDKIT_JOBS": str(self.path), "AWS_DEFAULT_REGION": "eu-west-1"}
        done = runner.invoke(cli, ["jobs", *arguments], env=given, catch_exceptions=False, **options)
        assert done.exit_code == code, done.output
        return done

    def submit(self, *arguments: str, **options: Any) -> Any:
        return self("submit", "--request", str(self.folder / "request.json"), *arguments, **options)

    def finish(self, **options: Any) -> None:
        """Let the service run everything."""
        clock = SimulatedClock()
        with SQLiteStore(self.path, clock=clock) as store:
            drive(store, SimulatedService(clock, seconds=600, **options), clock=clock)

    def end(self, job_id: str, status: str, **facts: Any) -> None:
        with SQLiteStore(self.path) as store:
            assert store.update(replace(store.get(job_id), status=status, **facts))


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.chdir(tmp_path)
    return Line(tmp_path)


@pytest.mark.parametrize("command", list(group.commands))
def test_every_command_has_help_and_an_example(line: Line, command: str) -> None:
    text = line(command, "--help").output
    assert f"shardkit jobs {command}" in text.split("Examples:")[1]
    for parameter in group.commands[command].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.name


def test_choices_are_those_of_the_queue() -> None:
    assert jobs_look.STATUSES == STATUSES and jobs_look.WAYS == BY


def test_submitting(line: Line) -> None:
    target = "slack:env:SLACK_URL"
    made = line.submit("--notify", target, "--run", "r", "--owner", "ana", "--tag", "a=b=c", "--tag", "d=").output
    assert re.fullmatch(r"request-\d{8}-\d{6}-[0-9a-f]{4}\n", made)
    assert line("submit", "--request", "-", input=json.dumps(REQUEST)).output.startswith("job-2")
    assert (
        line.submit("--id", "b", "--depends-on", made.strip()).output
        == "b\n"
        == line.submit("--id", "b", "--depends-on", made.strip()).output
    )
    with SQLiteStore(line.path) as store:
        job = store.get(made.strip())
        assert (job.notify, job.run, job.owner, job.tags) == ((target,), "r", "ana", {"a": "b=c", "d": ""})
        assert store.get("b").depends_on == (made.strip(),) and store.get("b").owner


def test_the_store_is_made_where_it_is_expected(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.path = ""  # type: ignore[assignment]  no SHARDKIT_JOBS
    monkeypatch.setenv("XDG_STATE_HOME", str(line.folder / "state"))
    where = line.folder / "state" / "shardkit" / "jobs.sqlite"
    assert f"There is no store of jobs at {where}. Submit a job" in line("list", code=2).output
    line.submit("--id", "a")
    assert where.is_file() and "\na  " in line("list").output
    assert "There is no store of jobs at other" in line("list", "--store", "other", code=2).output


def test_what_cannot_be_submitted(line: Line) -> None:
    line.submit("--id", "a")
    line("submit", "--request", "none.json", code=2)
    for text, said in (("{", "is no JSON"), ("[]", "has neither ProcessingResources"), ('{"a": 1}', "has neither")):
        assert said in line("submit", "--request", "-", input=text, code=2).output
    assert "write KEY=VALUE" in line.submit("--tag", "a", code=2).output
    secret = line.submit("--notify", "slack:https://hooks.slack.com/services/T0/B0/xyzzy", code=2).output
    assert (
        secret.startswith("Error: Notices cannot be sent to slack:https://hooks.slack.com/...")
        and "xyzzy" not in secret
    )
    assert "cannot be a job id" in line.submit("--id", "a_b", code=2).output
    assert "depends on z, which was not submitted" in line.submit("--id", "c", "--depends-on", "z", code=2).output
    other = json.dumps({"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1}})
    assert "There is a job a already" in line("submit", "--request", "-", "--id", "a", input=other, code=1).output
    named = json.dumps(REQUEST | {"ProcessingJobName": "mine"})
    assert "Leave it out." in line("submit", "--request", "-", input=named, code=2).output


def test_listing_and_showing(line: Line) -> None:
    for name in "abc":
        line.submit("--id", name, "--owner", "ana" if name == "a" else "bob", "--run", "r", "--tag", "day=1")
    line.finish()
    line.submit("--id", "d", "--depends-on", "a")
    text = line("list", "--limit", "2").output
    assert [each.split()[0] for each in text.splitlines()] == ["JOB", "d", "c", "These"]
    rows = [json.loads(each) for each in line("list", "--json", "--owner", "bob", "--run", "r").output.splitlines()]
    assert [(row["job_id"], row["status"], row["attempt"]) for row in rows] == [
        ("c", "Completed", 1),
        ("b", "Completed", 1),
    ]
    assert line("list", "--status", "Failed").output.count("\n") == 1
    shown = line("show", "a").output
    assert shown.startswith("Job a: Completed\n") and "2 x ml.m5.xlarge" in shown and "day=1" in shown
    assert re.search(r"\n  +1  Completed +ml.m5.xlarge  2027-01-15 08:00:\d\d UTC  10 min \d s\n", shown)
    assert "https://eu-west-1.console.aws.amazon.com/cloudwatch/home?region=eu-west-1#logsV2" in shown
    data = json.loads(line("show", "a", "--json", "--request").output)
    assert data["request"] == REQUEST and data["submitted_at"].endswith("+00:00") and data["not_before"] is None
    assert line("show", "d", "--request").output.endswith(json.dumps(REQUEST, indent=2, sort_keys=True) + "\n")
    assert "has no job 'z'" in line("show", "z", code=2).output


def test_a_job_that_failed_tells_why_and_how_to_go_on(line: Line) -> None:
    line.submit("--id", "a", "--notify", "slack:env:X")
    line.submit("--id", "b", "--depends-on", "a")
    line.end("a", "Failed", cause="user", reason="KeyError: 'title'\n" * 9, changed_at=1_800_000_000.0)
    shown = line("show", "a", "--store", str(line.path)).output
    assert shown.startswith("Job a: Failed (user: the program failed)\n")
    assert "not yet sent to slack:env:X" in shown
    assert shown.endswith(f"Try again: shardkit jobs again a --store {line.path}\n")
    assert "user: KeyError: 'title' KeyError" in line("list").output
    assert line("again", "a").output == "Job a is New; its next attempt is number 1.\n"
    assert "only a job that failed or was stopped" in line("again", "a", code=1).output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wait", "--run", "tallent"], "has no job of run 'tallent'. Did you mean talent?"),
        (["stop", "--run", "tallent"], "has no job of run 'tallent'. Did you mean talent?"),
        (["wait", "jan", "jann"], "has no job 'jann'. Did you mean jan?"),
        (["stop", "jann"], "has no job 'jann'. Did you mean jan?"),
        (["show", "jann"], "has no job 'jann'. Did you mean jan?"),
        (["again", "jann"], "has no job 'jann'. Did you mean jan?"),
        (["show", "zzzzzz"], "See what there is: shardkit jobs list"),
    ],
)
def test_a_name_that_was_mistyped(line: Line, arguments: list[str], says: str) -> None:
    line.submit("--id", "jan", "--run", "talent")
    assert says in line(*arguments, code=2).output


def test_stopping_and_waiting(line: Line) -> None:
    for name in "abcd":
        line.submit("--id", name, "--run", "" if name == "d" else "r")
    line.end("b", "InProgress", attempt=1, exists="yes")
    said = line("stop", "--run", "r").output
    assert said == "Job a is Stopped.\nJob b is to be stopped.\nJob c is Stopped.\n"
    with SQLiteStore(line.path) as store:
        assert store.get("b").stop_asked_at > 0 and store.get("d").status == "New"
    assert "Give job ids, or --run." in line("stop", code=2).output
    threading.Timer(0.3, line.end, ["b", "Completed"]).start()
    waited = line("wait", "b", "a", code=1).output
    assert waited == "Job a Stopped: Stopped as asked.\nJob b Completed.\n"
    assert line("wait", "b").output == "Job b Completed.\n"


@pytest.mark.whole
def test_history(line: Line) -> None:
    for n in range(6):
        line.submit("--id", f"j{n}", "--owner", "ana" if n % 2 else "bob")
    with sqlite3.connect(line.path) as db:
        db.execute("UPDATE jobs SET submitted_at = 1799999000")
    line.finish()
    line.end("j5", "Failed", cause="user")
    period = "--since", "2027-01-15", "--until", "2027-01-16T00:00:00Z"
    text = line("history", *period).output
    assert text.splitlines()[0].split()[:5] == ["DAY", "JOBS", "DONE", "FAILED", "STOPPED"] and "COST" not in text
    assert text.splitlines()[1].split()[:7] == ["2027-01-15", "6", "5", "1", "0", "83.3%", "6"]
    (line.folder / "prices.json").write_text('{"ml.m5.xlarge": 0.5}')
    priced = line("history", *period, "--by", "owner", "--json", "--prices", "prices.json").output
    rows = [json.loads(each) for each in priced.splitlines()]
    assert [(row["key"], row["jobs"]) for row in rows] == [("ana", 3), ("bob", 3)]
    hours = rows[0]["instance_hours"]
    assert hours == pytest.approx(1, rel=0.02) and rows[0]["cost_usd"] == pytest.approx(hours * 0.5)
    assert "$1.0" in line("history", *period, "--by", "cause", "--prices", "prices.json").output
    line("history", *period, "--html", "page.html", "--prices", "prices.json")
    page = (line.folder / "page.html").read_text()
    assert f"<h1>Jobs of {line.path}</h1>" in page and "Jobs by hour" in page and "Cost by owner" in page
    assert line("history", "--since", "1d", "--until", "12h").output == "No job ended in this time.\n"
    for wrong, said in (
        (("--since", "soon"), "write a time such as 12h"),
        (("--since", "1d", "--until", "2d"), "--since is not before"),
        (("--html", "no/such.html"), "cannot be written: No such file"),
        (("--html", "x", "--json"), "not both"),
        (("--prices", "none.json"), "cannot be read as a file of prices"),
    ):
        assert said in line("history", *wrong, code=2).output
