"""The command line: parses, calls the library, prints.

Everything for people goes to stderr; stdout holds what was asked for. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardkit._version import __version__
from shardkit.cli.commands import Group, echo, options
from shardkit.cli.jobs import jobs
from shardkit.errors import ShardkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardkit.pipeline import Pipeline
    from shardkit.runs.handle import Run


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shardkit")
def cli() -> None:
    """Preprocess huge file collections with your own Python function.

    A folder of files and one function become one dataset: planned, run on all CPUs, safe against crashes, merged.
    """


def main(args: Sequence[str] | None = None) -> None:
    """The program."""
    # Arrow's own allocator keeps what is freed for a while, which here is a third of the peak and no faster.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    atexit.register(gc.freeze)  # at its end a program would look through all it has, for 0.2 s
    try:
        cli.main(args=args, prog_name="shardkit")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would show where in the tidying up it came


SET = click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Override any field; may be repeated."
)
QUIET = click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object last on stdout.")
RUN_ID = click.option("--run-id", metavar="ID", help="Which run; by default the latest.")
OUTPUT = click.argument("output", metavar="OUTPUT")
ALLOW_EMPTY = click.option(
    "--allow-empty", is_flag=True, default=None, help="Make a dataset without a row, where no record gives any."
)
WORK = options(
    click.option("--function", metavar="MODULE:NAME", help="The function that turns a record into rows."),
    click.option("--source-dir", metavar="DIR", help="Where its module is; by default the current directory."),
    click.option("--records", metavar="RULE", help="file (default), stem, directory, or MODULE:NAME."),
    click.option("--pattern", multiple=True, metavar="GLOB", help="A record's main object; may be repeated."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Files that are no input; may be repeated."),
    click.option("--workers", metavar="N", help="How many processes; by default one a CPU."),
    click.option("--chunks", metavar="HOW", help="dynamic (default), balanced or even."),
    click.option("--timeout", metavar="SECONDS", help="What a record may take (default 3600)."),
    click.option("--max-failures", metavar="N|P%", help="How many records may fail (default 1%)."),
    ALLOW_EMPTY,
)
MERGE = options(
    click.option("--format", "format_", metavar="FORMAT", help="parquet (default), jsonl, csv or arrow."),
    click.option("--rows-per-file", metavar="N", help="Rows of an output file (default 1048576)."),
    click.option("--target-bytes", metavar="SIZE", help="About how large an output file may be, such as 128MB."),
    click.option("--partition-by", multiple=True, metavar="COLUMN", help="Hive partition; may be repeated."),
    click.option("--combine", metavar="MODULE:NAME", help="Your own computation on the merged rows."),
)
DAYS = options(
    click.option("--date", multiple=True, metavar="DAY", help="Only this day, or A..B; may be repeated."),
    click.option("--since", metavar="TIME", help="Only the days from so long ago until now: 3d, 12h, 2w."),
)
PIPELINE = options(
    click.argument("pipeline", required=False, metavar="[PIPELINE.yaml]"),
    click.option("--input", "input_", metavar="DIR", help="The folder with the files, where there is no YAML file."),
    click.option("--output", metavar="DIR", help="The folder of the dataset."),
    click.option("--name", metavar="NAME", help="The pipeline's name."),
    WORK,
    MERGE,
    click.option("--engine", metavar="KIND", help="Where the passes run as jobs: local or sagemaker; none: here."),
    SET,
)


def _read_pipeline(pipeline: str | None, given: dict[str, Any], *, expect_work: bool = False) -> Pipeline:
    """The pipeline of a YAML file, of options, or of both.

    With ``expect_work`` the workers get ready meanwhile, unless the work is an engine's.
    """
    from shardkit.workers.forkserver import begin_server, end_server

    if expect_work and not given.get("engine"):
        with suppress(OSError):  # whoever needs it will tell
            begin_server()
    made = _made_of(pipeline, _settings(given))
    if made.engine is not None:
        end_server()
    if made.combine is None:  # else it may have a use for NumPy's threads, which spin while other processes begin
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return made


def _made_of(pipeline: str | None, fields: dict[str, Any]) -> Pipeline:
    from shardkit.pipeline import Pipeline
    from shardkit.spec.yaml import from_settings

    if pipeline is not None:
        return Pipeline.from_yaml(pipeline, overrides=fields)
    missing = [
        f"--{name}" for name in ("function", "input", "output") if name not in fields and f"{name}.uri" not in fields
    ]
    if missing:
        raise click.UsageError(f"Give a PIPELINE.yaml, or {', '.join(missing)}.")
    return from_settings(Pipeline, fields)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names, from options and from --set, which has the last word."""
    from shardkit.spec.fields import dotted_names
    from shardkit.spec.spec import Spec
    from shardkit.spec.yaml import parse_setting

    settings = given.pop("settings", ())
    fields: dict[str, Any] = {}
    names = dotted_names(Spec) if given else {}
    for option, value in given.items():
        if value not in (None, ()):
            if option == "workers" and value.isdigit():
                value = int(value)  # noqa: PLW2901
            name = option.rstrip("_")  # some would else be names of Python's own
            fields[names.get(name, name)] = list(value) if isinstance(value, tuple) else value
    fields |= dict(parse_setting(text) for text in settings)
    return fields


@cli.command(
    epilog="""
shardkit run pipeline.yaml
shardkit run pipeline.yaml --set input.uri=/data/2020 --set max_failures=10
shardkit run pipeline.yaml --engine sagemaker
shardkit run pipeline.yaml --date 2020-01-01 --date 2020-01-05..2020-01-09
shardkit run pipeline.yaml --since 3d --dry-run
shardkit run --function features:rows --input data/ --output out/ --pattern '*.jsonl'
"""
)
@PIPELINE
@DAYS
@click.option("--dry-run", is_flag=True, help="Only say what would run, and why.")
@click.option("--run-id", metavar="ID", help="A name for the run; that of an unfinished one goes on with it.")
@QUIET
@JSON
def run(
    pipeline: str | None,
    run_id: str | None,
    *,
    date: tuple[str, ...],
    since: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run both passes: records to parts, parts to the dataset.

    With an engine the passes are Processing jobs; Ctrl-C then leaves those running that were launched.

    Exit codes: 0 done, 1 failed, 2 usage or pipeline error, 130 interrupted.
    """
    made = _read_pipeline(pipeline, given, expect_work=not dry_run)
    days = _days(made, date, since)
    if dry_run:
        _print_plan(made, days)
        return
    _report(lambda: made.run(days=days, run_id=run_id, quiet=quiet), as_json=as_json)


def _days(made: Pipeline, date: tuple[str, ...], since: str | None) -> list[str] | None:
    """The days that were asked for; None for all."""
    from shardkit.times import days_since, zone_of

    zone = zone_of(made.shards.zone if made.shards is not None else None)
    return [*date, *(days_since(since, zone=zone) if since else ())] or None


def _print_plan(made: Pipeline, days: list[str] | None) -> None:
    with redirect_stdout(sys.stderr):
        planned = made.plan(days=days)
    echo(planned.text())


def _report(work: Callable[[], Run], *, as_json: bool) -> None:
    """Do the work; tell how it ended, also when it ended badly."""
    try:
        with redirect_stdout(sys.stderr):  # what the user's own functions print
            run = work()  # an earlier one, where there was nothing to do
    except ShardkitError as error:
        if as_json:
            told = error.run.summary().to_dict() if error.run is not None else {"run_id": None, "status": "failed"}
            echo(json.dumps(told | {"reason": error.message}))
        raise
    summary = run.summary()
    echo(summary.command_text, err=True)
    if as_json:
        echo(json.dumps(summary.to_dict()))


@cli.command(
    epilog="""
shardkit plan pipeline.yaml
shardkit plan pipeline.yaml --sample 20
shardkit plan pipeline.yaml --json | jq .totals
"""
)
@PIPELINE
@DAYS
@click.option("--sample", type=int, metavar="N", help="Run N records first, and say what the whole will take.")
@JSON
def plan(
    pipeline: str | None,
    sample: int | None,
    *,
    date: tuple[str, ...],
    since: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what a run would do, without doing it."""
    made = _read_pipeline(pipeline, given, expect_work=sample is not None)
    with redirect_stdout(sys.stderr):
        planned = made.plan(days=_days(made, date, since))
        estimate = made.sample(sample) if sample is not None else None
    if as_json:
        from dataclasses import asdict

        echo(json.dumps(planned.content | ({"estimate": asdict(estimate)} if estimate else {})))
        return
    echo(planned.text(rows=estimate.rows if estimate else None))
    if estimate:
        echo(f"\n{estimate}")


def _open(output: str, run_id: str | None) -> Run:
    """The run under an output, or under that of a pipeline's YAML file."""
    from shardkit.runs.start import open_run

    return open_run(_output_of(output), run_id)


def _output_of(place: str) -> str:
    """The output that is meant by its folder, or by a pipeline's YAML file."""
    if place.endswith((".yaml", ".yml")) and Path(place).is_file():
        from shardkit.pipeline import Pipeline

        return Pipeline.from_yaml(place).output.uri
    return place


@cli.command(epilog="shardkit status out/\nshardkit status out/ --run-id 20261121-184259-7f3a --json")
@OUTPUT
@RUN_ID
@JSON
def status(output: str, run_id: str | None, *, as_json: bool) -> None:
    """Tell how far a run is, or how it ended; of one on an engine also how its jobs are."""
    from shardkit.cli.run_lines import job_lines

    found = _open(output, run_id)
    jobs = found.jobs() if found.has_jobs else []
    summary = found.summary()
    if as_json:
        echo(json.dumps(summary.to_dict() | ({"jobs": jobs} if jobs else {})))
        return
    echo(summary.command_text)
    for line in job_lines(jobs):
        echo(f"  {line}")


@cli.command(epilog="shardkit logs out/\nshardkit logs out/ --job merge\nshardkit logs out/ --job 00012-2")
@OUTPUT
@RUN_ID
@click.option("--job", metavar="NAME", help="A job, by its name or a part of it; by default those that failed.")
def logs(output: str, run_id: str | None, job: str | None) -> None:
    """Print what the jobs of a run have said: those that failed, or if none did, all."""
    for line in _open(output, run_id).logs(job):
        echo(line)


@cli.command(epilog="shardkit stop out/\nshardkit stop s3://bucket/features/ --run-id 20261121-184259-7f3a")
@OUTPUT
@RUN_ID
def stop(output: str, run_id: str | None) -> None:
    """Stop the jobs of a run; what they have committed is kept, and `resume` goes on from there."""
    from shardkit.units import counted

    found = _open(output, run_id)
    count = found.stop()
    if not count:
        echo(f"Run {found.run_id}: no job is left to stop.")
        return
    echo(f"{counted(count, 'job')} of run {found.run_id} stopped. Go on: shardkit resume {found.folder.arguments}")


@cli.command(
    epilog="shardkit failures out/\nshardkit failures out/ --all --traceback\nshardkit failures out/ --json | jq .key"
)
@OUTPUT
@RUN_ID
@click.option("--traceback", is_flag=True, help="Show where in your function the records failed.")
@click.option("--all", "every", is_flag=True, help="List every record, also where they are many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a record.")
def failures(output: str, run_id: str | None, *, traceback: bool, every: bool, as_json: bool) -> None:
    """List the records in quarantine, and why they failed.

    Where they are many, those that failed alike share a line.
    """
    from shardkit.cli.run_lines import FEW_FAILURES, failure_lines, grouped_failure_lines
    from shardkit.units import counted

    found = _open(output, run_id)
    entries = found.quarantine()
    grouped = len(entries) > FEW_FAILURES and not every and not as_json
    for line in grouped_failure_lines(entries, traceback=traceback) if grouped else ():
        echo(line)
    for entry in () if grouped else entries:
        if as_json:
            echo(json.dumps(entry))
        else:
            echo("\n".join(failure_lines(entry, traceback=traceback)))
    verb = "is" if len(entries) == 1 else "are"
    others = len({entry["run"] for entry in entries} - {found.run_id})
    of = f"run {found.run_id}" + (f" and {counted(others, 'other')} that made days of the dataset" if others else "")
    more = " --all lists each of them." if grouped else ""
    echo(f"{counted(len(entries), 'record')} of {of} {verb} in quarantine.{more}", err=True)


@cli.command(
    epilog="""
shardkit query "SELECT day_partition, count(*) AS ads FROM dataset GROUP BY 1 ORDER BY 1" pipeline.yaml
shardkit query "SELECT * FROM dataset WHERE day_partition >= '2020-01-05'" --output out/ --format csv > late.csv
shardkit query "SELECT * FROM shown JOIN clicks USING (ad)" --output shown=out/impressions --output clicks=out/clicks
"""
)
@click.argument("sql")
@click.argument("places", nargs=-1, metavar="[PIPELINE.yaml]...")
@click.option("--output", "outputs", multiple=True, metavar="[NAME=]DIR", help="A dataset's folder; may be repeated.")
@click.option(
    "--format", "format_", type=click.Choice(["table", "csv", "json"]), default="table", help="Of the answer."
)
@click.option("--using", type=click.Choice(["athena", "duckdb"]), help="By default Athena where there is a catalogue.")
def query(sql: str, places: tuple[str, ...], outputs: tuple[str, ...], format_: str, *, using: Any) -> None:
    """Ask SQL of datasets: each is a table with its pipeline's name, or the NAME given; one alone also `dataset`.

    Athena answers where a dataset is in a Glue catalogue, else DuckDB on this machine, from the same files. DuckDB
    reads no others, and writes none.
    """
    from shardkit.cli.answers import as_lines, named_outputs
    from shardkit.dataset.query import ask

    given = [_output_of(place) for place in (*places, *outputs)]
    if not given:
        raise click.UsageError("Give a PIPELINE.yaml, or --output with a dataset's folder.")
    for line in as_lines(ask(sql, named_outputs(given), using=using), format_):
        echo(line)


GO_ON = options(
    OUTPUT,
    RUN_ID,
    click.option("--function", metavar="MODULE:NAME", help="The mended function, where the first was sent by value."),
    SET,
    QUIET,
    JSON,
)


@cli.command(
    epilog="""
shardkit retry out/
shardkit retry out/ --run-id 20261121-184259-7f3a --set timeout=600
"""
)
@GO_ON
@click.option("--changed-function", is_flag=True, help="Go on although the function has another name.")
def retry(output: str, run_id: str | None, *, settings: Any, as_json: bool, **how: Any) -> None:
    """Run the quarantined records again, with the function as it is now, and make the dataset anew."""
    found, changes = _open(output, run_id), _settings({"settings": settings})
    _report(lambda: found.retry(**how, **changes), as_json=as_json)


@cli.command(
    epilog="""
shardkit resume out/
shardkit resume out/ --set max_failures=100% --set output.widen_ints=true
"""
)
@GO_ON
@click.option("--changed-function", is_flag=True, help="Go on although the function's source has changed.")
@click.option("--make-current", is_flag=True, help="Have its dataset replace that of the later run that replaced it.")
def resume(output: str, run_id: str | None, *, settings: Any, as_json: bool, **how: Any) -> None:
    """Go on with a run where it was interrupted or failed; what is committed is not done again."""
    found, changes = _open(output, run_id), _settings({"settings": settings})
    _report(lambda: found.resume(**how, **changes), as_json=as_json)


@cli.command(
    epilog="""
shardkit clean out/ --dry-run
shardkit clean out/ --older-than 7d
shardkit clean pipeline.yaml --unfinished
"""
)
@OUTPUT
@click.option("--older-than", metavar="TIME", help="Only runs of which nothing was written since then: 7d, 12h, 2w.")
@click.option("--unfinished", is_flag=True, help="Also runs that could be resumed, but not those at work.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, and why.")
@JSON
def clean(output: str, older_than: str | None, *, unfinished: bool, dry_run: bool, as_json: bool) -> None:
    """Remove old runs that nothing counts on any more.

    Each run leaves its rows and notes in a folder. Those stay that the dataset, the next run or an
    unfinished one needs.
    """
    from shardkit.runs.clean import clean as clean_output

    done = clean_output(_output_of(output), older_than=older_than, unfinished=unfinished, dry_run=dry_run)
    echo(json.dumps(done.to_dict()) if as_json else str(done))


@cli.command(epilog="shardkit check out/\nshardkit check s3://bucket/features/ --json | jq .faults")
@OUTPUT
@JSON
def check(output: str, *, as_json: bool) -> None:
    """Compare a dataset with all that is known of it, record by record; changes nothing.

    Its files must be there with the rows that are noted, no others of earlier runs beside them, and each
    record's rows be in them once. Exit codes: 0 all is right, 1 it is not; the lines say what to do.
    """
    from shardkit.runs.check import check as check_output

    done = check_output(_output_of(output))
    click.echo(json.dumps(done.to_dict()) if as_json else str(done))
    if not done.ok:
        sys.exit(1)


@cli.command(
    epilog="""
shardkit pass1 --input data/p00 --output parts/p00 --function waveforms:segment_features --pattern '*.hea'
shardkit pass1 --input data/p01 --output parts/p01 --function waveforms:segment_features --pattern '*.hea'
shardkit pass2 --input parts/p00 --input parts/p01 --output out/
"""
)
@click.option("--input", "input_", required=True, metavar="DIR", help="The folder of one group.")
@click.option("--output", required=True, metavar="DIR", help="The folder of the parts.")
@WORK
@click.option("--run-id", metavar="ID", help="A name for the run; that of an unfinished one goes on with it.")
@QUIET
@JSON
def pass1(*, run_id: str | None, quiet: bool, as_json: bool, **given: Any) -> None:
    """Pass 1 alone: the files of one folder to parts, plain Parquet files."""
    made = _read_pipeline(None, given, expect_work=True)
    from shardkit.runs.start import start

    _report(lambda: start(made, run_id=run_id, quiet=quiet, merge=False), as_json=as_json)


@cli.command(
    epilog="""
shardkit pass2 --input parts/p00 --input parts/p01 --output out/
shardkit pass2 --input parts/p0* --output out/ --partition-by country --rows-per-file 500000
"""
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
    fields = _settings(given) | {"function": "none:none", "input.uri": ".", "output.uri": output}
    merge = from_settings(Pipeline, fields).merge()
    _report(lambda: combine_folders([*inputs, *more], output, merge, name=name, quiet=quiet), as_json=as_json)


@cli.command(
    epilog="shardkit init blank mine\nshardkit init mimic waveforms && cd waveforms && shardkit run pipeline.yaml"
)
@click.argument("kind", type=click.Choice(["mimic", "talent", "blank"]))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def init(kind: str, folder: Path) -> None:
    """Write a pipeline that runs as it is, with made-up input, for you to change."""
    from shardkit.templates import write_template

    for line in write_template(kind, folder):
        echo(line, err=True)


@cli.group(cls=Group, epilog="shardkit schedule run pipeline.yaml\nshardkit schedule next pipeline.yaml")
def schedule() -> None:
    """Keep a pipeline going by the schedule in its YAML file."""


@schedule.command("run", epilog="shardkit schedule run pipeline.yaml\nshardkit schedule run pipeline.yaml --once")
@click.argument("pipeline", metavar="PIPELINE.yaml")
@click.option("--once", is_flag=True, help="Run only if it is due by now, then end.")
@SET
def schedule_run(pipeline: str, *, once: bool, settings: tuple[str, ...]) -> None:
    """Run the pipeline whenever it is due, until Ctrl-C or SIGTERM.

    Missed times are caught up by one run; a run that fails is told of, and the next one comes in its time.
    """
    from shardkit.runs.scheduler import Scheduler

    made = _read_pipeline(pipeline, {"settings": settings})
    with redirect_stdout(sys.stderr):
        Scheduler(made, say=lambda text: echo(text, err=True)).run(once=once)


@schedule.command("next", epilog="shardkit schedule next pipeline.yaml\nshardkit schedule next pipeline.yaml --count 3")
@click.argument("pipeline", metavar="PIPELINE.yaml")
@click.option("--count", type=click.IntRange(1, 1000), default=5, metavar="N", help="How many (default 5).")
@SET
def schedule_next(pipeline: str, *, count: int, settings: tuple[str, ...]) -> None:
    """Print the next times at which the pipeline is due."""
    from shardkit.runs.scheduler import next_times

    for due in next_times(_read_pipeline(pipeline, {"settings": settings}), count):
        echo(f"{due:%Y-%m-%d %H:%M %Z}")


cli.add_command(jobs)


@cli.group(cls=Group, epilog="shardkit engine serve --port 8765\nshardkit engine serve --help")
def engine() -> None:
    """The engine that runs Processing jobs on this machine."""


@engine.command(
    epilog="""
shardkit engine serve --port 8765
shardkit engine serve --max-instances 20 --create-rate 1 --throttle 0.2 --capacity-errors 0.03 --seed 7
"""
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of 127.0.0.1; by default any free one.")
@click.option("--root", metavar="DIR", help="Where the jobs live; by default in your state folder.")
@click.option("--max-instances", type=click.IntRange(1), metavar="N", help="How many instances may run at once.")
@click.option("--isolation", type=click.Choice(["auto", "namespace", "none"]), default="auto", help="Of /opt/ml.")
@click.option("--endpoint-url", metavar="URL", help="Where S3 is, for the jobs.")
@click.option("--any-credentials", is_flag=True, help="Let in whoever reaches the port: they can run programs as you.")
@click.option("--create-rate", type=float, metavar="N", help="Throttle more than N CreateProcessingJob calls a second.")
@click.option("--throttle", type=float, default=0.0, metavar="SHARE", help="Throttle this share of all calls.")
@click.option("--lose-responses", type=float, default=0.0, metavar="SHARE", help="Carry out, but do not answer.")
@click.option("--capacity-errors", type=float, default=0.0, metavar="SHARE", help="Jobs that fail with CapacityError.")
@click.option("--seed", type=int, metavar="N", help="The same seed chooses the same calls.")
def serve(
    *,
    port: int,
    root: str | None,
    max_instances: int | None,
    isolation: str,
    endpoint_url: str | None,
    any_credentials: bool,
    **faults: Any,
) -> None:
    """Speak the service's protocol on 127.0.0.1, for boto3, the AWS CLI and the SDKs; no Docker, no account.

    Who gets in can run programs as you, so requests must be signed: with the key pair that is printed at the start,
    which is also in serve.env under DIR for you alone, or with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of yours.
    """
    from shardkit.engines.faults import FaultyEngine
    from shardkit.engines.local import LocalEngine
    from shardkit.engines.wire import serve as serve_engine

    made = LocalEngine(root, max_instances=max_instances, isolation=isolation, endpoint_url=endpoint_url)
    serve_engine(FaultyEngine(made, **faults), port=port, say=echo, anybody=any_credentials)


if __name__ == "__main__":
    main()
