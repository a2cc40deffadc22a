"""What a run of a workflow says: what happens to its steps, and how it has ended."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NoReturn

from shardkit.errors import RunFailed, RunInterrupted
from shardkit.masking import masked
from shardkit.units import counted, first_line, human_seconds
from shardkit.workflows.states import (
    DONE,
    FAILED_STEP,
    NOT_BEGUN,
    RUNNING,
    STOPPED_STEP,
    WAITING,
    StepState,
    outcome_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from shardkit.runfolder.display import Progress
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.run_files import RunFiles

LAST_LINES = 6
LAST_BYTES = 4000
LINE_CHARACTERS = 60  # of what a step has written, where there is a line for all
SHOWN_EVERY_S = 0.5
_EXIT = re.compile(r"AlgorithmError: ?(?P<said>.*), exit code: (?P<code>\d+)$", re.DOTALL)


class RunStopped(RunInterrupted):
    """Somebody has stopped the steps of a run."""


class Teller:
    """Says a line whenever a step's state has changed, and shows how far the run is.

    Args:
        say: Gets the lines.
        files: The run's folder.
        progress: Shows how far it is; None if nobody looks.
    """

    def __init__(self, say: Callable[[str], object], files: RunFiles, progress: Progress | None = None) -> None:
        self.say = say if progress is None else progress.note
        self._files, self._progress = files, progress
        self._told: dict[str, tuple[str, int]] = {}
        self._trouble, self._next = "", 0.0

    def tell(self, states: Sequence[StepState], trouble: str = "") -> None:
        """Say what is new: of the steps, and what is wrong with the queue."""
        if trouble and trouble != self._trouble:
            self.say(trouble)
        self._trouble = trouble
        first = not self._told
        for state in states:
            now = (state.state, state.attempts)
            before, self._told[state.name] = self._told.get(state.name), now
            if before != now and (line := self._line(state, first=first)):
                self.say(line)
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + SHOWN_EVERY_S
            done = sum(state.state == DONE for state in states)
            self._progress.update(done, self._shown(states, done))

    def _shown(self, states: Sequence[StepState], done: int) -> str:
        """How far the run is, in one line: the steps that run, each with the last line that it has written."""
        parts = [f"{done} of {counted(len(states), 'step')} done"]
        for state in states:
            if state.state == RUNNING and state.job is not None:
                took = f" {human_seconds(state.seconds)}" if state.seconds is not None else ""
                lines = tail(last_bytes(self._files.log(state.job.name)))
                said = f": {first_line(lines[-1], characters=LINE_CHARACTERS)}" if lines else ""
                parts.append(f"{state.name}{took}{said}")
        return " | ".join(parts)

    def _line(self, state: StepState, *, first: bool) -> str:
        took = f" in {human_seconds(state.seconds)}" if state.seconds is not None else ""
        attempt = f" (attempt {state.attempts})" if state.attempts > 1 else ""
        if state.state == DONE:
            return f"{state.name}: done{'' if first else took}"
        if state.state == RUNNING:
            return f"{state.name}: {'running' if first else 'begun'}{attempt}"
        if state.state == WAITING:
            return f"{state.name}: tried again, because {reason_of(state)}" if state.attempts and state.reason else ""
        if state.state == FAILED_STEP:
            return f"{state.name}: failed{attempt}, because {reason_of(state)}"
        return f"{state.name}: {state.state}"


def reason_of(state: StepState) -> str:
    """Why a step failed, in words."""
    match = _EXIT.match(state.reason)
    if match is not None:
        said = match["said"].strip()
        return f"its command ended with exit code {match['code']}{f': {said}' if said else ''}"
    return masked(state.reason) or "of an unknown reason"


def last_bytes(log: Path) -> bytes:
    """The end of a log; nothing if there is none yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LAST_BYTES))
            return file.read()
    except OSError:
        return b""


def tail(text: bytes) -> list[str]:
    """The last lines of a log, without secrets."""
    lines = masked(text[-LAST_BYTES:].decode("utf-8", errors="replace")).splitlines()
    return [line for line in lines if line.strip()][-LAST_LINES:]


def failure_of(workflow: Workflow, files: RunFiles, states: Sequence[StepState], go_on: str) -> None:
    """Raise what went wrong with a run that has ended, if something did.

    Raises:
        RunFailed: a step failed; the error names its log, and how to go on.
        RunStopped: the steps were stopped.
    """
    outcome = outcome_of(states)
    name = f"Run {files.run_id} of {workflow.name}"
    if outcome == STOPPED_STEP:
        raise RunStopped(f"{name} was stopped.", hint=go_on)
    if outcome == FAILED_STEP:
        _raise_failure(name, files, states, go_on)


def _raise_failure(name: str, files: RunFiles, states: Sequence[StepState], go_on: str) -> NoReturn:
    failed = [state for state in states if state.state == FAILED_STEP]
    first = failed[0]
    lines = [
        f"{name}: step {first.name} failed after {counted(max(first.attempts, 1), 'attempt')}: {reason_of(first)}."
    ]
    log = files.log(first.job.name) if first.job is not None and first.job.name else None
    if log is not None and log.is_file():
        lines += [f"  {line}" for line in tail(last_bytes(log))]
        lines.append(f"Its log: {log}")
    lines += [f"Step {state.name} failed, too: {reason_of(state)}." for state in failed[1:]]
    rest = [state.name for state in states if state.state == NOT_BEGUN]
    lines += [f"Not begun: {', '.join(rest)}."] if rest else []
    raise RunFailed("\n".join(lines), hint=go_on)


def status_lines(states: Sequence[StepState], files: RunFiles) -> Iterator[str]:
    """How the steps are, a line each."""
    width = max((len(state.name) for state in states), default=0)
    for state in states:
        took = human_seconds(state.seconds) if state.seconds is not None else ""
        attempts = f"attempt {state.attempts}" if state.attempts > 1 else ""
        why = reason_of(state) if state.state == FAILED_STEP else ""
        output = state.output if state.state == DONE else ""
        facts = ", ".join(fact for fact in (took, attempts, why) if fact)
        yield f"  {state.name:<{width}}  {state.state:<9}  {facts}{'  ' if facts and output else ''}{output}".rstrip()
        if state.state == FAILED_STEP and state.job is not None and files.log(state.job.name).is_file():
            yield f"  {'':<{width}}  log: {files.log(state.job.name)}"
