"""Preparing a run whose jobs something else starts, such as a workflow engine on Kubernetes.

    prepare     the input is listed, the run folder written, the jobs numbered     shardkit plan --run-id
    job 0 .. n  each does its shards                                               shardkit pass1 --run --job
    merge       the parts become the dataset                                       shardkit pass2 --run

Nothing here watches the jobs. Whoever starts them again, after whatever happened, starts them with the same arguments:
a job does what has no marker yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardkit.dataset.checks import check_not_replaced
from shardkit.dataset.day_claims import holding_days
from shardkit.dataset.switch import finish_switches
from shardkit.errors import PipelineError, PlanMismatch
from shardkit.hints import Hint
from shardkit.plan.digests import work_digest
from shardkit.runfolder.display import make_progress
from shardkit.runfolder.find import run_folder
from shardkit.runfolder.ledger import OPEN, Ledger
from shardkit.runs.here import nothing_to_do
from shardkit.runs.planning import is_new, make_run_plan, write_run
from shardkit.units import counted

if TYPE_CHECKING:
    from shardkit.functions import FunctionRef
    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.sections import Shards
    from shardkit.spec.spec import Spec

USUAL_JOBS = 200
MOST_JOBS = 1000  # a workflow keeps the state of all its jobs in one object, which may not grow further


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to be done, and the numbers of those of its jobs that have something left to do."""

    folder: RunFolder
    jobs: list[int]


def prepare(
    pipeline: Spec,
    run_id: str,
    *,
    days: tuple[str, ...] | None = None,
    max_jobs: int = USUAL_JOBS,
    quiet: bool = False,
) -> Prepared:
    """Write the run folder of a pipeline's run, for jobs that something else starts.

    A run with that id which exists already is left as it is, if it is of the same work: so a step that is done again
    finds what it has written, even if the input has changed meanwhile.

    Args:
        pipeline: the pipeline; its engine does not matter.
        run_id: the name of the run.
        days: only these.
        max_jobs: groups are packed into so many jobs at most, 1 to 1,000.
        quiet: show no progress.

    Returns:
        The run, and the jobs with open records. If nothing has changed since an earlier run, that run and no job.

    Raises:
        PipelineError: jobs could not do what the pipeline asks for.
        PlanMismatch: there is a run with that id, of other work.
    """
    _check_shards(pipeline.shards, max_jobs)
    pipeline = pipeline.replace(engine=None, queue=None, parallel=None)
    folder, ref = run_folder(pipeline.output_folder(), run_id), pipeline.function_ref()
    progress = make_progress(quiet=quiet)
    finish_switches(folder.output, must=True)
    if folder.exists():
        _check_same_work(folder, pipeline, ref)
        progress.note(f"Run {run_id} exists; going on where it ended.")
    else:
        plan = make_run_plan(pipeline, function_ref=ref, run_id=run_id, days=days, max_jobs=max_jobs)
        if not plan.content["totals"]["records"]:
            return Prepared(nothing_to_do(pipeline, plan, progress), [])
        with folder.lock(), holding_days(folder, plan.content):
            if is_new(folder, plan, may_exist=True):
                plan = replace(plan, content={**plan.content, "prepared": True})
                write_run(folder, plan, ref, pipeline.merge(), merge=True)
    jobs = _open_jobs(folder)
    _say(progress, folder, jobs)
    return Prepared(folder, jobs)


def _check_shards(shards: Shards | None, max_jobs: int) -> None:
    """See that the work can be cut into jobs that need not know of each other."""
    if not 1 <= max_jobs <= MOST_JOBS:
        raise PipelineError(
            f"{max_jobs:,} jobs: expected 1 to {MOST_JOBS:,}.",
            hint="A wider fan-out outgrows what a workflow can keep of its state; a job may do several groups.",
        )
    if shards is not None and shards.by == "s3key":
        raise PipelineError(
            "shards: by: s3key deals objects to the instances of one Processing job, and there is no such job here.",
            hint="Use by: size with count, or by: directory or date.",
        )


def _check_same_work(folder: RunFolder, pipeline: Spec, ref: FunctionRef) -> None:
    """See that a run that exists already computes the same; the input may have changed since it was planned."""
    plan = folder.plan()
    if plan["work"] != work_digest(pipeline.to_dict(), ref.digest):
        raise PlanMismatch(
            f"Run {folder.run_id} exists, and another function or pipeline has planned it.",
            hint=Hint("Give another run_id.", "Give another --run-id."),
        )
    check_not_replaced(folder)


def _open_jobs(folder: RunFolder) -> list[int]:
    ledger = Ledger(folder)
    shards = set(ledger.shard[ledger.state == OPEN].tolist())
    return [job["job"] for job in folder.plan()["jobs"] if shards & set(job["shards"])]


def _say(progress: Progress, folder: RunFolder, jobs: list[int]) -> None:
    totals = folder.plan()["totals"]
    progress.note(
        f"Run {folder.run_id}: {counted(totals['records'], 'record')} in {counted(totals['jobs'], 'job')}, "
        f"{len(jobs):,} of which {'has' if len(jobs) == 1 else 'have'} work left."
    )
