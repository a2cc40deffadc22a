"""What a run of a workflow says: what happens to its steps, and how it has ended."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NoReturn

from shardkit.errors import RunFailed, RunInterrupted
from shardkit.masking import masked
from shardkit.units import counted, human_seconds
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

    from shardkit.workflows.document import Workflow
    from shardkit.workflows.run_files import RunFiles

LAST_LINES = 6
LAST_BYTES = 4000
_EXIT = re.compile(r"AlgorithmError: ?(?P<said>.*), exit code: (?P<code>\d+)$", re.DOTALL)


class RunStopped(RunInterrupted):
    """Somebody has stopped the steps of a run."""


class Teller:
    """Says a line whenever a step's state has changed."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._told: dict[str, tuple[str, int]] = {}
        self._trouble = ""

    def tell(self, states: Sequence[StepState], trouble: str = "") -> None:
        """Say what is new: of the steps, and what is wrong with the queue."""
        if trouble and trouble != self._trouble:
            self._say(trouble)
        self._trouble = trouble
        first = not self._told
        for state in states:
            now = (state.state, state.attempts)
            before, self._told[state.name] = self._told.get(state.name), now
            if before != now and (line := self._line(state, first=first)):
                self._say(line)

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
        lines += [f"  {line}" for line in tail(log.read_bytes())]
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
