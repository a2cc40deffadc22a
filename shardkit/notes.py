"""What a function notes about a record beside its rows: numbers that are added up, and lines of text.

There is room for little, because the notes of all records are kept in the markers, which every look at a run reads.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import Any

from shardkit.masking import masked
from shardkit.printable import printable

NAMES = 100  # in a process
NAME_CHARACTERS = 100
LINES = 20  # of a record; of a chunk as many again
LINE_CHARACTERS = 500
ELLIPSIS = "…"


@dataclass
class Notes:
    """The notes of one record: sums by name, the first lines, and how many lines there were.

    ``names`` are all that this process has counted under, if anybody keeps them.
    """

    names: set[str] = field(default_factory=set)
    sums: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    logged: int = 0

    def count(self, name: str, amount: Any) -> None:
        """Add to the number of that name.

        Raises:
            TypeError, ValueError: the name or the amount cannot be used.
        """
        if name not in self.names:
            self._check(name)
            self.names.add(name)
        self.sums[name] = self.sums.get(name, 0) + _plain(amount)

    def log(self, text: str) -> None:
        """Add a line, or several; those that are too many are only counted, and what is too long is cut.

        Raises:
            TypeError: it is no text.
        """
        if not isinstance(text, str):
            raise TypeError(f"record.log takes a text, not {type(text).__name__}; write record.log(str(...))")
        for line in text.splitlines() or [""]:
            self.logged += 1
            if len(self.lines) < LINES:
                shown = printable(masked(line[: 2 * LINE_CHARACTERS]))
                self.lines.append(shown if len(shown) <= LINE_CHARACTERS else shown[: LINE_CHARACTERS - 1] + ELLIPSIS)

    def _check(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"record.count takes a name, which is a text, not {type(name).__name__}")
        if not name or len(name) > NAME_CHARACTERS or printable(name) != name or "\n" in name:
            raise ValueError(
                f"record.count: {name[:NAME_CHARACTERS]!r} is no name of 1 to {NAME_CHARACTERS} printable characters"
            )
        if len(self.names) >= NAMES:
            raise ValueError(
                f"record.count: {name!r} is one name too many; there may be {NAMES} in a run. Return what differs from "
                "record to record as a column"
            )


def _plain(amount: Any) -> float:
    """A number as int or float.

    Raises:
        TypeError, ValueError: it is none, or not a finite one.
    """
    if isinstance(amount, numbers.Integral):
        return int(amount)
    if not isinstance(amount, numbers.Real):
        raise TypeError(f"record.count takes a number, not {type(amount).__name__}")
    if not math.isfinite(amount):
        raise ValueError(f"record.count takes a finite number, not {amount}")
    return float(amount)
