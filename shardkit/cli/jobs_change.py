"""Commands that submit jobs, stop them, try them again, and wait for them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from shardkit.cli.commands import echo
from shardkit.cli.jobs_given import JOB, SOME, STORE, JobsCommand, chosen_jobs, job_of, store_of

POLL_S = 1.0  # how often `wait` reads the store


@click.command(
    cls=JobsCommand,
    epilog="""
shardkit jobs submit --request request.json
shardkit jobs submit --request request.json --id talent-2020-01 --notify slack:env:SLACK_URL --tag dataset=talent
jq '.RoleArn = env.ROLE' request.json | shardkit jobs submit --request - --depends-on talent-2020-01
""",
)
@click.option(
    "--request",
    "request_file",
    required=True,
    metavar="FILE",
    help="JSON: the arguments of CreateProcessingJob or CreateTrainingJob without the job's name; - is stdin.",
)
@click.option("--id", "job_id", metavar="ID", help="Its id; by default one made from FILE's name and the time.")
@click.option("--depends-on", multiple=True, metavar="ID", help="A job that must complete first; may be repeated.")
@click.option(
    "--notify",
    multiple=True,
    metavar="TARGET",
    help="Who gets notice when it ends: an SNS topic's ARN, slack:PLACE or webhook:PLACE; may be repeated. PLACE is "
    "where the URL is kept: env:NAME, ssm:/PARAMETER or secret:NAME.",
)
@click.option("--owner", metavar="NAME", help="Whose job it is; by default yours.")
@click.option("--run", "run", default="", metavar="NAME", help="The run that it and other jobs belong to.")
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
        check_target(target)  # before a store is created
    store, _ = store_of(place, make=True)
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
        request = json.loads(text)
    except OSError as error:
        raise click.UsageError(f"--request {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise click.UsageError(f"--request {file} is no JSON: {error}.") from None
    if not isinstance(request, dict) or not {"ProcessingResources", "ResourceConfig", "Resources"} & set(request):
        raise click.UsageError(
            f"--request {file} has neither ProcessingResources nor ResourceConfig; give the arguments of "
            "CreateProcessingJob or CreateTrainingJob, or of a job of Slurm with its Resources."
        )
    return request


def _tag(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--tag {text}: write KEY=VALUE.")
    return name, value


@click.command(cls=JobsCommand, epilog="shardkit jobs again talent-2020-01")
@JOB
@STORE
def again(job_id: str, *, place: str | None) -> None:
    """Retry a job that failed or was stopped.

    The jobs that failed only because they need it are tried again too.
    """
    from shardkit.jobs import again as try_again

    store, _ = store_of(place)
    job = try_again(store, job_of(store, job_id).job_id)
    echo(f"Job {job.job_id} is {job.status}; its next attempt is number {job.attempt + 1}.", err=True)


@click.command(cls=JobsCommand, epilog="shardkit jobs stop talent-2020-01\nshardkit jobs stop --run talent")
@SOME
@STORE
def stop(job_ids: tuple[str, ...], *, run: str, place: str | None) -> None:
    """Stop jobs.

    Those that wait are stopped at once; whatever serves the queue tells the service to stop the others.
    """
    from shardkit.jobs import stop as stop_jobs

    store, where = store_of(place)
    chosen = chosen_jobs(store, job_ids, run, where)
    for job in stop_jobs(store, None, [job.job_id for job in chosen if not job.ended]):
        echo(f"Job {job.job_id} is {'to be stopped' if job.live else job.status}.", err=True)


@click.command(
    cls=JobsCommand,
    epilog="shardkit jobs wait talent-2020-01 talent-2020-02\nshardkit jobs wait --run talent && echo done",
)
@SOME
@STORE
def wait(job_ids: tuple[str, ...], *, run: str, place: str | None) -> None:
    """Wait until jobs have ended.

    The exit code is 1 if one of them did not complete.
    """
    store, where = store_of(place)
    left = {job.job_id for job in chosen_jobs(store, job_ids, run, where)}
    failures = 0
    while left:
        for job in sorted(store.find(left).values(), key=lambda job: job.changed_at):
            if job.ended:
                left.discard(job.job_id)
                failures += job.status != "Completed"
                echo(f"Job {job.job_id} {job.status}{f': {job.reason}' if job.reason else '.'}", err=True)
        if left:
            time.sleep(POLL_S)
    if failures:
        sys.exit(1)
