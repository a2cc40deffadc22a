"""Runs a command of the program that stops itself before the n-th of some steps, as if the machine were suspended.

    pausing.py KIND STEP LOG ARGUMENT...

It writes the steps that it reached to LOG. Its leases are short, so that another command can soon take over.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.dataset import next_state as building
from shardkit.dataset import switch as commit
from shardkit.dataset import switch_steps as switching
from shardkit.runs import clean as cleaning
from shardkit.runs import scheduler as schedule
from shardkit.storage import lease
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.objects import ObjectFolder

if TYPE_CHECKING:
    from collections.abc import Callable

RENEWAL_S = 0.2
SWITCH_STEPS: tuple[tuple[Any, str, str], ...] = (
    (commit, "note", "create"),
    (switching.Switch, "confirm", "confirm"),
    (switching, "_publish", "publish"),
    (switching.Switch, "_write_result", "result"),
    (switching, "note", "current"),
    (switching, "remove", "remove"),
    (switching, "_tidy", "tidy"),
    (switching.Switch, "forget", "forget"),
)
CLEAN_STEPS: tuple[tuple[Any, str, str], ...] = (
    (cleaning._Folder, "_has_changed", "look"),
    (cleaning, "_remove", "begin"),
    (LocalFolder, "remove", "remove"),
    (LocalFolder, "remove_remains", "remains"),
    (ObjectFolder, "remove", "remove"),
    (ObjectFolder, "_remove", "remove"),
)


class Stopping:
    """Wraps functions so that the process stops before the n-th call of all that happen within `within`."""

    def __init__(self, step: int, log: Path) -> None:
        self._step, self._log, self._one = step, log, threading.Lock()
        self.steps: list[str] = []
        self._within = 0

    def within(self, where: Any, name: str) -> None:
        do = getattr(where, name)

        def instead(*arguments: Any, **options: Any) -> Any:
            self._within += 1
            try:
                return do(*arguments, **options)
            finally:
                self._within -= 1

        setattr(where, name, instead)

    def before(self, where: Any, name: str, step: str) -> None:
        do = getattr(where, name)

        def instead(*arguments: Any, **options: Any) -> Any:
            if self._within:
                self._come_to(step)
            return do(*arguments, **options)

        setattr(where, name, instead)

    def everywhere(self) -> None:
        self._within = 1

    def _come_to(self, step: str) -> None:
        with self._one:
            self.steps.append(step)
            self._log.write_text(" ".join(self.steps))
            reached = len(self.steps) == self._step
        if reached:
            os.kill(os.getpid(), signal.SIGSTOP)


def stop_in_switch(stopping: Stopping) -> None:
    for step in SWITCH_STEPS:
        stopping.before(*step)
    stopping.within(building, "switch")


def stop_in_clean(stopping: Stopping) -> None:
    for step in CLEAN_STEPS:
        stopping.before(*step)
    stopping.within(cleaning._Folder, "clean")


def stop_in_schedule(stopping: Stopping) -> None:
    """Stop before the wait for the next run, before each run, its switch and the cleaning after it."""
    schedule.LOOK_EVERY_S = 0.2
    stopping.everywhere()
    stopping.before(schedule.WallClock, "wait", "wait")
    stopping.before(schedule.Scheduler, "_run", "run")
    stopping.before(building, "switch", "switch")
    stopping.before(schedule.Scheduler, "_clean", "clean")


def stop_in_serving(stopping: Stopping) -> None:
    """Stop before each write of the queue and each call of the service, which is a simulated one in a folder."""
    from file_service import FileService

    from shardkit.engines.sagemaker import SageMaker
    from shardkit.jobs import Policy, open_store

    place = sys.argv[sys.argv.index("--store") + 1]
    kind = type(open_store(place))
    for name in ("update", "update_many", "put_state"):
        stopping.before(kind, name, name)
    for name in ("create_processing_job", "describe_processing_job", "list_processing_jobs"):
        stopping.before(FileService, name, name)
    service = FileService(Path(os.environ["FILE_SERVICE"]))
    setattr(SageMaker, "serving", lambda *_: (service, Policy.local(lease_s=0.3)))  # noqa: B010
    setattr(SageMaker, "cloudwatch", False)  # noqa: B010
    stopping.everywhere()


def stop_in_queue(stopping: Stopping) -> None:
    """Stop before each step of a driver that watches its jobs."""
    from shardkit.jobs import SQLiteStore
    from shardkit.runs.on_engine import RunJobs
    from shardkit.runs.queue import OwnQueue

    stopping.everywhere()
    stopping.before(RunJobs, "submit", "submit")
    stopping.before(SQLiteStore, "submit_many", "submit_many")
    stopping.before(OwnQueue, "keep", "keep")
    stopping.before(SQLiteStore, "update_many", "update_many")
    stopping.before(RunJobs, "conclude", "conclude")


KINDS: dict[str, Callable[[Stopping], None]] = {
    "switch": stop_in_switch,
    "clean": stop_in_clean,
    "schedule": stop_in_schedule,
    "serve": stop_in_serving,
    "queue": stop_in_queue,
}

if __name__ == "__main__":
    from crashing import LEASE_S

    from shardkit.cli import main

    lease.LEASE_S, lease.LEASE_RENEWAL_S = LEASE_S, RENEWAL_S
    KINDS[sys.argv[1]](Stopping(int(sys.argv[2]), Path(sys.argv[3])))
    main(sys.argv[4:])
