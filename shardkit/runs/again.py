"""A run that is asked for by its id again and again, until it is done: by a scheduler, a workflow, a job's attempts."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from shardkit.errors import PlanMismatch
from shardkit.plan.digests import work_digest
from shardkit.runfolder.find import run_folder
from shardkit.runs.handle import Run
from shardkit.runs.start import start
from shardkit.runs.summary import is_complete

if TYPE_CHECKING:
    from shardkit.spec.spec import Spec

# What may differ in a run that goes on, without any other effect on what it has done already.
LIMITS = ("timeout", "max_failures", "allow_empty")


def start_or_go_on(spec: Spec, run_id: str, *, days: tuple[str, ...] | None = None, quiet: bool = False) -> Run:
    """Run a pipeline under an id, whatever an earlier try with that id has left.

    A run of the same work goes on, with the files that it was planned for, even if others have come since. If the
    function or the pipeline is another now, so that rows would not belong together, the run begins anew, as ``ID.2``
    and so on.

    Raises:
        RunFailed, RunInterrupted, BudgetExceeded: as for `start`.
    """
    output = spec.output_folder()
    for number in itertools.count(1):
        folder = run_folder(output, run_id if number == 1 else f"{run_id}.{number}")
        try:
            return start(spec, days=days, run_id=folder.run_id, quiet=quiet)
        except PlanMismatch:
            if folder.exists() and folder.plan()["work"] == work_digest(spec.to_dict(), spec.function_ref().digest):
                changed = {} if is_complete(folder) else _changed(spec, folder.plan()["pipeline"])
                return Run(folder).resume(quiet=quiet, **changed)
    raise AssertionError


def _changed(spec: Spec, planned: Any) -> dict[str, Any]:
    """The limits of a run that the pipeline says otherwise now."""
    changed = {name: value for name in LIMITS if (value := getattr(spec, name)) != planned.get(name)}
    usd = spec.max_cost.usd if spec.max_cost is not None else None
    if usd != (planned.get("max_cost") or {}).get("usd"):
        changed["max_cost"] = usd
    return changed
