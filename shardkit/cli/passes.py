"""Commands that run one pass alone."""

from __future__ import annotations

from typing import Any

import click

from shardkit.cli.commands import Command
from shardkit.cli.given import read_pipeline, report, settings_of
from shardkit.cli.options import ALLOW_EMPTY, JSON, MERGE, QUIET, SET, WORK


@click.command(
    cls=Command,
    epilog="""
shardkit pass1 --input data/p00 --output parts/p00 --function waveforms:segment_features --pattern '*.hea'
shardkit pass1 --input data/p01 --output parts/p01 --function waveforms:segment_features --pattern '*.hea'
shardkit pass2 --input parts/p00 --input parts/p01 --output out/
""",
)
@click.option("--input", "input_", required=True, metavar="DIR", help="The folder of one group.")
@click.option("--output", required=True, metavar="DIR", help="The folder of the parts.")
@WORK
@click.option("--run-id", metavar="ID", help="A name for the run; the name of an unfinished run continues that one.")
@QUIET
@JSON
def pass1(*, run_id: str | None, quiet: bool, as_json: bool, **given: Any) -> None:
    """Pass 1 alone: the files of one folder to parts, plain Parquet files."""
    pipeline = read_pipeline(None, given, expect_work=True)
    from shardkit.runs.start import start

    report(lambda: start(pipeline, run_id=run_id, quiet=quiet, merge=False), as_json=as_json)


@click.command(
    cls=Command,
    epilog="""
shardkit pass2 --input parts/p00 --input parts/p01 --output out/
shardkit pass2 --input parts/p0* --output out/ --partition-by country --rows-per-file 500000
""",
)
@click.option("--input", "inputs", multiple=True, metavar="DIR...", help="Folders of Parquet files, in order.")
@click.argument("more", nargs=-1, metavar="[DIR...]")
@click.option("--output", required=True, metavar="DIR", help="The folder of the dataset.")
@MERGE
@ALLOW_EMPTY
@click.option("--source-dir", metavar="DIR", help="Where the module of --combine is.")
@click.option("--name", default="pass2", metavar="NAME", help="The dataset's name; only the same name may replace it.")
@SET
@QUIET
@JSON
def pass2(
    inputs: tuple[str, ...], more: tuple[str, ...], output: str, name: str, *, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Pass 2 alone: the Parquet files of some folders to one dataset."""
    from shardkit.pipeline import Pipeline
    from shardkit.runs.alone import combine_folders
    from shardkit.spec.yaml import from_settings

    if not inputs and not more:
        raise click.UsageError("Missing option '--input'.")
    fields = settings_of(given) | {"function": "none:none", "input.uri": ".", "output.uri": output}
    merge = from_settings(Pipeline, fields).merge()
    report(lambda: combine_folders([*inputs, *more], output, merge, name=name, quiet=quiet), as_json=as_json)
