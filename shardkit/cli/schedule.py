"""``shardkit schedule``: a pipeline that is kept going."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

import click

from shardkit.cli.commands import Group, echo
from shardkit.cli.given import read_pipeline
from shardkit.cli.options import SET


@click.group(cls=Group, epilog="shardkit schedule run pipeline.yaml\nshardkit schedule next pipeline.yaml")
def schedule() -> None:
    """Keep a pipeline going by the schedule in its YAML file."""


@schedule.command("run", epilog="shardkit schedule run pipeline.yaml\nshardkit schedule run pipeline.yaml --once")
@click.argument("pipeline", metavar="PIPELINE.yaml")
@click.option("--once", is_flag=True, help="Run only if it is due by now, then end.")
@SET
def schedule_run(pipeline: str, *, once: bool, settings: tuple[str, ...]) -> None:
    """Run the pipeline whenever it is due, until Ctrl-C or SIGTERM.

    One run makes up for all missed times; a run that fails is reported, and the next one starts when it is due.
    """
    from shardkit.runs.scheduler import Scheduler

    spec = read_pipeline(pipeline, {"settings": settings})
    with redirect_stdout(sys.stderr):
        Scheduler(spec, say=lambda text: echo(text, err=True)).run(once=once)


@schedule.command("next", epilog="shardkit schedule next pipeline.yaml\nshardkit schedule next pipeline.yaml --count 3")
@click.argument("pipeline", metavar="PIPELINE.yaml")
@click.option("--count", type=click.IntRange(1, 1000), default=5, metavar="N", help="How many (default 5).")
@SET
def schedule_next(pipeline: str, *, count: int, settings: tuple[str, ...]) -> None:
    """Print the next times at which the pipeline is due."""
    from shardkit.runs.scheduler import next_times

    for due in next_times(read_pipeline(pipeline, {"settings": settings}), count):
        echo(f"{due:%Y-%m-%d %H:%M %Z}")
