"""``shardkit jobs``: the queue of jobs on the command line."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, Group, echo, options

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardkit.jobs import Job, Store
    from shardkit.jobs.history import Prices

POLL_S = 1.0  # of a store, by `wait`
LOOKED_AT = 1000  # of the latest jobs, for a name that was mistyped
STORE = click.option(
    "--store",
    "place",
    envvar="SHARDKIT_JOBS",
    metavar="PLACE",
    help="A SQLite file or dynamodb://TABLE; by default SHARDKIT_JOBS, else a file in your state folder.",
)
JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
JOB = click.argument("job_id", metavar="ID")
STATUSES = ("New", "Launched", "InProgress", "Completed", "Failed", "Stopped")
WAYS = ("hour", "day", "week", "owner", "instance_type", "cause", "run", "kind")
_UNITS_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class _JobsCommand(Command):
    """A command that turns the queue's errors into one clean message too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what cannot be used as given exits with 2, all else that fails with 1."""
        from shardkit.jobs.errors import JobError, JobNotFound

        try:
            return super().invoke(ctx)
        except JobError as error:
            echo(f"Error: {error}", err=True)
            ctx.exit(2 if type(error) in {JobError, JobNotFound} else 1)


class _JobsGroup(Group):
    command_class = _JobsCommand


@click.group(cls=_JobsGroup, epilog="shardkit jobs submit --request request.json\nshardkit jobs list --status Failed")
def jobs() -> None:
    """The queue that Processing and training jobs go through: submit, look, stop, try again."""


def _store(place: str | None, *, make: bool = False) -> tuple[Store, str]:
    """The store, and what it is called in a command; only a submission makes one."""
    from shardkit.jobs.errors import JobError
    from shardkit.jobs.open import open_store
    from shardkit.jobs.submitting import default_place

    known = place or default_place()
    if "://" not in known and not os.path.exists(known):
        if not make:
            raise JobError(f"There is no store of jobs at {known}.", hint="Submit a job, or give another --store.")
        if not place:
            os.makedirs(os.path.dirname(known), mode=0o700, exist_ok=True)
    return open_store(known), known


@jobs.command(
    epilog="""
shardkit jobs submit --request request.json
shardkit jobs submit --request request.json --id talent-2020-01 --notify slack:env:SLACK_URL --tag dataset=talent
jq '.RoleArn = env.ROLE' request.json | shardkit jobs submit --request - --depends-on talent-2020-01
"""
)
@click.option(
    "--request",
    "request_file",
    required=True,
    metavar="FILE",
    help="JSON: the arguments of CreateProcessingJob or CreateTrainingJob without the job's name; - is stdin.",
)
@click.option("--id", "job_id", metavar="ID", help="Its id; by default one is made of FILE's name and the time.")
@click.option("--depends-on", multiple=True, metavar="ID", help="A job that must complete first; may be repeated.")
@click.option(
    "--notify",
    multiple=True,
    metavar="TARGET",
    help="Who is told when it ends: an SNS topic's ARN, slack:PLACE or webhook:PLACE; may be repeated. PLACE is "
    "where the URL is kept: env:NAME, ssm:/PARAMETER or secret:NAME.",
)
@click.option("--owner", metavar="NAME", help="Whose job it is; by default yours.")
@click.option("--run", "run", default="", metavar="NAME", help="What it belongs to with other jobs.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A note of yours; may be repeated.")
@STORE
def submit(
    *,
    request_file: str,
    job_id: str | None,
    depends_on: tuple[str, ...],
    notify: tuple[str, ...],
    owner: str | None,
    run: str,
    tags: tuple[str, ...],
    place: str | None,
) -> None:
    """Submit a job, and print its id. The same id with the same request again is the same job."""
    from shardkit.jobs.submitting import new_id
    from shardkit.jobs.submitting import submit as submit_job
    from shardkit.jobs.targets import check_target

    request = _request(request_file)
    for target in notify:
        check_target(target)  # before a file is made
    store, _ = _store(place, make=True)
    job = submit_job(
        request,
        job_id=job_id or new_id("job" if request_file == "-" else Path(request_file).stem),
        depends_on=depends_on,
        notify=notify,
        owner=owner,
        run=run,
        tags=dict(_tag(text) for text in tags),
        store=store,
    )
    echo(job.job_id)


def _request(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        found = json.loads(text)
    except OSError as error:
        raise click.UsageError(f"--request {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise click.UsageError(f"--request {file} is no JSON: {error}.") from None
    if not isinstance(found, dict) or not ("ProcessingResources" in found or "ResourceConfig" in found):
        raise click.UsageError(
            f"--request {file} has neither ProcessingResources nor ResourceConfig; give the arguments of "
            "CreateProcessingJob or CreateTrainingJob."
        )
    return found


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--tag {text}: write KEY=VALUE.")
    return name, value


@jobs.command("list", epilog="shardkit jobs list\nshardkit jobs list --status Failed --owner ana --json | jq .reason")
@click.option("--status", multiple=True, type=click.Choice(STATUSES), help="Only such; may be repeated.")
@click.option("--owner", default="", metavar="NAME", help="Only this owner's.")
@click.option("--run", "run", default="", metavar="NAME", help="Only this run's.")
@click.option("--limit", type=click.IntRange(1), default=50, metavar="N", help="At most so many (default 50).")
@JSON_LINES
@STORE
def list_jobs(*, status: tuple[str, ...], owner: str, run: str, limit: int, as_json: bool, place: str | None) -> None:
    """List jobs, the latest submitted first."""
    from shardkit.cli.job_lines import job_data, list_lines

    store, _ = _store(place)
    found = store.jobs(status=status or None, owner=owner, run=run, limit=limit, latest=True)
    for line in (json.dumps(job_data(job)) for job in found) if as_json else list_lines(found):
        echo(line)
    if run and not found and not store.jobs(run=run, limit=1):
        echo(f"There is no job of run {run!r}. {_near(run, store, 'run')}", err=True)
    if len(found) == limit:
        echo(f"These are the latest {limit:,}; --limit shows more.", err=True)


@jobs.command(epilog="shardkit jobs show talent-2020-01\nshardkit jobs show talent-2020-01 --request")
@JOB
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--request", "with_request", is_flag=True, help="Show the request too.")
@STORE
def show(job_id: str, *, as_json: bool, with_request: bool, place: str | None) -> None:
    """Tell all about a job.

    Its attempts, times and reasons, where its log is, and how to try it again.
    """
    from shardkit.cli.job_lines import job_data, show_lines
    from shardkit.jobs.store import request_of
    from shardkit.masking import masked_data

    store, known = _store(place)
    job, region = _job(store, job_id), _region()
    request = {"request": masked_data(request_of(store, job_id))} if with_request else {}
    if as_json:
        echo(json.dumps(job_data(job, region=region) | request))
        return
    for line in show_lines(job, region=region, place=known if place else ""):
        echo(line)
    if request:
        echo(json.dumps(request["request"], indent=2))


def _region() -> str:
    """Where the service is that this machine is set up for."""
    import botocore.session

    return botocore.session.get_session().get_config_variable("region") or ""


@jobs.command(
    epilog="""
shardkit jobs history
shardkit jobs history --since 90d --by cause --prices aws
shardkit jobs history --since 2026-01-01 --until 2026-02-01 --html january.html --prices prices.json
"""
)
@click.option("--since", default="30d", metavar="TIME", help="How long ago, such as 12h, 30d or 8w, or a date.")
@click.option("--until", metavar="TIME", help="The same, for the end; by default now.")
@click.option("--by", type=click.Choice(WAYS), default="day", help="A row for each of these (default day).")
@click.option("--prices", "prices_from", metavar="FILE|aws", help="Costs, by a JSON file of prices or AWS' price list.")
@JSON_LINES
@click.option("--html", metavar="FILE", help="Write one page with charts, for any browser; no network needed.")
@STORE
def history(
    *,
    since: str,
    until: str | None,
    by: str,
    prices_from: str | None,
    as_json: bool,
    html: str | None,
    place: str | None,
) -> None:
    """Tell what became of jobs.

    Of those that ended in that time: how many succeeded, the attempts, waiting and running time (the median, and what
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
    prices, (store, known) = _prices(prices_from), _store(place)
    ended = store.ended(begin, end)
    if html is not None:
        from shardkit.cli.history_page import history_page, ways_for

        found = summaries(ended, by=ways_for(begin, end), prices=prices)
        page = history_page(found, title=f"Jobs of {known}", since=begin, until=end)
        try:
            Path(html).write_text(page, "utf-8")
        except OSError as error:
            raise click.UsageError(f"--html {html} cannot be written: {error.strerror}.") from None
        echo(f"Wrote {html}.", err=True)
        return
    rows = summarize(ended, by=by, prices=prices)
    for line in (json.dumps(asdict(row)) for row in rows) if as_json else history_lines(rows, by):
        echo(line)


def _moment(option: str, text: str, now: float) -> float:
    """A time that is so long ago, or a date or time in ISO 8601, UTC by default."""
    import datetime

    ago = re.fullmatch(r"(\d{1,5})([mhdw])", text.strip())
    if ago:
        return now - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        moment = datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise click.UsageError(f"{option} {text}: write a time such as 12h, 30d or 8w, or a date.") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _prices(place: str | None) -> Prices | None:
    from shardkit.jobs.prices import KnownPrices, ListPrices

    if place is None:
        return None
    if place != "aws":
        return KnownPrices.from_file(place)
    import boto3

    return ListPrices.of_session(boto3.Session())


@jobs.command(epilog="shardkit jobs again talent-2020-01")
@JOB
@STORE
def again(job_id: str, *, place: str | None) -> None:
    """Try a job again that failed or was stopped.

    The jobs that failed only because they need it are tried again too.
    """
    from shardkit.jobs import again as try_again

    store, _ = _store(place)
    job = try_again(store, _job(store, job_id).job_id)
    echo(f"Job {job.job_id} is {job.status}; its next attempt is number {job.attempt + 1}.", err=True)


SOME = options(
    click.argument("job_ids", nargs=-1, metavar="[ID]..."),
    click.option("--run", "run", default="", metavar="NAME", help="All jobs of this run."),
)


def _chosen(store: Store, job_ids: Sequence[str], run: str, known: str) -> list[Job]:
    """The jobs that are meant.

    Raises:
        JobNotFound: there is no such job, or the run has none.
    """
    from shardkit.jobs.errors import JobNotFound

    if bool(job_ids) == bool(run):
        raise click.UsageError("Give job ids, or --run.")
    chosen = store.jobs(run=run) if run else [_job(store, job_id) for job_id in job_ids]
    if not chosen:
        raise JobNotFound(f"{known} has no job of run {run!r}.", hint=_near(run, store, "run"))
    return chosen


def _job(store: Store, job_id: str) -> Job:
    """The job of that id.

    Raises:
        JobNotFound: there is none; the hint names one that is called nearly so.
    """
    from shardkit.jobs.errors import JobNotFound

    try:
        return store.get(job_id)
    except JobNotFound as error:
        raise JobNotFound(error.message, hint=error.hint or _near(job_id, store, "job_id")) from None


def _near(name: str, store: Store, field: str) -> str:
    """Which of the latest jobs' names, or of their runs', was perhaps meant."""
    import difflib

    names = dict.fromkeys(str(getattr(job, field)) for job in store.jobs(limit=LOOKED_AT, latest=True))
    near = difflib.get_close_matches(name, [known for known in names if known], n=1)
    return f"Did you mean {near[0]}?" if near else "See what there is: shardkit jobs list"


@jobs.command(epilog="shardkit jobs stop talent-2020-01\nshardkit jobs stop --run talent")
@SOME
@STORE
def stop(job_ids: tuple[str, ...], *, run: str, place: str | None) -> None:
    """Stop jobs.

    Those that wait are stopped at once; whoever runs the queue tells the service to stop the others.
    """
    from shardkit.jobs import stop as stop_jobs

    store, known = _store(place)
    chosen = _chosen(store, job_ids, run, known)
    for job in stop_jobs(store, None, [job.job_id for job in chosen if not job.ended]):
        echo(f"Job {job.job_id} is {'to be stopped' if job.live else job.status}.", err=True)


@jobs.command(epilog="shardkit jobs wait talent-2020-01 talent-2020-02\nshardkit jobs wait --run talent && echo done")
@SOME
@STORE
def wait(job_ids: tuple[str, ...], *, run: str, place: str | None) -> None:
    """Wait until jobs have ended.

    The exit code is 1 if one of them did not complete.
    """
    store, known = _store(place)
    left = {job.job_id for job in _chosen(store, job_ids, run, known)}
    bad = 0
    while left:
        for job in sorted(store.find(left).values(), key=lambda job: job.changed_at):
            if job.ended:
                left.discard(job.job_id)
                bad += job.status != "Completed"
                echo(f"Job {job.job_id} {job.status}{f': {job.reason}' if job.reason else '.'}", err=True)
        if left:
            time.sleep(POLL_S)
    if bad:
        sys.exit(1)


@jobs.command(
    epilog="""
shardkit jobs serve
shardkit jobs serve --engine local --max-instances 4
shardkit jobs serve --store dynamodb://shardkit-jobs --until-ended
"""
)
@click.option("--engine", "kind", metavar="KIND", default="sagemaker", help="Where jobs run: sagemaker or local.")
@click.option("--max-instances", type=click.IntRange(1), metavar="N", help="How many instances may run at once.")
@click.option("--until-ended", is_flag=True, help="End once every job has ended.")
@STORE
def serve(*, kind: str, max_instances: int | None, until_ended: bool, place: str | None) -> None:
    """Launch and watch what is submitted, send notices, until Ctrl-C or SIGTERM.

    Jobs that run go on without it. Any number of these may serve one queue.
    """
    import signal
    import threading

    from shardkit.cli.job_lines import change_lines
    from shardkit.engines.kinds import engine_kind
    from shardkit.jobs.service import serve as serve_queue

    settings = engine_kind(kind)
    store, known = _store(place, make=True)
    engine, policy = settings.serving(max_instances)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    echo(f"Serving the jobs of {known}. Ctrl-C ends it; the jobs go on.", err=True)
    serve_queue(
        store,
        engine,
        policy=policy,
        place=known if place else "",
        region=None if settings.cloudwatch else "",
        on_round=lambda *reports: _say(change_lines(*reports)),
        stop=over,
        until_ended=until_ended,
    )


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        echo(line, err=True)


@jobs.command(
    epilog="""
shardkit jobs policy
shardkit jobs policy --set creates_per_s=2 --set 'ceilings={"ml.m5.4xlarge": 20}' --set 'attempts={"capacity": 30}'
shardkit jobs policy --set ceilings=null
"""
)
@click.option("--set", "settings", multiple=True, metavar="FIELD=JSON", help="Change a field; null is its default.")
@STORE
def policy(*, settings: tuple[str, ...], place: str | None) -> None:
    """Print the policy that a queue is served by, as JSON; change it for all who serve it from their next round on."""
    from dataclasses import asdict

    from shardkit.jobs.service import policy_of, set_policy

    store, _ = _store(place, make=bool(settings))
    if settings:
        set_policy(store, dict(_setting(text) for text in settings))
    echo(json.dumps(asdict(policy_of(store)), indent=2))


def _setting(text: str) -> tuple[str, Any]:
    name, value = _tag(text) if "=" in text else (text, "")
    try:
        return name, json.loads(value)
    except ValueError:
        raise click.UsageError(f"--set {text}: write FIELD=JSON, such as creates_per_s=2.") from None


@jobs.command(
    "deploy-template",
    epilog="""
shardkit jobs deploy-template --output deploy
shardkit jobs deploy-template | less
""",
)
@click.option("--output", metavar="DIR", help="Write template.yaml there, and beside it the zip of the functions.")
def deploy_template(*, output: str | None) -> None:
    """Print an AWS SAM template that deploys the queue: a table, and functions that launch, watch and tell."""
    from shardkit.cli.deploy import template_text, write_deployment

    if output is None:
        echo(template_text(), nl=False)
        return
    for path in write_deployment(output):
        echo(f"Wrote {path}.", err=True)
    echo(f"Next: cd {output} && sam deploy --guided", err=True)
