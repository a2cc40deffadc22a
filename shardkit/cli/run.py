"""Commands that run a pipeline, continue a run, or say what a run would do."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, echo
from shardkit.cli.forecast import FORECAST, PRICES, taken_from, wants_forecast
from shardkit.cli.given import days_of, opened, read_pipeline, report, settings_of
from shardkit.cli.options import DAYS, GO_ON, JSON, OUTPUT, PIPELINE, QUIET, RUN_ID
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from shardkit.pipeline import Pipeline


@click.command(
    cls=Command,
    epilog="""
shardkit run pipeline.yaml
shardkit run pipeline.yaml --set input.uri=/data/2020 --set max_failures=10
shardkit run pipeline.yaml --engine sagemaker
shardkit run pipeline.yaml --date 2020-01-01 --date 2020-01-05..2020-01-09
shardkit run pipeline.yaml --since 3d --dry-run
shardkit run --function features:rows --input data/ --output out/ --pattern '*.jsonl'
shardkit run --function features:rows --manifest list.csv --output out/
""",
)
@PIPELINE
@DAYS
@click.option("--dry-run", is_flag=True, help="Only say what would run, and why.")
@click.option("--run-id", metavar="ID", help="A name for the run; the name of an unfinished run continues that one.")
@click.option(
    "--go-on",
    is_flag=True,
    help="With --run-id: keep to the files that the run was planned for; with another function, begin as ID.2.",
)
@QUIET
@JSON
def run(
    pipeline: str | None,
    run_id: str | None,
    *,
    date: tuple[str, ...],
    since: str | None,
    dry_run: bool,
    go_on: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run both passes: records to parts, parts to the dataset.

    With an engine the passes are Processing jobs; after Ctrl-C those that were launched keep running.

    Exit codes: 0 done, 1 failed, 2 usage or pipeline error, 3 a check of the new
    files failed, 130 interrupted.
    """
    loaded = read_pipeline(pipeline, given, expect_work=not dry_run)
    days = days_of(loaded, date, since)
    if dry_run:
        _print_plan(loaded, days)
        return
    if go_on and run_id is not None:
        from shardkit.runs.again import start_or_go_on

        report(lambda: start_or_go_on(loaded, run_id, days=loaded.chosen_days(days), quiet=quiet), as_json=as_json)
        return
    if go_on:
        raise click.UsageError("--go-on is about the run of an id: give --run-id, too.")
    report(lambda: loaded.run(days=days, run_id=run_id, quiet=quiet), as_json=as_json)


def _prices(place: str | None) -> Any:
    """The prices in a file, or AWS' own; None if nobody has asked for any."""
    from shardkit.cli.jobs_look import prices_of
    from shardkit.errors import RunFailed
    from shardkit.jobs import JobError

    try:
        return prices_of(place)
    except JobError as error:
        raise RunFailed(error.message, hint=error.hint) from None


def _print_plan(loaded: Pipeline, days: list[str] | None) -> None:
    with redirect_stdout(sys.stderr):
        planned = loaded.plan(days=days)
    echo(planned.text())


@click.command(
    cls=Command,
    epilog="""
shardkit plan pipeline.yaml
shardkit plan pipeline.yaml --sample 20
shardkit plan pipeline.yaml --sample 20 --prices
shardkit plan pipeline.yaml --sample 20 --deadline 2h --budget 50 --quota ml.m5.xlarge=20
shardkit plan pipeline.yaml --json | jq .totals
shardkit plan pipeline.yaml --run-id nightly-1 --max-jobs 50 --outputs /tmp/outputs
""",
)
@PIPELINE
@DAYS
@click.option("--sample", type=int, metavar="N", help="Run N records first, and estimate what all of them will take.")
@PRICES
@FORECAST
@click.option("--run-id", metavar="ID", help="Prepare a run of that name, for `pass1 --run` and `pass2 --run`.")
@click.option("--max-jobs", type=int, metavar="N", help="With --run-id: how many jobs at most; by default 200.")
@click.option("--outputs", metavar="DIR", help="With --run-id: write the files run, jobs and output there.")
@JSON
def plan(
    pipeline: str | None,
    sample: int | None,
    *,
    prices: str | None,
    run_id: str | None,
    max_jobs: int | None,
    outputs: str | None,
    date: tuple[str, ...],
    since: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what a run would do, without doing it.

    With --sample and jobs on instances also what it will take: the queue runs on a simulated clock and service, over
    what the records of the sample have taken. What half of the simulated runs did not exceed is p50; 95% of them, p95.

    With --run-id the plan is kept, as a run whose jobs something else starts, such as a workflow on Kubernetes. Printed
    are its folder and the numbers of its jobs. The same command again leaves a run that exists as it is.
    """
    asked = taken_from(given)
    if run_id is None and (max_jobs is not None or outputs is not None):
        raise click.UsageError("--max-jobs and --outputs are for a run that is prepared: give --run-id too.")
    if run_id is not None and sample is not None:
        raise click.UsageError("Give --sample or --run-id.")
    if pipeline is None and (prices or "").endswith((".yaml", ".yml")):
        raise click.UsageError(f"--prices has taken {prices} for a file of prices: give the pipeline first.")
    loaded = read_pipeline(pipeline, given, expect_work=sample is not None)
    if run_id is not None:
        _prepare(loaded, run_id, days_of(loaded, date, since), max_jobs, outputs)
        return
    known = _prices(prices)
    _say_plan(loaded, days_of(loaded, date, since), sample, known, asked, as_json=as_json)


def _say_plan(
    loaded: Pipeline, days: list[str] | None, sample: int | None, prices: Any, asked: dict[str, Any], *, as_json: bool
) -> None:
    """Plan, run a sample if one is asked for, and say what there is to say."""
    from shardkit.cli.forecast import check, forecast
    from shardkit.runs.carriers import carriers_of, carriers_text
    from shardkit.runs.estimate import take_sample

    wanted = wants_forecast(loaded, asked, sampled=sample is not None)
    if wanted:
        check(loaded, prices, asked)
    with redirect_stdout(sys.stderr):
        planned = loaded.plan(days=days)
        taken = take_sample(loaded, sample, quiet=True) if sample is not None else None
    ahead = forecast(loaded, planned, taken, prices, asked) if wanted and taken is not None else None
    estimate = taken.estimate if taken is not None else None
    if as_json:
        from dataclasses import asdict

        more: dict[str, Any] = {"estimate": asdict(estimate)} if estimate else {}
        if carriers := carriers_of(loaded, prices):
            more["carriers"] = [each._asdict() for each in carriers]
        if ahead is not None:
            more["forecast"] = ahead.to_dict()
        echo(json.dumps(planned.content | more))
        return
    echo(planned.text(rows=estimate.rows if estimate else None))
    seconds = estimate.seconds * estimate.workers / loaded.worker_count() if estimate else None
    if text := carriers_text(loaded, prices, seconds=seconds):
        echo(text)
    for part in (estimate, ahead):
        if part is not None:
            echo(f"\n{part}")


def _prepare(loaded: Pipeline, run_id: str, days: list[str] | None, max_jobs: int | None, outputs: str | None) -> None:
    """Prepare a run, and print what its jobs need to know, or write it to files."""
    from shardkit.runs.prepare import USUAL_JOBS, prepare

    with redirect_stdout(sys.stderr):
        run = prepare(
            loaded, run_id, days=loaded.chosen_days(days), max_jobs=USUAL_JOBS if max_jobs is None else max_jobs
        )
    values = {"run": run.folder.uri, "jobs": json.dumps(run.jobs), "output": run.folder.output.uri}
    if outputs is not None:
        try:
            Path(outputs).mkdir(parents=True, exist_ok=True)
            for name, value in values.items():
                Path(outputs, name).write_text(value, "utf-8")
        except OSError as error:
            raise PipelineError(f"--outputs: {error.filename} cannot be written: {error.strerror}.") from None
    echo(json.dumps(values | {"jobs": run.jobs}))


@click.command(
    cls=Command, epilog="shardkit stop out/\nshardkit stop s3://bucket/features/ --run-id 20261121-184259-7f3a"
)
@OUTPUT
@RUN_ID
def stop(output: str, run_id: str | None) -> None:
    """Stop the jobs of a run; what they have committed is kept, and `resume` continues from there."""
    from shardkit.units import counted

    handle = opened(output, run_id)
    count = handle.stop()
    if not count:
        echo(f"Run {handle.run_id}: no job is left to stop.")
        return
    echo(f"{counted(count, 'job')} of run {handle.run_id} stopped. Go on: shardkit resume {handle.folder.arguments}")


@click.command(
    cls=Command,
    epilog="""
shardkit retry out/
shardkit retry out/ --run-id 20261121-184259-7f3a --set timeout=600
""",
)
@GO_ON
@click.option("--changed-function", is_flag=True, help="Continue although the function has another name.")
def retry(output: str, run_id: str | None, *, settings: Any, as_json: bool, **how: Any) -> None:
    """Run the quarantined records again, with the function as it is now, and rebuild the dataset."""
    handle, changes = opened(output, run_id), settings_of({"settings": settings})
    report(lambda: handle.retry(**how, **changes), as_json=as_json)


@click.command(
    cls=Command,
    epilog="""
shardkit resume out/
shardkit resume out/ --set max_failures=100% --set output.widen_ints=true
""",
)
@GO_ON
@click.option("--changed-function", is_flag=True, help="Continue although the function's source has changed.")
@click.option("--make-current", is_flag=True, help="Let its dataset replace that of the later run that replaced it.")
def resume(output: str, run_id: str | None, *, settings: Any, as_json: bool, **how: Any) -> None:
    """Continue a run where it was interrupted or failed; what is committed is not done again."""
    handle, changes = opened(output, run_id), settings_of({"settings": settings})
    report(lambda: handle.resume(**how, **changes), as_json=as_json)
