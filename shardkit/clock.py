"""The time as files and names of a run hold it, UTC; and lengths of time as people write them."""

from __future__ import annotations

import datetime
import re
import secrets

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def now() -> str:
    """The time in ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def new_run_id() -> str:
    """An id that sorts by the time of its making."""
    time = datetime.datetime.now(datetime.timezone.utc)
    return f"{time:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def interval(text: str) -> datetime.timedelta | None:
    """``30m``, ``3h``, ``1d`` or ``2w`` as a time; None where it is none."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*([mhdw])\s*", text)
    return datetime.timedelta(**{UNITS[match[2]]: int(match[1])}) if match else None
