"""Errors of the user's function as text: the message, and a traceback that begins at the user's code."""

from __future__ import annotations

import os
import sysconfig
import traceback
from typing import TYPE_CHECKING

from shardkit.masking import masked
from shardkit.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_CALLED_BY_US = ("pyarrow", "pandas", "numpy", "obstore", "polars", "cloudpickle")
DEBUGGER = (
    "a worker process has no terminal for a debugger. Run the record where there is one: `shardkit try pipeline.yaml "
    "KEY`, or in Python `pipeline.try_record(KEY)`"
)


def user_traceback(error: BaseException, *, limit_chars: int = 8000) -> str:
    """The traceback of ``error`` from the user's first frame on, without our frames; only its end if it is too long."""
    whole = traceback.TracebackException.from_exception(error, compact=True)
    link: traceback.TracebackException | None = whole
    while link:
        _trim(link)
        for name in ("__cause__", "__context__"):
            before = getattr(link, name)
            if before is not None and before.stack and not _users(before.stack):
                setattr(link, name, None)  # from a library that we have called: the message repeats it
        link = link.__cause__ or link.__context__
    text = printable(masked("".join(_cut(piece, limit_chars) for piece in whole.format())))
    return text if len(text) <= limit_chars else "[...]\n" + text[-limit_chars:]


def users_part(error: BaseException | None) -> TracebackType | None:
    """The traceback of an error from the user's first frame on, for a debugger; None if it has no frame of theirs."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not _is_ours(filename) and not _is_called_by_us(filename):
            return trace
        trace = trace.tb_next
    return None


def error_message(error: BaseException, *, limit_chars: int = 1000) -> str:
    """The message of ``error``; only its beginning if it is too long."""
    if type(error).__name__ == "BdbQuit":
        return DEBUGGER
    try:
        return printable(masked(str(error)[:limit_chars]))
    except BaseException:  # noqa: BLE001  the user's class may have a __str__ of its own
        return "(the exception's message cannot be made: its __str__ raises)"


def _trim(link: traceback.TracebackException) -> None:
    frames = _users(link.stack) if link.stack else []
    link.stack = traceback.StackSummary.from_list(frames) if frames else None  # type: ignore[assignment]


def _users(stack: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """The frames from the user's first one on, without ours."""
    frames = [frame for frame in stack if not _is_ours(frame.filename)]
    first = next((i for i, frame in enumerate(frames) if not _is_called_by_us(frame.filename)), len(frames))
    return frames[first:]


def _cut(piece: str, limit_chars: int) -> str:
    """A line of a traceback, cut, because it may hold everything that the function has read."""
    return piece if len(piece) <= 2 * limit_chars else f"{piece[:limit_chars]}[...]{piece[-limit_chars:]}"


def _is_ours(filename: str) -> bool:
    return filename.startswith((_HERE, "<frozen importlib")) or os.path.dirname(filename).endswith("/importlib")


def _is_called_by_us(filename: str) -> bool:
    """Whether a frame before the user's first one is of a library that our own code has called."""
    if "-packages" + os.sep in filename:
        return filename.rpartition("-packages" + os.sep)[2].split(os.sep)[0] in _CALLED_BY_US
    return filename.startswith(_STANDARD) or filename.endswith((".pxi", ".pyx"))
