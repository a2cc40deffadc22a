"""Commands that serve a queue, here or in an account of AWS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import echo
from shardkit.cli.jobs_given import STORE, JobsCommand, store_of

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command(
    cls=JobsCommand,
    epilog="""
shardkit jobs serve
shardkit jobs serve --engine local --max-instances 4
shardkit jobs serve --engine slurm --root /shared/team/jobs
shardkit jobs serve --store dynamodb://shardkit-jobs --until-ended
""",
)
@click.option(
    "--engine", "kind", metavar="KIND", default="sagemaker", help="Where jobs run: sagemaker, slurm or local."
)
@click.option("--max-instances", type=click.IntRange(1), metavar="N", help="How many instances may run at once.")
@click.option("--root", metavar="DIR", help="Where a local or Slurm engine keeps its jobs, as `root` of a pipeline.")
@click.option("--until-ended", is_flag=True, help="End once every job has ended.")
@STORE
def serve(*, kind: str, max_instances: int | None, root: str | None, until_ended: bool, place: str | None) -> None:
    """Launch and watch submitted jobs, and send notices, until Ctrl-C or SIGTERM.

    Running jobs go on without it. Any number of these may serve one queue.
    """
    import signal
    import threading

    from shardkit.cli.job_lines import change_lines
    from shardkit.engines.kinds import engine_kind
    from shardkit.jobs.service import serve as serve_queue

    settings = engine_kind(kind)
    store, where = store_of(place, make=True)
    engine, policy = settings.serving(max_instances, root)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    echo(f"Serving the jobs of {where}. Ctrl-C ends it; the jobs go on.", err=True)
    serve_queue(
        store,
        engine,
        policy=policy,
        place=where if place else "",
        region=None if settings.cloudwatch else "",
        on_round=lambda *reports: _say(change_lines(*reports)),
        stop=over,
        until_ended=until_ended,
    )


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        echo(line, err=True)


@click.command(
    cls=JobsCommand,
    epilog="""
shardkit jobs policy
shardkit jobs policy --set creates_per_s=2 --set 'ceilings={"ml.m5.4xlarge": 20}' --set 'attempts={"capacity": 30}'
shardkit jobs policy --set ceilings=null
""",
)
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=JSON", help="Change a field; null resets it to its default."
)
@STORE
def policy(*, settings: tuple[str, ...], place: str | None) -> None:
    """Print the policy that a queue is served by, as JSON; or change it for all who serve it, from their next round."""
    from dataclasses import asdict

    from shardkit.jobs.service import policy_of, set_policy

    store, _ = store_of(place, make=bool(settings))
    if settings:
        set_policy(store, dict(_setting(text) for text in settings))
    echo(json.dumps(asdict(policy_of(store)), indent=2))


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise click.UsageError(f"--set {text}: write FIELD=JSON, such as creates_per_s=2.") from None


@click.command(
    "deploy-template",
    cls=JobsCommand,
    epilog="""
shardkit jobs deploy-template --output deploy
shardkit jobs deploy-template | less
""",
)
@click.option("--output", metavar="DIR", help="Write template.yaml there, with the zip of the functions.")
def deploy_template(*, output: str | None) -> None:
    """Print an AWS SAM template that deploys the queue: a table, and functions that launch, watch and notify."""
    from shardkit.cli.deploy import template_text, write_deployment

    if output is None:
        echo(template_text(), nl=False)
        return
    for path in write_deployment(output):
        echo(f"Wrote {path}.", err=True)
    echo(f"Next: cd {output} && sam deploy --guided", err=True)
