"""Requests side by side: those to a store far away take long, and little else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AT_ONCE = 16


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all calls, in order; raises the first error once all have ended."""
    if len(calls) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(min(AT_ONCE, len(calls)), thread_name_prefix="shardkit-together") as pool:
        return [called.result() for called in [pool.submit(call) for call in calls]]
