"""What a command of ``shardkit jobs`` is given, as the queue has it: a store, and jobs in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, echo, options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.jobs import Job, Store


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
SOME = options(
    click.argument("job_ids", nargs=-1, metavar="[ID]..."),
    click.option("--run", "run", default="", metavar="NAME", help="All jobs of this run."),
)


class JobsCommand(Command):
    """A command that turns the queue's errors into one clean message too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what cannot be used as given exits with 2, all else that fails with 1."""
        from shardkit.jobs.errors import JobError, JobNotFound

        try:
            return super().invoke(ctx)
        except JobError as error:
            echo(f"Error: {error}", err=True)
            ctx.exit(2 if type(error) in {JobError, JobNotFound} else 1)


def store_of(place: str | None, *, make: bool = False) -> tuple[Store, str]:
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


def chosen_jobs(store: Store, job_ids: Sequence[str], run: str, known: str) -> list[Job]:
    """The jobs that are meant.

    Raises:
        JobNotFound: there is no such job, or the run has none.
    """
    from shardkit.jobs.errors import JobNotFound

    if bool(job_ids) == bool(run):
        raise click.UsageError("Give job ids, or --run.")
    chosen = store.jobs(run=run) if run else [job_of(store, job_id) for job_id in job_ids]
    if not chosen:
        raise JobNotFound(f"{known} has no job of run {run!r}.", hint=did_you_mean(run, store, "run"))
    return chosen


def job_of(store: Store, job_id: str) -> Job:
    """The job of that id.

    Raises:
        JobNotFound: there is none; the hint names one that is called nearly so.
    """
    from shardkit.jobs.errors import JobNotFound

    try:
        return store.get(job_id)
    except JobNotFound as error:
        raise JobNotFound(error.message, hint=error.hint or did_you_mean(job_id, store, "job_id")) from None


def did_you_mean(name: str, store: Store, field: str) -> str:
    """Which of the latest jobs' names, or of their runs', was perhaps meant."""
    import difflib

    names = dict.fromkeys(str(getattr(job, field)) for job in store.jobs(limit=LOOKED_AT, latest=True))
    near = difflib.get_close_matches(name, [known for known in names if known], n=1)
    return f"Did you mean {near[0]}?" if near else "See what there is: shardkit jobs list"
