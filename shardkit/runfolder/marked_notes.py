"""The notes of records as markers hold them: of a chunk, and of a whole run."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from shardkit.notes import LINES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.notes import Notes
    from shardkit.runfolder.document_types import MarkedNotes

LINES_OF_RUN = 100


def notes_of(key: str, notes: Notes) -> MarkedNotes:
    """The notes of one record."""
    return {
        "sums": notes.sums,
        "lines": [{"key": key, "text": line} for line in notes.lines],
        "logged": notes.logged,
    }


def merged(notes: Iterable[MarkedNotes], *, lines: int = LINES) -> MarkedNotes:
    """The sums of all notes, in the order of their names, and the first lines."""
    each, sums = list(notes), dict[str, float]()
    for one in each:
        for name, amount in one["sums"].items():
            sums[name] = sums.get(name, 0) + amount
    return {
        "sums": dict(sorted(sums.items())),
        "lines": list(islice((line for one in each for line in one["lines"]), lines)),
        "logged": sum(one["logged"] for one in each),
    }
