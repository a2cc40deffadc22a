"""The engine that runs a workflow's steps as plain processes of this machine.

It is the local engine, whose jobs outlive the process that made them, with two differences: a step sees the whole
environment of the process that starts it, and its job lives in the folder of the workflow's run.

The supervisor imports this: standard library only, and little of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from shardkit.engines.supervisor import Supervisor
from shardkit.engines.supervisor import main as supervise

if TYPE_CHECKING:
    from shardkit.engines.local import LocalEngine

LONGEST_S = 366 * 86_400.0
STOP_GRACE_S = 30.0


class StepSupervisor(Supervisor):
    """Runs one step."""

    handed_on = re.compile(r".+", re.DOTALL)
    longest_s = LONGEST_S


def main() -> None:
    """Run the step that the arguments name."""
    supervise(StepSupervisor)


def step_engine(root: str, *, at_once: int) -> LocalEngine:
    """The engine for the run in a folder, with at most so many steps at once."""
    from shardkit.engines.local import LocalEngine

    class StepEngine(LocalEngine):
        supervise: ClassVar[str] = "from shardkit.workflows.here import main; main()"

    return StepEngine(root, max_instances=at_once, stop_grace=STOP_GRACE_S)
