"""Locks: what a process holds while it works, and can lose while it is paused; on this machine, a file's."""

from __future__ import annotations

import fcntl
import os
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from shardkit.errors import LockLost, RunBusy

if TYPE_CHECKING:
    from pathlib import Path

LOOK_S = 0.2
BUSY_HINT = "Wait for it to end, or stop it first."
LOST_HINT = (
    "What was committed before is kept, and nothing was changed since. See what the other process has made; then, if "
    "this run is still wanted, resume it."
)


class Held(ABC):
    """A lock that this process has taken, and may have lost since: by a pause, a network failure or a user's hand."""

    @abstractmethod
    def check(self, *, sure: bool = False) -> None:
        """Check that the lock is still held; with ``sure``, whatever the clock says.

        Raises:
            LockLost: it is not.
        """

    @property
    @abstractmethod
    def lost(self) -> LockLost | None:
        """Why the lock is lost, if this process knows that without asking anybody."""

    @abstractmethod
    def let_go(self) -> None:
        """End it."""


class FileLock(Held):
    """An advisory lock on a file; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, busy: str, patience_s: float) -> None:
        """Hold it from now on.

        Raises:
            RunBusy: another process holds it.
        """
        # A process that only looks whether it is locked also holds it, for a moment.
        deadline = time.monotonic() + max(patience_s, LOOK_S)
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunBusy(busy, hint=BUSY_HINT) from None
                time.sleep(0.02)
            else:
                return

    def check(self, *, sure: bool = False) -> None:
        """Check that the locked file is the one that others would lock."""
        if (lost := self.lost) is not None:
            raise lost

    @property
    def lost(self) -> LockLost | None:
        """Whether the file was removed or replaced."""
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except OSError:
            there = None
        if there is not None and os.path.samestat(ours, there):
            return None
        return LockLost(f"This run lost its lock {self._path}, which was removed while it worked.", hint=LOST_HINT)

    def let_go(self) -> None:
        """End it."""
        os.close(self._descriptor)


def is_file_locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
