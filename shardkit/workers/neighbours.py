"""Processes of one machine that work on the same run, each with workers of its own: nodes of a cluster.

They share the memory. So a record that has to prove itself needs all of them to pause, and one that is known to need
much waits for the others. Two files of the machine are all that they have in common:

    part    locked together by those whose workers are at work, and by one alone that has the machine for itself
    wish    locked by the one that wants to have it; what is in it says how

A lock ends with the process that holds it, so nobody waits for one that has died.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path

OLD_S = 86400.0  # after which files are removed that processes have left when they were killed
NOTHING, REST, END = b"", b"rest", b"end"
"""What another process wishes: that workers pause between two records, or commit what they have and end."""


def neighbours_at(name: str) -> Neighbours | None:
    """Those who have something of that name in common; None where there are no files or locks for it."""
    with contextlib.suppress(OSError):
        neighbours = Neighbours(name)
        neighbours.wish_of_others()
        return neighbours
    return None


class Neighbours:
    """This process among those of the machine that have something of that name in common.

    Raises:
        OSError: the machine has no folder for files, or no locks on them.
    """

    def __init__(self, name: str) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        self._home = Path(tempfile.gettempdir(), f"shardkit-neighbours-{os.getuid()}")
        self._home.mkdir(mode=0o700, exist_ok=True)
        _sweep(self._home)
        self._part = _Lock(self._home / f"{digest}.part")
        self._wish = _Lock(self._home / f"{digest}.wish")
        self._wishes = NOTHING
        self.takes_part = False

    def wish_of_others(self) -> bytes:
        """What one of the others wishes, if any does."""
        if self._wishes or self._wish.take(fcntl.LOCK_SH):
            if not self._wishes:
                self._wish.leave()
            return NOTHING
        return END if self._wish.read() == END else REST

    def enter(self, *, as_first: bool = False) -> bool:
        """Have workers at work from now on; with ``as_first`` only if none of the others has."""
        if not self.takes_part:
            self.takes_part = (not as_first or self._part.take(fcntl.LOCK_EX)) and self._part.take(fcntl.LOCK_SH)
        return self.takes_part

    def leave(self) -> None:
        """No worker of this process is at work any more."""
        if self.takes_part:
            self._part.leave()
            self.takes_part = False

    def wish(self, what: bytes) -> bool:
        """Wish to have the machine alone; False while another does."""
        if self._wishes != what and (self._wishes or self._wish.take(fcntl.LOCK_EX)):
            self._wish.write(what)
            self._wishes = what
        return bool(self._wishes)

    def have_all(self) -> bool:
        """Have the machine alone, if the others have heeded the wish; no worker of this process may be at work."""
        self.takes_part = False  # a lock that cannot be changed into one for this process alone is lost
        return self._part.take(fcntl.LOCK_EX)

    def give_back(self) -> None:
        """The machine belongs to all again."""
        if self._wishes:
            self._part.leave()
            self._wishes, self.takes_part = NOTHING, False
            self._wish.write(NOTHING)
            self._wish.leave()

    def close(self) -> None:
        """End it; the last one removes the files."""
        self.give_back()
        self.leave()
        for lock in (self._part, self._wish):
            lock.close()


def _sweep(home: Path) -> None:
    """Remove old files that nobody has locked; who has one open finds that out when it locks it."""
    for path in home.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > OLD_S:
                _Lock(path).close()


class _Lock:
    """A lock on a file, which is there once the file is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._opened()

    def _opened(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, how: int) -> bool:
        """Take the lock, or have it in another way, if that can be done at once."""
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
            if os.fstat(self._file).st_nlink:
                return True
        except BlockingIOError:
            return False
        os.close(self._file)  # somebody has removed the file, which others do not find any more
        self._file = self._opened()
        return self.take(how)

    def leave(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def read(self) -> bytes:
        return os.pread(self._file, 100, 0)

    def write(self, data: bytes) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, data, 0)

    def close(self) -> None:
        """Close the file, and remove it if nobody has the lock."""
        if self.take(fcntl.LOCK_EX):
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._file)
