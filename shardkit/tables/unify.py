"""One schema of many: types come together by themselves, or by the values they have; else the conflict is named."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from shardkit.errors import SchemaConflict
from shardkit.tables.schema import BY_TYPE_ALONE, TypeMismatch, Way, is_shown, unify_types

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Fits = Callable[[str, pa.DataType], bool]

# What is tried where the types alone do not tell, the best first.
WAYS = tuple(Way(integers, unit) for unit in ("ns", "us", "ms", "s") for integers in ("signed", "unsigned", "decimal"))


class Unifier:
    """Takes in columns, each with its type and the name of the place where it was found first."""

    def __init__(self) -> None:
        self._types: dict[str, dict[pa.DataType, str]] = {}
        self._named: dict[str, dict[pa.DataType, str]] = {}

    def add(self, column: str, kind: pa.DataType, place: str) -> None:
        """There is a column of that type."""
        types = self._types.setdefault(column, {})
        if not pt.is_null(kind):
            types.setdefault(kind, place)

    def add_empty(self, column: str, kind: pa.DataType, place: str) -> None:
        """There is a column of that type without a value: any other type goes before it."""
        self._types.setdefault(column, {})
        self._named.setdefault(column, {}).setdefault(kind, place)

    def schema(self, fits: Fits, *, widen_ints: bool) -> pa.Schema:
        """The schema that holds all; ``fits`` tells whether all values of a column fit a type.

        Raises:
            SchemaConflict: two places give a column types that have nothing in common.
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
    """Names the first two places whose types never come together, else those whose values do not fit."""
    for way in (WAYS[2], BY_TYPE_ALONE):
        for (right, place), n in zip(types.items(), itertools.count()):
            for left, other in itertools.islice(types.items(), n):
                try:
                    unify_types(left, right, widen_ints=widen_ints, column=name, way=way)
                except TypeMismatch as mismatch:
                    told = f"Column {mismatch.column!r} is {mismatch.left} in {other} and {mismatch.right} in {place}."
                    return SchemaConflict(told, hint=_cure(name, mismatch, types, fits))
    kinds = ", ".join(f"{kind} in {place}" for kind, place in types.items())
    return SchemaConflict(f"Column {name!r} has types with nothing in common: {kinds}.", hint=cure_as_text(name, types))


def _cure(name: str, mismatch: TypeMismatch, types: Iterable[pa.DataType], fits: Fits) -> str:
    kinds = {mismatch.left, mismatch.right}
    if any(map(pt.is_integer, kinds)) and any(map(pt.is_floating, kinds)):
        if fits(name, pa.float64()):
            return "To make it a float everywhere, resume with --set output.widen_ints=true."
        return f"No float holds all of the integers. {cure_as_text(name, types)}"
    if all(pt.is_timestamp(kind) or pt.is_duration(kind) for kind in kinds) and mismatch.left.id == mismatch.right.id:
        finest = "nanoseconds reach from 1677 to 2262 only, and coarser units lose them"
        return f"No unit holds the values of both: {finest}. {cure_as_text(name, types)}"
    return cure_as_text(name, types)


def cure_as_text(name: str, types: Iterable[pa.DataType]) -> str:
    """How to have one type: by the function and, where Arrow makes texts of all the types, by a schema."""
    by_function = "Have the function return one type, and start a new run"
    if not all(map(is_shown, types)):
        return f"{by_function}."
    return f"{by_function}; or say which with --set output.schema='{{{name}: string, ...}}' (all columns), and resume."
