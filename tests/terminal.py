"""A terminal in which commands run."""

from __future__ import annotations

import os
import pty
import select
import time
from typing import TYPE_CHECKING, Any

import warm

if TYPE_CHECKING:
    from collections.abc import Sequence


def said_in_terminal(words: Sequence[object], *, timeout_s: float = 60, **options: Any) -> str:
    """What a command, which must succeed, writes to its terminal; the options are those of ``warm.start``."""
    ours, theirs = pty.openpty()
    with open(theirs, "wb", buffering=0) as terminal:
        process = warm.start(words, stdout=terminal, stderr=terminal, start_new_session=True, **options)
    said, deadline = b"", time.monotonic() + timeout_s
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    piece = os.read(ours, 1 << 16)
                except OSError:  # nobody has the other end any more
                    break
                said += piece
        assert process.wait(10) == 0, said.decode()
    finally:
        process.kill()
        os.close(ours)
    return said.decode()
