"""Runs of workflows on this machine, by the command line: order, outputs, retries, secrets, kills and resumption."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from crashing import Command, Project, descendants, dying, wait_for

from shardkit.engines.jobfiles import JobFiles
from shardkit.workflows.read import read_workflow
from shardkit.workflows.run_files import runs_in, state_of
from shardkit.workflows.start import open_run

pytestmark = pytest.mark.whole  # whole commands, and steps that are processes of their own

# Each step notes that it begins and ends; a file that holds it up lets a test act in its middle.
STEP = """\
echo "$1 begins" >>ran; while [ -e "hold-$1" ]; do sleep 0.02; done; echo "$1 ends" >>ran; exit ${CODE:-0}
"""
THREE = """\
name: three
params: {date: 2026-01-01, word: {default: x, pattern: "[a-z]+"}}
steps:
  - {name: a, command: [sh, step.sh, a]}
  - {name: b, after: a, command: [sh, step.sh, b]}
  - {name: c, after: b, command: [sh, step.sh, c]}
"""


class Home(Project):
    """A folder with a workflow."""

    def __init__(self, root: Path, text: str) -> None:
        super().__init__(root)
        (root / "step.sh").write_text(STEP)
        self.file = root / "workflow.yaml"
        self.file.write_text(text)

    def workflow(self, verb: str, *arguments: object, **options: Any) -> Command:
        return self.start("workflow", verb, self.file, *arguments, **options)

    def done(self, verb: str, *arguments: object, expect: int = 0) -> Any:
        return self.command("workflow", verb, self.file, *arguments, expect=expect)

    @property
    def ran(self) -> list[str]:
        path = self.root / "ran"
        return path.read_text().splitlines() if path.exists() else []

    def hold(self, step: str) -> Path:
        path = self.root / f"hold-{step}"
        path.touch()
        return path

    def status(self, environment: str | None = None) -> dict[str, Any]:
        words = ["--env", environment] if environment else []
        content: dict[str, Any] = json.loads(self.done("status", *words, "--json").stdout)
        return content

    def states(self) -> dict[str, str]:
        return {step["name"]: step["state"] for step in self.status()["steps"]}


def noted(*steps: str) -> list[str]:
    return [f"{step} {what}" for step in steps for what in ("begins", "ends")]


def test_steps_run_in_their_order_side_by_side_with_outputs_and_parameters(tmp_path: Path) -> None:
    text = """\
name: order
params: {date: 2026-01-01}
variables: {BUCKET: data}
steps:
  - {name: left, command: [sh, -c, "touch left; while [ ! -e right ]; do sleep 0.02; done; echo L >$SHARDKIT_OUTPUT/x"]}
  - {name: right, command: [sh, -c, "touch right; while [ ! -e left ]; do sleep 0.02; done"]}
  - name: both
    after: [left, right]
    command: [sh, -c, 'echo "$1 $2 $BUCKET $MODE"; cat "$3/x"', sh, "{{params.date}}", "{{run.id}}", "{{steps.left.output}}"]
    env: {MODE: "{{workflow.name}}"}
"""
    home = Home(tmp_path, text)
    done = home.done("run", "--param", "date=it's; $(touch bad) `x`", "--json")
    summary = json.loads(done.stdout)
    assert summary["state"] == "done"
    assert summary["params"] == {"date": "it's; $(touch bad) `x`"}
    log = home.done("logs", "--step", "both").stdout.splitlines()
    assert log == [f"it's; $(touch bad) `x` {summary['run_id']} data order", "L"]
    assert not (tmp_path / "bad").exists()
    assert "both: done in" in done.stderr


def test_a_failure_names_log_and_cure_and_the_mended_step_goes_on(tmp_path: Path) -> None:
    home = Home(tmp_path, THREE.replace("step.sh, b]", "step.sh, b], env: {CODE: 7}, retries: 1"))
    failed = home.done("run", expect=1)
    assert "step b failed after 2 attempts: its command ended with exit code 7." in failed.stderr
    assert "Not begun: c." in failed.stderr
    assert f"Go on: shardkit workflow resume {home.file}" in failed.stderr
    log = failed.stderr.partition("Its log: ")[2].splitlines()[0].strip()
    assert Path(log).is_file()
    assert home.states() == {"a": "done", "b": "failed", "c": "not begun"}
    assert home.ran == noted("a", "b", "b")
    status = home.done("status").stdout
    assert "b  failed" in status and f"log: {log}" in status and "Go on: " in status

    home.file.write_text(THREE)
    assert "b: done" in home.done("resume").stderr
    assert home.ran == noted("a", "b", "b", "b", "c")
    assert len(runs_in(tmp_path / "_shardkit/workflows/three/default")) == 1

    home.done("resume", "--from", "b")
    assert home.ran == noted("a", "b", "b", "b", "c", "b", "c")
    assert "has no step 'd'" in home.done("resume", "--from", "d", expect=2).stderr


def test_logs_are_followed_until_the_steps_have_ended(tmp_path: Path) -> None:
    steps = [
        f'  - {{name: {name}, command: [sh, -c, "echo {name} 1; sh step.sh {name}; echo {name} 2"]}}' for name in "ab"
    ]
    home = Home(tmp_path, "\n".join(["name: two", "steps:", steps[0], steps[1].replace("b,", "b, after: a,", 1)]))
    held = home.hold("a")
    run = home.workflow("run")
    with dying(run):
        wait_for(lambda: "a begins" in home.ran, what="the beginning of a")
        follow, one = home.workflow("logs", "--follow"), home.workflow("logs", "-f", "--step", "a")
        with dying(follow), dying(one):
            wait_for(lambda: follow.stdout.read_text() == one.stdout.read_text() == "a 1\n", what="the first line")
            held.unlink()
            assert follow.wait().stdout.splitlines() == ["a 1", "a 2", "== b", "b 1", "b 2"]
            assert one.wait().stdout.splitlines() == ["a 1", "a 2"]
        assert run.wait().code == 0
    assert "has no step 'd'" in home.done("logs", "--follow", "--step", "d", expect=2).stderr


# At the first step nothing is done, at the last nothing is left to begin; what is done to a step is the same at each.
@pytest.mark.parametrize(("how", "step"), [("driver", "a"), ("driver", "c"), ("everything", "b"), ("Ctrl-C", "b")])
def test_killed_at_a_step_and_resumed(tmp_path: Path, how: str, step: str) -> None:
    home = Home(tmp_path, THREE)
    held = home.hold(step)
    command = home.workflow("run")
    with dying(command):
        wait_for(lambda: f"{step} begins" in home.ran, what=f"the beginning of {step}")
        if how == "Ctrl-C":
            command.process.send_signal(signal.SIGINT)
            done = command.wait()
            assert done.code == 130
            assert "was interrupted; its steps were stopped." in done.stderr
            assert home.states()[step] == "stopped"
        else:
            command.process.kill()
            command.wait()
            if how == "everything":
                for pid in step_processes(tmp_path):
                    with contextlib.suppress(ProcessLookupError):  # it ends with its supervisor
                        os.kill(pid, signal.SIGKILL)
                wait_for(lambda: not step_processes(tmp_path), what="the end of the step")
            else:
                status = home.done("status").stdout
                assert f"{step}  running" in status
                assert "No process works on it. Go on: shardkit workflow resume" in status
    held.unlink()
    home.done("resume")
    assert set(home.states().values()) == {"done"}
    before = [each for each in "abc" if each < step]
    after = [each for each in "abc" if each > step]
    again = noted(step) if how == "driver" else [f"{step} begins", *noted(step)]
    assert home.ran == [*noted(*before), *again, *noted(*after)]
    assert "done" in home.done("resume").stderr
    assert home.ran.count(f"{step} ends") == 1


def step_processes(folder: Path) -> list[int]:
    """The supervisors of the steps that run, each with all that it has started."""
    found = []
    for run in runs_in(folder / "_shardkit/workflows/three/default"):
        for job in (run.path / "jobs").iterdir():
            supervisor = JobFiles(str(run.path), job.name).supervisor()
            found += [supervisor, *descendants(supervisor)] if supervisor else []
    return found


def test_only_one_process_works_on_a_run_and_another_may_stop_it(tmp_path: Path) -> None:
    home = Home(tmp_path, THREE)
    home.hold("b")
    with dying(home.workflow("run")) as command:
        wait_for(lambda: "b begins" in home.ran)
        assert "Another process works on the run" in home.done("resume", expect=1).stderr
        assert "2 steps of run" in home.done("stop").stdout
        done = command.wait()
    assert done.code == 130
    assert "was stopped." in done.stderr
    assert home.states() == {"a": "done", "b": "stopped", "c": "not begun"}
    (tmp_path / "hold-b").unlink()
    home.done("resume")
    assert home.ran == [*noted("a"), "b begins", *noted("b", "c")]


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    home = Home(tmp_path, THREE.replace("step.sh, a]", "step.sh, a], timeout: 1"))
    home.hold("a")
    failed = home.done("run", expect=1)
    assert "step a failed after 1 attempt: MaxRuntimeExceeded: the job ran longer than" in failed.stderr
    assert home.ran == ["a begins"]


def test_secrets_reach_their_step_alone_and_are_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """\
name: secrets
webhook: {port: 0, token: env:THE_TOKEN}
notify: {failed: "slack:env:THE_HOOK"}
steps:
  - name: own
    command: [sh, -c, 'echo "${#PASSWORD} ${THE_PLACE-no} ${THE_TOKEN-no} ${THE_HOOK-no}"; exec sh step.sh own']
    env: {PASSWORD: env:THE_PLACE}
  - {name: other, command: [sh, -c, 'echo "${PASSWORD-no} ${THE_PLACE-no} ${THE_TOKEN-no} ${OPEN}"']}
"""
    home = Home(tmp_path, text)
    assert "own needs a secret from the variable THE_PLACE" in home.done("run", expect=2).stderr
    for name in ("THE_PLACE", "THE_TOKEN", "THE_HOOK"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OPEN", "open")
    plan = home.done("plan").stdout
    assert "secrets   PASSWORD from THE_PLACE" in plan
    held = home.hold("own")
    with dying(home.workflow("run")) as command:
        wait_for(lambda: home.ran == ["own begins"])
        assert not [words for words in command_lines() if b"hunter2" in words]
        held.unlink()
        done = command.wait()
    assert done.code == 0
    assert home.done("logs", "--step", "own").stdout == "7 no no no\n"
    assert home.done("logs", "--step", "other").stdout == "no no no open\n"
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert not written
    assert "hunter2" not in done.stderr + plan


def command_lines() -> list[bytes]:
    """The words of all processes of this machine, as anybody sees them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            found += [(entry / "cmdline").read_bytes()] if entry.name.isdigit() else []
    return found


def test_the_environments_differ_as_the_file_says(tmp_path: Path) -> None:
    text = """\
name: places
steps: [{name: one, command: [sh, -c, 'echo "$BUCKET $1"', sh, "{{workflow.environment}}"], output: "out-{{variables.BUCKET}}"}]
environments:
  dev: {variables: {BUCKET: dev-data}}
  prd: {variables: {BUCKET: prd-data}, retries: 3}
"""
    home = Home(tmp_path, text)
    for name in ("dev", "prd"):
        done = home.done("run", "--env", name, "--json")
        assert json.loads(done.stdout)["steps"][0]["output"] == str(tmp_path / f"out-{name}-data")
        assert home.done("logs", "--env", name).stdout == f"{name}-data {name}\n"
    assert "has the environments dev, prd. Say which: --env NAME" in home.done("run", expect=2).stderr
    assert "retries   3" in home.done("plan", "--env", "prd").stdout
    assert "retries" not in home.done("plan", "--env", "dev").stdout


def test_the_plan_shows_the_order_and_every_command(tmp_path: Path) -> None:
    home = Home(tmp_path, THREE + "  - {name: d, after: a, image: trainer:1}\n")
    lines = home.done("plan", "--param", "word=abc").stdout.splitlines()
    assert lines[:2] == ["Workflow three: at once", "  parameters  date=2026-01-01, word=abc"]
    assert [line for line in lines if line[0].isdigit()] == ["1. a", "2. b, after a", "2. d, after a", "3. c, after b"]
    assert "     command   sh step.sh b" in lines
    assert "that of its image (on this machine it needs --containers)" in "\n".join(lines)
    assert not (tmp_path / "_shardkit").exists()
    assert "d has an image and no command" in home.done("run", expect=2).stderr
    assert "does not match [a-z]+" in home.done("plan", "--param", "word=1", expect=2).stderr
    assert "no parameter 'wrd'; did you mean word?" in home.done("run", "--param", "wrd=1", expect=2).stderr
    assert not (tmp_path / "_shardkit").exists()


def test_a_step_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in place of the runtime notes its words, and runs those behind the image."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "podman"
    fake.write_text(
        f"""\
#!/bin/sh
echo "$*" >>{tmp_path}/podman
[ "$1" = run ] || exit 0
while [ "$1" != trainer:1 ]; do shift; done
shift; exec "$@"
"""
    )
    fake.chmod(0o755)
    text = """\
name: boxes
steps:
  - name: train
    image: trainer:1
    command: [sh, -c, "echo $PASSWORD | wc -c"]
    env: {PASSWORD: env:THE_PLACE}
    resources: {cpu: 2, memory: 1Gi, gpu: 1}
"""
    home = Home(tmp_path, text)
    monkeypatch.setenv("THE_PLACE", "hunter2")
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    run = json.loads(home.done("run", "--containers", "podman", "--json").stdout)
    asked, removed, words = (tmp_path / "podman").read_text().splitlines()
    name, output = f"{run['run_id']}-train", run["steps"][0]["output"]
    assert (asked, removed) == ("info", f"rm --force {name}")
    assert words == (
        f"run --rm --init --name {name} --volume {tmp_path}:{tmp_path} --workdir {tmp_path} --volume {output}:{output} "
        "--env PASSWORD --env SHARDKIT_OUTPUT --env SHARDKIT_RUN_ID --cpus 2 --memory 1073741824 --gpus 1 "
        "trainer:1 sh -c echo $PASSWORD | wc -c"
    )
    assert home.done("logs").stdout.strip() == "8"
    fake.write_text("#!/bin/sh\necho Cannot connect >&2; exit 1\n")
    assert "podman does not work here: Cannot connect" in home.done("run", "--containers", "podman", expect=2).stderr
    assert "--containers rkt: expected docker or podman" in home.done("run", "--containers", "rkt", expect=2).stderr


def test_a_run_that_died_before_its_steps_were_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, with nothing begun; resuming begins it."""
    from shardkit.workflows.start import begin

    home = Home(tmp_path, THREE)
    workflow = read_workflow(home.file).of_environment()
    begin(workflow, {}, say=print)
    assert set(home.states().values()) == {"not begun"}
    home.done("resume")
    assert home.ran == noted("a", "b", "c")
    run = open_run(workflow, say=print)
    assert run.files.path.parent == state_of(workflow)


def test_old_runs_are_cleaned_away(tmp_path: Path) -> None:
    home = Home(tmp_path, "name: small\nsteps: [{name: one, command: [sh, step.sh, one]}]\n")
    for _ in range(2):
        home.done("run")
    home.file.write_text(home.file.read_text().replace("one]}", "one], env: {CODE: 3}}"))
    home.done("run", expect=1)
    state = tmp_path / "_shardkit/workflows/small/default"
    runs = [run.path for run in runs_in(state)]
    for path in runs:
        ended = json.loads((path / "ended.json").read_text())
        (path / "ended.json").write_text(json.dumps(ended | {"ended": "2020-01-01T00:00:00.000+00:00"}))
    (runs[1] / "ended.json").unlink()  # as while it goes on
    dry = home.done("clean", "--older-than", "30d", "--dry-run")
    assert dry.stdout.split() == [runs[0].name]
    assert runs[0].is_dir()
    assert "1 run removed." in home.done("clean", "--older-than", "30d").stderr
    assert [path.is_dir() for path in runs] == [False, True, True]
    assert "expected a time such as" in home.done("clean", "--older-than", "soon", expect=2).stderr


def test_who_is_to_be_told_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hooks import hook_server

    with hook_server() as (url, got):
        monkeypatch.setenv("TEAM", url)
        text = THREE + "notify: {failed: 'webhook:env:TEAM', completed: 'webhook:env:TEAM'}\n"
        home = Home(tmp_path, text.replace("step.sh, b]", "step.sh, b], env: {CODE: 7}"))
        home.done("run", expect=1)
        assert got[0]["status"] == "Failed"
        assert got[0]["reason"] == "b: its command ended with exit code 7"
        assert got[0]["again"] == f"shardkit workflow resume {home.file}"
        home.file.write_text(text)
        home.done("resume")
        assert [notice["status"] for notice in got] == ["Failed", "Completed"]
