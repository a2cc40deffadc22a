"""Runs of workflows begun, opened, resumed and stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.engines.kinds import NO_ENGINE, settings_from
from shardkit.errors import PipelineError, RunFailed, RunInterrupted
from shardkit.times import now
from shardkit.workflows.containers import runtime_of
from shardkit.workflows.jobs_here import Here
from shardkit.workflows.notices import send_notice
from shardkit.workflows.resolve import new_facts, resolve
from shardkit.workflows.run_files import RunFiles, find_run, state_of
from shardkit.workflows.running import WorkflowRun
from shardkit.workflows.states import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.engines.settings import Settings
    from shardkit.errors import ShardkitError
    from shardkit.runfolder.display import Progress
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.running import Place

BY_HAND, BY_CALENDAR, BY_WEBHOOK = "hand", "calendar", "webhook"


def begin(
    workflow: Workflow,
    params: Mapping[str, str],
    *,
    state: str | None = None,
    by: str = BY_HAND,
    begun: str | None = None,
    containers: str | None = None,
    engine: str | None = None,
    say: Callable[[str], object],
) -> WorkflowRun:
    """Write down a new run of a workflow; nothing has begun yet.

    Args:
        workflow: The workflow, as it is in its environment.
        params: The parameters that are given.
        state: The folder of the workflow's runs.
        by: What has begun it: ``hand``, ``calendar`` or ``webhook``.
        begun: When that was, in ISO 8601; by default now.
        containers: The container runtime for the steps with an image: ``docker``, ``podman`` or ``any`` of these.
        engine: The kind of the engine that its steps run on; ``none`` for this machine, by default what the file says.
        say: Gets a line about whatever happens.

    Raises:
        PipelineError: a parameter will not do, a step cannot run here, or the container runtime is not there.
    """
    runtime = runtime_of(containers) if containers is not None else None
    settings = engine_of(workflow, engine)
    while True:
        facts = new_facts(workflow, params)
        files = RunFiles(state_of(workflow, state) / facts.run_id)
        place = place_of(workflow, files, engine=settings, containers=runtime)
        for resolved in resolve(workflow, facts, outputs=place.outputs):
            place.check(resolved)
        kind = settings.kind if settings is not None else None
        if files.create(
            facts, begun=begun or now(), by=by, containers=runtime, engine=kind, file=str(workflow.file or "")
        ):
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
    about = files.about()
    engine = engine_of(workflow, about.get("engine") or NO_ENGINE)
    return WorkflowRun(
        workflow, files, place_of(workflow, files, engine=engine, containers=about["containers"]), say=say
    )


def engine_of(workflow: Workflow, kind: str | None = None) -> Settings | None:
    """The engine of a workflow's steps, or of that kind; None for this machine itself.

    Raises:
        PipelineError: there is no such kind, or it takes settings that the file does not have.
    """
    if kind is None or (workflow.engine is not None and workflow.engine.kind == kind):
        return workflow.engine
    if kind == NO_ENGINE:
        return None
    return settings_from({"kind": kind})


def place_of(workflow: Workflow, files: RunFiles, *, engine: Settings | None, containers: str | None) -> Place:
    """Where the steps of a run run.

    Raises:
        PipelineError: containers were asked for, and the steps are jobs of an engine.
    """
    if engine is None:
        return Here(files, workflow, containers=containers)
    if containers is not None:
        raise PipelineError(f"--containers: the steps are jobs on {engine.title}.", hint="Leave one of the two out.")
    from shardkit.workflows.jobs_on_engine import OnEngine

    return OnEngine(files, workflow, engine)


def carry_out(
    run: WorkflowRun,
    *,
    begin_again: str | None = None,
    leave: bool = False,
    wait: bool = True,
    progress: Progress | None = None,
) -> None:
    """Run, or go on with, the steps of a run, to their ends; who is to be told of that is told.

    Args:
        run: The run.
        begin_again: The step that begins again, with all that come after it.
        leave: Whether the steps go on after Ctrl-C or SIGTERM.
        wait: Whether to stay until the steps have ended; else they are only put into the queue that others serve.
        progress: Shows how far the run is.

    Raises:
        RunBusy: another process works on the run.
        RunFailed: a step failed.
        RunInterrupted: by Ctrl-C, SIGTERM or a stop.
    """
    with run.files.lock():
        run.files.note_end(None)
        run.await_stopped()
        run.submit(begin_again=begin_again)
        if not wait:
            return
        failure: ShardkitError | None = None
        try:
            run.drive(leave=leave, progress=progress)
            run.conclude()
        except (RunFailed, RunInterrupted) as error:
            failure = error
        if not run.is_open():
            run.files.note_end(outcome_of(run.states()))
        if not run.place.served and not (run.is_open() and isinstance(failure, RunInterrupted)):
            send_notice(run, failure)
        if failure is not None:
            raise failure
