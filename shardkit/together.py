"""Requests side by side: those to a store far away take long, and little else."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

AT_ONCE = 16


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each call returns, in their order; the first error, once all have ended."""
    if len(calls) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(AT_ONCE, len(calls)), thread_name_prefix="shardkit-together") as pool:
        return [called.result() for called in [pool.submit(call) for call in calls]]


@contextlib.contextmanager
def all_within(contexts: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    """Hold several contexts, all entered at once and left at once; where one cannot be entered, none stays."""
    entered: list[AbstractContextManager[Any]] = []

    def enter(context: AbstractContextManager[Any]) -> None:
        context.__enter__()
        entered.append(context)

    try:
        together([lambda context=context: enter(context) for context in contexts])  # type: ignore[misc]  # bound now
        yield
    finally:
        together([lambda context=context: context.__exit__(None, None, None) for context in entered])  # type: ignore[misc]
