"""Signals that end a block as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def ended_by(*signals: signal.Signals, note: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Have these signals raise KeyboardInterrupt in the block, even if the program was started with them ignored.

    ``note`` is called first. In a thread other than the main one this does nothing: no signal comes there.
    """
    before: dict[signal.Signals, Any] = {}

    def interrupt(*_: object) -> None:
        note()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
