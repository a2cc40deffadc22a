"""A coroutine of the user's, run so that each of its steps is known: between two steps it only waits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator


def coroutine_of(given: Any) -> Coroutine[Any, Any, Any]:
    """The coroutine for what an async function gave: itself, or one that collects what an async generator yields."""
    return _collected(given) if inspect.isasyncgen(given) else given


async def _collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


class Steps:
    """Awaits a coroutine, and calls ``begin`` before each of its steps and ``end`` after it."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], begin: Callable[[], object], end: Callable[[], object]
    ) -> None:
        self._coroutine = coroutine
        self._begin = begin
        self._end = end

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self._coroutine.send
        argument: Any = None
        while True:
            self._begin()
            try:
                waits_for = step(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                self._end()
            try:
                argument = yield waits_for
                step = self._coroutine.send
            except BaseException as error:  # noqa: BLE001  such as a cancellation, which is the coroutine's to handle
                step, argument = self._coroutine.throw, error
