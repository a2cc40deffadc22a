"""Time as the queue sees it: the machine's, or a simulation's."""

from __future__ import annotations

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def time(self) -> float:
        """Seconds since 1970, UTC."""

    def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""


class RealClock:
    """The machine's clock."""

    def time(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Return after that many seconds."""
        time.sleep(max(0.0, seconds))


class SimulatedClock:
    """A clock that only moves when somebody sleeps: a day of jobs passes in a moment."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self.now = start

    def time(self) -> float:
        """Seconds since 1970, UTC."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on by that many seconds."""
        self.now += max(0.0, seconds)


def is_due(at: float, now: float, longest_s: float) -> bool:
    """Whether a time has come; one further away than ``longest_s`` was set by a clock that was ahead."""
    return at <= now or at - now > longest_s


def iso(seconds: float) -> str:
    """A time as histories hold it: ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="milliseconds")


def seconds_of(value: object) -> float | None:
    """A service's time, a datetime or a number, in seconds since 1970; None if there is none."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=datetime.timezone.utc)
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None
