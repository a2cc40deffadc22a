"""How a run goes on: resumed where its markers end, or retried with the records in quarantine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shardkit.dataset.checks import check_not_replaced
from shardkit.dataset.day_claims import holding_days
from shardkit.dataset.switch import finish_switches
from shardkit.errors import PipelineError, PlanMismatch, RunBusy, RunReplaced
from shardkit.functions import FunctionRef, reference
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.find import latest_run
from shardkit.runfolder.ledger import Ledger
from shardkit.runfolder.steps import advice
from shardkit.runs.here import both_passes, made_already
from shardkit.runs.on_cluster import check_room_for, cluster_of, workers_of
from shardkit.runs.planning import planned_merge, planned_pipeline
from shardkit.runs.quarantine import own_days
from shardkit.runs.summary import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runs.bundle import Sent
    from shardkit.spec.spec import Spec

LAMBDA = "<lambda>"  # the name of a function that has none


@dataclass(frozen=True)
class GoingOn:
    """How a run is to go on: ``resume`` or ``retry``, with other settings or another function.

    ``sent`` is the code, if this process is a job itself.
    """

    command: str
    settings: Mapping[str, Any]
    function: str | Callable[..., Any] | None
    changed_function: bool = False
    make_current: bool = False
    sent: Sent | None = None


def go_on_with(run: RunFolder, going: GoingOn, progress: Progress) -> None:
    """Resume or retry a run, here or on its engine.

    Raises:
        PlanMismatch: the function, or a setting, would change what is computed.
        RunReplaced: a later run has replaced the dataset, and that is not to be undone.
        RunFailed, RunInterrupted, BudgetExceeded: as for a new run.
    """
    if "merge_of" not in run.plan():  # which has no workers
        check_room_for(planned_pipeline(run.plan(), going.settings))
    finish_switches(run.output, must=True)
    folder = own_days(run)
    plan, settings, retry = folder.plan(), going.settings, going.command == "retry"
    if "merge_of" in plan:
        raise PipelineError(f"Run {run.run_id} was made by pass2 alone.", hint="Give the pass2 command again.")
    try:
        if not (retry and plan["by_day"]):  # its days are checked one by one, with a cure for each
            check_not_replaced(folder)
    except RunReplaced:
        if not going.make_current:
            raise
        folder = replace(folder, on_top=True)
        plan = folder.plan()
    pipeline, sent = planned_pipeline(plan, settings), going.sent
    if sent is not None:
        pipeline = pipeline.replace(source_dir=sent.source_dir)
    if plan.get("prepared"):
        _check_source(folder, going, pipeline)
    if folder.on_top:
        going = replace(going, changed_function=True)  # all its records are settled, so that no function is called
    ref = _function(run, going, pipeline)
    if pipeline.engine is not None:
        from shardkit.runs.on_engine import go_on

        instead = ref if going.function is not None else None
        with folder.lock() as held, holding_days(folder, plan):
            _note_as_latest(folder)
            code = sent.uri if sent is not None else None
            go_on(folder, pipeline, progress, changes=settings, retry=retry, function=instead, code=code, held=held)
        return
    if plan.get("prepared") and status_of(folder) == "running" and not folder.is_locked():
        raise RunBusy(
            f"Run {run.run_id}: jobs are at work that something else has started.",
            hint="Wait for them, or stop what started them (`argo stop`, on Kubernetes), and give the command again.",
        )
    begun = time.monotonic()
    merging = planned_merge(folder, pipeline, settings)
    with folder.lock() as held, holding_days(folder, plan):
        more = settings or folder.on_top or (retry and Ledger(folder).quarantined)
        attempt = Attempt(folder, progress, begun=begun, command=going.command).holding(held)
        if not more and made_already(folder, merging, attempt):
            progress.note(f"Run {run.run_id} is done; there is nothing to {going.command}.")
            return
        _note_as_latest(folder)
        with cluster_of(pipeline) as cluster, workers_of(folder, pipeline, ref, cluster) as pool:
            both_passes(folder, pipeline, merging, pool, attempt, retry=retry)


def _check_source(run: RunFolder, going: GoingOn, pipeline: Spec) -> None:
    """See that the code is here: a prepared run was planned on another machine, such as in a container.

    Raises:
        PipelineError: it is not.
    """
    source = pipeline.source_dir
    if source is not None and not os.path.isdir(source):
        raise PipelineError(
            f"Run {run.run_id} was planned where its functions are in {source}, and here is no such folder.",
            hint=advice(run, lambda step: f"Say where they are here: {step(going.command, source_dir='DIR')}"),
        )


def _function(run: RunFolder, going: GoingOn, pipeline: Spec) -> FunctionRef:
    """The function to go on with.

    Raises:
        PlanMismatch: it is not the run's own, and nobody has said that this is meant.
    """
    plan = run.plan()
    if going.function is not None:
        ref = reference(going.function, source_dir=pipeline.source_dir)
    elif (pickled := run.pickled("function")) is not None:
        ref = FunctionRef(plan["pipeline"]["function"], None, plan["function_digest"], pickled)
    else:
        ref = pipeline.function_ref()
    if going.changed_function:
        return ref
    name, before = _bare_name(ref.name), _bare_name(plan["pipeline"]["function"])
    if name != before and LAMBDA not in {name, before}:
        mixed = advice(
            run,
            lambda step: (
                "Is this the run that you mean? If so, say that the two functions belong together: "
                f"{step.other_function(going.command, ref.name)}"
            ),
        )
        raise PlanMismatch(f"Run {run.run_id} is of the function {before}, not of {name}.", hint=mixed)
    if going.command == "resume" and ref.digest != plan["function_digest"]:
        raise PlanMismatch(
            f"The source of {ref.name} has changed since run {run.run_id} was planned.",
            hint=advice(
                run,
                lambda step: (
                    "Start a new run; or, to keep what is done and use the new source for the rest: "
                    f"{step('resume', changed_function=True)}"
                ),
            ),
        )
    return ref


def _bare_name(function: str) -> str:
    """The name of a function in its module, wherever that module is now."""
    return function.rpartition(":")[2].rpartition(".")[2]


def _note_as_latest(folder: RunFolder) -> None:
    """Make this run the output's latest, because it goes on: commands without an id now mean this one."""
    latest = latest_run(folder.output)
    if latest is not None and latest.run_id != folder.run_id:
        folder.note_as_latest()
