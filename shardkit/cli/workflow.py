"""``shardkit workflow``: several steps in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Group, echo, options
from shardkit.cli.options import FOLLOW, JSON
from shardkit.cli.workflow_deploy import ON_KUBERNETES
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.running import WorkflowRun

WORKFLOW = click.argument("workflow", metavar="WORKFLOW.yaml")
ENVIRONMENT = click.option("--env", "environment", metavar="NAME", help="Which of the file's environments.")
STATE = click.option(
    "--state", metavar="DIR", help="Where runs are kept; by default _shardkit/workflows/ beside the file."
)
A_RUN = options(
    WORKFLOW,
    ENVIRONMENT,
    click.option("--run-id", metavar="ID", help="Which run; by default the latest."),
    STATE,
)
PARAMS = click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated.")
CONTAINERS = click.option(
    "--containers",
    is_flag=False,
    flag_value="any",
    metavar="[RUNTIME]",
    help="Run steps that have an image in containers: docker or podman, by default whichever is there.",
)


ENGINE = click.option(
    "--engine", metavar="KIND", help="Where steps are jobs: sagemaker, local ...; none: processes here."
)


@click.group(
    cls=Group,
    epilog="""
shardkit workflow plan workflow.yaml --env dev
shardkit workflow run workflow.yaml --env dev --param date=2026-01-01
shardkit workflow status workflow.yaml --env dev
""",
)
def workflow() -> None:
    """Run the steps of a file in their order, in one of its environments."""


def _say(text: str) -> None:
    echo(text, err=True)


def _read(path: str, environment: str | None) -> Workflow:
    from shardkit.workflows.read import read_workflow

    return read_workflow(path).of_environment(environment)


def _opened(workflow: str, environment: str | None, run_id: str | None, state: str | None) -> WorkflowRun:
    from shardkit.workflows.start import open_run

    return open_run(_read(workflow, environment), run_id, state=state, say=_say)


def parameters_of(params: tuple[str, ...]) -> dict[str, str]:
    """Parameters from ``NAME=VALUE``, as texts."""
    values = {}
    for text in params:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise PipelineError(f"--param {text}: expected NAME=VALUE, such as date=2026-01-31.")
        values[name.strip()] = value
    return values


@workflow.command("init", epilog="shardkit workflow init salaries")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init_workflow(folder: Path) -> None:
    """Write a workflow that runs as it is: features of job ads, a model of salaries, predictions."""
    from importlib.util import find_spec

    from shardkit.templates import write_template

    for line in write_template("workflow", folder, command="workflow run workflow.yaml --env dev"):
        _say(line)
    if find_spec("sklearn") is None:
        _say("Its second step needs scikit-learn: pip install 'shardkit[workflows]'")


@workflow.command(
    "run",
    epilog="""
shardkit workflow run workflow.yaml
shardkit workflow run workflow.yaml --env dev --param date=2026-01-01
shardkit workflow run workflow.yaml --env dev --containers
""",
)
@WORKFLOW
@ENVIRONMENT
@PARAMS
@CONTAINERS
@ENGINE
@click.option("--no-wait", is_flag=True, help="Only put the steps into the file's queue, which others serve.")
@STATE
@JSON
def run_workflow(
    workflow: str,
    environment: str | None,
    *,
    params: tuple[str, ...],
    containers: str | None,
    engine: str | None,
    no_wait: bool,
    state: str | None,
    as_json: bool,
) -> None:
    """Run the steps in their order; those that need nothing of each other run side by side.

    Ctrl-C stops them; what they have done is kept. Exit codes: 0 done, 1 a step failed, 2 the file or a parameter will
    not do, 130 interrupted.
    """
    from shardkit.workflows.start import begin

    merged = _read(workflow, environment)
    if no_wait and merged.queue is None:
        raise PipelineError("--no-wait: nobody else serves this workflow's steps.", hint="Set queue: in the file.")
    run = begin(merged, parameters_of(params), containers=containers, engine=engine, state=state, say=_say)
    _say(f"Run {run.files.run_id} of {merged.name}{_in(merged)}, in {run.files.path}")
    _carry_out(run, as_json=as_json, wait=not no_wait)


@workflow.command(
    "resume",
    epilog="""
shardkit workflow resume workflow.yaml --env dev
shardkit workflow resume workflow.yaml --env dev --from train
""",
)
@A_RUN
@click.option("--from", "begin_again", metavar="STEP", help="Do this step again, and all that come after it.")
@JSON
def resume_workflow(
    workflow: str,
    environment: str | None,
    run_id: str | None,
    *,
    state: str | None,
    begin_again: str | None,
    as_json: bool,
) -> None:
    """Go on with a run: steps that ended well are not done again, and pipelines go on where their markers end.

    The file is read again, so that a step whose command was mended runs as it is now.
    """
    from shardkit.workflows.start import open_run

    _carry_out(
        open_run(_read(workflow, environment), run_id, state=state, say=_say), as_json=as_json, begin_again=begin_again
    )


def _carry_out(run: WorkflowRun, *, as_json: bool, begin_again: str | None = None, wait: bool = True) -> None:
    from shardkit.runfolder.display import make_progress
    from shardkit.workflows.start import carry_out

    try:
        carry_out(run, begin_again=begin_again, wait=wait, progress=make_progress(quiet=False))
    finally:
        if as_json:
            _print_json(run)
    if not wait:
        _say(f"Its steps are in the queue. See how they are: {run.command('status')}")
        return
    _say(f"Run {run.files.run_id} of {run.workflow.name}: done.")
    for state in run.states():
        if state.output:
            _say(f"  {state.name}: {state.output}")


def _print_json(run: WorkflowRun) -> None:
    from shardkit.workflows.running import data_of
    from shardkit.workflows.states import outcome_of

    states = run.states()
    about = run.files.about()
    content = {"run_id": run.files.run_id, "workflow": run.workflow.name, "environment": run.workflow.environment}
    content |= {"state": outcome_of(states), "begun": about["begun"], "by": about["by"], "params": about["params"]}
    echo(json.dumps(content | {"steps": data_of(states)}))


def _in(merged: Workflow) -> str:
    return f" in {merged.environment}" if merged.environment else ""


@workflow.command(
    "serve",
    epilog="""
shardkit workflow serve workflow.yaml --env prd
HOOK_TOKEN=$(openssl rand -hex 32) shardkit workflow serve workflow.yaml --env dev
""",
)
@WORKFLOW
@ENVIRONMENT
@CONTAINERS
@STATE
def serve_workflow(workflow: str, environment: str | None, *, containers: str | None, state: str | None) -> None:
    """Begin runs by the workflow's calendar, or for each call of its webhook, until Ctrl-C or SIGTERM.

    Runs go one after the other. The steps of a run in progress go on when this ends, and the next start takes them up.
    """
    from shardkit.workflows.serve import Server

    Server(_read(workflow, environment), state=state, containers=containers, say=_say).serve()


@workflow.command(
    "status", epilog="shardkit workflow status workflow.yaml --env dev\nshardkit workflow status workflow.yaml --json"
)
@A_RUN
@JSON
def workflow_status(*, as_json: bool, **which: Any) -> None:
    """Say how the steps of a run are."""
    from shardkit.workflows.states import RUNNING, outcome_of
    from shardkit.workflows.telling import status_lines

    run = _opened(**which)
    if as_json:
        _print_json(run)
        return
    states, about = run.states(), run.files.about()
    outcome = outcome_of(states)
    nobody = outcome == RUNNING and not run.files.is_locked() and run.place.stops_with_driver
    echo(f"Run {run.files.run_id} of {run.workflow.name}{_in(run.workflow)}, begun by {about['by']}: {outcome}")
    for line in status_lines(states, run.files):
        echo(line)
    if nobody:
        echo(f"No process works on it. Go on: {run.command('resume')}")
    elif outcome in {"failed", "stopped"}:
        echo(f"Go on: {run.command('resume')}")


@workflow.command("stop", epilog="shardkit workflow stop workflow.yaml --env dev")
@A_RUN
def stop_workflow(**which: Any) -> None:
    """Stop the steps of a run that have not ended; `resume` goes on from there."""
    from shardkit.units import counted

    run = _opened(**which)
    count = run.stop()
    if not count:
        echo(f"Run {run.files.run_id}: no step is left to stop.")
        return
    echo(f"{counted(count, 'step')} of run {run.files.run_id} stopped. Go on: {run.command('resume')}")


@workflow.command(
    "clean",
    epilog="""
shardkit workflow clean workflow.yaml --env dev --older-than 30d --dry-run
shardkit workflow clean workflow.yaml --env dev --older-than 30d
""",
)
@WORKFLOW
@ENVIRONMENT
@STATE
@click.option("--older-than", required=True, metavar="TIME", help="Only runs that ended so long ago: 12h, 30d, 8w.")
@click.option("--dry-run", is_flag=True, help="Only say which would go.")
def clean_workflow(
    workflow: str, environment: str | None, *, state: str | None, older_than: str, dry_run: bool
) -> None:
    """Remove the folders of old runs, with their logs and the outputs that lie in them; the latest run stays."""
    from shardkit.units import counted
    from shardkit.workflows.clean import clean
    from shardkit.workflows.run_files import state_of

    gone = clean(state_of(_read(workflow, environment), state), older_than, dry_run=dry_run)
    for run_id in gone:
        echo(run_id)
    _say(f"{counted(len(gone), 'run')} {'would be ' if dry_run else ''}removed.")


@workflow.command(
    "logs", epilog="shardkit workflow logs workflow.yaml --step train\nshardkit workflow logs workflow.yaml --follow"
)
@A_RUN
@click.option("--step", metavar="STEP", help="Which step; by default those that failed or run, else all.")
@FOLLOW
def workflow_logs(*, step: str | None, follow: bool, **which: Any) -> None:
    """Print what the steps of a run have written."""
    from shardkit.workflows.logs import followed_lines, log_lines

    run = _opened(**which)
    for line in followed_lines(run, step) if follow else log_lines(run, step):
        echo(line)


@workflow.command("plan", epilog="shardkit workflow plan workflow.yaml --env dev --param date=2026-01-01")
@WORKFLOW
@ENVIRONMENT
@PARAMS
@CONTAINERS
def plan_workflow(workflow: str, environment: str | None, *, params: tuple[str, ...], containers: str | None) -> None:
    """Say what a run would do, in which order, without doing it; no secret is shown."""
    from shardkit.workflows.plan import plan_lines

    for line in plan_lines(_read(workflow, environment), parameters_of(params), containers=containers):
        echo(line)


for command in ON_KUBERNETES:
    workflow.add_command(command)
