"""Where jobs are kept, in one line: a file, or a table of DynamoDB.

A further kind of store is a subclass of `Store` in a module of its own, and a line in the table here; another package
adds one by an entry point in the group ``shardkit.job_stores``, named after the scheme of its places. The function
registered gets the place, and as keywords the ``session`` and the ``clock`` of `open_store`; it returns the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.jobs.dynamodb_place import not_a_place, parsed_place
from shardkit.jobs.dynamodb_table import TABLE, TIME_TO_LIVE
from shardkit.jobs.errors import JobError, StoreError
from shardkit.plugins import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.jobs.clock import Clock
    from shardkit.jobs.store import Store

JOB_STORES: Registry[Callable[..., Any]] = Registry(
    "shardkit.job_stores",
    {
        "": "shardkit.jobs.sqlite:open_file",
        "dynamodb": "shardkit.jobs.dynamodb_place:open_table",
    },
    error=JobError,
    fits=callable,
    wanted="a callable that takes a place, a session and a clock",
)
WAIT = {"Delay": 2, "MaxAttempts": 60}  # for a table to become active


def open_store(place: str, *, session: Any = None, clock: Clock | None = None) -> Store:
    """The store at a place.

    Args:
        place: The path of a SQLite file, or ``dynamodb://TABLE``, which takes options:
            ``dynamodb://TABLE?region=eu-west-1&requests=s3://bucket/prefix&expire_days=90`` (see ``DynamoDBStore``).
        session: The boto3 session for a table.
        clock: Gives the times of submissions.

    Raises:
        JobError: There is no such kind of place, or it has no such option.
        StoreError: The file cannot be used. A table that cannot be used shows in the first call.
    """
    scheme, separator, _ = place.partition("://")
    opener = JOB_STORES.find(scheme if separator else "")  # a path has none
    if opener is None:
        raise not_a_place(place)
    store: Store = opener(place, session=session, clock=clock)
    return store


def create_table(table: str, *, session: Any = None, region: str | None = None) -> bool:
    """Make the DynamoDB table of jobs, if it does not exist, and wait until it can be used.

    Args:
        table: Its name, or its place as ``open_store()`` takes it.
        session: The boto3 session.
        region: The region, if it is not the session's.

    Returns:
        Whether it was made; False if it existed.

    Raises:
        StoreError: It cannot be made, or there is another table of that name.
    """
    from shardkit.jobs.dynamodb_calls import Table

    if "://" in table:
        table, options = parsed_place(table)
        region = region or options.get("region")
    place = Table(table, session=session, region=region)
    made = place.create(TABLE, WAIT)
    described = place.call("describe_table", TableName=table)["Table"]
    indexes = {each["IndexName"] for each in described.get("GlobalSecondaryIndexes", ())}
    wanted = {each["IndexName"] for each in TABLE["GlobalSecondaryIndexes"]}
    if described["KeySchema"] != TABLE["KeySchema"] or not wanted <= indexes:
        raise StoreError(f"There is a DynamoDB table {table} that is no table of jobs.", hint="Use another name.")
    expiry = place.call("describe_time_to_live", TableName=table)["TimeToLiveDescription"]
    if expiry.get("TimeToLiveStatus") not in {"ENABLED", "ENABLING"}:
        place.call("update_time_to_live", TableName=table, TimeToLiveSpecification=TIME_TO_LIVE)
    return made
