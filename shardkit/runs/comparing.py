"""Two tables of one record's rows compared: which rows are new or gone, and in which columns the others differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator

MATCHED_ROWS = 2000  # of more, those between the first and the last difference are compared in their order
VALUE_CHARACTERS = 40


@dataclass
class ColumnDifference:
    """How a column differs.

    Attributes:
        rows: In how many rows.
        example: The record, the row's number in it, and the values before and after.
        largest: The largest relative difference of two numbers; None where no two numbers differ.
        types: The types before and after, if a record's rows have others than before.
    """

    rows: int = 0
    example: tuple[str, int, Any, Any] | None = None
    largest: float | None = None
    types: tuple[str, str] | None = None

    def add(self, key: str, row: int, before: Any, after: Any) -> None:
        """Count a row whose value differs."""
        self.rows += 1
        if self.example is None:
            self.example = (key, row, before, after)
        if _is_number(before) and _is_number(after):
            self.largest = max(self.largest or 0.0, abs(before - after) / max(abs(before), abs(after), 1e-300))

    def __str__(self) -> str:
        words = [f"{self.types[0]} became {self.types[1]}"] if self.types else []
        if self.example is not None:
            key, row, before, after = self.example
            words.append(f"such as row {row:,} of {key}: {_short(before)} became {_short(after)}")
        if self.largest is not None:
            words.append(f"at most {self.largest:.2g} of the value apart")
        return "; ".join(words)


@dataclass
class Differences:
    """What differs between the rows before and after, over all records that were added.

    Attributes:
        compared: How many rows there are both before and after.
        changed: How many of these differ.
        added: Rows that there are only after.
        removed: Rows that there are only before.
        columns: How each column differs that does, by its name.
        new_columns: Columns with values that there are only after.
        gone_columns: Columns with values that there are only before.
    """

    compared: int = 0
    changed: int = 0
    added: int = 0
    removed: int = 0
    columns: dict[str, ColumnDifference] = field(default_factory=dict)
    new_columns: dict[str, str] = field(default_factory=dict)
    gone_columns: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, before: pa.Table, after: pa.Table) -> bool:
        """Compare the rows of a record; whether they differ."""
        earlier = (self.changed, self.added, self.removed, len(self.new_columns), len(self.gone_columns))
        shared = self._shared(before, after)
        types = {name: self._types(name, before, after) for name in shared}
        old, new = _texts(before, shared), _texts(after, shared)
        for start, stop, other, end in _matched(*_telling(old, new)):
            paired = min(stop - start, end - other)
            self.removed += stop - start - paired
            self.added += end - other - paired
            self.compared += paired
            for i, j in zip(range(start, start + paired), range(other, other + paired), strict=True):
                if old[i] == new[j]:
                    continue
                self.changed += 1
                for name, was, now in zip(shared, old[i], new[j], strict=True):
                    if was != now:
                        column = self.columns.setdefault(name, ColumnDifference())
                        column.types = column.types or types[name]
                        column.add(key, j, before[name][i].as_py(), after[name][j].as_py())
        return earlier != (self.changed, self.added, self.removed, len(self.new_columns), len(self.gone_columns))

    def _shared(self, before: pa.Table, after: pa.Table) -> list[str]:
        """The columns of both; those of one alone are noted if they have values."""
        for table, other, noted in ((after, before, self.new_columns), (before, after, self.gone_columns)):
            for column in table.schema:
                if column.name not in other.column_names and table[column.name].null_count < len(table) and len(other):
                    noted.setdefault(column.name, str(column.type))
        return [name for name in before.column_names if name in after.column_names]

    def _types(self, name: str, before: pa.Table, after: pa.Table) -> tuple[str, str] | None:
        """The types of a column, if the values that it has after do not fit the type that it had before."""
        old, new = before.schema.field(name).type, after.schema.field(name).type
        try:
            after[name].cast(old)
        except pa.ArrowException:
            return str(old), str(new)
        return None


def _texts(table: pa.Table, names: list[str]) -> list[tuple[str, ...]]:
    """The values of each row as texts: two that are not a number are equal so, and a hash is at hand."""
    columns = [[_text(value) for value in table[name].to_pylist()] for name in names]
    return list(zip(*columns, strict=True)) if columns else [()] * len(table)


def _text(value: Any) -> str:
    """A value as a text; an integer and the float of the same value, as parts widen columns, are alike."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1 << 53:
        return repr(float(value))
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, dict):  # a field that other records have is null in the part
        return f"{{{','.join(f'{name}:{_text(v)}' for name, v in sorted(value.items()) if v is not None)}}}"
    return repr(value)


def _telling(old: list[tuple[str, ...]], new: list[tuple[str, ...]]) -> tuple[list[Any], list[Any]]:
    """What tells rows apart of which some are new or gone: the columns in which one side has no value of its own."""
    if len(old) == len(new) or not old or not new:
        return old, new
    values = [(set(was), set(now)) for was, now in zip(zip(*old, strict=True), zip(*new, strict=True), strict=True)]
    same = [number for number, (was, now) in enumerate(values) if was <= now or now <= was]
    if not same:
        return old, new
    return [tuple(row[i] for i in same) for row in old], [tuple(row[i] for i in same) for row in new]


def _matched(old: list[Any], new: list[Any]) -> Iterator[tuple[int, int, int, int]]:
    """Stretches of rows before and after that belong together: ``old[start:stop]`` and ``new[other:end]``."""
    if len(old) == len(new):
        yield 0, len(old), 0, len(new)
        return
    shorter, first, last = min(len(old), len(new)), 0, 0
    while first < shorter and old[first] == new[first]:
        first += 1
    while last < shorter - first and old[-1 - last] == new[-1 - last]:
        last += 1
    yield 0, first, 0, first
    middle_old, middle_new = old[first : len(old) - last], new[first : len(new) - last]
    if max(len(middle_old), len(middle_new)) > MATCHED_ROWS:
        yield first, len(old) - last, first, len(new) - last
    else:
        for _, i, j, k, end in SequenceMatcher(None, middle_old, middle_new, autojunk=False).get_opcodes():
            yield first + i, first + j, first + k, first + end
    yield len(old) - last, len(old), len(new) - last, len(new)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]} ..."
