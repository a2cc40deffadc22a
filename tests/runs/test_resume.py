"""Runs that are interrupted, killed and resumed: committed work is not lost or done again."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import in_process
import pytest
import warm
from crashing import LINUX, Command, Done, Project, check_ledger, dying, environment, is_alive, rows_of, wait_for

import shardkit as sk

pytestmark = LINUX
SLOW = pytest.mark.slow
# Notes each call; a record whose file says so waits for a file named gate.
GATED = """
import os, time
from pathlib import Path
ROOT = Path(__file__).parent

def features(record):
    (ROOT / "calls" / f"{record.key} {os.getpid()} {time.monotonic_ns()}").touch()
    if Path(record).read_text().startswith("wait"):
        while not (ROOT / "gate").exists():
            time.sleep(0.005)
    return [{"key": record.key, "row": i} for i in range(3)]
"""


class GatedProject(Project):
    """A project whose function can be held up."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (root / "calls").mkdir()
        self.write_function(GATED)

    def calls(self) -> list[tuple[str, int]]:
        """The calls of the function until now: record's key, worker's pid."""
        names = [path.name.split() for path in (self.root / "calls").iterdir()]
        return [(key, int(pid)) for key, pid, _ in names]

    def open_gate(self) -> None:
        (self.root / "gate").touch()

    def expected(self) -> list[dict[str, Any]]:
        """All rows, where the chunks follow each other in key order."""
        return [{"key": path.name, "row": i} for path in sorted(self.data.iterdir()) for i in range(3)]

    def wait_for_call(self, key: str) -> int:
        """Wait until the function has been called with that record; returns the worker's pid."""
        called = wait_for(lambda: [pid for k, pid in self.calls() if k == key], what=f"the call with {key}")
        return int(called[-1])


@pytest.fixture
def project(tmp_path: Path) -> GatedProject:
    made = GatedProject(tmp_path / "the user's")
    made.write_records(["go", "go", "wait", "go", "go", "go"])
    return made


def held_run(project: GatedProject, **options: Any) -> Command:
    """A run in which one worker has done two records, and hangs at the third."""
    command = project.start(*project.run_arguments(workers=1, chunks="even", **options))
    project.wait_for_call("r002.txt")
    return command


def here(*arguments: object, expect: int = 0) -> Done:
    """Run a command of the program in this process, which is another than the one that was interrupted."""
    done = in_process.command(*arguments, code=expect)
    return Done(done.exit_code, done.stdout, done.stderr)


def as_printed(command: str, *, in_a_shell: bool = False) -> Done:
    """Run a command line in quite another directory, in words as a shell takes it apart, or really in a shell."""
    if not in_a_shell:
        program, *words = shlex.split(command)
        assert program == "shardkit"
        ran = warm.run(["-m", "shardkit", *words], cwd="/", env=environment(), timeout_s=60)
        return Done(ran.returncode, ran.stdout, ran.stderr)
    env = environment(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    done = subprocess.run(
        command, shell=True, cwd="/", env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def printed_command(text: str) -> str:
    return re.findall(r": (shardkit \w+ .*)", text)[-1]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), pytest.param(signal.SIGTERM, True, marks=SLOW)],
)
def test_an_interrupted_run_is_resumed_with_the_printed_command(
    project: GatedProject, number: signal.Signals, *, to_all: bool
) -> None:
    with dying(held_run(project)) as command:
        if to_all:
            command.signal_group(number)  # as a terminal does
        else:
            os.kill(command.pid, number)
        if number == signal.SIGINT:
            wait_for(lambda: "Ctrl-C again" in command.stderr.read_text())
        else:
            wait_for(lambda: catches_nothing_more(command.pid))
        project.open_gate()  # the record in flight ends, its chunk is committed
        done = command.wait()
    assert done.code == 130
    assert "Traceback" not in done.stderr
    assert sk.open_run(project.out).summary().status == "interrupted"
    assert project.data_files() == []
    resumed = as_printed(printed_command(done.stderr), in_a_shell=number == signal.SIGINT)
    assert resumed.code == 0, resumed.stderr
    assert project.rows() == project.expected()
    if number == signal.SIGINT or not to_all:  # otherwise the workers die at once
        assert set(Counter(key for key, _ in project.calls()).values()) == {1}  # what was committed is not done again
    check_ledger(sk.open_run(project.out))
    assert sk.open_run(project.out).quarantine() == []


def catches_nothing_more(pid: int) -> bool:
    """Whether a process has handled all signals that were sent to it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return all(int(bits, 16) == 0 for bits in re.findall(r"(?:Sig|Shd)Pnd:\s*(\w+)", status))


@pytest.mark.whole
def test_a_second_ctrl_c_stops_at_once(project: GatedProject) -> None:
    with dying(held_run(project)) as command:
        family = command.family()
        command.signal_group(signal.SIGINT)
        wait_for(lambda: "Ctrl-C again" in command.stderr.read_text())
        begun = time.monotonic()
        command.signal_group(signal.SIGINT)
        done = command.wait()
    assert done.code == 130
    assert time.monotonic() - begun < 5  # the record itself would never have ended
    assert not any(map(is_alive, family))
    project.open_gate()
    assert as_printed(printed_command(done.stderr)).code == 0
    assert project.rows() == project.expected()


@pytest.mark.whole
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_before_there_is_a_run(project: GatedProject, number: signal.Signals) -> None:
    project.write_function(
        "import time\nfrom pathlib import Path\n"
        "def key_of(key):\n    Path('planning').touch()\n    for _ in range(1200):\n        time.sleep(0.05)\n"
        "def features(record):\n    return None\n"
    )
    with dying(project.start(*project.run_arguments(records="work:key_of"))) as command:
        wait_for(lambda: (project.root / "planning").exists())
        family = command.family()
        command.signal_group(number)
        done = command.wait()
    assert done.code == (130 if number == signal.SIGINT else -signal.SIGTERM)
    assert "Traceback" not in done.stderr
    wait_for(lambda: not any(map(is_alive, family)))
    assert not list(project.out.glob("_shardkit/runs/*/plan.json"))


COMBINE = """
import time
from pathlib import Path
ROOT = Path(__file__).parent

def combine(batches):
    (ROOT / "combining").touch()
    for batch in batches:
        while not (ROOT / "gate").exists():
            try:
                time.sleep(0.005)
            except Exception:   # as users do
                pass
        yield batch

def features(record):
    return {"key": record.key}
"""


@pytest.mark.whole
def test_ctrl_c_during_pass_2(project: GatedProject) -> None:
    project.write_function(COMBINE)
    with dying(project.start(*project.run_arguments(combine="work:combine"))) as command:
        wait_for(lambda: (project.root / "combining").exists())
        command.signal_group(signal.SIGINT)
        done = command.wait()
    assert done.code == 130
    assert "Traceback" not in done.stderr
    assert project.data_files() == []
    project.open_gate()
    assert as_printed(printed_command(done.stderr)).code == 0
    assert len(project.rows()) == 6


@SLOW
def test_ctrl_c_during_pass_2_alone(project: GatedProject) -> None:
    project.open_gate()
    project.run()
    project.write_function(COMBINE)
    (project.root / "gate").unlink()
    arguments = ["pass2", "--input", project.out, "--output", project.root / "merged", "--source-dir", project.root]
    with dying(project.start(*arguments, "--combine", "work:combine")) as command:
        wait_for(lambda: (project.root / "combining").exists())
        command.signal_group(signal.SIGINT)
        done = command.wait()
    assert done.code == 130
    assert "give the pass2 command again" in done.stderr
    refused = here("resume", project.root / "merged", expect=2)
    assert "pass2" in refused.stderr
    project.open_gate()
    project.command(*arguments)
    assert rows_of(sk.open_run(project.root / "merged")) == project.expected()


@SLOW
def test_an_interrupted_retry_is_gone_on_with_as_a_retry(project: GatedProject) -> None:
    project.write_function("def features(record):\n    raise ValueError\n")
    with pytest.raises(sk.BudgetExceeded):
        project.run(workers=1, chunks="even", max_failures=0)
    project.write_function(GATED)
    with dying(project.start("retry", project.out)) as command:
        project.wait_for_call("r002.txt")
        for _ in range(2):
            command.signal_group(signal.SIGINT)
            wait_for(lambda: "Ctrl-C again" in command.stderr.read_text())
        done = command.wait()
    assert done.code == 130
    project.open_gate()
    assert shlex.split(printed_command(done.stderr))[1] == "retry"
    assert as_printed(printed_command(done.stderr)).code == 0
    assert sorted(project.rows(), key=str) == sorted(project.expected(), key=str)


@pytest.mark.whole
def test_the_workers_die_with_their_parent(project: GatedProject) -> None:
    project.write_records(["wait"] * 6)
    with dying(project.start(*project.run_arguments(workers=3, chunks="even"))) as command:
        wait_for(lambda: len(project.calls()) == 3)
        family = command.family()
        assert len(family) >= 4
        os.kill(command.pid, signal.SIGKILL)
        command.wait()
        wait_for(lambda: not any(map(is_alive, family)), timeout_s=10, what="the workers' end")
    assert sk.open_run(project.out).summary().status == "interrupted"
    project.open_gate()
    here("resume", project.out)
    assert project.rows() == project.expected()


def test_a_worker_killed_from_outside_costs_nothing(project: GatedProject) -> None:
    with dying(held_run(project, max_failures=0)) as command:
        first = project.wait_for_call("r002.txt")
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: {pid for key, pid in project.calls() if key == "r002.txt"} > {first})
        project.open_gate()
        assert command.wait().code == 0
    assert project.rows() == project.expected()
    assert sk.open_run(project.out).quarantine() == []


@SLOW
def test_an_idle_worker_killed_from_outside_costs_nothing(project: GatedProject) -> None:
    project.write_records(["go", "wait"])
    with dying(project.start(*project.run_arguments(workers=2, chunks="even", max_failures=0))) as command:
        busy = project.wait_for_call("r001.txt")
        wait_for(lambda: len(project.markers()) >= 1)
        for pid in set(command.family()) - {command.pid, busy}:
            os.kill(pid, signal.SIGKILL)
        project.open_gate()
        assert command.wait().code == 0
    assert project.rows() == project.expected()


@pytest.mark.whole
def test_two_processes_cannot_work_on_one_run(project: GatedProject) -> None:
    with dying(held_run(project)) as command:
        for arguments in (["resume", project.out], ["retry", project.out]):
            refused = here(*arguments, expect=1)
            assert "is being worked on by another process" in refused.stderr
            assert "Traceback" not in refused.stderr
        assert here("status", project.out, "--json").summary["status"] == "running"
        project.open_gate()
        assert command.wait().code == 0
    assert project.rows() == project.expected()


@pytest.mark.whole
def test_a_killed_run_goes_on_under_its_id(project: GatedProject) -> None:
    arguments = project.run_arguments(workers=3, chunks="even", run_id="first")
    with dying(project.start(*arguments)) as command:
        project.wait_for_call("r002.txt")
        wait_for(lambda: len(project.markers()) == 2)  # of three chunks
        command.kill_all()
    project.open_gate()
    before = Counter(key for key, _ in project.calls())
    done = here(*arguments)
    assert "going on where it ended" in done.stderr
    assert project.rows() == project.expected()
    after = Counter(key for key, _ in project.calls())
    assert after - before == Counter(["r002.txt", "r003.txt"])


def test_changed_source_is_refused_unless_allowed(project: GatedProject) -> None:
    project.write_function(GATED.replace('"row": i', '"row": 1 // (record.key != "r004.txt")'))
    project.open_gate()
    with pytest.raises(sk.BudgetExceeded):
        project.run(workers=2, chunks="even", max_failures=0)
    run = sk.open_run(project.out)
    project.write_function(GATED)
    refused = here("resume", project.out, "--set", "max_failures=1", expect=2)
    assert "source of work:features has changed" in refused.stderr
    assert "--changed-function" in refused.stderr
    with pytest.raises(sk.PlanMismatch):
        run.resume(quiet=True, max_failures=1)
    run.resume(quiet=True, max_failures=1, changed_function=True)
    assert {row["key"] for row in project.rows()} == {f"r00{i}.txt" for i in (0, 1, 2, 3, 5)}


@pytest.mark.whole
def test_another_plan_is_refused_with_what_differs(project: GatedProject) -> None:
    project.write_function("def features(record):\n    raise ValueError\n")
    fields: dict[str, Any] = {"workers": 2, "chunks": "even", "run_id": "first"}
    with pytest.raises(sk.BudgetExceeded):
        project.run(**fields)

    def refused(**changes: Any) -> str:
        with pytest.raises(sk.PlanMismatch, match="Run first has another plan") as caught:
            project.run(**(fields | changes))
        return str(caught.value)

    assert re.search(r'input was \{.*"uri": ', refused(pattern="r00[0-3].txt"))
    assert 'chunks was "even" and is "balanced"' in refused(chunks="balanced")
    project.write_records({"r006.txt": "go"})
    assert "the input has changed (6 records of 14 bytes before, 7 of 16 now)" in refused()
    (project.data / "r006.txt").unlink()
    project.write_function(GATED)
    assert "the function's source has changed. Start a new run without run_id" in refused()
    told = here(*project.run_arguments(**fields), expect=2).stderr
    assert "Start a new run without --run-id, or undo the change." in told


def test_what_decides_the_results_cannot_change(project: GatedProject) -> None:
    project.open_gate()
    run = project.run()
    settings = {
        "input.uri": "elsewhere",
        "chunks": "even",
        "output.uri": "there",
        "records": "stem",
    }
    for name, value in settings.items():
        with pytest.raises(sk.PlanMismatch, match=rf"{name} cannot change.*workers, .*timeout, max_failures"):
            run.resume(quiet=True, **{name: value})
    assert "input.uri cannot change" in here("resume", project.out, "--set", "input.uri=x", expect=2).stderr


@pytest.mark.whole
def test_to_resume_a_run_that_is_done_changes_nothing(project: GatedProject) -> None:
    project.open_gate()
    run = project.run(workers=2, run_id="first")
    before = [(name, (project.out / name).stat().st_ino) for name in project.data_files()]
    calls = len(project.calls())
    for arguments in (
        ["resume", project.out],
        ["retry", project.out],
        project.run_arguments(workers=2, run_id="first"),
    ):
        done = here(*arguments, "--json")
        assert "is done; there is nothing to" in done.stderr
        assert done.summary["status"] == "done"
    assert [(name, (project.out / name).stat().st_ino) for name in project.data_files()] == before
    assert len(project.calls()) == calls
    # With other settings there is something to do: pass 2.
    run.resume(quiet=True, **{"output.rows_per_file": 5})
    assert len(project.data_files()) == 4
    assert project.rows() == project.expected()
    assert len(project.calls()) == calls


def test_a_function_of_a_notebook_is_resumed_and_retried(project: GatedProject) -> None:
    project.write_records(["7", "x", "9", "10", "11", "12"])
    minimum = 8

    def numbers(record: Any) -> dict[str, int]:
        with open(record) as file:
            return {"above": int(file.read()) - minimum}

    with pytest.raises(sk.BudgetExceeded):
        sk.run(numbers, project.data, project.out, quiet=True, max_failures=0)
    # The function went along by value, so that another process can go on without it.
    project.command("resume", project.out, "--set", "max_failures=1")
    assert [row["above"] for row in project.rows()] == [-1, 1, 2, 3, 4]

    def mended(record: Any) -> dict[str, int]:
        with open(record) as file:
            text = file.read()
        return {"above": int(text) - minimum if text.isdigit() else 0}

    with pytest.raises(sk.PlanMismatch, match="of the function numbers, not of mended"):
        sk.open_run(project.out).retry(function=mended, quiet=True)
    run = sk.open_run(project.out).retry(function=mended, quiet=True, changed_function=True)
    assert sorted(row["above"] for row in rows_of(run)) == [-1, 0, 1, 2, 3, 4]


@SLOW
def test_a_callable_of_a_module_is_found_again_from_another_directory(project: GatedProject) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(project.root)!r})
import work, shardkit
if __name__ == "__main__":
    shardkit.run(work.features, {str(project.data)!r}, {str(project.out)!r}, workers=1, chunks="even")
"""
    with dying(project.start(code=code)) as command:
        project.wait_for_call("r002.txt")
        command.kill_all()
    project.open_gate()
    hint = printed_command(here("status", project.out).stdout)
    resumed = as_printed(hint)
    assert resumed.code == 0, resumed.stderr
    assert project.rows() == project.expected()


def test_late_and_duplicate_attempts_do_no_harm(project: GatedProject) -> None:
    """Markers as they are left by a worker that was believed dead, or by a job that was started twice."""
    project.write_function(GATED.replace('"row": i', '"row": i // (record.key != "r003.txt")'))
    project.open_gate()
    run = project.run(workers=1, chunks="even", max_failures=1)
    project.write_function(GATED)
    run.retry(quiet=True)
    markers = project.markers()
    assert len(markers) == 2  # of the only chunk, and of the retry
    for path in markers:
        duplicate = json.loads(path.read_text()) | {"attempt": 7}
        path.with_name(path.name.replace("-000", "-100")).write_text(json.dumps(duplicate))
    retried = json.loads(markers[1].read_text())
    late = retried | {"chunk": retried["chunk"] + 1, "attempt": 8}
    markers[1].with_name("000009-0008.json").write_text(json.dumps(late))
    run.resume(quiet=True, changed_function=True, **{"output.rows_per_file": 100})
    assert sorted(project.rows(), key=str) == sorted(project.expected(), key=str)
    assert check_ledger(run).records["done"] == 6


def test_a_log_that_goes_away_does_not_end_the_run(project: GatedProject) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    project.open_gate()
    project.write_function(GATED.replace("    return", "    print('x' * 10_000)\n    return"))
    arguments = project.run_arguments(workers=2, run_id="unheard")
    with open(writer, "wb") as nowhere, open(os.devnull, "wb") as out:
        warm.start(["-m", "shardkit", *arguments], env=environment(), stdout=out, stderr=nowhere).wait(60)
    assert project.rows() == project.expected()
    assert check_ledger(sk.open_run(project.out)).status == "done"


STEADY = """
import time
def features(record):
    time.sleep(0.004)
    return [{"key": record.key, "row": i} for i in range(record.bytes % 5)]
"""
PHASES = {  # what can be seen of how far a run is, as a glob in its folder; and how long to wait then, in seconds
    "planning": ("lock", 0.02),
    "planned": ("plan.json", 0.05),
    "pass 1": ("markers/*/*.json", 0.1),
    "merge": ("dataset/*", 0.03),
    "switch": ("../../commit.json", 0.005),
}


TRIALS = [("planning", "pass 1", "switch"), ("planning", "planned", "merge"), ("planned", "pass 1", "merge")]


@functools.cache
def undisturbed_rows(chunks: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return rows_of(steady_project(Path(folder)).run(**as_steady(chunks)))


def steady_project(folder: Path) -> Project:
    project = Project(folder)
    project.write_function(STEADY)
    project.write_records(["x" * (i * 7 % 90) for i in range(40)])
    return project


def as_steady(chunks: str) -> dict[str, Any]:
    return {"chunks": chunks, "workers": 3, "rows_per_file": 4, "run_id": "it"}


@SLOW
@pytest.mark.parametrize("trial", range(3))
def test_killed_at_any_moment_the_dataset_is_that_of_an_undisturbed_run(tmp_path: Path, trial: int) -> None:
    chance = random.Random(trial)
    chunks = ("dynamic", "even", "balanced")[trial]
    arguments = as_steady(chunks)
    project = steady_project(tmp_path)
    run_folder = project.out / "_shardkit/runs/it"

    def go_on() -> list[str | Path]:
        planned = (run_folder / "plan.json").exists()
        return ["resume", project.out] if planned else [*project.run_arguments(**arguments)]

    ends = []
    for phase in TRIALS[trial]:
        sign, pause = PHASES[phase]
        command = project.start(*go_on())
        wait_for(lambda c=command, s=sign: list(run_folder.glob(s)) or c.process.poll() is not None, every_s=0.001)
        time.sleep(chance.uniform(0, pause))  # any moment is as good as another
        command.kill_all()
        ends.append(command.process.returncode)
    assert -signal.SIGKILL in ends
    here(*go_on())
    assert project.rows() == undisturbed_rows(chunks)
    run = sk.open_run(project.out)
    assert check_ledger(run).status == "done"
    listed = {str(Path(file).relative_to(project.out)) for file in run.dataset().files}
    assert set(project.data_files()) == listed  # and nothing else lies about
