"""Times, days and dates: as a run notes them, as people write them, and as the keys of objects hold them."""

from __future__ import annotations

import datetime
import re
import secrets
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def now() -> str:
    """The time in ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def new_run_id() -> str:
    """A new id; ids sort by the time at which they were made."""
    time = datetime.datetime.now(datetime.timezone.utc)
    return f"{time:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def interval(text: str) -> datetime.timedelta | None:
    """``30m``, ``3h``, ``1d`` or ``2w`` as a length of time; None if the text is none."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*([mhdw])\s*", text)
    return datetime.timedelta(**{UNITS[match[2]]: int(match[1])}) if match else None


MOST_DAYS = 10_000
DAY_COLUMN = "day_partition"


def zone_of(name: str | None) -> datetime.tzinfo:
    """The time zone of that name; UTC if there is no name.

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
    days: dict[str, None] = {}
    for text in dates:
        first, dots, last = text.partition("..")
        begin = _date(first, text)
        end = _date(last, text) if dots else begin
        count = (end - begin).days + 1
        if not 0 < count <= MOST_DAYS:
            raise PipelineError(f"The range of days {text} ends before it begins, or is far too long.")
        days |= {(begin + datetime.timedelta(days=i)).isoformat(): None for i in range(count)}
    return tuple(days)


def _date(text: str, whole: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text.strip(), "%Y-%m-%d").replace(tzinfo=datetime.timezone.utc).date()
    except ValueError:
        raise PipelineError(
            f"{whole!r} is no day or range of days.", hint="Write 2020-01-31, or 2020-01-01..2020-01-31."
        ) from None


def days_since(text: str, *, zone: datetime.tzinfo, now: datetime.datetime | None = None) -> tuple[str, ...]:
    """The days until today, from as long ago as ``text`` says, such as ``3d``, ``12h`` or ``2w``.

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


# The parts of a date: their digits as they look next to other digits, and as they look where nothing else can be meant.
DATE_PARTS = {
    "{Y}": ("[0-9]{4}", "[0-9]{4}"),
    "{m}": ("0[1-9]|1[0-2]", "1[0-2]|0?[1-9]"),
    "{d}": ("0[1-9]|[12][0-9]|3[01]", "[12][0-9]|3[01]|0?[1-9]"),
    "{H}": ("[01][0-9]|2[0-3]", "1[0-9]|2[0-3]|0?[0-9]"),
}
WILD = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


def date_expression(path: str) -> tuple[str, str]:
    """A pattern such as ``logs/{Y}/{m}/{d}`` as an RE2 expression over whole keys, and the rewrite that gives the date.

    The pattern may stand anywhere in a key, but not in the middle of other digits; its first place counts.

    Raises:
        ValueError: it has no ``{Y}``, a part without the next larger one, or one that is unknown.
    """
    items = re.findall(r"\{[^{}/]*\}|\*\*|.", path, re.DOTALL)
    _check_parts(items)
    expression, seen = "", []
    for i, item in enumerate(items):
        if item in DATE_PARTS:
            # Next to another digit, or to what may be one, only the full width shows where a number ends.
            beside = items[i - 1 : i] + items[i + 1 : i + 2] if i else items[1:2]
            digits = DATE_PARTS[item][not any(b in DATE_PARTS or b in WILD or b.isdigit() for b in beside)]
            expression += f"(?:{digits})" if item in seen else f"({digits})"
            seen.append(item)
        else:
            expression += WILD.get(item) or re.escape(item)
    before = "(?:.*?[^0-9])??" if items[0] in DATE_PARTS else ".*?"
    after = "(?:[^0-9].*)?" if items[-1] in DATE_PARTS else ".*"
    captured = list(dict.fromkeys(seen))
    rewrite = "-".join(f"\\{captured.index(part) + 1}" for part in DATE_PARTS if part in seen)
    return f"(?s)^{before}{expression}{after}$", rewrite


def _check_parts(items: list[str]) -> None:
    unknown = next((item for item in items if item[0] == "{" and item not in DATE_PARTS), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown} is no part of a date; {{Y}} is the year, {{m}} the month, {{d}} the day and {{H}} the hour"
            f"{', each with its closing brace' if unknown == '{' else ''}."
        )
    present = [part in items for part in DATE_PARTS]
    if not present[0] or present != sorted(present, reverse=True):
        raise ValueError("expected a pattern with {Y}, or {Y} and {m}, or these and {d}, such as logs/{Y}/{m}/{d}.")
