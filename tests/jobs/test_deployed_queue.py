"""The deployed queue: its template is brought up in an emulator, where its schedules fire and its functions run.

SageMaker is the local engine over HTTP, with faults: it throttles, loses answers and lacks capacity. Roles are
enforced, so a function cannot do what it may not. The submitter of the jobs is gone when they are launched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from emulators import Ministack, ministack

from shardkit.engines.local import available_isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(available_isolation() == "none", reason="no namespaces on this machine"),
]

HERE = Path(__file__).parents[1]
PORT = 4577
FAULTS = ("--throttle", "0.1", "--lose-responses", "0.1", "--capacity-errors", "0.05", "--seed", "7")
# By hand a thousand, with schedules as in the cloud, and the killer goes on.
JOBS = int(os.environ.get("SHARDKIT_TEST_JOBS", "8"))
HURRY = JOBS < 100
MORTAL = "launch" if HURRY else ""  # a notice that a dead monitor had in hand is sent minutes later
MINUTE_S = 6.0 if HURRY else 60.0  # of the schedules
MOST_KILLS = 2 if HURRY else 30
SECONDS = 200 + JOBS


@contextlib.contextmanager
def served(beside: Ministack, folder: Path) -> Iterator[None]:
    """The local engine over HTTP, in ministack's network."""
    command = [sys.executable, "-m", "shardkit", "engine", "serve", "--port", str(PORT), "--root", str(folder), *FAULTS]
    command.append("--any-credentials")  # the roles' own; nobody else is in this network
    process = subprocess.Popen(
        ["nsenter", "-t", str(beside.pid), "-U", "-n", "--preserve-credentials", *command],
        env={**beside.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "http" in process.stdout.readline()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def functions_of(folder: Path) -> list[int]:
    """The processes in which ministack runs functions."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if any(word.startswith(f"{folder}/ministack-lambda-shardkit-jobs-{MORTAL}".encode()) for word in words):
                found.append(int(name))
    return found


class Killer(threading.Thread):
    """Kills a function every few seconds, at any point of its work."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.killed, self.over = folder, 0, threading.Event()

    def run(self) -> None:
        draw = random.Random(11)
        while self.killed < MOST_KILLS and not self.over.wait(draw.uniform(1, 4 if HURRY else 50)):
            if found := functions_of(self.folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(found), signal.SIGKILL)
                    self.killed += 1


def beside_it(beside: Ministack, *words: str, timeout_s: float = 120) -> dict[str, Any]:
    done = beside.run([sys.executable, str(HERE / "deployment.py"), *words], timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_jobs_outlive_who_submitted_them(tmp_path: Path) -> None:
    env = {"AUTH": "true", "AWS_ENDPOINT_URL_SAGEMAKER": f"http://127.0.0.1:{PORT}"}
    with ministack(tmp_path, env, minute_s=MINUTE_S) as beside, served(beside, tmp_path / "engine"):
        stack = beside_it(beside, "submit", str(JOBS), str(tmp_path / "deploy"), timeout_s=300)
        killer = Killer(tmp_path / "ministack")
        killer.start()
        seen = beside_it(beside, "watch", str(JOBS), stack["Queue"], str(SECONDS), timeout_s=SECONDS + 60)
        killer.over.set()
    log = (tmp_path / "ministack" / "log").read_text()
    about = {name: value for name, value in seen.items() if name not in {"told", "attempts"}}
    twice = sum(number > 1 for number in seen["told"].values())
    sys.stdout.write(f"{about}; {len(seen['attempts'])} attempts, {twice} told twice, {killer.killed} killed\n")
    assert seen["counts"]["Completed"] == JOBS, (seen["counts"], log[-5000:])
    assert len(seen["told"]) == JOBS, "not everybody was told"
    assert killer.killed, "no function was killed"
    assert "AccessDenied" not in log
    once_each(seen["attempts"])


def once_each(attempts: list[list[Any]]) -> None:
    """Every job completed once, and no attempt ran beside another one of its job."""
    jobs: dict[str, list[tuple[float, float, str]]] = {}
    for name, status, created, ended in attempts:
        assert ended is not None, f"{name} has not ended"
        jobs.setdefault(name.rpartition("-")[0], []).append((created, ended, status))
    assert len(jobs) == JOBS
    for job_id, ran in jobs.items():
        ran.sort()
        assert [status for *_, status in ran].count("Completed") == 1, (job_id, ran)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ran)), (job_id, ran)
