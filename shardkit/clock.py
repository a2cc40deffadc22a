"""The time as files and names of a run hold it: UTC."""

from __future__ import annotations

import datetime
import secrets


def now() -> str:
    """The time in ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def new_run_id() -> str:
    """An id that sorts by the time of its making."""
    time = datetime.datetime.now(datetime.timezone.utc)
    return f"{time:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
