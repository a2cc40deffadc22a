"""Stdout and stderr of a worker: what its function prints and logs goes to the stderr of the program."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import sys
from typing import Any

from shardkit.printable import printable

ERASE = b"\r\x1b[2K"  # the terminal's line that the cursor is in, and go to its beginning


class _Log(io.FileIO):
    """A file for prints, which do not fail even if nobody reads it any more.

    On a terminal the cursor stands behind the live bar, which is drawn again below what is printed in its place.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._before = ERASE if self.isatty() and os.environ.get("TERM", "dumb") != "dumb" else b""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        with contextlib.suppress(OSError):
            if not self._before:
                return super().write(data)
            super().write(self._before + bytes(data))
        return size


def _text_log(number: int) -> io.TextIOWrapper:
    """One of stdout and stderr, by its number; line-buffered, because what is buffered is lost if the worker dies."""
    raw = io.BufferedWriter(_Log(number))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Output:
    """Leads stdout to the program's stderr, and keeps both open whatever the function closes.

    Otherwise the next print would fail, or the next opened file would get their numbers, and with them the prints.
    """

    def __init__(self) -> None:
        try:
            self._stderr = os.dup(2)
        except OSError:  # the program was started without one
            self._stderr = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self._stderr, 1)
        self.mend()
        sys.stdout, sys.stderr = _text_log(1), _text_log(2)

    def mend(self, *, descriptors: bool = True) -> None:
        """Reopen what the function has closed; without ``descriptors`` these are known to be open."""
        for number in (1, 2) if descriptors else ():
            try:
                fcntl.fcntl(number, fcntl.F_GETFD)
            except OSError:
                os.dup2(self._stderr, number)
        if getattr(sys.stdout, "closed", False):
            sys.stdout = _text_log(1)
        if getattr(sys.stderr, "closed", False):
            sys.stderr = _text_log(2)


class RecordLog(logging.Handler):
    """Shows warnings and errors if nobody has set up logging, as Python itself does, with the current record's key."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.key = ""
        logging.lastResort = self

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log record to stderr."""
        try:
            where = f" [{printable(self.key)}]" if self.key else ""
            sys.stderr.write(f"{record.levelname} {record.name}: {self.format(record)}{where}\n")
        except Exception:  # noqa: BLE001  what is logged may be anything
            self.handleError(record)
