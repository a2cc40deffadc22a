"""The logs of jobs, as they are or as they grow."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

LOOK_S = 2.0


@dataclass(frozen=True)
class JobLog:
    """The log of one job: its name, the state that it is in, and its lines so far."""

    name: str
    state: str
    lines: Iterable[str]


def lines_of(logs: Sequence[JobLog]) -> Iterator[str]:
    """The lines of some logs, one log after the other; if they are several, each has a head."""
    for log in logs:
        if len(logs) > 1:
            yield f"== {log.name} ({log.state})"
        yield from log.lines


def follow(look: Callable[[], tuple[Sequence[JobLog], bool]], *, look_s: float = LOOK_S) -> Iterator[str]:
    """The lines of some logs as they come, with a head wherever another of several logs goes on.

    Args:
        look: Gives the logs, and whether jobs were still to write when it was called.
        look_s: The seconds between two looks.
    """
    shown: defaultdict[str, Counter[str]] = defaultdict(Counter)
    latest = None
    go_on = True
    while go_on:
        logs, go_on = look()
        for log in logs:
            for line in _not_in(shown[log.name], log.lines):
                if log.name != latest and (len(logs) > 1 or latest is not None):
                    yield f"== {log.name}"
                latest = log.name
                yield line
        if go_on:
            time.sleep(look_s)


def _not_in(shown: Counter[str], lines: Iterable[str]) -> Iterator[str]:
    """The lines that were not shown yet, which need not be the last: a job of several instances mixes their lines."""
    now: Counter[str] = Counter()
    for line in lines:
        now[line] += 1
        if now[line] > shown[line]:
            shown[line] += 1
            yield line
