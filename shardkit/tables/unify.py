"""One schema from many: column types are unified by rules or by their values; if they cannot be, the error says why."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from shardkit.errors import SchemaConflict
from shardkit.hints import Hint, joined
from shardkit.tables.schema import BY_TYPE_ALONE, TypeMismatch, Way, has_text_form, unify_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Fits = Callable[[str, pa.DataType], bool]

# What is tried if the types alone do not decide, the best first.
WAYS = tuple(Way(integers, unit) for unit in ("ns", "us", "ms", "s") for integers in ("signed", "unsigned", "decimal"))


class Unifier:
    """Collects columns with their types, and for each type its origin: what gave the column this type first."""

    def __init__(self) -> None:
        self._types: dict[str, dict[pa.DataType, str]] = {}
        self._named: dict[str, dict[pa.DataType, str]] = {}

    def add(self, column: str, kind: pa.DataType, origin: str) -> None:
        """Add a column of that type."""
        types = self._types.setdefault(column, {})
        if not pt.is_null(kind):
            types.setdefault(kind, origin)

    def add_empty(self, column: str, kind: pa.DataType, origin: str) -> None:
        """Add a column of that type without a value: its type counts only if nothing else gives it one."""
        self._types.setdefault(column, {})
        self._named.setdefault(column, {}).setdefault(kind, origin)

    def schema(self, fits: Fits, *, widen_ints: bool) -> pa.Schema:
        """The schema that holds all columns; ``fits`` says whether all values of a column fit a type.

        Raises:
            SchemaConflict: two origins give a column types that have nothing in common.
        """
        fields = []
        for name, types in self._types.items():
            if types:
                kind = _common(name, types, fits, widen_ints=widen_ints)
            else:
                kind = next(iter(self._named.get(name, {})), pa.null())
            fields.append(pa.field(name, kind))
        return pa.schema(fields)


def holds_all(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether ``wanted`` holds all values that ``kind`` can have."""
    try:
        wider: pa.DataType = unify_types(kind, wanted, widen_ints=False, way=Way(integers="decimal"))
    except TypeMismatch:
        return False
    return bool(wider == wanted)


def _common(name: str, types: Mapping[pa.DataType, str], fits: Fits, *, widen_ints: bool) -> pa.DataType:
    by_type = _all_as_one(name, types, BY_TYPE_ALONE, widen_ints=widen_ints)
    if by_type is not None:
        return by_type
    tried = set()
    for way in WAYS:
        kind = _all_as_one(name, types, way, widen_ints=widen_ints)
        if kind is not None and kind not in tried and fits(name, kind):
            return kind
        tried.add(kind)
    raise _conflict(name, types, fits, widen_ints=widen_ints)


def _all_as_one(name: str, types: Iterable[pa.DataType], way: Way, *, widen_ints: bool) -> pa.DataType | None:
    kind = pa.null()
    try:
        for other in types:
            kind = unify_types(kind, other, widen_ints=widen_ints, column=name, way=way)
    except TypeMismatch:
        return None
    return kind


def _conflict(name: str, types: Mapping[pa.DataType, str], fits: Fits, *, widen_ints: bool) -> SchemaConflict:
    """The error about the first two types that can never be unified, else about all types whose values do not fit."""
    for way in (WAYS[2], BY_TYPE_ALONE):
        for (right, origin), n in zip(types.items(), itertools.count()):
            for left, earlier in itertools.islice(types.items(), n):
                try:
                    unify_types(left, right, widen_ints=widen_ints, column=name, way=way)
                except TypeMismatch as mismatch:
                    both = f"{mismatch.left} in {earlier} and {mismatch.right} in {origin}"
                    return SchemaConflict(
                        f"Column {mismatch.column!r} is {both}.", hint=_cure(name, mismatch, types, fits)
                    )
    kinds = ", ".join(f"{kind} in {origin}" for kind, origin in types.items())
    return SchemaConflict(f"Column {name!r} has types with nothing in common: {kinds}.", hint=cure_as_text(name, types))


def _cure(name: str, mismatch: TypeMismatch, types: Iterable[pa.DataType], fits: Fits) -> str:
    kinds = {mismatch.left, mismatch.right}
    if any(map(pt.is_integer, kinds)) and any(map(pt.is_floating, kinds)):
        if fits(name, pa.float64()):
            everywhere = "To make it a float everywhere"
            return Hint(
                f"{everywhere}, call resume(**{{'output.widen_ints': True}}).",
                f"{everywhere}, resume with --set output.widen_ints=true.",
            )
        return joined("No float holds all of the integers.", cure_as_text(name, types))
    if all(pt.is_timestamp(kind) or pt.is_duration(kind) for kind in kinds) and mismatch.left.id == mismatch.right.id:
        finest = "nanoseconds reach only from 1677 to 2262, and coarser units lose them"
        return joined(f"No unit holds the values of both: {finest}.", cure_as_text(name, types))
    return cure_as_text(name, types)


def cure_as_text(name: str, types: Iterable[pa.DataType]) -> str:
    """How to give a column one type: by the function and, if all its values can become text, by a schema."""
    by_function = "Have the function return one type, and start a new run"
    if not all(map(has_text_form, types)):
        return f"{by_function}."
    return Hint(
        f"{by_function}; or say which with resume(**{{'output.schema': {{{name!r}: 'string', ...}}}}) (all columns).",
        f"{by_function}; or say which with --set output.schema='{{{name}: string, ...}}' (all columns), and resume.",
    )
