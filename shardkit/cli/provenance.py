"""Commands about where rows come from, and whether they would come out the same again."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from shardkit.cli.commands import Command
from shardkit.cli.given import opened, read_pipeline
from shardkit.cli.options import JSON, OUTPUT, PIPELINE, QUIET, RUN_ID


@click.command(
    cls=Command,
    epilog="""
shardkit origin out/ 1234567
shardkit origin out/ 17 --file part-00003-20261121-215459-289c.parquet
shardkit origin out/ 0 --json | jq -r .record
""",
)
@OUTPUT
@click.argument("row", type=int)
@click.option("--file", metavar="PATH", help="Count the rows of this file of the dataset, not of all.")
@RUN_ID
@JSON
def origin(output: str, row: int, run_id: str | None, *, file: str | None, as_json: bool) -> None:
    """Say which record a row of the dataset comes from; rows are counted from 0, over all files in their order.

    With output.origin: true each row says it itself, in two columns.
    """
    found = opened(output, run_id).origin(row, file=file)
    click.echo(json.dumps(found.to_dict()) if as_json else str(found))


@click.command(
    cls=Command,
    epilog="""
shardkit verify out/
shardkit verify s3://bucket/features/ --sample 1000 --json
""",
)
@OUTPUT
@click.option("--sample", type=int, default=100, metavar="N", help="How many records, of all sizes (default 100).")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="How many processes; by default as the run.")
@RUN_ID
@QUIET
@JSON
def verify(output: str, run_id: str | None, *, sample: int, workers: int | None, quiet: bool, as_json: bool) -> None:
    """Compute some records of a dataset again, here, and compare their rows with those that are stored.

    They run as the run had them: the same files and settings, and the function as it was. Nothing is written. A record
    that kills its process, or takes too long, is one that fails.

    Exit codes: 0 all that could be compared are the same, 1 some differ or fail, or none could be compared.
    """
    verified = opened(output, run_id).verify(sample=sample, workers=workers, quiet=quiet)
    click.echo(json.dumps(verified.to_dict()) if as_json else str(verified))
    if not verified.is_reproducible:
        sys.exit(1)


@click.command(
    cls=Command,
    epilog="""
shardkit diff pipeline.yaml
shardkit diff pipeline.yaml --sample 1000 --json | jq .columns
shardkit diff pipeline.yaml --set function=features:rows_v2
""",
)
@PIPELINE
@click.option("--sample", type=int, default=200, metavar="N", help="How many records, of all sizes (default 200).")
@QUIET
@JSON
def diff(pipeline: str | None, *, sample: int, quiet: bool, as_json: bool, **given: Any) -> None:
    """Show what the function, as it is now, would change in the dataset that is there.

    It runs on some records whose rows are stored, here; nothing is written. Shown are rows that would be new or gone,
    and for each column in how many rows it would differ, with an example.

    Exit codes: 0 nothing would change, 1 something would.
    """
    difference = read_pipeline(pipeline, given).diff(sample=sample, quiet=quiet)
    click.echo(json.dumps(difference.to_dict()) if as_json else str(difference))
    if not difference.is_empty:
        sys.exit(1)
