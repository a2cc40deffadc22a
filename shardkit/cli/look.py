"""Commands that look at a run and its dataset, and change nothing."""

from __future__ import annotations

import json
import sys
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, echo
from shardkit.cli.forecast import PRICES
from shardkit.cli.given import opened, output_of
from shardkit.cli.options import FOLLOW, JSON, OUTPUT, RUN_ID

if TYPE_CHECKING:
    from pathlib import Path


@click.command(cls=Command, epilog="shardkit status out/\nshardkit status out/ --run-id 20261121-184259-7f3a --json")
@OUTPUT
@RUN_ID
@JSON
def status(output: str, run_id: str | None, *, as_json: bool) -> None:
    """Show how far a run is, or how it ended; on an engine, also how its jobs are."""
    from shardkit.cli.run_lines import job_lines

    handle = opened(output, run_id)
    jobs = handle.jobs() if handle.has_jobs else []
    summary = handle.summary(jobs=jobs)
    if as_json:
        echo(json.dumps(summary.to_dict() | ({"jobs": jobs} if jobs else {})))
        return
    echo(summary.command_text)
    for line in job_lines(jobs):
        echo(f"  {line}")


@click.command(
    cls=Command,
    epilog="""
shardkit report out/ --open
shardkit report out/ --watch 5 --to run.html
shardkit report s3://bucket/features/ --run-id 20261121-184259-7f3a --prices aws
""",
)
@OUTPUT
@RUN_ID
@click.option("--to", metavar="FILE", help="The file; by default report-<run id>.html in this folder.")
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
@click.option(
    "--watch", "watch_s", type=click.FloatRange(1), metavar="SECONDS", help="Write it again until the run ends."
)
@PRICES
def report(
    output: str, run_id: str | None, to: str | None, *, opens: bool, watch_s: float | None, prices: str | None
) -> None:
    """Write a page about a run: how it went, what failed, what came out; one file, for any browser.

    Progress, throughput, workers, slow and large records, memory, failures, the columns of the dataset, and what
    differs from the dataset before. The page needs no network. While a run goes on, --watch keeps it up to date.
    """
    from shardkit.cli.jobs_look import prices_of

    def written(file: Path) -> None:
        echo(f"Wrote {file}.", err=True)
        if opens:
            click.launch(str(file.resolve()))

    opened(output, run_id).report(to, prices=prices_of(prices), watch_s=watch_s, written=written)


@click.command(cls=Command, epilog="shardkit logs out/\nshardkit logs out/ --job merge\nshardkit logs out/ --follow")
@OUTPUT
@RUN_ID
@click.option("--job", metavar="NAME", help="A job, by its name or a part of it; by default those that failed.")
@FOLLOW
def logs(output: str, run_id: str | None, job: str | None, *, follow: bool) -> None:
    """Print the logs of a run's jobs: of those that failed or, if none did, of all."""
    for line in opened(output, run_id).logs(job, follow=follow):
        echo(line)


@click.command(
    cls=Command,
    epilog="shardkit failures out/\nshardkit failures out/ --all --traceback\nshardkit failures out/ --json | jq .key",
)
@OUTPUT
@RUN_ID
@click.option("--traceback", is_flag=True, help="Show where in your function the records failed.")
@click.option("--all", "every", is_flag=True, help="List every record, even if they are many.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a record.")
def failures(output: str, run_id: str | None, *, traceback: bool, every: bool, as_json: bool) -> None:
    """List the records in quarantine, and why they failed.

    If they are many, those that failed alike share a line.
    """
    from shardkit.cli.run_lines import FEW_FAILURES, failure_lines, grouped_failure_lines
    from shardkit.units import counted

    handle = opened(output, run_id)
    entries = handle.quarantine()
    grouped = len(entries) > FEW_FAILURES and not every and not as_json
    for line in grouped_failure_lines(entries, traceback=traceback) if grouped else ():
        echo(line)
    for entry in () if grouped else entries:
        if as_json:
            echo(json.dumps(entry))
        else:
            echo("\n".join(failure_lines(entry, traceback=traceback)))
    verb = "is" if len(entries) == 1 else "are"
    others = len({entry["run"] for entry in entries} - {handle.run_id})
    of = f"run {handle.run_id}" + (f" and {counted(others, 'other')} that made days of the dataset" if others else "")
    more = " --all lists each of them." if grouped else ""
    echo(f"{counted(len(entries), 'record')} of {of} {verb} in quarantine.{more}", err=True)
    if entries:
        first = entries[0]
        where = f"{quote(handle.output_uri)} {quote(first['key'])} --run-id {first['run']}"
        echo(f"Run the first again, here: shardkit replay {where}", err=True)


@click.command(
    cls=Command,
    epilog="""
shardkit query "SELECT day_partition, count(*) AS ads FROM dataset GROUP BY 1 ORDER BY 1" pipeline.yaml
shardkit query "SELECT * FROM dataset WHERE day_partition >= '2020-01-05'" --output out/ --format csv > late.csv
shardkit query "SELECT * FROM shown JOIN clicks USING (ad)" --output shown=out/impressions --output clicks=out/clicks
shardkit query "SELECT count(*) FROM dataset" --output out/ --as-of 20261121-215459-289c
""",
)
@click.argument("sql")
@click.argument("pipelines", nargs=-1, metavar="[PIPELINE.yaml]...")
@click.option("--output", "outputs", multiple=True, metavar="[NAME=]DIR", help="A dataset's folder; may be repeated.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    help="The format of the answer.",
)
@click.option("--using", type=click.Choice(["athena", "duckdb"]), help="By default Athena if there is a catalogue.")
@click.option("--as-of", metavar="RUN", help="As this run has left the dataset, which is in an Iceberg table.")
def query(
    sql: str, pipelines: tuple[str, ...], outputs: tuple[str, ...], format_: str, *, using: Any, as_of: str | None
) -> None:
    """Query datasets with SQL: each is a table with its pipeline's name, or the NAME given; one alone also `dataset`.

    Athena answers if a dataset is in a Glue catalogue, else DuckDB on this machine, from the same files. DuckDB
    reads no other files, and writes none.
    """
    from shardkit.cli.answers import as_lines, named_outputs
    from shardkit.dataset.query import ask

    folders = [output_of(output) for output in (*pipelines, *outputs)]
    if not folders:
        raise click.UsageError("Give a PIPELINE.yaml, or --output with a dataset's folder.")
    for line in as_lines(ask(sql, named_outputs(folders), using=using, as_of=as_of), format_):
        echo(line)


@click.command(cls=Command, epilog="shardkit snapshots out/\nshardkit snapshots pipeline.yaml --json | jq -r .run_id")
@OUTPUT
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a snapshot.")
def snapshots(output: str, *, as_json: bool) -> None:
    """List the snapshots of a dataset's Iceberg table, the newest first: `query --as-of RUN` reads each of them."""
    import pyarrow as pa

    from shardkit.cli.answers import as_lines
    from shardkit.dataset.iceberg.history import snapshots_of
    from shardkit.storage.open import folder

    found = snapshots_of(folder(output_of(output)))
    if as_json:
        for one in found:
            echo(json.dumps(one.to_dict()))
        return
    columns = {
        "made": [f"{one.made:%Y-%m-%d %H:%M:%S}" for one in found],
        "run": [one.run_id or "(another program)" for one in found],
        "rows": [one.rows for one in found],
        "files": [one.files for one in found],
        "snapshot": [one.snapshot_id for one in found],
        "table": [one.table + (" (present)" if one.is_present else "") for one in found],
    }
    for line in as_lines(pa.table(columns), "table"):
        echo(line)


@click.command(cls=Command, epilog="shardkit check out/\nshardkit check s3://bucket/features/ --json | jq .faults")
@OUTPUT
@JSON
def check(output: str, *, as_json: bool) -> None:
    """Compare a dataset with all notes about it, record by record; changes nothing.

    Its files must exist and have the rows that are noted, each record's rows once, and no files of earlier runs
    may be beside them. Exit codes: 0 all is right, 1 something is wrong; the lines say what to do.
    """
    from shardkit.runs.check import check as check_output

    done = check_output(output_of(output))
    click.echo(json.dumps(done.to_dict()) if as_json else done.command_text)
    if not done.ok:
        sys.exit(1)
