"""Requests to a store that can be given up: after Ctrl-C, nobody waits long for a store that has vanished.

A request runs to its end whatever signals come, because native code makes it: up to two minutes if nobody answers. So
a thread of its own makes the request, and after an interruption its caller waits only a moment longer. Workers do
without this: their supervisor ends them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from shardkit.storage.refusals import LOST, STRANGE_HINT, TIMED_OUT, Unanswered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

TICK_S = 0.2
GRACE_S = 3.0  # how long a request may still take after an interruption
BYTES_A_SECOND = 1e6  # a request with a body may take longer, at this rate
FORGOTTEN_S = 30.0
LIST_S = 300.0  # for the next thousand keys, because a list that goes in circles may never end


class GivenUp(Unanswered):
    """A request that was given up because the work was interrupted."""


class _Interruption:
    """Whether, and since when, this process is about to end its work."""

    def __init__(self) -> None:
        self.watching = True
        self._event = threading.Event()
        self._at = 0.0
        self._silent = False

    def note(self) -> None:
        """The user has interrupted: requests on their way, and later ones, may take only a moment."""
        if not self.noted:
            self._silent = False
        self._at = time.monotonic()
        self._event.set()

    def forget(self) -> None:
        """New work begins."""
        self._event.clear()
        self._silent = False

    @property
    def noted(self) -> bool:
        """Whether the work is about to end."""
        if self._event.is_set() and time.monotonic() - self._at > FORGOTTEN_S:
            self.forget()
        return self._event.is_set()

    def is_over(self, begun: float, size: int = 0) -> bool:
        """Whether to give up a request that began at that time and carries ``size`` bytes."""
        if not self.noted:
            return False
        grace = TICK_S if self._silent else GRACE_S + size / BYTES_A_SECOND
        over = time.monotonic() > max(self._at, begun) + grace
        self._silent |= over  # the store is silent, so the next requests are given up at once
        return over

    def pause(self, seconds: float) -> None:
        """Wait before a request is made again."""
        if threading.current_thread() is threading.main_thread() or self.noted:
            time.sleep(min(seconds, TICK_S) if self.noted else seconds)
        else:
            self._event.wait(seconds)


INTERRUPTION = _Interruption()


@contextlib.contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Let Ctrl-C reach all threads that wait for a store, not just the main thread.

    Raises:
        KeyboardInterrupt: also if a request that was given up because of it ended the block.
    """
    INTERRUPTION.forget()
    before = signal.getsignal(signal.SIGINT)
    ours = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except GivenUp as error:
        raise KeyboardInterrupt from error
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: Any) -> None:
    INTERRUPTION.note()
    signal.default_int_handler(number, frame)


class _Request:
    """A request, and its answer once that is there."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._answer: Any = None
        self._error: BaseException | None = None
        self.answered = threading.Event()

    def run(self) -> None:
        try:
            self._answer = self._make()
        except BaseException as error:  # noqa: BLE001  `result` raises it
            self._error = error
        self.answered.set()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._answer


class _Hands:
    """Threads that make requests; the program's end does not wait for them."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin without a thread, as a forked process must."""
        self._waiting: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()

    def take(self, request: _Request) -> None:
        """Hand a request to an idle thread, or to a new one."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._serve, name="shardkit-request", daemon=True).start()
        self._waiting.put(request)

    def _serve(self) -> None:
        while True:
            self._waiting.get().run()
            with self._lock:
                self._idle += 1


_HANDS = _Hands()
os.register_at_fork(after_in_child=_HANDS.begin)


def answered(make: Callable[[], T], *, size: int = 0, limit_s: float | None = None) -> T:
    """The answer to a request; ``size`` is that of its body, in bytes.

    Raises:
        KeyboardInterrupt: one came meanwhile.
        GivenUp: there was no answer within a moment of an interruption.
        Unanswered: there was no answer for ``limit_s``.
    """
    request, begun, interrupt = _Request(make), time.monotonic(), None
    _HANDS.take(request)
    while True:
        try:
            if request.answered.wait(TICK_S):
                break
        except KeyboardInterrupt as error:
            INTERRUPTION.note()
            if interrupt is not None:
                raise
            interrupt = error
        if INTERRUPTION.is_over(begun, size):
            if interrupt is not None:
                raise interrupt
            raise GivenUp("The store did not answer after the interruption.", kind=LOST)
        if limit_s is not None and time.monotonic() - begun > limit_s:
            raise Unanswered(f"No end after {limit_s:g} s.", kind=TIMED_OUT, hint=STRANGE_HINT)
    if interrupt is not None:
        raise interrupt
    answer: T = request.result()
    return answer


class Watched:
    """A store of obstore whose requests can each be given up."""

    def __init__(self, store: Any) -> None:
        self.raw = store

    def get(self, *arguments: Any, **options: Any) -> Any:
        """An object, whose bytes are still to come."""
        return _Object(answered(lambda: self.raw.get(*arguments, **options)))

    def put(self, path: str, content: Any, **options: Any) -> Any:
        """Write an object."""
        size = len(content) if hasattr(content, "__len__") else content.stat().st_size
        return answered(lambda: self.raw.put(path, content, **options), size=size)

    def list(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        """The pages of a list."""
        pages, end = iter(self.raw.list(*arguments, **options)), object()
        while (page := answered(lambda: next(pages, end), limit_s=LIST_S)) is not end:
            yield page

    def list_with_delimiter(self, *arguments: Any, **options: Any) -> Any:
        """What lies directly in a folder."""
        return answered(lambda: self.raw.list_with_delimiter(*arguments, **options), limit_s=LIST_S)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.raw, name)
        return functools.partial(self._call, attribute) if callable(attribute) else attribute

    @staticmethod
    def _call(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return answered(lambda: method(*arguments, **options))


class _Object:
    """An object whose metadata is here and whose bytes are still to come."""

    def __init__(self, result: Any) -> None:
        self._result = result
        self.meta = result.meta

    def bytes(self) -> Any:
        """All its bytes."""
        return answered(self._result.bytes, size=self.meta["size"])


def watched(store: Any) -> Any:
    """A store whose requests can be given up; the store itself in a process that does not watch for interruptions."""
    return Watched(store) if INTERRUPTION.watching else store
