"""Heartbeats: how far each attempt at a run is, or was when it ended."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from shardkit.errors import Damaged
from shardkit.runfolder.document_types import Heartbeat
from shardkit.runfolder.names import ALL_SHARDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.runfolder.files import RunFiles

FOLDER = "progress"
UNKNOWN = "unknown"  # the state of a heartbeat that cannot be read


def name_of(beat: Heartbeat) -> str:
    """The file of an attempt's heartbeat, in the run folder."""
    return f"{FOLDER}/{beat['shard']}-{beat['attempt']:04d}.json"


def attempt_of(name: str) -> tuple[str, int]:
    """The shard and the number of the attempt whose heartbeat has that name."""
    shard, _, attempt = name.rpartition("/")[2].removesuffix(".json").rpartition("-")
    return shard, int(attempt) if attempt.isdecimal() else 0


def parsed(run: RunFiles, name: str, data: bytes) -> Heartbeat:
    """A heartbeat; an unreadable one has the state ``unknown``, so that the run can still be looked at."""
    try:
        beat = run.parse(name, data, Heartbeat, "")
        if all(datetime.datetime.fromisoformat(time).tzinfo for time in (beat["started"], beat["at"])):
            return beat
    except (Damaged, ValueError):
        pass
    shard, number = attempt_of(name)
    time = datetime.datetime.fromtimestamp(0, datetime.timezone.utc).isoformat()
    return {
        "shard": shard,
        "attempt": number,
        "state": UNKNOWN,
        "message": None,
        "started": time,
        "at": time,
    }


def next_attempt(names: Iterable[str], shard: int | str) -> int:
    """A number higher than that of any attempt at the shard, or at any; ``names`` are those of all heartbeats."""
    attempts = [name.partition("/")[2].removesuffix(".json").rsplit("-", 1) for name in names]
    mine = {str(shard), ALL_SHARDS}
    numbers = ((of, n) for of, n in (attempt for attempt in attempts if len(attempt) == 2) if n.isdecimal())
    return 1 + max((int(n) for of, n in numbers if shard == ALL_SHARDS or of in mine), default=0)
