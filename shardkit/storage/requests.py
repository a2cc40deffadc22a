"""Requests to object stores: their errors become ours; those that may yet succeed are repeated, counted by kind.

Each wait is random, between zero and a limit that grows exponentially, so that many workers do not come back all at
once. Each kind of failure has a time after which it is raised.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from shardkit.errors import ObjectRefused, StorageError
from shardkit.storage.interruption import INTERRUPTION, GivenUp
from shardkit.storage.refusals import (
    CONDITIONS,
    EXPIRED,
    ODD_KEY_HINT,
    RESUME_HINT,
    STRANGE,
    THROTTLED,
    UNREACHABLE,
    Answer,
    Unanswered,
    error_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

P = ParamSpec("P")
T = TypeVar("T")

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 8.0
REPEATED_FOR_S = 120.0
# A missing server, something that is not a store, and expired credentials are raised sooner.
PATIENCE_S = {UNREACHABLE: 30.0, EXPIRED: 20.0, STRANGE: 10.0}


class _Repeats:
    """How many requests this process has repeated, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str) -> None:
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> Counter[str]:
        with self._lock:
            return Counter(self._counts)


REPEATS = _Repeats()


def repeats_text(counts: Mapping[str, int]) -> str:
    """The counts in words: ``12 repeated (9 throttled)``; empty if there are none."""
    total, throttled = sum(counts.values()), counts.get(THROTTLED, 0)
    return f"{total:,} repeated ({throttled:,} throttled)" if total else ""


def repeated(request: Callable[P, T]) -> Callable[P, T]:
    """Repeat a request that was not answered, or not to the end."""

    @functools.wraps(request)
    def again(*arguments: P.args, **options: P.kwargs) -> T:
        begun = time.monotonic()
        for tries in itertools.count():
            try:
                return request(*arguments, **options)
            except Unanswered as error:
                if isinstance(error, GivenUp) or INTERRUPTION.is_over(begun):
                    raise
                if time.monotonic() - begun > PATIENCE_S.get(error.kind, REPEATED_FOR_S):
                    raise
                REPEATS.add(error.kind)
                wait = random.uniform(0.0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**tries))  # noqa: S311  no secret
                INTERRUPTION.pause(wait)
        raise AssertionError

    return again


@contextlib.contextmanager
def asking(uri: str, renew: Callable[[], None]) -> Iterator[None]:
    """Turn obstore's errors into ours; ``renew`` looks up expired credentials again.

    Errors about the condition of a conditional request pass unchanged.
    """
    from obstore import exceptions

    try:
        yield
    except ValueError as error:  # of obstore alone: nothing else runs within
        if "parse path" not in str(error):
            raise
        raise StorageError(f"{uri}: {Answer.of(error).message}", hint=ODD_KEY_HINT) from error
    except (FileNotFoundError, exceptions.BaseError) as error:
        ours = error_of(uri, error)
        if type(error).__name__ in CONDITIONS and not isinstance(ours, ObjectRefused):
            raise
        if isinstance(ours, Unanswered) and ours.kind == EXPIRED:
            renew()
        raise ours from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a panic of the Rust library, which is not an Exception in Python
            raise
        raise StorageError(f"{uri}: {Answer.of(error).message}", hint=RESUME_HINT) from None


def count_of(document: Mapping[str, Any]) -> Counter[str]:
    """The repeats that a marker or a heartbeat counts; those of an earlier version have no such field."""
    return Counter(document.get("repeated") or {})
