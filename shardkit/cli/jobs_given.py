"""The arguments of a command of ``shardkit jobs`` as the queue has them: a store, and jobs in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, echo, options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.jobs import Job, Store


LOOKED_AT = 1000  # how many of the latest jobs are searched for a name that was mistyped
STORE = click.option(
    "--store",
    "place",
    envvar="SHARDKIT_JOBS",
    metavar="PLACE",
    help="A SQLite file or dynamodb://TABLE; by default SHARDKIT_JOBS, else a file in your state folder.",
)
JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
JOB = click.argument("job_id", metavar="ID")
SOME = options(
    click.argument("job_ids", nargs=-1, metavar="[ID]..."),
    click.option("--run", "run", default="", metavar="NAME", help="All jobs of this run."),
)


class JobsCommand(Command):
    """A command that also turns the queue's errors into one clean message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; exits with 2 if an argument cannot be used, with 1 after any other error."""
        from shardkit.jobs.errors import JobError, JobNotFound

        try:
            return super().invoke(ctx)
        except JobError as error:
            echo(f"Error: {error}", err=True)
            ctx.exit(2 if type(error) in {JobError, JobNotFound} else 1)


def store_of(place: str | None, *, make: bool = False) -> tuple[Store, str]:
    """The store, and its place as a command takes it; ``make``: create a missing file."""
    from shardkit.jobs.errors import JobError
    from shardkit.jobs.open import open_store
    from shardkit.jobs.submitting import default_place

    where = place or default_place()
    if "://" not in where and not os.path.exists(where):
        if not make:
            raise JobError(f"There is no store of jobs at {where}.", hint="Submit a job, or give another --store.")
        if not place:
            os.makedirs(os.path.dirname(where), mode=0o700, exist_ok=True)
    return open_store(where), where


def chosen_jobs(store: Store, job_ids: Sequence[str], run: str, where: str) -> list[Job]:
    """The jobs that the arguments name.

    Raises:
        JobNotFound: there is no such job, or the run has none.
    """
    from shardkit.jobs.errors import JobNotFound

    if bool(job_ids) == bool(run):
        raise click.UsageError("Give job ids, or --run.")
    chosen = store.jobs(run=run) if run else [job_of(store, job_id) for job_id in job_ids]
    if not chosen:
        raise JobNotFound(f"{where} has no job of run {run!r}.", hint=did_you_mean(run, store, "run"))
    return chosen


def job_of(store: Store, job_id: str) -> Job:
    """The job with that id.

    Raises:
        JobNotFound: there is none; the hint names one with a similar id.
    """
    from shardkit.jobs.errors import JobNotFound

    try:
        return store.get(job_id)
    except JobNotFound as error:
        raise JobNotFound(error.message, hint=error.hint or did_you_mean(job_id, store, "job_id")) from None


def did_you_mean(name: str, store: Store, field: str) -> str:
    """Suggest a similar name among those of the latest jobs, or of their runs."""
    import difflib

    names = dict.fromkeys(str(getattr(job, field)) for job in store.jobs(limit=LOOKED_AT, latest=True))
    near = difflib.get_close_matches(name, [each for each in names if each], n=1)
    return f"Did you mean {near[0]}?" if near else "See what there is: shardkit jobs list"
