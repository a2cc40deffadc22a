"""Submitting a job by hand: to which store, under which id, for whom."""

from __future__ import annotations

import datetime
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.jobs.job import ID_CHARACTERS
from shardkit.jobs.open import open_store
from shardkit.jobs.targets import check_target
from shardkit.user_state import PRIVATE_FOLDER, state_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardkit.jobs.job import Job
    from shardkit.jobs.store import Request, Store

PLACE = "SHARDKIT_JOBS"  # the variable that says where jobs are


def default_place() -> str:
    """Where the jobs are by default: what SHARDKIT_JOBS names, else a file in the user's state folder."""
    return os.environ.get(PLACE) or os.path.join(state_home(), "jobs.sqlite")


def user_name() -> str:
    """The user who runs this program; a number if there is no name."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def new_id(name: str = "job") -> str:
    """A unique id that begins with a name that people recognise."""
    suffix = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    base = re.sub(r"[^a-zA-Z0-9]+", "-", name)[: ID_CHARACTERS - len(suffix) - 1].strip("-")
    return f"{base or 'job'}-{suffix}"


def submit(
    request: Request,
    *,
    job_id: str | None = None,
    depends_on: Sequence[str] = (),
    notify: Sequence[str] = (),
    owner: str | None = None,
    run: str = "",
    tags: Mapping[str, str] | None = None,
    store: Store | str | None = None,
    session: Any = None,
) -> Job:
    """Put a job into a queue.

    Examples:
        >>> sk.jobs.submit({"ProcessingResources": ..., ...}, job_id="talent-0001")        # doctest: +SKIP

    Args:
        request: The arguments of CreateProcessingJob or CreateTrainingJob, without the job's name.
        job_id: Its id; by default a new one. The same id with the same request again is the same job.
        depends_on: The ids of jobs that must be ``Completed`` first.
        notify: Who gets its notice: SNS topics, ``slack:...`` or ``webhook:...`` (see ``shardkit.jobs.targets``).
        owner: Whose job it is; by default the user's.
        run: The run that it and other jobs belong to.
        tags: Anything else that its owner wants to note about it.
        store: The queue: a store, or its place, ``dynamodb://TABLE`` or the path of a SQLite file. By default what
            SHARDKIT_JOBS names, else a file in the user's state folder.
        session: The boto3 session for a table of DynamoDB.

    Returns:
        The job.

    Raises:
        JobConflict: The id is taken by another request.
        JobNotFound: It depends on a job that was not submitted.
        JobError: The id, the request or a target cannot be used.
    """
    for target in notify:
        check_target(target)
    place = default_place() if store is None else store
    if isinstance(place, str):
        if "://" not in place:
            Path(place).expanduser().parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        place = open_store(place, session=session)
    return place.submit(
        job_id or new_id(),
        request,
        depends_on=depends_on,
        owner=user_name() if owner is None else owner,
        run=run,
        notify=notify,
        tags=tags,
    )
