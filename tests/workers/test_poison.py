"""What a function does to its own process costs its record, and neither ends nor hangs the run."""

from __future__ import annotations

import json
import threading
import types
from typing import TYPE_CHECKING, Any

import in_process
import pytest
from crashing import LINUX, Project, is_alive, wait_for

import shardkit as sk
from shardkit.workers import pool, watch
from shardkit.workers.board import Board

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.whole, LINUX]

WORK = """
import os, resource, signal, subprocess, sys, threading, time

class Odd(Exception):
    def __init__(self, first, *, second):
        super().__init__("odd")
    def __str__(self):
        raise SystemExit("no text")
    def __reduce__(self):
        raise RuntimeError("no pickle")

def pipe():
    return next(fd for fd in range(3, 50) if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}").startswith("socket"))

def write_to_all(data):
    for fd in range(3, 50):
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith((os.path.dirname(os.getcwd()), "pipe")):  # where prints go
                os.write(fd, data)
        except OSError: pass

def scribble(): write_to_all(bytes.fromhex("7fffffff"))
def garbage(): write_to_all(bytes(64))
def pretend(): os.write(pipe(), bytes.fromhex("f5736b01") + bytes(7) + b"\\x09")
def close_all(): os.closerange(3, 256)
def close_everything(): os.closerange(0, 256)
def redirect(): os.dup2(os.open(os.devnull, os.O_RDWR), pipe())
def leave(): os._exit(0)
def odd(): raise Odd(1, second=2)
def exit_(): sys.exit("bye")
def no_memory(): raise MemoryError("none")
def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
def hog():
    try:
        while True: os.open(os.devnull, os.O_RDONLY)
    except OSError: pass
def few_files(): resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
def mask():
    os.umask(0o777)
    os.chdir("/")
def no_block(): os.set_blocking(pipe(), False)
def program():
    with open(os.environ["PIDS"], "a") as pids:
        for alone in (False, True):
            pids.write(f"{subprocess.Popen(['sleep', '600'], start_new_session=alone).pid}\\n")
def program_that_hangs():
    program()
    time.sleep(600)
def clock():
    time.monotonic_ns = time.time_ns = lambda: 0
    time.monotonic = time.time = time.perf_counter = lambda: "now"
def hang():  # busily at first
    end = time.process_time() + 0.2
    while True:
        if time.process_time() > end: time.sleep(600)
def thread(): threading.Thread(target=time.sleep, args=(600,)).start()
def child_keeps_the_pipe():
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
def child_returns(): os.fork()
def wild_pointer(): os.kill(os.getpid(), signal.SIGSEGV)
def abort(): os.abort()

def features(record):
    what = record.key.partition(".")[0].lstrip("0123456789-")
    if what in globals():
        globals()[what]()
    return {"key": record.key}
"""
GUILTY = [
    "scribble",
    "garbage",
    "pretend",
    "close_all",
    "close_everything",
    "redirect",
    "leave",
    "odd",
    "exit_",
    "no_memory",
    "hang",
    "program_that_hangs",
    "wild_pointer",
    "abort",
]
INNOCENT = [
    "hog",
    "few_files",
    "mask",
    "no_block",
    "program",
    "clock",
    "thread",
    "child_keeps_the_pipe",
    "child_returns",
]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Any], list[int]]:
    """A run over records that each do something to their worker, good ones between them; and the programs begun."""
    project = Project(tmp_path_factory.mktemp("poison"))
    names = [*GUILTY, *INNOCENT]
    names = [*names[::2], *names[1::2], "good"]
    project.write_records({f"{n:02d}-{name}.txt": "x" for n, name in enumerate(names)})
    project.write_function(WORK)
    pids = project.root / "pids"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIDS", str(pids))
        done = project.command(
            *project.run_arguments(workers=2, timeout=1, max_failures="100%", chunks="even"), "--quiet"
        )
    assert "Traceback" not in done.stderr
    failures = in_process.command("failures", project.out, "--json").stdout.splitlines()
    return project, {entry["key"]: entry for entry in map(json.loads, failures)}, [*map(int, pids.read_text().split())]


@pytest.mark.whole
def test_only_those_are_quarantined_whose_function_cannot_be_lived_with(
    poisoned: tuple[Project, dict[str, Any], list[int]],
) -> None:
    project, failures, _ = poisoned
    assert sorted(key[3:-4] for key in failures) == sorted(GUILTY)
    assert sorted([*(row["key"] for row in project.rows()), *failures]) == sorted(
        p.name for p in project.data.iterdir()
    )


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("scribble", "WorkerDied", "wrote to it"),
        ("close_all", "WorkerDied", "closed or replaced the pipe"),
        ("leave", "WorkerDied", "exited with code 0"),
        ("odd", "Odd", "cannot be made"),
        ("exit_", "SystemExit", "bye"),
        ("no_memory", "MemoryError", "none"),
        ("hang", "TimeoutError", "longer than 1 s"),
        ("wild_pointer", "WorkerDied", "SIGSEGV"),
    ],
)
def test_the_quarantine_tells_what_the_function_did(
    poisoned: tuple[Project, dict[str, Any], list[int]], what: str, error: str, message: str
) -> None:
    (entry,) = (entry for key, entry in poisoned[1].items() if key[3:] == f"{what}.txt")
    assert entry["error"] == error
    assert message in entry["message"]


def test_no_program_that_a_record_has_started_outlives_the_run(
    poisoned: tuple[Project, dict[str, Any], list[int]],
) -> None:
    _, _, programs = poisoned
    assert len(programs) >= 4
    assert not any(map(is_alive, programs))


LEAKS = """
import os
KEPT = []
def features(record):
    KEPT.extend(open(record) for _ in range(4))
    return {"key": record.key, "pid": os.getpid()}
"""


@pytest.mark.whole
def test_a_function_that_leaks_descriptors_gets_fresh_workers_and_its_rows_keep_their_order(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records(["x"] * 60)
    project.write_function(LEAKS)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
import shardkit as sk
sk.run("work:features", {str(project.data)!r}, {str(project.out)!r}, quiet=True, workers=1, chunks="even", max_failures=0)
"""
    done = project.start(code=code).wait()
    assert done.code == 0, done.stderr
    rows = project.rows()
    assert [row["key"] for row in rows] == [f"r{i:03d}.txt" for i in range(60)]
    assert 2 <= len({row["pid"] for row in rows}) <= 6


CROWDED = """
import fcntl, glob, os, signal, time
from pathlib import Path
def take(units):
    with open("lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken = 0
        for name in glob.glob("memory/*"):
            pid, size = Path(name).name.split("-")
            if os.path.exists(f"/proc/{pid}"): taken += int(size)
        if taken + units > 20:
            os.kill(os.getpid(), signal.SIGKILL) if units != 14 else exec("raise MemoryError")
        mine = Path(f"memory/{os.getpid()}-{units}")
        mine.touch()
        return mine
def features(record):
    units = int(open(record).read())
    mine = take(units)
    time.sleep(0.03)
    mine.unlink()
    return {"key": record.key}
"""


@pytest.mark.whole
def test_what_fits_alone_is_not_quarantined_and_what_does_not_is(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (project.root / "memory").mkdir()
    units = [6] * 24
    units[3], units[4], units[7], units[12], units[20] = 15, 15, 21, 14, 16
    project.write_records(map(str, units))
    project.write_function(CROWDED)
    project.command(*project.run_arguments(workers=3, max_failures="100%"), "--quiet")
    failures = in_process.command("failures", project.out, "--json").stdout.splitlines()
    assert [json.loads(line)["key"] for line in failures] == ["r007.txt"]
    assert len(project.rows()) == 23


def test_nothing_that_a_record_has_started_outlives_a_program_that_is_killed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records(["x"])
    project.write_function(
        "import subprocess, time\n"
        "def features(record):\n"
        "    pid = subprocess.Popen(['sleep', '600'], start_new_session=True).pid\n"
        "    with open('pid', 'w') as file: file.write(f'{pid} ')\n"
        "    time.sleep(600)\n"
    )
    command = project.start(*project.run_arguments(workers=1))
    pid = project.root / "pid"
    wait_for(lambda: pid.exists() and pid.read_text().endswith(" "))
    command.kill_all()
    wait_for(lambda: not is_alive(int(pid.read_text())), what="the end of the record's program")


DIES_UNSEEN = """
import os, signal, time
def features(record):
    if record.key == "r001.txt":
        return {"key": record.key}
    forks = os.getppid()
    os.kill(forks, signal.SIGSTOP)  # so that nobody hears of the end
    if os.fork() == 0:  # keeps the worker's pipe open
        time.sleep(3.0)
        os.kill(forks, signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_whose_death_is_seen_only_after_the_timeout_has_died_of_what_it_died_of(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records(["x"] * 2)
    project.write_function(DIES_UNSEEN)
    project.command(*project.run_arguments(workers=1, timeout=2, max_failures="100%"), "--quiet")
    (entry,) = sk.open_run(project.out).quarantine()
    assert (entry["error"], entry["signal"]) == ("WorkerDied", "SIGKILL")


def test_a_pause_of_the_program_does_not_count_as_time_that_the_record_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a laptop sleeps: worker and program stand still, and the clock goes on."""
    now = 1000.0
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: now))
    slot = Board(1).slots[0]
    watcher = watch.Watch(slot)
    slot.begin_record(0)
    seconds = []
    for later in (0.0, 0.1, 0.1, 3600.0, 0.1):
        now += later
        seconds.append(watcher.look()[1])
    assert seconds == pytest.approx([0.0, 0.1, 0.2, 0.2 + watch.LONGEST_GAP_S, 0.3 + watch.LONGEST_GAP_S])


@pytest.mark.whole
def test_a_system_that_lets_no_threads_start_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.write_records(["x"])
    project.write_function("def features(record): return {'key': record.key}")

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(sk.RunFailed, match="lets this process start 0 more threads"):
            project.run(workers=2)
    project.write_function("def features(record): raise ValueError('bad')")
    with pytest.raises(sk.RunFailed) as caught:
        project.run(workers=1, max_failures="100%")
    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(sk.RunFailed, match="lets this process start 0 more threads"):
        caught.value.run.retry(quiet=True)


GOES_ON = """
import time
from pathlib import Path
HERE = Path(__file__).parent

def features(record):
    if record.key == "r000.txt":
        while not (HERE / "in-time").exists():
            time.sleep(0.005)
    elif not (HERE / "begun").exists():
        (HERE / "begun").touch()
        time.sleep(60)
    return {"key": record.key}
"""


def test_a_timeout_that_comes_late_does_not_blame_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.write_records(["x"] * 2)
    project.write_function(GOES_ON)
    kill = pool.WorkerProcess.kill

    def kill_late(worker: pool.WorkerProcess) -> None:
        (tmp_path / "in-time").touch()
        wait_for((tmp_path / "begun").exists, what="the next record")
        kill(worker)

    monkeypatch.setattr(pool.WorkerProcess, "kill", kill_late)
    run = project.run(workers=1, chunks="even", timeout=1, max_failures="100%")
    assert (tmp_path / "begun").exists()
    assert run.quarantine() == []
    assert [row["key"] for row in project.rows()] == ["r000.txt", "r001.txt"]
