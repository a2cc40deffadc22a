"""Column types: how they are written as text, and how those of several parts are unified."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SIMPLE_TYPES = (  # noqa: SIM905  two hundred quotes would hide them
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 string large_string binary "
    "large_binary date32 date64 timestamp[s] timestamp[ms] timestamp[us] timestamp[ns] time32[s] time32[ms] "
    "time64[us] time64[ns] duration[s] duration[ms] duration[us] duration[ns] null"
).split()


AS_PRINTED = {"halffloat": "float16", "date32[day]": "date32", "date64[ms]": "date64"}


class TypeMismatch(Exception):
    """Two types of one column that have no common type."""

    def __init__(self, column: str, left: pa.DataType, right: pa.DataType) -> None:
        super().__init__(f"column {column!r} is {left} in one place and {right} in another")
        self.column = column
        self.left = left
        self.right = right


def parse_type(text: str) -> pa.DataType:
    """A type written as Arrow prints it: ``int64``, ``list<string>``, ``timestamp[us, tz=UTC]``, ``struct<a: int64>``.

    Decimals are ``decimal(10, 2)``, maps ``map<string, int64>``.

    Raises:
        PipelineError: there is no such type.
    """
    text = text.strip()
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(parse_type(text[5:-1].removeprefix("item:").removeprefix("element:")))
    if text.startswith("struct<") and text.endswith(">"):
        fields = [field.partition(":") for field in split_outside(text[7:-1])]
        return pa.struct([(name.strip(), parse_type(kind)) for name, _, kind in fields])
    if text.startswith("map<") and text.endswith(">"):
        key, _, item = text[4:-1].partition(",")
        return pa.map_(parse_type(key), parse_type(item))
    if (digits := re.fullmatch(r"decimal(?:128)?\((\d+), ?(-?\d+)\)", text)) is not None:
        return _decimal(int(digits[1]), int(digits[2]), text)
    if text.startswith("timestamp[") and ", tz=" in text:
        unit, zone = text[len("timestamp[") : -1].split(", tz=")
        return pa.timestamp(unit, tz=zone)
    aliases = {
        "str": "string",
        "int": "int64",
        "float": "float64",
        "double": "float64",
        "datetime": "timestamp[us]",
    } | AS_PRINTED
    name = aliases.get(text, text)
    if name not in SIMPLE_TYPES:
        near = difflib.get_close_matches(text, SIMPLE_TYPES, n=1)
        raise PipelineError(
            f"output.schema: there is no type {text!r}.",
            hint=f"Did you mean {near[0]!r}?"
            if near
            else f"There are {', '.join(SIMPLE_TYPES[:12])}, ..., list<type>.",
        )
    return pa.type_for_alias(name)


def _decimal(precision: int, scale: int, text: str) -> pa.DataType:
    if not 1 <= precision <= 38 or not -38 <= scale <= 38:
        raise PipelineError(f"output.schema: {text} has too many digits.", hint="38 are the most.")
    return pa.decimal128(precision, scale)


def parse_schema(columns: Mapping[str, str]) -> pa.Schema:
    """``{column: type}`` as an Arrow schema."""
    return pa.schema([(name, parse_type(kind)) for name, kind in columns.items()])


def split_outside(text: str) -> list[str]:
    """Split at the commas that lie in no bracket."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "<[") - (char in ">]")
        if char == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


@dataclass(frozen=True)
class Way:
    """How types are unified if only their values decide whether one type holds them all; by default they are not.

    Attributes:
        integers: what signed integers together with unsigned ones of 64 bits become.
        unit: the finest unit that times of different units become.
        text: whether numbers, times and texts may all become text.
    """

    integers: Literal["signed", "unsigned", "decimal"] | None = None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    text: bool = False


BY_TYPE_ALONE = Way()
WIDE_INTEGER = pa.decimal128(20, 0)  # holds all integers of 64 bits, signed and unsigned
UNITS = ("s", "ms", "us", "ns")


def unify_types(  # noqa: C901, PLR0911, PLR0912  a rule a line
    left: pa.DataType, right: pa.DataType, *, widen_ints: bool, column: str = "", way: Way = BY_TYPE_ALONE
) -> pa.DataType:
    """The type that holds the values of both without loss.

    An all-null column takes the other's type; integers and floats take the wider of their own kind; a column of
    integers becomes one of floats only with ``widen_ints``. Lists and structs are unified inside, where integers
    always widen, as Arrow itself does when it converts the nested values of one record.

    Raises:
        TypeMismatch: there is none, or it depends on the values and ``way`` names none.
    """
    if left == right or pt.is_null(right):
        return left
    if pt.is_null(left):
        return right
    if pt.is_integer(left) and pt.is_integer(right):
        return _wider_integer(left, right, column, way)
    if pt.is_floating(left) and pt.is_floating(right):
        return max(left, right, key=lambda t: t.bit_width)
    if widen_ints and _is_number(left) and _is_number(right):
        return pa.float64()
    if pt.is_dictionary(left) or pt.is_dictionary(right):
        return unify_types(_plain(left), _plain(right), widen_ints=widen_ints, column=column, way=way)
    if _is_text(left) and _is_text(right):
        return pa.large_string()
    if _is_list(left) and _is_list(right):
        inner = unify_types(left.value_type, right.value_type, widen_ints=True, column=f"{column}[]", way=way)
        return pa.large_list(inner) if pt.is_large_list(left) or pt.is_large_list(right) else pa.list_(inner)
    if pt.is_struct(left) and pt.is_struct(right):
        return pa.struct(unify_fields([list(left), list(right)], widen_ints=True, within=f"{column}.", way=way))
    if pt.is_map(left) and pt.is_map(right):
        key = unify_types(left.key_type, right.key_type, widen_ints=True, column=f"{column}[]", way=way)
        return pa.map_(
            key, unify_types(left.item_type, right.item_type, widen_ints=True, column=f"{column}[]", way=way)
        )
    if _is_binary(left) and _is_binary(right):
        return pa.large_binary() if pa.large_binary() in {left, right} else pa.binary()
    if pt.is_decimal(left) and pt.is_decimal(right):
        return _wider_decimal(left, right, column)
    if _is_wide_integer(left, right, way):
        return WIDE_INTEGER
    if pt.is_duration(left) and pt.is_duration(right):
        return pa.duration(_common_unit(left, right, column, way))
    if pt.is_timestamp(left) and pt.is_timestamp(right) and (left.tz is None) == (right.tz is None):
        return pa.timestamp(_common_unit(left, right, column, way), left.tz)
    if pt.is_time(left) and pt.is_time(right):
        return max(left, right, key=lambda t: UNITS.index(t.unit))
    if way.text and has_text_form(left) and has_text_form(right):
        return pa.large_string() if pa.large_string() in {left, right} else pa.string()
    raise TypeMismatch(column, left, right)


def unify_fields(
    fields: Iterable[Iterable[pa.Field]], *, widen_ints: bool, within: str = "", way: Way = BY_TYPE_ALONE
) -> list[pa.Field]:
    """The union of several lists of fields, in order of first appearance."""
    types: dict[str, pa.DataType] = {}
    for group in fields:
        for field in group:
            name, kind = field.name, field.type
            earlier = types.get(name)
            if earlier is None:
                types[name] = kind
            elif earlier != kind:
                types[name] = unify_types(earlier, kind, widen_ints=widen_ints, column=f"{within}{name}", way=way)
    return [pa.field(name, kind) for name, kind in types.items()]


def has_text_form(kind: pa.DataType) -> bool:
    """Whether Arrow can turn values of the type into text, and different values into different texts."""
    tests = (pt.is_boolean, pt.is_integer, pt.is_floating, pt.is_decimal, pt.is_date, pt.is_timestamp, _is_text)
    return any(test(kind) for test in tests) and not pt.is_float16(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind))


def _wider_integer(left: pa.DataType, right: pa.DataType, column: str, way: Way) -> pa.DataType:
    if pt.is_signed_integer(left) == pt.is_signed_integer(right):
        return max(left, right, key=lambda t: t.bit_width)
    signed, unsigned = (left, right) if pt.is_signed_integer(left) else (right, left)
    if unsigned.bit_width < 64:
        widths = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
        return widths[max(signed.bit_width, 2 * unsigned.bit_width)]
    if way.integers is None:
        raise TypeMismatch(column, left, right)
    return {"signed": pa.int64(), "unsigned": pa.uint64(), "decimal": WIDE_INTEGER}[way.integers]


def _is_wide_integer(left: pa.DataType, right: pa.DataType, way: Way) -> bool:
    """Whether one of the types is that of wide integers already, and the other one of integers."""
    return way.integers == "decimal" and any(
        one == WIDE_INTEGER and pt.is_integer(other) for one, other in ((left, right), (right, left))
    )


def _wider_decimal(left: pa.DataType, right: pa.DataType, column: str) -> pa.DataType:
    scale = max(left.scale, right.scale)
    precision = scale + max(left.precision - left.scale, right.precision - right.scale)
    if precision > 76:
        raise TypeMismatch(column, left, right)
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _common_unit(left: pa.DataType, right: pa.DataType, column: str, way: Way) -> str:
    finest: str = max(left.unit, right.unit, key=UNITS.index)
    if way.unit is not None:
        return min(finest, way.unit, key=UNITS.index)
    if finest == "ns" and left.unit != right.unit:  # nanoseconds reach only from 1677 to 2262
        raise TypeMismatch(column, left, right)
    return finest


def holds(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    """Whether ``kind``, or a type inside it, passes the test."""
    return test(kind) or any(holds(kind.field(i).type, test) for i in range(kind.num_fields))


def unknown_inside(kind: pa.DataType, wanted: pa.DataType) -> str | None:
    """The first field of the structs inside ``kind`` that those inside ``wanted`` do not have: a cast would drop it."""
    if pt.is_struct(kind) and pt.is_struct(wanted):
        for field in kind:
            if wanted.get_field_index(field.name) < 0:
                return str(field.name)
            inner = unknown_inside(field.type, wanted.field(field.name).type)
            if inner is not None:
                return f"{field.name}.{inner}"
    if _is_list(kind) and _is_list(wanted):
        return unknown_inside(kind.value_type, wanted.value_type)
    return None


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with exactly the columns of ``schema``: absent ones null, others cast without loss.

    Raises:
        pa.ArrowInvalid: a value does not fit its column's type.
    """
    if table.schema.equals(schema):
        return table
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        columns.append(_cast(table.column(index), field) if index >= 0 else pa.nulls(len(table), field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with its columns cast to their types in ``schema``, which has all of them, without loss.

    Raises:
        pa.ArrowInvalid: a value does not fit its column's type.
    """
    fields = [schema.field(name) for name in table.column_names]
    return pa.Table.from_arrays(
        [_cast(column, field) for column, field in zip(table.columns, fields, strict=True)], schema=pa.schema(fields)
    )


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        cast = column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise pa.ArrowInvalid(f"column {field.name!r}: {error}") from error
    if _may_lose(column.type, field.type) and not _is_lossless(cast, column):
        raise pa.ArrowInvalid(f"column {field.name!r}: as {field.type} some values of {column.type} would be lost")
    return cast


def _may_lose(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether Arrow would do a cast that loses something: the time of day, which number was true, digits of a text."""
    if pt.is_date(wanted):
        return bool(pt.is_timestamp(kind))
    return bool(pt.is_boolean(wanted) and pt.is_integer(kind)) or (pt.is_floating(wanted) and _is_text(kind))


def _is_lossless(cast: pa.ChunkedArray, column: pa.ChunkedArray) -> bool:
    """Whether the values are the same when cast back; of texts, only long whole numbers are compared."""
    if not _is_text(column.type):
        return bool(cast.cast(column.type).equals(column))
    long = column.filter(pc.fill_null(pc.match_substring_regex(column, r"^[-+]?\d{16,}$"), False))  # noqa: FBT003
    return all(int(text.as_py()) == float(text.as_py()) for text in long)
