"""Workers are forks of the fork server, but find all as if the program had started each of them just then."""

from __future__ import annotations

import os
import resource
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, Project, descendants, dying, is_alive, wait_for

from shardkit.workers import forkserver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [LINUX, pytest.mark.whole]

FEATURES = """
import os, random, resource, sys, time
from pathlib import Path

def features(record):
    once = Path(__file__).with_name("killed")
    if record.key == "always-kills.txt" or record.key == "kills.txt" and not once.exists():
        once.touch()
        os.kill(os.getppid(), 9)
        time.sleep(60)  # it goes with the process that it was forked from
    drawn = [random.random()]
    if Path(__file__).with_name("draws").exists():
        import numpy as np  # takes longer than all else
        drawn.append(float(np.random.random()))
    return {
        "key": record.key,
        "pid": os.getpid(),
        "server": os.getppid(),
        "folder": os.getcwd(),
        "variable": os.environ.get("SHARDKIT_TEST", ""),
        "hour": time.strftime("%H", time.gmtime(0)) + time.strftime("%H", time.localtime(0)),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "drawn": " ".join(map(str, drawn)),  # for a list, pyarrow would load pandas
        "threads": len(os.listdir(f"/proc/{os.getppid()}/task")),
        "modules": " ".join(sorted({"pandas", "work"} & set(sys.modules))),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
"""


@pytest.fixture(scope="module", autouse=True)
def _bare_workers() -> Iterator[None]:
    """In all tests, workers find loaded what the program loads for them, and nothing else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(forkserver, "BOOTSTRAP", forkserver.BOOTSTRAP.replace("pandas, pytest, warm", "warm"))
        forkserver.end_server()
        yield
        forkserver.end_server()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write_records(["x"] * 6)
    made.write_function(FEATURES)
    return made


def rows(project: Project, name: str, **fields: Any) -> list[dict[str, Any]]:
    """The rows of a run of its own."""
    project.out = project.root / name
    project.run(**{"workers": 2, "chunks": "even"} | fields)
    return project.rows()


def only(found: list[dict[str, Any]], column: str) -> Any:
    (value,) = {row[column] for row in found}
    return value


def test_runs_share_the_process_that_their_workers_are_forked_from(project: Project) -> None:
    first, second = rows(project, "first"), rows(project, "second", workers=3)
    assert only(first, "server") == only(second, "server") != os.getpid()
    workers = {row["pid"] for row in first + second}
    assert len(workers) == 5
    assert only(first, "threads") == only(second, "threads") == 1  # a fork keeps another thread's locks locked
    assert not any(map(is_alive, workers))


def test_a_worker_has_nothing_of_those_before_it(project: Project) -> None:
    first, second = rows(project, "first"), rows(project, "second")
    for found in (first, second):
        assert only(found, "modules") == "work"
    assert only(second, "descriptors") == only(first, "descriptors")


def test_a_worker_is_as_the_program_is_by_then(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDKIT_TEST", "one")
    forkserver.end_server()  # so that the next has this variable itself
    before = rows(project, "first")
    folder = project.root / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SHARDKIT_TEST", "another")
    monkeypatch.setenv("TZ", "ABC-7")
    after = rows(project, "second")
    monkeypatch.delenv("SHARDKIT_TEST")
    last = rows(project, "third")
    assert [only(found, "variable") for found in (before, after, last)] == ["one", "another", ""]
    assert only(after, "folder") == str(folder)
    assert only(after, "hour") == "0007"
    assert only(last, "server") == only(after, "server") == only(before, "server")


def test_what_is_read_only_at_the_start_of_a_process_is_heeded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [only(rows(project, "first"), "server")]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    servers.append(only(rows(project, "second"), "server"))
    assert len(set(servers)) == 2
    wait_for(lambda: not is_alive(servers[0]), what="the end of the process that nobody needs any more")


def test_a_limit_that_was_lowered_since_holds(project: Project) -> None:
    rows(project, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        assert only(rows(project, "second"), "files") == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_two_workers_draw_the_same_numbers(project: Project) -> None:
    (project.root / "draws").touch()
    drawn = [row["drawn"].split() for row in rows(project, "first", workers=3) + rows(project, "second", workers=3)]
    assert {len(numbers) for numbers in drawn} == {2}
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(drawn)


def test_a_run_goes_on_when_the_process_that_forks_is_killed_before_it(project: Project) -> None:
    server = only(rows(project, "first"), "server")
    os.kill(server, signal.SIGKILL)
    assert only(rows(project, "second"), "server") != server


def test_no_record_is_lost_when_the_process_that_forks_is_killed_in_the_midst_of_a_run(project: Project) -> None:
    keys = [f"r{i:03d}.txt" for i in range(6)]
    project.write_records(dict.fromkeys(["kills.txt", *keys], "x"))
    project.out = project.root / "out"
    run = project.run(workers=2, max_failures=0)
    assert (project.root / "killed").exists()
    assert sorted(row["key"] for row in project.rows()) == ["kills.txt", *keys]
    assert not run.quarantine()


def test_a_record_that_kills_the_process_that_forks_again_and_again_is_quarantined(project: Project) -> None:
    project.write_records({"always-kills.txt": "x"})
    project.out = project.root / "out"
    run = project.run(workers=2, max_failures="100%")
    (entry,) = run.quarantine()
    assert entry["key"] == "always-kills.txt"
    assert "the process that workers are forked from was killed" in entry["message"]
    assert len(project.rows()) == 6


def test_runs_side_by_side_and_in_a_thread_that_ends(project: Project) -> None:
    results: dict[str, list[dict[str, Any]]] = {}

    def work(name: str) -> None:
        mine = Project(project.root / name)
        mine.write_records(["x"] * 4)
        mine.write_function(FEATURES)
        mine.run(workers=2)
        results[name] = mine.rows()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: len(found) for name, found in results.items()} == {"a": 4, "b": 4}
    assert only(rows(project, "last"), "server") == only(results["a"] + results["b"], "server")


IN_A_FORK = """
import os, sys
import shardkit as sk

def run(name):
    made = sk.run("work:features", "data", name, quiet=True, workers=2)
    return {row["server"] for row in made.dataset().to_table().to_pylist()}

(server,) = run("first")
child = os.fork()
if child == 0:
    (own,) = run("second")
    os._exit(0 if own != server else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
(again,) = run("third")
sys.exit(code or (0 if again == server else 4))
"""


def test_a_fork_of_the_program_forks_from_a_process_of_its_own(project: Project) -> None:
    done = project.start(code=IN_A_FORK).wait()
    assert done.code == 0, done.stderr


WAITS = """
import time
from pathlib import Path
def features(record):
    Path("begun").touch()
    time.sleep(600)
"""


def test_nothing_outlives_the_program(project: Project) -> None:
    project.write_function(WAITS)
    with dying(project.start(*project.run_arguments(workers=2))) as command:
        wait_for((project.root / "begun").exists)
        family = descendants(command.pid)
        assert len(family) == 3  # two workers, and what they were forked from
        command.process.kill()
        command.wait()
        wait_for(lambda: not any(map(is_alive, family)), what="the end of all processes")


ENDS_EARLY = """
import os
from shardkit.workers.forkserver import begin_server
begin_server()
print(open(f"/proc/self/task/{os.getpid()}/children").read())
"""


def test_a_program_without_work_leaves_no_process(project: Project) -> None:
    done = project.start(code=ENDS_EARLY).wait()
    assert not is_alive(int(done.stdout))
    assert done.stderr == ""
