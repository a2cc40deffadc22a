"""Requests to object stores: their errors as ours, and those that may yet succeed made again, counted by kind.

Waits grow exponentially and are drawn at random from nothing up to that, so that many workers do not come back all at
once; each kind of failure has a time after which it is told.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import re
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from shardkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

P = ParamSpec("P")
T = TypeVar("T")

THROTTLED, SERVER_ERROR, TIMED_OUT = "throttled", "server_error", "timed_out"
LOST, UNREACHABLE, CUT_SHORT, EXPIRED = "lost", "unreachable", "cut_short", "expired"
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 8.0
REPEATED_FOR_S = 120.0
# A server that is not there, and credentials that nobody renews, are told sooner.
PATIENCE_S = {UNREACHABLE: 30.0, EXPIRED: 20.0}

THROTTLING = {
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "ServerBusy",
}
EXPIRY = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
TIME_OUTS = {"RequestTimeout", "OperationTimedOut"}
CONDITIONS = ("PreconditionError", "AlreadyExistsError", "NotModifiedError")
RESUME_HINT = "What was committed is kept; resume the run when the storage can be reached."
SIGN_IN_HINT = "Sign in again (such as aws sso login), then resume the run: what was committed is kept."
ODD_KEY_HINT = (
    "Keys with // in them, with . or .. between two slashes or with control characters cannot be read: rename these "
    "objects, or choose an input without them."
)


class Unanswered(StorageError):
    """A request that failed for no reason of its own: the same one again may succeed. ``kind`` tells the reason."""

    def __init__(self, message: str, *, kind: str, hint: str = RESUME_HINT) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class Denied(StorageError):
    """The store knows who asks, or that nobody signed, and refuses."""


class _Repeats:
    """How many requests this process has made again, by the reason."""

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
    """The counts in words: ``12 repeated (9 throttled)``; empty where there are none."""
    total, throttled = sum(counts.values()), counts.get(THROTTLED, 0)
    return f"{total:,} repeated ({throttled:,} throttled)" if total else ""


def repeated(request: Callable[P, T]) -> Callable[P, T]:
    """Make a request again that was not answered, or not to the end."""

    @functools.wraps(request)
    def again(*arguments: P.args, **options: P.kwargs) -> T:
        begun = time.monotonic()
        for tries in itertools.count():
            try:
                return request(*arguments, **options)
            except Unanswered as error:
                if time.monotonic() - begun > PATIENCE_S.get(error.kind, REPEATED_FOR_S):
                    raise
                REPEATS.add(error.kind)
                time.sleep(random.uniform(0.0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**tries)))  # noqa: S311  no secret
        raise AssertionError

    return again


@contextlib.contextmanager
def asking(uri: str, renew: Callable[[], None]) -> Iterator[None]:
    """Turn obstore's errors into ours; ``renew`` has credentials looked up anew that have expired.

    What a conditional request is told of its condition passes as it is.
    """
    from obstore import exceptions

    try:
        yield
    except ValueError as error:  # of obstore alone: nothing else runs within
        if "parse path" not in str(error):
            raise
        raise StorageError(f"{uri}: {_answer(str(error))[1]}", hint=ODD_KEY_HINT) from error
    except (FileNotFoundError, exceptions.BaseError) as error:
        if type(error).__name__ in CONDITIONS:
            raise
        ours = _ours(uri, error)
        if isinstance(ours, Unanswered) and ours.kind == EXPIRED:
            renew()
        raise ours from error


def _ours(uri: str, error: Exception) -> Exception:
    text = str(error)
    code, message = _answer(text)
    if code in {"NoSuchBucket", "ContainerNotFound"}:
        kind = "container" if code == "ContainerNotFound" else "bucket"
        return StorageError(f"There is no {kind} {uri.split('/')[2]}.", hint="Is its name right?")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{uri} is not there")
    if "credential provider: " in text or code in EXPIRY or _is_refused_without_reason(text):
        reason = text.partition("credential provider: ")[2].partition("\n")[0] or message
        return Unanswered(f"The credentials for {uri} have expired: {reason}", kind=EXPIRED, hint=SIGN_IN_HINT)
    if "403 Forbidden" in text or "401 Unauthorized" in text:
        hint = "Give yourself, or the job's role, the permission."
        return Denied(f"Access to {uri} is denied: {code}: {message}", hint=hint)
    if "invalid path" in text:
        return StorageError(f"{uri}: {message}", hint=ODD_KEY_HINT)
    kind = _kind(text, code)
    return Unanswered(f"{uri}: {message}", kind=kind) if kind else StorageError(f"{uri}: {message}", hint=RESUME_HINT)


def _is_refused_without_reason(text: str) -> bool:
    """Whether it is a HEAD that got a 400: an answer without a body, in which S3 says that a token has expired."""
    return "400 Bad Request" in text and "performing HEAD" in text


def _kind(text: str, code: str) -> str:
    """Why a request should be made again; empty if it should not."""
    found = re.search(r"status code: (\d{3})", text)
    status = int(found[1]) if found else 0
    if status in {429, 503} or code in THROTTLING:
        return THROTTLED
    if status == 408 or code in TIME_OUTS:
        return TIMED_OUT
    if status >= 500 or status == 409:
        return SERVER_ERROR
    if status or "Received redirect" in text:
        return ""
    found = re.search(r"HttpError \{\s*kind: (\w+)", text)
    by_kind = {"Connect": UNREACHABLE, "Timeout": TIMED_OUT, "Interrupted": CUT_SHORT, "Decode": CUT_SHORT}
    return by_kind.get(found[1] if found else "", LOST)


def _answer(text: str) -> tuple[str, str]:
    """The store's own error code and message out of obstore's, or an empty code and its first line."""
    found = re.search(r"<Code>(.*?)</Code>\s*(?:<Message>(.*?)</Message>)?", text, re.DOTALL)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return (found[1], (found[2] or found[1])[:500]) if found else ("", first[:500])


def count_of(told: Mapping[str, Any]) -> Counter[str]:
    """The repeats that a marker or a heartbeat tells of; those of an earlier version told of none."""
    return Counter(told.get("repeated") or {})
