"""Spans are ranges of rows of a part, ``[start, stop)``; also which rows each record has given."""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Spans: TypeAlias = tuple[tuple[int, int], ...]
"""Ranges of rows in order; none is empty, and none touches the next."""


def as_spans(pairs: Iterable[Iterable[int]]) -> Spans:
    """Spans from plain data."""
    return tuple((start, stop) for start, stop in pairs)


def row_count(spans: Spans) -> int:
    """How many rows all spans have together."""
    return sum(stop - start for start, stop in spans)


def clip(spans: Spans, start: int, stop: int) -> Spans:
    """The rows from the ``start``-th up to the ``stop``-th of the rows in the spans."""
    clipped, begin = [], 0
    for low, high in spans:
        first, last = max(start - begin, 0), min(stop - begin, high - low)
        if first < last:
            clipped.append((low + first, low + last))
        begin += high - low
    return tuple(clipped)


def overlap(spans: Spans, start: int, stop: int) -> Spans:
    """The part of the spans that lies in the rows ``[start, stop)``."""
    return tuple((max(low, start), min(high, stop)) for low, high in spans if low < stop and high > start)


def contains(spans: Spans, others: Spans) -> bool:
    """Whether all rows of the others are in the spans."""
    return all(any(low <= start and stop <= high for low, high in spans) for start, stop in others)


def subtract(spans: Spans, gone: Iterable[tuple[int, int]]) -> Spans:
    """The spans without the rows that are gone."""
    left = list(spans)
    for start, stop in sorted(gone):
        if start < stop:
            left = [
                piece
                for low, high in left
                for piece in ((low, min(high, start)), (max(low, stop), high))
                if piece[0] < piece[1]
            ]
    return joined(left)


def joined(pieces: Iterable[tuple[int, int]]) -> Spans:
    """Ranges in any order, which do not overlap, as spans."""
    spans: list[tuple[int, int]] = []
    for low, high in sorted(pieces):
        if spans and spans[-1][1] == low:
            spans[-1] = (spans[-1][0], high)
        else:
            spans.append((low, high))
    return tuple(spans)


class RecordRows:
    """Which records the rows of a part come from, in order: each record's position in its chunk, and how many rows.

    As text it is short if neighbours have equally many rows: ``[[first position, records, rows of each], ...]``.
    """

    def __init__(self, runs: Iterable[tuple[int, int, int]] = ()) -> None:
        self._runs = list(runs)

    def add(self, position: int, rows: int) -> None:
        """Add the next rows, which are this record's."""
        first, records, each = self._runs.pop() if self._runs else (0, 0, 0)
        if records and first + records - 1 == position:  # more of the same record
            rows, records = rows + each, records - 1
        if records and first + records == position and each == rows:
            self._runs.append((first, records + 1, each))
        else:
            self._runs += [(first, records, each)] * bool(records) + [(position, 1, rows)]

    def of(self, positions: Collection[int]) -> Spans:
        """The rows of some records."""
        wanted = sorted(positions)
        pieces, begin = [], 0
        for first, records, each in self._runs:
            in_run = wanted[bisect_left(wanted, first) : bisect_left(wanted, first + records)]
            pieces += [(begin + (p - first) * each, begin + (p - first + 1) * each) for p in in_run]
            begin += records * each
        return joined(pieces)

    def at(self, row: int) -> tuple[int, int]:
        """The position of the record that a row comes from, and the row's number among those of the record here.

        Raises:
            LookupError: there are not so many rows.
        """
        begin = 0
        for first, records, each in self._runs:
            if row < begin + records * each:
                nth, within = divmod(row - begin, each)
                return first + nth, within
            begin += records * each
        raise LookupError(f"there is no row {row}")

    def dump(self) -> bytes:
        """As text."""
        return json.dumps(self._runs, separators=(",", ":")).encode()

    @classmethod
    def load(cls, text: bytes) -> RecordRows:
        """From text."""
        return cls((first, records, each) for first, records, each in json.loads(text))
