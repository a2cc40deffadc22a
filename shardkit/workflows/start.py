"""Runs of workflows begun, opened, resumed and stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.times import now
from shardkit.workflows.containers import runtime_of
from shardkit.workflows.jobs_here import Here
from shardkit.workflows.notices import send_notice
from shardkit.workflows.resolve import new_facts, resolve
from shardkit.workflows.run_files import RunFiles, find_run, state_of
from shardkit.workflows.running import WorkflowRun
from shardkit.workflows.telling import RunStopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.errors import ShardkitError
    from shardkit.workflows.document import Workflow

BY_HAND, BY_CALENDAR, BY_WEBHOOK = "hand", "calendar", "webhook"


def begin(
    workflow: Workflow,
    params: Mapping[str, str],
    *,
    state: str | None = None,
    by: str = BY_HAND,
    containers: str | None = None,
    say: Callable[[str], object],
) -> WorkflowRun:
    """Write down a new run of a workflow; nothing has begun yet.

    Args:
        workflow: The workflow, as it is in its environment.
        params: The parameters that are given.
        state: The folder of the workflow's runs.
        by: What has begun it: ``hand``, ``calendar`` or ``webhook``.
        containers: The container runtime for the steps with an image: ``docker``, ``podman`` or ``any`` of these.
        say: Gets a line about whatever happens.

    Raises:
        PipelineError: a parameter will not do, a step cannot run here, or the container runtime is not there.
    """
    runtime = runtime_of(containers) if containers is not None else None
    while True:
        facts = new_facts(workflow, params)
        files = RunFiles(state_of(workflow, state) / facts.run_id)
        place = Here(files, workflow, containers=runtime)
        for resolved in resolve(workflow, facts, outputs=str(files.outputs)):
            place.check(resolved)
        if files.create(facts, begun=now(), by=by, containers=runtime, file=str(workflow.file or "")):
            return WorkflowRun(workflow, files, place, say=say)


def open_run(
    workflow: Workflow, run_id: str | None = None, *, state: str | None = None, say: Callable[[str], object]
) -> WorkflowRun:
    """A run of a workflow, by default the latest.

    Raises:
        RunNotFound: there is none.
    """
    return opened(workflow, find_run(state_of(workflow, state), run_id), say=say)


def opened(workflow: Workflow, files: RunFiles, *, say: Callable[[str], object]) -> WorkflowRun:
    """The run in a folder."""
    return WorkflowRun(workflow, files, Here(files, workflow, containers=files.about()["containers"]), say=say)


def carry_out(run: WorkflowRun, *, begin_again: str | None = None, leave: bool = False) -> None:
    """Run, or go on with, the steps of a run, to their ends; who is to be told of that is told.

    Args:
        run: The run.
        begin_again: The step that begins again, with all that come after it.
        leave: Whether the steps go on after Ctrl-C or SIGTERM.

    Raises:
        RunBusy: another process works on the run.
        RunFailed: a step failed.
        RunInterrupted: by Ctrl-C, SIGTERM or a stop.
    """
    from shardkit.errors import RunFailed, RunInterrupted

    with run.files.lock():
        run.await_stopped()
        run.submit(begin_again=begin_again)
        failure: ShardkitError | None = None
        try:
            run.drive(leave=leave)
            run.conclude()
        except (RunFailed, RunInterrupted) as error:
            failure = error
        if not (leave and isinstance(failure, RunInterrupted) and not isinstance(failure, RunStopped)):
            send_notice(run, failure)
        if failure is not None:
            raise failure
