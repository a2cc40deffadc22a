"""Checks after each record what a worker needs of its own process, to which the function may have done anything."""

from __future__ import annotations

import contextlib
import errno
import os
from resource import RLIM_INFINITY, RLIMIT_FSIZE, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_OUT_OF_MEMORY = 86
EXIT_CLOSED = 87
EXIT_LIMITED = 88
EXIT_CROWDED = 89
HARM = {
    EXIT_CLOSED: "the function closed or replaced the pipe to its worker process, or wrote to it",
    EXIT_LIMITED: "the function lowered a limit of its process so that nothing can be stored any more",
    EXIT_CROWDED: "the function left no file descriptor free in its process",
}
RESERVED = 16  # descriptors that are kept back, so that a worker that has no other left can store what it has
SLACK = 64  # with so few left, a worker stops
STDERR = 2
USED_UP = {errno.EMFILE, errno.ENFILE, errno.EAGAIN}


class Guard:
    """Guards the pipe, the descriptors, the limits and the umask of a worker."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._identity = _identity(pipe)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._limits = getrlimit(RLIMIT_FSIZE), getrlimit(RLIMIT_NOFILE)
        self._reserve: list[int] = []
        with contextlib.suppress(OSError):
            for _ in range(RESERVED):
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        soft = self._limits[1][0]
        self._last = soft - min(SLACK, soft // 4) if soft > 0 else 1 << 30
        self._lowest = 0  # free descriptor, at the last look

    def harm(self) -> int:
        """The exit code for what keeps the worker from going on; 0 if nothing does. Repairs what it can."""
        os.umask(self._umask)
        self._lowest = self._lowest_free()
        if self._identity is None or _identity(self._pipe) != self._identity:
            return EXIT_CLOSED
        # This is done after each record, and a loop would take longer than the calls of the system.
        size, files = self._limits
        if getrlimit(RLIMIT_FSIZE) != size and not _restored(RLIMIT_FSIZE, size):
            return EXIT_LIMITED
        if getrlimit(RLIMIT_NOFILE) != files and not _restored(RLIMIT_NOFILE, files):
            return EXIT_LIMITED
        return 0

    def _lowest_free(self) -> int:
        try:
            lowest = os.dup(self._pipe)
        except OSError:
            return self._last
        os.close(lowest)
        return lowest

    @property
    def lacks_output(self) -> bool:
        """Whether at the last look for harm a descriptor of stdin, stdout or stderr was closed."""
        return self._lowest <= STDERR

    @property
    def is_crowded(self) -> bool:
        """Whether at the last look for harm there were hardly any descriptors left."""
        return self._lowest >= self._last

    def release(self) -> None:
        """Close the reserved descriptors: the worker ends soon."""
        for descriptor in self._reserve:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._reserve.clear()

    def blame(self, error: BaseException) -> int:
        """The exit code for an error of the worker that the function has caused; 0 if it has not."""
        if harm := self.harm():
            return harm
        return EXIT_CROWDED if self.is_crowded or (is_used_up(error) and not self._reserve) else 0


def is_used_up(error: BaseException) -> bool:
    """Whether an error says that no more descriptors, processes or threads are allowed."""
    return any(
        (isinstance(each, OSError) and each.errno in USED_UP) or "can't start new thread" in str(each.args)
        for each in _chain(error)
        if isinstance(each, OSError | RuntimeError)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _identity(descriptor: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _restored(limit: int, pair: tuple[int, int]) -> bool:
    """Set a limit back, and say whether it is now at least as high as it was."""
    with contextlib.suppress(OSError, ValueError):
        setrlimit(limit, pair)
        return True
    soft, before = getrlimit(limit)[0], pair[0]
    return soft in {before, RLIM_INFINITY} or (before != RLIM_INFINITY and soft >= before)
