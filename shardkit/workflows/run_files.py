"""The folder of a workflow's run.

    <state>/<run id>/run.json        what the run is: written once
                     jobs.sqlite     the queue of its steps' jobs, which knows how each step is
                     steps/<job>.json    what a job of this machine runs; it has no secrets
                     jobs/<job>-<attempt>/logs/algo-1.log    what an attempt wrote
                     outputs/<step>/ what a step has made for which the file names no other place
                     ended.json      when and how it ended; gone while it goes on
                     run.lock        held by the process that works on the run

By default <state> is ``_shardkit/workflows/<name>/<environment>/`` beside the workflow's file.
"""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import Damaged, RunNotFound
from shardkit.storage.base import STATE_DIR
from shardkit.storage.local import create_bytes, write_bytes
from shardkit.storage.local_folder import LocalFolder
from shardkit.times import now
from shardkit.workflows.problems import near
from shardkit.workflows.resolve import Facts

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from shardkit.storage.locks import Held
    from shardkit.workflows.document import Workflow

RUN, LOCK, QUEUE, END = "run.json", "run.lock", "jobs.sqlite", "ended.json"
FORMAT = 1


@dataclass(frozen=True)
class RunFiles:
    """The files of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def queue(self) -> Path:
        """The file of the run's own queue."""
        return self.path / QUEUE

    @property
    def outputs(self) -> Path:
        """The folder of the outputs that have no place of their own."""
        return self.path / "outputs"

    def create(
        self, facts: Facts, *, begun: str, by: str, containers: str | None, engine: str | None, file: str
    ) -> bool:
        """Write down that there is this run; returns whether there was none of its id."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {"format": FORMAT, "begun": begun, "by": by, "containers": containers, "engine": engine}
        content |= {"file": file, "date": facts.date, "params": dict(facts.params)}
        return create_bytes(self.path / RUN, json.dumps(content, indent=2).encode())

    def about(self) -> dict[str, Any]:
        """What was written down.

        Raises:
            Damaged: it cannot be read.
        """
        try:
            content = json.loads((self.path / RUN).read_text("utf-8"))
            if content["format"] > FORMAT:
                raise Damaged(f"{self.path / RUN} is of a later version of shardkit.", hint="Install that one.")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{self.path / RUN} is damaged: {error}.", hint="Begin a new run.") from None
        return dict(content)

    def note_end(self, outcome: str | None) -> None:
        """Write down that the run has ended, and how; None: that it goes on."""
        if outcome is None:
            (self.path / END).unlink(missing_ok=True)
        else:
            write_bytes(self.path / END, json.dumps({"ended": now(), "outcome": outcome}).encode())

    def ended(self) -> datetime.datetime | None:
        """When the run ended; None if it goes on, or nobody has seen it end."""
        try:
            return datetime.datetime.fromisoformat(json.loads((self.path / END).read_text("utf-8"))["ended"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def facts(self) -> Facts:
        """The facts of the run."""
        about = self.about()
        return Facts(self.run_id, about["date"], about["params"])

    def write_step(self, job_id: str, about: dict[str, Any]) -> None:
        """Write down what a job runs."""
        write_bytes(self.path / "steps" / f"{job_id}.json", json.dumps(about, indent=2).encode())

    def log(self, attempt_name: str) -> Path:
        """What an attempt of a job of this machine has written."""
        return self.path / "jobs" / attempt_name / "logs" / "algo-1.log"

    def lock(self) -> AbstractContextManager[Held]:
        """Hold the run, which only one process works on.

        Raises:
            RunBusy: another process does (when the block begins).
        """
        return LocalFolder(self.path).lock(LOCK, f"Another process works on the run {self.run_id}.")

    def is_locked(self) -> bool:
        """Whether a process works on the run."""
        return LocalFolder(self.path).is_locked(LOCK)


def state_of(workflow: Workflow, state: str | None = None) -> Path:
    """The folder of a workflow's runs in one environment."""
    if state is not None:
        return Path(os.path.abspath(os.path.expanduser(state)))
    base = workflow.folder / STATE_DIR / "workflows" / workflow.name
    return base / (workflow.environment or "default")


def runs_in(state: Path) -> list[RunFiles]:
    """The runs in a folder, the newest last."""
    try:
        names = sorted(entry.name for entry in os.scandir(state) if (Path(entry.path) / RUN).is_file())
    except FileNotFoundError:
        return []
    return [RunFiles(state / name) for name in names]


def find_run(state: Path, run_id: str | None = None) -> RunFiles:
    """The run with that id, by default the latest.

    Raises:
        RunNotFound: there is none.
    """
    runs = runs_in(state)
    if not runs:
        raise RunNotFound(f"{state} holds no run of this workflow.", hint="Begin one: shardkit workflow run")
    if run_id is None:
        return runs[-1]
    for run in runs:
        if run.run_id == run_id:
            return run
    raise RunNotFound(f"{state} holds no run {run_id!r}; {near(run_id, [run.run_id for run in reversed(runs)])}")
