"""A run on this machine: this process and its workers plan it and do both passes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from shardkit.dataset.current import current_result
from shardkit.dataset.day_claims import holding_days
from shardkit.dataset.formats.kinds import check_installed
from shardkit.dataset.switch import finish_switches, keep_index
from shardkit.errors import RunNotFound
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.display import make_progress
from shardkit.runfolder.find import run_folder
from shardkit.runs.checked import still_aside
from shardkit.runs.on_cluster import check_room_for, cluster_of, workers_of
from shardkit.runs.planning import is_new, make_run_plan, write_run
from shardkit.runs.summary import is_complete, is_made, tell_set_aside
from shardkit.storage.interruption import heeding_interrupts

if TYPE_CHECKING:
    from shardkit.dataset.merge import Merge
    from shardkit.plan.plan import Plan
    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.spec import Spec
    from shardkit.workers.work import Workers


@heeding_interrupts()
def start_run(
    pipeline: Spec,
    folder: RunFolder,
    *,
    days: tuple[str, ...] | None = None,
    may_exist: bool,
    quiet: bool,
    merge: bool = True,
) -> RunFolder:
    """Plan and run both passes in this process and its workers; returns the run that has made the dataset.

    If the run exists already, which is possible only with ``may_exist``, and its plan is the same, go on with it.
    Without ``merge`` the dataset is pass 1's parts as they are.
    """
    begun = time.monotonic()
    check_room_for(pipeline)
    if not merge:
        pipeline = pipeline.replace(incremental=False)  # some rows of a part that is taken over may no longer count
    if merge:
        check_installed(pipeline.output.format)
    if pipeline.catalog is not None:
        from shardkit.dataset.catalogs import check_extras

        check_extras(pipeline.catalog.extras)
    progress = make_progress(quiet=quiet)
    if any(part.uri is None for part in pipeline.input.places()):
        from shardkit.runs.listing import with_roots

        pipeline = with_roots(pipeline)
    ref, merging = pipeline.function_ref(), pipeline.merge()
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(cluster_of(pipeline))
        finish_switches(folder.output, must=True)
        # The workers get ready while the input is listed; one is enough if little has changed.
        ready = 1 if pipeline.is_incremental else None
        pool = stack.enter_context(workers_of(folder, pipeline, ref, cluster, begun=ready))
        plan = make_run_plan(pipeline, function_ref=ref, run_id=folder.run_id, days=days, workers=pool.size)
        if not plan.content["totals"]["records"]:
            return nothing_to_do(pipeline, plan, progress)
        pool.begin(plan.content["totals"]["chunks"] - len(plan.taken_over))
        with folder.lock(new=not may_exist) as held, holding_days(folder, plan.content):
            fresh = is_new(folder, plan, may_exist=may_exist)
            attempt = Attempt(folder, progress, begun=begun, fresh=fresh).holding(held)
            if not fresh:
                same = folder.plan()["pipeline"] == plan.content["pipeline"]
                if same and made_already(folder, merging, attempt):
                    progress.note(f"Run {folder.run_id} is done; there is nothing to do.")
                    return folder
                progress.note(f"Run {folder.run_id} exists; going on where it ended.")
            else:
                write_run(folder, plan, ref, merging, merge=merge)
            both_passes(folder, pipeline, merging, pool, attempt, fresh=fresh)
    tell_set_aside(folder, progress)
    return folder


def made_already(folder: RunFolder, merging: Merge, attempt: Attempt) -> bool:
    """Whether a run has made its dataset, so that nothing is left to do but to see that its table is up to date.

    A run may have ended, or have been killed, between the two.

    Raises:
        CatalogError: the table cannot be brought up to date.
    """
    done, has_table = is_complete(folder), merging.glue is not None or merging.iceberg is not None
    if not done and not (has_table and is_made(folder)):
        return False
    keep_index(merging.layout, folder.output)
    if has_table:
        from shardkit.dataset.catalogs import keep_registered

        with contextlib.nullcontext() if done else attempt:
            keep_registered(merging, folder.output, changed=True)
    return True


def nothing_to_do(pipeline: Spec, plan: Plan, progress: Progress) -> RunFolder:
    """The run that made the present dataset, because nothing that it was made of has changed.

    Raises:
        ChecksFailed: nothing has changed since a run whose new files have failed a check, and are kept aside.
    """
    if (aside := plan.content.get("aside")) is not None:
        raise still_aside(run_folder(pipeline.output_folder(), aside), plan.content["unchanged"]["records"])
    current = current_result(pipeline.output_folder())
    if current is None:
        raise RunNotFound(f"{pipeline.output.uri} holds no dataset.", hint="Run with incremental: false.")
    from shardkit.dataset.catalogs import keep_registered

    keep_index(pipeline.merge().layout, pipeline.output_folder())
    keep_registered(pipeline.merge(), pipeline.output_folder(), changed=False)
    count = plan.content["unchanged"]["records"]
    progress.note(f"Nothing has changed in {count:,} records since run {current['run_id']}; there is nothing to do.")
    return run_folder(pipeline.output_folder(), current["run_id"])


def both_passes(
    folder: RunFolder,
    pipeline: Spec,
    merging: Merge,
    pool: Workers,
    attempt: Attempt,
    *,
    retry: bool = False,
    fresh: bool = False,
) -> None:
    """Do what is left of both passes of a planned run, whose lock the caller holds."""
    from shardkit.pass1_preprocessing import run_pass1
    from shardkit.pass2_combine import run_pass2

    if merging.checks:
        from shardkit.dataset.data_checks import check_queries

        check_queries(merging.checks)
    with attempt:
        ledger = run_pass1(folder, pool, pipeline.limits(), attempt, retry=retry, fresh=fresh)
        pool.hang_up()  # the workers end while the parts are merged
        plan = folder.plan()
        if plan["merge"]:
            name, merged = pipeline.pipeline_name(), plan["by_day"] and pool.merge_days(ledger, merging, attempt)
            run_pass2(ledger, merging, attempt, name=name, threads=pool.threads, fresh=fresh, merged=merged)
        else:
            from shardkit.dataset.part_folders import publish_parts

            publish_parts(ledger, attempt, name=pipeline.pipeline_name(), allow_empty=pipeline.allow_empty)
