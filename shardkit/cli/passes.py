"""Commands that run one pass alone: on plain folders, or as a job of a prepared run."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from shardkit.cli.commands import Command
from shardkit.cli.given import read_pipeline, report, settings_of
from shardkit.cli.options import ALLOW_EMPTY, JSON, MERGE, QUIET, SET, WORK

PREPARED = click.option("--run", "run_uri", metavar="URI", help="The folder of a run that `plan --run-id` prepared.")


def _as_job(arguments: list[str], others: dict[str, Any]) -> NoReturn:
    """Do a job of a prepared run, and end with its exit code.

    Raises:
        click.UsageError: other options were given as well, although the plan has all of that.
    """
    from shardkit.runs.container.job import main

    given = [name.strip("_") for name, value in others.items() if value not in (None, (), False)]
    if given:
        raise click.UsageError(f"--run takes all else from the plan: leave out {', '.join(sorted(given))}.")
    sys.exit(main(arguments))


@click.command(
    cls=Command,
    epilog="""
shardkit pass1 --input data/p00 --output parts/p00 --function waveforms:segment_features --pattern '*.hea'
shardkit pass1 --input data/p01 --output parts/p01 --function waveforms:segment_features --pattern '*.hea'
shardkit pass2 --input parts/p00 --input parts/p01 --output out/
shardkit pass1 --run s3://bucket/features/_shardkit/runs/nightly-1 --job 3
""",
)
@click.option("--input", "input_", metavar="DIR", help="The folder of one group.")
@click.option("--output", metavar="DIR", help="The folder of the parts.")
@WORK
@PREPARED
@click.option("--job", type=click.IntRange(min=0), metavar="N", help="With --run: which of its jobs to do.")
@click.option("--run-id", metavar="ID", help="A name for the run; the name of an unfinished run continues that one.")
@QUIET
@JSON
def pass1(
    *, run_uri: str | None, job: int | None, run_id: str | None, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Pass 1 alone: the files of one folder to parts, plain Parquet files.

    Or, with --run and --job, a job of a prepared run: all its records that have no marker yet.

    Exit codes with --run: 0 done, 1 failed for good, 75 failed but worth another attempt.
    """
    if run_uri is not None or job is not None:
        if run_uri is None or job is None:
            raise click.UsageError("Give both --run and --job.")
        _as_job(["pass1", "--run", run_uri, "--job", str(job)], given | {"run_id": run_id, "json": as_json})
    if not given["input_"] or not given["output"]:
        raise click.UsageError("Give --input and --output; or --run and --job, for a job of a prepared run.")
    pipeline = read_pipeline(None, given, expect_work=True)
    from shardkit.runs.start import start

    report(lambda: start(pipeline, run_id=run_id, quiet=quiet, merge=False), as_json=as_json)


@click.command(
    cls=Command,
    epilog="""
shardkit pass2 --input parts/p00 --input parts/p01 --output out/
shardkit pass2 --input parts/p0* --output out/ --partition-by country --rows-per-file 500000
shardkit pass2 --run s3://bucket/features/_shardkit/runs/nightly-1
""",
)
@click.option("--input", "inputs", multiple=True, metavar="DIR...", help="Folders of Parquet files, in order.")
@click.argument("more", nargs=-1, metavar="[DIR...]")
@click.option("--output", metavar="DIR", help="The folder of the dataset.")
@PREPARED
@MERGE
@ALLOW_EMPTY
@click.option("--source-dir", metavar="DIR", help="Where the module of --combine is.")
@click.option("--name", default="pass2", metavar="NAME", help="The dataset's name; only the same name may replace it.")
@SET
@QUIET
@JSON
def pass2(
    inputs: tuple[str, ...],
    more: tuple[str, ...],
    output: str | None,
    name: str,
    *,
    run_uri: str | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Pass 2 alone: the Parquet files of some folders to one dataset.

    Or, with --run, that of a prepared run, whose jobs have all ended.

    Exit codes with --run: 0 done, 1 failed for good, 3 a check has failed, 75 failed but worth another attempt.
    """
    if run_uri is not None:
        _as_job(
            ["pass2", "--run", run_uri, "--lock"], given | {"input": inputs + more, "output": output, "json": as_json}
        )
    from shardkit.pipeline import Pipeline
    from shardkit.runs.alone import combine_folders
    from shardkit.spec.yaml import from_settings

    if output is None or not (inputs or more):
        raise click.UsageError("Give --input and --output; or --run, for the merge of a prepared run.")
    fields = settings_of(given) | {"function": "none:none", "input.uri": ".", "output.uri": output}
    merge = from_settings(Pipeline, fields).merge()
    report(lambda: combine_folders([*inputs, *more], output, merge, name=name, quiet=quiet), as_json=as_json)
