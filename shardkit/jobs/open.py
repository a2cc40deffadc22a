"""Where jobs lie, said in one line: a file, or a table of DynamoDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from shardkit.jobs.dynamodb_table import TABLE, TIME_TO_LIVE
from shardkit.jobs.errors import JobError, StoreError

if TYPE_CHECKING:
    from shardkit.jobs.clock import Clock
    from shardkit.jobs.store import Store

OPTIONS = ("region", "requests", "expire_days")
WAIT = {"Delay": 2, "MaxAttempts": 60}  # for a table to become active


def open_store(place: str, *, session: Any = None, clock: Clock | None = None) -> Store:
    """The store at a place.

    Args:
        place: The path of a SQLite file, or ``dynamodb://TABLE``, which takes options:
            ``dynamodb://TABLE?region=eu-west-1&requests=s3://bucket/prefix&expire_days=90`` (see ``DynamoDBStore``).
        session: The boto3 session for a table.
        clock: What tells the time of submissions.

    Raises:
        JobError: There is no such kind of place, or it has no such option.
        StoreError: The file cannot be used. That a table cannot, the first call tells.
    """
    if "://" not in place:
        from shardkit.jobs.sqlite import SQLiteStore

        return SQLiteStore(place, clock=clock)
    from shardkit.jobs.dynamodb import DynamoDBStore

    table, options = _table(place)
    days = options.pop("expire_days", None)
    try:
        expire_days = float(days) if days is not None else None
    except ValueError:
        raise JobError(f"expire_days is a number of days, not {days!r}.", hint="For example expire_days=90.") from None
    return DynamoDBStore(table, session=session, clock=clock, expire_days=expire_days, **options)


def _table(place: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a table."""
    parts = urlsplit(place)
    if parts.scheme != "dynamodb" or not parts.netloc or parts.path.strip("/"):
        raise JobError(f"{place!r} is no place for jobs.", hint="Give the path of a file, or dynamodb://TABLE.")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise JobError(f"{place} has an unknown option {unknown[0]!r}.", hint=f"There are {', '.join(OPTIONS)}.")
    return parts.netloc, options


def create_table(table: str, *, session: Any = None, region: str | None = None) -> bool:
    """Make the DynamoDB table of jobs, if it is not there, and wait until it can be used.

    Args:
        table: Its name, or its place as ``open_store()`` takes it.
        session: The boto3 session.
        region: The region, if it is not the session's.

    Returns:
        Whether it was made; False if it was there.

    Raises:
        StoreError: It cannot be made, or there is another table of that name.
    """
    from shardkit.jobs.dynamodb_calls import Table

    if "://" in table:
        table, options = _table(table)
        region = region or options.get("region")
    place = Table(table, session=session, region=region)
    made = place.create(TABLE, WAIT)
    described = place.call("describe_table", TableName=table)["Table"]
    indexes = {each["IndexName"] for each in described.get("GlobalSecondaryIndexes", ())}
    wanted = {each["IndexName"] for each in TABLE["GlobalSecondaryIndexes"]}
    if described["KeySchema"] != TABLE["KeySchema"] or not wanted <= indexes:
        raise StoreError(f"There is a DynamoDB table {table} that is no table of jobs.", hint="Use another name.")
    known = place.call("describe_time_to_live", TableName=table)["TimeToLiveDescription"]
    if known.get("TimeToLiveStatus") not in {"ENABLED", "ENABLING"}:
        place.call("update_time_to_live", TableName=table, TimeToLiveSpecification=TIME_TO_LIVE)
    return made
