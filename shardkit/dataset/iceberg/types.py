"""The types in which columns are stored in files that are an Iceberg table's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from shardkit.errors import SchemaConflict

if TYPE_CHECKING:
    from collections.abc import Callable

# Types without inner types, and what they become. Casts are checked: a value that does not fit is an error.
STORED_AS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType], pa.DataType]], ...] = (
    (lambda kind: pt.is_uint32(kind) or pt.is_uint64(kind), lambda _: pa.int64()),
    (lambda kind: pt.is_integer(kind) and kind.bit_width < 64, lambda _: pa.int32()),
    (pt.is_float16, lambda _: pa.float32()),
    (pt.is_time, lambda _: pa.time64("us")),
    (pt.is_timestamp, lambda kind: pa.timestamp("us", None if kind.tz is None else "UTC")),
)
HELD = (
    pt.is_boolean,
    pt.is_int64,
    pt.is_float32,
    pt.is_float64,
    pt.is_date32,
    pt.is_string,
    pt.is_large_string,
    pt.is_binary,
    pt.is_large_binary,
    pt.is_fixed_size_binary,
)


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """The type in which a column is stored; None if it has no value yet, so that its type is not known.

    Raises:
        ValueError: Iceberg has no type for it.
    """
    if pt.is_null(kind):
        return None
    if pt.is_struct(kind):
        fields = [(field.name, stored_type(field.type)) for field in kind]
        known = [(name, inner) for name, inner in fields if inner is not None]
        return pa.struct(known) if known else None
    if pt.is_map(kind):
        key, item = stored_type(kind.key_type), stored_type(kind.item_type)
        return pa.map_(key, item) if key is not None and item is not None else None
    if _is_list(kind):
        inner, as_list = stored_type(kind.value_type), pa.large_list if pt.is_large_list(kind) else pa.list_
        return as_list(inner) if inner is not None else None
    stored = next((stored(kind) for test, stored in STORED_AS if test(kind)), None)
    if stored is not None or any(test(kind) for test in HELD) or (pt.is_decimal(kind) and kind.precision <= 38):
        return stored or kind
    raise ValueError(f"Iceberg has no type for {kind}")


def read_as(columns: pa.Schema, schema: pa.Schema) -> bool:
    """Whether Iceberg reads files with these columns as ``schema``: as the same types, wider ones, or nulls."""
    return all(
        name in schema.names and _read_as(columns.field(name).type, schema.field(name).type) for name in columns.names
    )


def _read_as(kind: pa.DataType, wanted: pa.DataType) -> bool:
    if kind == wanted or (pt.is_int32(kind) and pt.is_int64(wanted)) or (pt.is_float32(kind) and pt.is_float64(wanted)):
        return True
    if pt.is_decimal(kind) and pt.is_decimal(wanted):
        return bool(kind.scale == wanted.scale and kind.precision <= wanted.precision)
    if pt.is_struct(kind) and pt.is_struct(wanted):
        return read_as(pa.schema(list(kind)), pa.schema(list(wanted)))
    if pt.is_map(kind) and pt.is_map(wanted):
        return _read_as(kind.key_type, wanted.key_type) and _read_as(kind.item_type, wanted.item_type)
    if _is_list(kind) and _is_list(wanted):
        return _read_as(kind.value_type, wanted.value_type)
    return any(all(test(one) for one in (kind, wanted)) for test in (_is_text, _is_binary))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind))


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The columns as they are stored, without those that have no value yet.

    Raises:
        SchemaConflict: Iceberg has no type for one.
    """
    fields = []
    for field in schema:
        try:
            stored = stored_type(field.type)
        except ValueError as error:
            raise SchemaConflict(
                f"Column {field.name!r}: {error}.",
                hint="Let the function give it another type, or name one in output.schema; then resume the run.",
            ) from None
        if stored is not None:
            fields.append(pa.field(field.name, stored))
    return pa.schema(fields)
