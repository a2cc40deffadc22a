"""Python values as Arrow arrays: without loss, and the same no matter which records are converted together.

pyarrow infers a type from all the values that it is given. So it cuts off the time of day if a date comes before a
datetime, turns text into bytes if there are bytes beside it, and tells time zones apart or not, depending on the order
of the values. Here values of different kinds in one record are an error. If several records are converted at once,
which is much faster, such values raise `Mixed`, and the records must be converted one by one.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import sys
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shardkit.tables.arrays import PLAIN, plain_array
from shardkit.tables.numpy_values import CONTAINERS, as_arrow_takes
from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Mixed(TypeError):
    """Values of several records that might have other types if each record were converted alone."""


FAMILIES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("timedelta64", (np.timedelta64,)),  # a kind of integer to numpy
    ("bool", (bool, np.bool_)),
    ("int", (int, np.integer)),
    ("float", (float, np.floating)),
    ("str", (str,)),
    ("bytes", (bytes, bytearray, memoryview)),
    ("datetime", (datetime.datetime,)),
    ("datetime64", (np.datetime64,)),
    ("date", (datetime.date,)),
    ("timedelta", (datetime.timedelta,)),
    ("decimal", (decimal.Decimal,)),
    ("dict", (dict,)),
    ("array", (np.ndarray,)),
    ("list", (list, tuple, set)),
)
# Converted together, values of these types get the type that unifying the types of their records would give.
UNIFIED_ALIKE: tuple[set[type], ...] = (
    {int, np.int64},
    {int, float, np.int64, np.float64},
    {str, np.str_},
    {list, tuple},
)
HOLDING = (*CONTAINERS, np.ndarray)
ARROW_UNITS = {"s", "ms", "us", "ns"}
NUMBERS = {"int", "float"}


@functools.cache
def family(kind: Any) -> str:
    """The name of the family that a type belongs to; a type in no family has its own name."""
    return next((name for name, kinds in FAMILIES if issubclass(kind, kinds)), kind.__name__)


def _family_of(value: Any) -> str:
    return family(value.__class__)


def kinds_of(values: Sequence[Any]) -> set[type]:
    """The types of the values, except that of None."""
    return set(map(type, values)) - {type(None)}


def to_array(values: list[Any], kind: pa.DataType | None, *, several: bool) -> pa.Array:
    """Values as an array of the type ``kind`` or, without it, of the type that they have themselves.

    ``several`` says that they come from several records.

    Raises:
        Mixed: they must be converted record by record.
        Exception: they have no common type, or do not fit ``kind``; whatever pyarrow and the values raise.
    """
    values, kinds = _without_missing(values, kinds_of(values), several=several)
    if any(issubclass(kind, HOLDING) for kind in kinds):
        values = as_arrow_takes(values, kinds)
        kinds = kinds_of(values)
    if (plain := _plain(values, kinds, kind)) is not None:
        return plain
    if kind is not None and any(test(kind) and kinds <= natural for test, natural in NATURAL):
        return pa.array(values, type=kind)
    try:
        array = _inferred(values, kinds, several=several)
    except (pa.ArrowException, OverflowError):
        if kind is None or several:
            raise
        return pa.array(values, type=kind)  # a type that Arrow cannot infer, it may still convert to
    return array


def _plain(values: list[Any], kinds: set[type], kind: pa.DataType | None) -> pa.Array | None:
    """The array of values that are all None, or all of one simple type that ``kind`` agrees with; else None."""
    if not kinds:
        return pa.nulls(len(values), kind)
    (first, *others) = kinds
    if others or first not in PLAIN or kind not in (None, PLAIN[first][0]):
        return None
    return plain_array(values, first)


# What pa.array(values, type=...) converts without loss.
NATURAL: tuple[tuple[Callable[[pa.DataType], bool], set[type]], ...] = (
    (pt.is_integer, {int}),
    (pt.is_floating, {int, float, np.float64}),
    (pt.is_string, {str}),
    (pt.is_large_string, {str}),
    (pt.is_boolean, {bool}),
    (pt.is_binary, {bytes}),
    (pt.is_decimal, {decimal.Decimal}),
    (pt.is_date32, {datetime.date}),
)


def _without_missing(values: list[Any], kinds: set[type], *, several: bool) -> tuple[list[Any], set[type]]:
    """Values with None for pandas' own signs of what is missing, and for NaN beside values that are no numbers."""
    pandas = sys.modules.get("pandas")
    missing = {type(pandas.NaT), type(pandas.NA)} & kinds if pandas is not None else set()
    if missing:
        values, kinds = [None if type(v) in missing else v for v in values], kinds - missing
    families = {family(kind) for kind in kinds}
    if "float" in families and len(families) > 1 and not families <= NUMBERS and not several:
        values = [None if isinstance(v, float | np.floating) and v != v else v for v in values]  # noqa: PLR0124
        kinds = kinds_of(values)
    return values, kinds


def _inferred(values: list[Any], kinds: set[type], *, several: bool) -> pa.Array:  # noqa: C901, PLR0912  a case a line
    families = {family(kind) for kind in kinds}
    if several and len(kinds) > 1 and not any(kinds <= group for group in UNIFIED_ALIKE):
        raise Mixed(_mixed(families))
    if len(families) > 1 and families not in (NUMBERS, {"int", "decimal"}, {"list", "array"}):
        raise TypeError(_mixed(families))
    if "dict" in families and not all(v is None or len(v) for v in values):
        values = [v or None for v in values]  # {} alone names no fields, and Parquet has no struct without fields
    if "array" in families and (len(kinds) > 1 or len({v.dtype for v in values if v is not None}) > 1):
        if several:
            raise Mixed("arrays of several types")
        values = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
    if kinds and kinds <= _shown_as_text():
        values = [v if v is None else str(v) for v in values]
    if families & {"datetime64", "timedelta64"}:
        return _numpy_times(values, several=several)
    if any(issubclass(kind, np.generic) for kind in kinds) and len(kinds) > 1:
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
    if "datetime" in families or "timedelta" in families:
        _check_zones(values, several=several)
        exact = {datetime.datetime, datetime.timedelta}
        if kinds - exact and any(getattr(v, "nanosecond", 0) or getattr(v, "nanoseconds", 0) for v in values):
            import pandas as pd

            return pa.array(pd.Series(values), from_pandas=True)  # pa.array would cut the nanoseconds off
    array = pa.array(values)
    if has_empty_struct(array.type):
        array = pa.array([_drop_empty(v) for v in values])
    if pt.is_nested(array.type) and holds(array.type, _hides_mixtures):
        leaves: dict[str, set[str]] = {}
        _collect_leaves(values, "", leaves)
        mixed = next((kinds_of_leaf for kinds_of_leaf in leaves.values() if len(kinds_of_leaf) > 1), None)
        if mixed:
            raise (Mixed if several else TypeError)(_mixed(mixed))
    return array


def _shown_as_text() -> set[type]:
    """Types that Arrow stores as something else, or in a type that few readers know."""
    pandas = sys.modules.get("pandas")
    return {uuid.UUID, *((pandas.Period, pandas.Interval) if pandas is not None else ())}


def _mixed(families: set[str]) -> str:
    return f"it mixes {' and '.join(sorted(families))}"


def _numpy_times(values: list[Any], *, several: bool) -> pa.Array:
    """NumPy's own times, in the finest of their units; those of whole days are dates."""
    given = [v for v in values if v is not None and not np.isnat(v)]
    if not given:
        return pa.nulls(len(values))
    if several and len({v.dtype for v in given}) > 1:
        raise Mixed("times of several units")
    nat = np.full(1, "NaT", given[0].dtype)[0]
    times = np.array([nat if v is None else v for v in values])
    unit = np.datetime_data(times.dtype)[0]
    if unit not in ARROW_UNITS:  # units that Arrow lacks become days or seconds
        days = times.dtype.kind == "M" and unit in {"Y", "M", "W", "D"}
        times = times.astype(f"{times.dtype.kind}8[{'D' if days else 's'}]")
    return pa.array(times)


def _zone(value: datetime.datetime) -> str:
    return "datetime" if value.tzinfo is None else "datetime with time zone"


def _check_zones(values: list[Any], *, several: bool) -> None:
    zones = {_zone(v) for v in values if isinstance(v, datetime.datetime)}
    if len(zones) > 1:
        raise (Mixed if several else TypeError)(_mixed(zones))


def has_empty_struct(kind: pa.DataType) -> bool:
    """Whether ``kind`` is or holds a struct without fields, which Parquet cannot store."""
    return holds(kind, lambda inner: pt.is_struct(inner) and not inner.num_fields)


def _hides_mixtures(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_date(kind) or pt.is_timestamp(kind))


def _collect_leaves(values: Any, path: str, leaves: dict[str, set[str]]) -> None:
    """Add the kinds of the values inside nested ones to ``leaves``, by their paths."""
    for value in values:
        if isinstance(value, dict):
            for name, inner in value.items():
                _collect_leaves((inner,), f"{path}.{name}", leaves)
        elif isinstance(value, list | tuple | set | np.ndarray):
            _collect_leaves(value, f"{path}[]", leaves)
        elif value is not None:
            kind = _zone(value) if isinstance(value, datetime.datetime) else _family_of(value)
            leaves.setdefault(path, set()).add("number" if kind in NUMBERS else kind)


def _drop_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_empty(v) for k, v in value.items()} or None
    if isinstance(value, list | tuple):
        return [_drop_empty(v) for v in value]
    return value
