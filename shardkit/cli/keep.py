"""Commands that begin a project and tidy up an output."""

from __future__ import annotations

import json
from pathlib import Path

import click

from shardkit.cli.commands import Command, echo
from shardkit.cli.given import output_of
from shardkit.cli.options import JSON, OUTPUT


@click.command(
    cls=Command,
    epilog="""
shardkit clean out/ --dry-run
shardkit clean out/ --older-than 7d
shardkit clean pipeline.yaml --unfinished
""",
)
@OUTPUT
@click.option("--older-than", metavar="TIME", help="Only runs that have written nothing for this long: 7d, 12h, 2w.")
@click.option("--unfinished", is_flag=True, help="Also runs that could be resumed, but not those at work.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@JSON
def clean(output: str, older_than: str | None, *, unfinished: bool, dry_run: bool, as_json: bool) -> None:
    """Remove old runs that nothing needs any more.

    Each run leaves its rows and notes in a folder. Folders stay that the dataset, the next run or an
    unfinished one needs. Snapshots of an Iceberg table go once they are older than its `keep`.
    """
    from shardkit.runs.clean import clean as clean_output

    done = clean_output(output_of(output), older_than=older_than, unfinished=unfinished, dry_run=dry_run)
    echo(json.dumps(done.to_dict()) if as_json else str(done))


@click.command(
    cls=Command,
    epilog="shardkit init blank mine\nshardkit init mimic waveforms && cd waveforms && shardkit run pipeline.yaml",
)
@click.argument("kind", type=click.Choice(["mimic", "talent", "blank"]))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init(kind: str, folder: Path) -> None:
    """Write a pipeline that runs as it is, with made-up input, for you to change."""
    from shardkit.templates import write_template

    for line in write_template(kind, folder):
        echo(line, err=True)
