"""Days: which of them a run is asked for, in words that a command line takes."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shardkit.clock import interval
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_DAYS = 10_000
DAY_COLUMN = "day_partition"


def zone_of(name: str | None) -> datetime.tzinfo:
    """The time zone of that name; UTC where none is given.

    Raises:
        PipelineError: there is no such zone.
    """
    if name is None or name == "UTC":
        return datetime.timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise PipelineError(
            f"shards.zone: there is no time zone {name!r}.", hint="Write a name such as Europe/Paris, or UTC."
        ) from None


def parse_days(dates: Iterable[str]) -> tuple[str, ...]:
    """Days and ranges of days, such as ``2020-01-01`` and ``2020-01-05..2020-01-09``, as single days.

    Raises:
        PipelineError: one is no date, or a range ends before it begins.
    """
    found: dict[str, None] = {}
    for text in dates:
        first, dots, last = text.partition("..")
        begin = _date(first, text)
        end = _date(last, text) if dots else begin
        count = (end - begin).days + 1
        if not 0 < count <= MOST_DAYS:
            raise PipelineError(f"--date {text}: the range ends before it begins, or is far too long.")
        found |= {(begin + datetime.timedelta(days=i)).isoformat(): None for i in range(count)}
    return tuple(found)


def _date(text: str, whole: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=datetime.timezone.utc).date()
    except ValueError:
        raise PipelineError(
            f"--date {whole}: {text!r} is no date.", hint="Write 2020-01-31, or 2020-01-01..2020-01-31."
        ) from None


def days_since(text: str, *, zone: datetime.tzinfo, now: datetime.datetime | None = None) -> tuple[str, ...]:
    """The days from so long ago until today, such as ``3d``, ``12h`` or ``2w``.

    Raises:
        PipelineError: it is no such time.
    """
    back = interval(text)
    if back is None:
        raise PipelineError(f"--since {text}: expected a time such as 3d, 12h or 2w.")
    end = now or datetime.datetime.now(zone)
    begin = (end - back).date()
    return parse_days([f"{begin.isoformat()}..{end.date().isoformat()}"])


def is_wanted(group: str, days: Iterable[str]) -> bool:
    """Whether a group, which may be an hour, a day, a month or a year, belongs to one of the days."""
    return any(group.startswith(day) or day.startswith(group) for day in days)
