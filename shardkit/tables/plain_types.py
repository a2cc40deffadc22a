"""The types in which columns are stored: those that every reader of Parquet reads as they were written.

Other types become a plain type that means the same, if there is one: a dictionary becomes its values, a list of fixed
size, whose nulls many readers misread, a list, and a field that may not be null one that may. Types that are known by
name only are refused, because their storage means something else: that of a period is a number.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from shardkit.tables.schema import holds

if TYPE_CHECKING:
    from collections.abc import Callable

EXTENSION = b"ARROW:extension:name"
AS_STORED = ("arrow.json", "arrow.bool8", "geoarrow.", "ogc.")  # whose storage can be used as it is
UUID = "arrow.uuid"

Renewed = tuple[tuple["Callable[[pa.DataType], bool]", "Callable[[pa.DataType], pa.DataType]"], ...]
# Types without inner types, and what they become.
RENEWED: Renewed = (
    (pt.is_string_view, lambda _: pa.large_string()),
    (pt.is_binary_view, lambda _: pa.large_binary()),
    (pt.is_date64, lambda _: pa.date32()),
    (lambda kind: pt.is_timestamp(kind) and kind.unit == "s", lambda kind: pa.timestamp("ms", kind.tz)),
    (lambda kind: pt.is_time32(kind) and kind.unit == "s", lambda _: pa.time32("ms")),  # Parquet has no seconds
    (pt.is_decimal32, lambda kind: pa.decimal128(kind.precision, kind.scale)),
    (pt.is_decimal64, lambda kind: pa.decimal128(kind.precision, kind.scale)),
)


def plain_type(kind: pa.DataType) -> pa.DataType:  # noqa: PLR0911  a kind of type a line
    """The type in which values of a type are stored.

    Raises:
        TypeError: the type is known by its name only.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_extension(kind.extension_name, kind.storage_type)
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pt.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pt.is_large_list(kind) or pt.is_large_list_view(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if pt.is_list(kind) or pt.is_list_view(kind) or pt.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pt.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    return next((renewed(kind) for test, renewed in RENEWED if test(kind)), kind)


def _plain_field(field: pa.Field) -> pa.Field:
    name = (field.metadata or {}).get(EXTENSION)
    return pa.field(field.name, plain_type(field.type) if name is None else _plain_extension(name.decode(), field.type))


def _plain_extension(name: str, storage: pa.DataType) -> pa.DataType:
    if name == UUID:
        return pa.string()
    if name == "arrow.bool8":
        return pa.bool_()
    if name.startswith(AS_STORED):
        return plain_type(storage)
    raise TypeError(f"its type is {name}, which few readers know; give its values in a plain type")


_LAST: list[tuple[pa.Schema, pa.Schema]] = []  # most tables have the same columns as the one before


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema in which a table is stored.

    Raises:
        TypeError: a column's type is known by its name only.
    """
    if _LAST and schema.equals(_LAST[0][0], check_metadata=True):  # which names the types that are not registered
        return _LAST[0][1]
    fields = []
    for field in schema:
        try:
            fields.append(_plain_field(field))
        except TypeError as error:
            raise TypeError(f"column {field.name!r} cannot be stored: {error}") from None
    _LAST[:] = [(schema, pa.schema(fields))]
    return _LAST[0][1]


def plain_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column in the type that `plain_schema` gives it.

    Raises:
        pa.ArrowException: it has values that this type cannot hold.
    """
    if column.type == kind:
        return column
    if isinstance(column.type, pa.BaseExtensionType) and column.type.extension_name == UUID:
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pt.is_fixed_size_binary(column.type) and pt.is_string(kind):
        texts = [None if value is None else str(uuid.UUID(bytes=value)) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    if holds(column.type, _is_cast_badly):
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
    return column.cast(kind)


def _is_cast_badly(kind: pa.DataType) -> bool:
    """Whether Arrow cannot cast such a type, or what holds it, or makes an invalid array of it."""
    return bool(pt.is_run_end_encoded(kind) or pt.is_list_view(kind) or pt.is_large_list_view(kind))
