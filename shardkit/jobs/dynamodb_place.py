"""A table of DynamoDB as the place of jobs, in one line: ``dynamodb://TABLE?option=value``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from shardkit.jobs.errors import JobError

if TYPE_CHECKING:
    from shardkit.jobs.clock import Clock
    from shardkit.jobs.dynamodb import DynamoDBStore

OPTIONS = ("region", "requests", "expire_days")


def open_table(place: str, *, session: Any = None, clock: Clock | None = None) -> DynamoDBStore:
    """The store in a table; the first call shows whether there is such a table.

    Raises:
        JobError: The place names no table, or has an unknown option.
    """
    from shardkit.jobs.dynamodb import DynamoDBStore

    table, options = parsed_place(place)
    days = options.pop("expire_days", None)
    try:
        expire_days = float(days) if days is not None else None
    except ValueError:
        raise JobError(f"expire_days is a number of days, not {days!r}.", hint="For example expire_days=90.") from None
    return DynamoDBStore(table, session=session, clock=clock, expire_days=expire_days, **options)


def parsed_place(place: str) -> tuple[str, dict[str, Any]]:
    """The name and options of a table."""
    parts = urlsplit(place)
    if parts.scheme != "dynamodb" or not parts.netloc or parts.path.strip("/"):
        raise not_a_place(place)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise JobError(f"{place} has an unknown option {unknown[0]!r}.", hint=f"There are {', '.join(OPTIONS)}.")
    return parts.netloc, options


def not_a_place(place: str) -> JobError:
    """The error about text that is not a place."""
    return JobError(f"{place!r} is no place for jobs.", hint="Give the path of a file, or dynamodb://TABLE.")
