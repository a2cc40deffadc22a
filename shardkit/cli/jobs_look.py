"""Commands that show jobs, and change nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shardkit.cli.commands import echo
from shardkit.cli.forecast import PRICES
from shardkit.cli.jobs_given import JOB, JSON_LINES, STORE, JobsCommand, did_you_mean, job_of, store_of

if TYPE_CHECKING:
    from shardkit.jobs.history import Prices


STATUSES = ("New", "Launched", "InProgress", "Completed", "Failed", "Stopped")
WAYS = ("hour", "day", "week", "owner", "instance_type", "cause", "run", "kind")


@click.command(
    "list",
    cls=JobsCommand,
    epilog="shardkit jobs list\nshardkit jobs list --status Failed --owner ana --json | jq .reason",
)
@click.option("--status", multiple=True, type=click.Choice(STATUSES), help="Only jobs of this status; may be repeated.")
@click.option("--owner", default="", metavar="NAME", help="Only this owner's jobs.")
@click.option("--run", "run", default="", metavar="NAME", help="Only this run's jobs.")
@click.option("--limit", type=click.IntRange(1), default=50, metavar="N", help="The most jobs to list (default 50).")
@JSON_LINES
@STORE
def list_jobs(*, status: tuple[str, ...], owner: str, run: str, limit: int, as_json: bool, place: str | None) -> None:
    """List jobs, the latest submitted first."""
    from shardkit.cli.job_lines import job_data, list_lines

    store, _ = store_of(place)
    jobs = store.jobs(status=status or None, owner=owner, run=run, limit=limit, latest=True)
    for line in (json.dumps(job_data(job)) for job in jobs) if as_json else list_lines(jobs):
        echo(line)
    if run and not jobs and not store.jobs(run=run, limit=1):
        echo(f"There is no job of run {run!r}. {did_you_mean(run, store, 'run')}", err=True)
    if len(jobs) == limit:
        echo(f"These are the latest {limit:,}; --limit shows more.", err=True)


@click.command(cls=JobsCommand, epilog="shardkit jobs show talent-2020-01\nshardkit jobs show talent-2020-01 --request")
@JOB
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--request", "with_request", is_flag=True, help="Show the request too.")
@STORE
def show(job_id: str, *, as_json: bool, with_request: bool, place: str | None) -> None:
    """Show all about a job.

    Its attempts, times and reasons, where its log is, and how to try it again.
    """
    from shardkit.cli.job_lines import job_data, show_lines
    from shardkit.jobs.store import request_of
    from shardkit.masking import masked_data

    store, store_place = store_of(place)
    job, region = job_of(store, job_id), _region()
    request = {"request": masked_data(request_of(store, job_id))} if with_request else {}
    if as_json:
        echo(json.dumps(job_data(job, region=region) | request))
        return
    for line in show_lines(job, region=region, place=store_place if place else ""):
        echo(line)
    if request:
        echo(json.dumps(request["request"], indent=2))


def _region() -> str:
    """The region of the service that this machine is set up for."""
    import botocore.session

    return botocore.session.get_session().get_config_variable("region") or ""


@click.command(
    cls=JobsCommand,
    epilog="""
shardkit jobs history
shardkit jobs history --since 90d --by cause --prices aws
shardkit jobs history --since 2026-01-01 --until 2026-02-01 --html january.html --prices prices.json
""",
)
@click.option("--since", default="30d", metavar="TIME", help="How long ago, such as 12h, 30d or 8w, or a date.")
@click.option("--until", metavar="TIME", help="The end, written the same way; by default now.")
@click.option("--by", type=click.Choice(WAYS), default="day", help="A row for each of these (default day).")
@PRICES
@JSON_LINES
@click.option("--html", metavar="FILE", help="Write one page with charts, for any browser; no network needed.")
@STORE
def history(
    *,
    since: str,
    until: str | None,
    by: str,
    prices: str | None,
    as_json: bool,
    html: str | None,
    place: str | None,
) -> None:
    """Show what became of jobs.

    For those that ended in that time: how many succeeded, the attempts, waiting and running time (the median, and what
    95% did not exceed), instance-hours, and with prices the cost.
    """
    from dataclasses import asdict

    from shardkit.cli.job_lines import history_lines
    from shardkit.jobs.history import summaries, summarize

    now = time.time()
    begin, end = _moment("--since", since, now), _moment("--until", until, now) if until else now
    if begin >= end:
        raise click.UsageError("--since is not before --until.")
    if html is not None and as_json:
        raise click.UsageError("Give --json or --html, not both.")
    known, (store, store_place) = prices_of(prices), store_of(place)
    ended = store.ended(begin, end)
    if html is not None:
        from shardkit.cli.history_page import history_page, ways_for

        groups = summaries(ended, by=ways_for(begin, end), prices=known)
        page = history_page(groups, title=f"Jobs of {store_place}", since=begin, until=end)
        try:
            Path(html).write_text(page, "utf-8")
        except OSError as error:
            raise click.UsageError(f"--html {html} cannot be written: {error.strerror}.") from None
        echo(f"Wrote {html}.", err=True)
        return
    rows = summarize(ended, by=by, prices=known)
    for line in (json.dumps(asdict(row)) for row in rows) if as_json else history_lines(rows, by):
        echo(line)


def _moment(option: str, text: str, now: float) -> float:
    """The moment that long ago, or a date or time in ISO 8601, UTC by default."""
    import datetime

    from shardkit.times import interval

    ago = interval(text)
    if ago:
        return now - ago.total_seconds()
    try:
        moment = datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise click.UsageError(f"{option} {text}: write a time such as 12h, 30d or 8w, or a date.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()


def prices_of(place: str | None) -> Prices | None:
    """The prices in a file, those of AWS' price list for ``aws``, the shipped ones for ``shipped``."""
    from shardkit.jobs.prices import prices_at

    return None if place is None else prices_at(place)
