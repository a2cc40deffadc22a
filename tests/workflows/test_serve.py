"""Serving a workflow: its calendar is kept, its webhook answered, and a server that died goes on where it was."""

from __future__ import annotations

import http.client
import json
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
from crashing import dying, wait_for
from test_run import THREE, Home, noted
from test_schedule import SimulatedClock

import shardkit as sk
from shardkit.workflows.read import read_workflow
from shardkit.workflows.run_files import runs_in, state_of
from shardkit.workflows.serve import Server

if TYPE_CHECKING:
    from pathlib import Path

    from crashing import Command

pytestmark = pytest.mark.whole

TOKEN = "a-long-and-random-token"
CALENDAR = """\
name: hourly
mode: calendar
calendar: {schedule: "0 * * * *", zone: UTC}
params: {word: x}
steps: [{name: a, command: [sh, -c, 'echo "$1" >>ran; exit $(cat code)', sh, "{{params.word}}"]}]
"""
HOOK = THREE.replace(
    "name: three\n", "name: three\nmode: webhook\nwebhook: {port: 0, token: env:HOOK_TOKEN, runs: queue}\n"
)


def served(home: Home, now: str, end: str) -> list[str]:
    said: list[str] = []
    workflow = read_workflow(home.file).of_environment()
    with pytest.raises(sk.RunInterrupted, match="no run was in progress"):
        Server(workflow, say=said.append, clock=SimulatedClock(now, end)).serve()
    return said


def test_the_calendar_is_kept_and_a_failed_run_does_not_end_it(tmp_path: Path) -> None:
    home = Home(tmp_path, CALENDAR)
    (tmp_path / "code").write_text("3")
    said = served(home, "2020-01-01T00:30", "2020-01-01T01:30")
    assert said[0] == "hourly: next at 2020-01-01 01:00 UTC."
    assert any("failed: Run " in line and "exit code 3" in line for line in said)
    assert said[-1] == "hourly: next at 2020-01-01 02:00 UTC."
    (tmp_path / "code").write_text("0")
    said = served(home, "2020-01-01T05:30", "2020-01-01T06:30")  # it was away for four of them: one makes up for all
    assert home.ran == ["x", "x", "x"]
    assert [run.about()["by"] for run in runs_in(state_of(read_workflow(home.file)))] == ["calendar"] * 3


def test_an_interval_is_due_at_once(tmp_path: Path) -> None:
    home = Home(tmp_path, CALENDAR.replace('schedule: "0 * * * *"', "interval: 3h"))
    (tmp_path / "code").write_text("0")
    said = served(home, "2020-01-01T00:30", "2020-01-01T01:30")
    assert home.ran == ["x"]
    assert said[-1] == "hourly: next at 2020-01-01 03:00 UTC."


def test_what_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path, THREE)
    assert "has mode: workflow, so that nothing but you begins" in home.done("serve", expect=2).stderr
    home.file.write_text(HOOK)
    monkeypatch.delenv("HOOK_TOKEN", raising=False)
    assert "the variable HOOK_TOKEN is not set here" in home.done("serve", expect=2).stderr


def address_of(command: Command) -> str:
    def found() -> Any:
        return re.search(r"POST to http://([\w.:]+)/ begins", command.stderr.read_text())

    return str(wait_for(found, what="the webhook")[1])


def call(address: str, token: str = TOKEN, **params: Any) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", "/", json.dumps(params), {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_the_webhook_begins_runs_and_a_killed_server_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", TOKEN)
    home = Home(tmp_path, HOOK)
    held = home.hold("b")
    with dying(home.workflow("serve")) as server:
        address = address_of(server)
        assert call(address, "wrong")[0] == 401
        assert call(address, wrd="x") == (400, {"error": "three has no parameter 'wrd'; did you mean word?"})
        assert call(address, word="1; rm")[0] == 400
        first, second = call(address, word="one"), call(address, word="two")
        assert (first[0], second[0]) == (202, 202)
        wait_for(lambda: "b begins" in home.ran)
        server.process.kill()
        server.wait()
    assert TOKEN not in server.stderr.read_text()
    runs = [first[1]["run_id"], second[1]["run_id"]]
    held.unlink()
    with dying(home.workflow("serve")) as server:
        address_of(server)
        assert f"Going on with {', '.join(runs)}." in server.stderr.read_text()
        wait_for(lambda: f"run {runs[1]}: done." in server.stderr.read_text(), what="the end of both runs")
        assert "Another process answers the webhook" in home.done("serve", expect=1).stderr
        server.process.terminate()
        done = server.wait()
    assert done.code == 130
    assert "The webhook is closed; no run was in progress." in done.stderr
    assert home.ran == noted("a", "b", "c") * 2
    params = {
        run.run_id: run.about()["params"]["word"] for run in runs_in(tmp_path / "_shardkit/workflows/three/default")
    }
    assert params == {runs[0]: "one", runs[1]: "two"}


def test_one_run_at_a_time_and_the_end_of_the_server_leaves_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_TOKEN", TOKEN)
    home = Home(tmp_path, HOOK.replace("runs: queue", "runs: one"))
    held = home.hold("a")
    with dying(home.workflow("serve")) as server:
        address = address_of(server)
        status, answer = call(address)
        assert status == 202
        assert call(address) == (409, {"error": "a run is in progress.", "run_id": answer["run_id"]})
        wait_for(lambda: "a begins" in home.ran)
        server.process.send_signal(signal.SIGTERM)
        done = server.wait()
    assert done.code == 130
    assert "no longer watching; its steps go on." in done.stderr
    held.unlink()
    home.done("resume")
    assert home.ran == noted("a", "b", "c")
