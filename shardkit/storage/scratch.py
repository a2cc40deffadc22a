"""A folder of this process for files on their way to a store."""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from pathlib import Path

_MAKING_SCRATCH = threading.Lock()


@functools.lru_cache(maxsize=1)
def _scratch_of(pid: int) -> tempfile.TemporaryDirectory[str]:  # noqa: ARG001  a child process has its own
    return tempfile.TemporaryDirectory(prefix="shardkit-")


def scratch() -> Path:
    """A folder of this process for files on their way to a store; it is removed when the process ends."""
    with _MAKING_SCRATCH:  # otherwise two threads could each make one, and one of these would be removed at once
        return Path(_scratch_of(os.getpid()).name)
