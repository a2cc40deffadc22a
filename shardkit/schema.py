"""Column types: how they are written down, and how those of several parts become one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SIMPLE_TYPES = (  # noqa: SIM905  two hundred quotes would hide them
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 string large_string binary "
    "large_binary date32 date64 timestamp[s] timestamp[ms] timestamp[us] timestamp[ns] time32[s] time32[ms] "
    "time64[us] time64[ns] duration[s] duration[ms] duration[us] duration[ns] null"
).split()


class TypeMismatch(Exception):
    """Two types of one column that have no common type."""

    def __init__(self, column: str, left: pa.DataType, right: pa.DataType) -> None:
        super().__init__(f"column {column!r} is {left} in one place and {right} in another")
        self.column = column
        self.left = left
        self.right = right


def parse_type(text: str) -> pa.DataType:
    """A type written as Arrow prints it: ``int64``, ``list<string>``, ``timestamp[us, tz=UTC]``, ``struct<a: int64>``.

    Raises:
        PipelineError: there is no such type.
    """
    text = text.strip()
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(parse_type(text[5:-1].removeprefix("item:").removeprefix("element:")))
    if text.startswith("struct<") and text.endswith(">"):
        fields = [field.partition(":") for field in split_outside(text[7:-1])]
        return pa.struct([(name.strip(), parse_type(kind)) for name, _, kind in fields])
    if text.startswith("timestamp[") and ", tz=" in text:
        unit, zone = text[len("timestamp[") : -1].split(", tz=")
        return pa.timestamp(unit, tz=zone)
    aliases = {"str": "string", "int": "int64", "float": "float64", "double": "float64", "datetime": "timestamp[us]"}
    name = aliases.get(text, text)
    if name not in SIMPLE_TYPES:
        near = difflib.get_close_matches(text, SIMPLE_TYPES, n=1)
        raise PipelineError(
            f"output.schema: there is no type {text!r}.",
            hint=f"Did you mean {near[0]!r}?"
            if near
            else f"Known are {', '.join(SIMPLE_TYPES[:12])}, ..., list<type>.",
        )
    return pa.type_for_alias(name)


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


def unify_types(  # noqa: C901, PLR0911, PLR0912  a rule a line
    left: pa.DataType, right: pa.DataType, *, widen_ints: bool, column: str = ""
) -> pa.DataType:
    """The type that holds the values of both without loss.

    An all-null column takes the other's type; integers and floats take the wider of their own kind; a column of
    integers becomes one of floats only with ``widen_ints``. Lists and structs are unified inside, where integers
    always widen: so does Arrow when it converts one record's nested values.

    Raises:
        TypeMismatch: there is none.
    """
    if left == right or pt.is_null(right):
        return left
    if pt.is_null(left):
        return right
    if pt.is_integer(left) and pt.is_integer(right):
        return _wider_integer(left, right)
    if pt.is_floating(left) and pt.is_floating(right):
        return max(left, right, key=lambda t: t.bit_width)
    if widen_ints and _is_number(left) and _is_number(right):
        return pa.float64()
    if pt.is_dictionary(left) or pt.is_dictionary(right):
        return unify_types(_plain(left), _plain(right), widen_ints=widen_ints, column=column)
    if _is_text(left) and _is_text(right):
        return pa.large_string()
    if _is_list(left) and _is_list(right):
        inner = unify_types(left.value_type, right.value_type, widen_ints=True, column=f"{column}[]")
        return pa.large_list(inner) if pt.is_large_list(left) or pt.is_large_list(right) else pa.list_(inner)
    if pt.is_struct(left) and pt.is_struct(right):
        fields = unify_fields([list(left), list(right)], widen_ints=True, within=f"{column}.")
        return pa.struct(fields)
    if {left, right} == {pa.binary(), pa.large_binary()}:
        return pa.large_binary()
    if pt.is_decimal(left) and pt.is_decimal(right):
        return _wider_decimal(left, right, column)
    if pt.is_duration(left) and pt.is_duration(right):
        return pa.duration(_finer_unit(left, right))
    if pt.is_timestamp(left) and pt.is_timestamp(right) and (left.tz is None) == (right.tz is None):
        return pa.timestamp(_finer_unit(left, right), left.tz)
    raise TypeMismatch(column, left, right)


def unify_fields(fields: Iterable[Iterable[pa.Field]], *, widen_ints: bool, within: str = "") -> list[pa.Field]:
    """The union of several lists of fields, in order of first appearance."""
    types: dict[str, pa.DataType] = {}
    for group in fields:
        for field in group:
            known = types.get(field.name)
            column = f"{within}{field.name}"
            types[field.name] = (
                field.type if known is None else unify_types(known, field.type, widen_ints=widen_ints, column=column)
            )
    return [pa.field(name, kind) for name, kind in types.items()]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _wider_integer(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    if pt.is_signed_integer(left) == pt.is_signed_integer(right):
        return max(left, right, key=lambda t: t.bit_width)
    signed, unsigned = (left, right) if pt.is_signed_integer(left) else (right, left)
    widths = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
    return widths[min(64, max(signed.bit_width, 2 * unsigned.bit_width))]


def _wider_decimal(left: pa.DataType, right: pa.DataType, column: str) -> pa.DataType:
    scale = max(left.scale, right.scale)
    precision = scale + max(left.precision - left.scale, right.precision - right.scale)
    if precision > 76:
        raise TypeMismatch(column, left, right)
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def _finer_unit(left: pa.DataType, right: pa.DataType) -> str:
    units = ("s", "ms", "us", "ns")
    return units[max(units.index(left.unit), units.index(right.unit))]


def holds(kind: pa.DataType, test: Callable[[pa.DataType], bool]) -> bool:
    """Whether ``kind``, or a type inside it, passes the test."""
    return test(kind) or any(holds(kind.field(i).type, test) for i in range(kind.num_fields))


def unknown_inside(kind: pa.DataType, known: pa.DataType) -> str | None:
    """The first field of the structs inside ``kind`` that those inside ``known`` do not have: a cast would drop it."""
    if pt.is_struct(kind) and pt.is_struct(known):
        for field in kind:
            if known.get_field_index(field.name) < 0:
                return str(field.name)
            inner = unknown_inside(field.type, known.field(field.name).type)
            if inner is not None:
                return f"{field.name}.{inner}"
    if _is_list(kind) and _is_list(known):
        return unknown_inside(kind.value_type, known.value_type)
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
        if index < 0:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(index)
        try:
            cast = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise pa.ArrowInvalid(f"column {field.name!r}: {error}") from error
        if _may_lose(column.type, field.type) and not cast.cast(column.type).equals(column):
            raise pa.ArrowInvalid(f"column {field.name!r}: as {field.type} some values of {column.type} would be lost")
        columns.append(cast)
    return pa.Table.from_arrays(columns, schema=schema)


def _may_lose(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether Arrow calls a cast safe that is not: a time of day cut off, a number made true."""
    if pt.is_date(wanted):
        return bool(pt.is_timestamp(kind))
    return bool(pt.is_boolean(wanted) and pt.is_integer(kind))
