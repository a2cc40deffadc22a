"""Rows of CSV files whose quoted values may hold newlines.

Whether a newline ends a row depends on all quotes before it. So the plan reads such a file once, from its beginning, if
it is larger than a piece, and cuts it where rows end. This holds for files as RFC 4180 describes them: a value with
quotes around it begins with one directly after a delimiter or a line end and ends with one directly before those, and
two quotes within it stand for one. Of other files nobody knows what a quote means, so they are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardkit.errors import ObjectDamaged
from shardkit.inside.compressed import check_newlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.inside.rule import Inside
    from shardkit.inside.source import Source

WINDOW_BYTES = 8 << 20
HEADER_LOOK = 1 << 16
HEADER_MOST = 16 << 20
QUOTE, NEWLINE = 34, 10
BOM = b"\xef\xbb\xbf"
_OPENS_AFTER = np.zeros(256, bool)  # the bytes after which a quote opens a value
_OPENS_AFTER[list(b',;\t|\r\n"')] = True
_SLICE = 1 << 16


def row_ends(source: Source, targets: list[int]) -> list[int]:
    """For each position, in ascending order, the first row's end at or after it, or the end of the file.

    Raises:
        ObjectDamaged: the file has a quote that is neither around a value nor doubled within one.
    """
    check_newlines(source)
    scan = _Scan(source, targets)
    for start, data in source.windows(0, source.size, WINDOW_BYTES):
        scan.add(start, data)
    return scan.finish()


class _Scan:
    """Goes through a file window by window, and knows at each whether it is between quotes."""

    def __init__(self, source: Source, targets: list[int]) -> None:
        self._source = source
        self._targets = targets
        self._ends: list[int] = []
        self._quoted = False
        self._last = NEWLINE  # the byte before the window
        self._closed_at_edge = False

    def add(self, start: int, data: bytes) -> None:
        """Take the next window, which begins at ``start``."""
        window: np.ndarray = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(window == QUOTE)
        self._check(start, window, quotes)
        end = start + len(data)
        while len(self._ends) < len(self._targets) and self._targets[len(self._ends)] < end:
            begin = max(self._targets[len(self._ends)], self._ends[-1] - 1 if self._ends else 0, start)
            row_end = self._row_end(window, quotes, begin - start)
            if row_end is None:
                break
            self._ends.append(start + row_end)
        self._quoted ^= bool(len(quotes) % 2)
        self._last = int(window[-1])

    def _row_end(self, window: np.ndarray, quotes: np.ndarray, begin: int) -> int | None:
        """Where the first row ends that does so at ``begin`` or after it, counted in the window."""
        for at in range(begin, len(window), _SLICE):
            newlines = np.flatnonzero(window[at : at + _SLICE] == NEWLINE) + at
            outside = (np.searchsorted(quotes, newlines) + self._quoted) % 2 == 0
            if outside.any():
                return int(newlines[outside.argmax()]) + 1
        return None

    def _check(self, start: int, window: np.ndarray, quotes: np.ndarray) -> None:
        if self._closed_at_edge and not _OPENS_AFTER[window[0]]:
            raise self._stray(start - 1)
        self._closed_at_edge = False
        opening, closing = quotes[int(self._quoted) :: 2], quotes[int(not self._quoted) :: 2]
        before = np.where(opening > 0, window[opening - 1], self._last)
        wrong = ~_OPENS_AFTER[before]
        if start == 0 and len(opening) and opening[0] == len(BOM) and window[: len(BOM)].tobytes() == BOM:
            wrong[0] = False
        if wrong.any():
            raise self._stray(start + int(opening[wrong.argmax()]))
        if len(closing) and closing[-1] == len(window) - 1:
            self._closed_at_edge, closing = True, closing[:-1]
        wrong = ~_OPENS_AFTER[window[closing + 1]]
        if wrong.any():
            raise self._stray(start + int(closing[wrong.argmax()]))

    def finish(self) -> list[int]:
        """The ends of rows, when the whole file has been taken."""
        if self._quoted:
            raise _not_csv(self._source, "its last quoted value does not end")
        return self._ends + [self._source.size] * (len(self._targets) - len(self._ends))

    def _stray(self, at: int) -> ObjectDamaged:
        return _not_csv(self._source, f"the quote at byte {at:,} neither surrounds a value nor is doubled in one")


def _not_csv(source: Source, why: str) -> ObjectDamaged:
    return ObjectDamaged(
        f"{source.name} cannot be cut as CSV: {why}.",
        hint="Exclude it, or if no value holds a newline, set records.quoted_newlines: false.",
    )


def header_bytes(read: Callable[[int], bytes], rule: Inside) -> bytes:
    """The first row of a CSV file, of which ``read`` gives the bytes from its beginning on.

    Raises:
        ValueError: it does not end within 16 MiB.
    """
    header = b""
    while len(header) < HEADER_MOST and (data := read(HEADER_LOOK)):
        header += data
        at = -1
        while (at := header.find(b"\n", at + 1)) >= 0:
            if not rule.quoted_newlines or header.count(b'"', 0, at) % 2 == 0:
                return header[: at + 1]
    if len(header) >= HEADER_MOST:
        raise ValueError("its first row does not end within 16 MiB")
    return header if header.endswith(b"\n") else header + b"\n"
