"""Types and names as a Glue catalogue has them, and as Athena can read them there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.types as pt

from shardkit.tables.schema import parse_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def glue_type(kind: pa.DataType) -> str:  # noqa: PLR0911  a type a line
    """The catalogue's name of a type.

    Raises:
        ValueError: it has none, or a field inside has a name that no query can use.
    """
    for test, name in (
        (pt.is_boolean, "boolean"),
        (pt.is_int8, "tinyint"),
        (pt.is_int16, "smallint"),
        (pt.is_uint8, "smallint"),
        (pt.is_int32, "int"),
        (pt.is_uint16, "int"),
        (pt.is_int64, "bigint"),
        (pt.is_uint32, "bigint"),
        (pt.is_float32, "float"),
        (pt.is_float64, "double"),
        (pt.is_timestamp, "timestamp"),
        (pt.is_date, "date"),
    ):
        if test(kind):
            return name
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return "string"
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind):
        return "binary"
    if pt.is_decimal(kind) and kind.precision <= 38:
        return f"decimal({kind.precision},{kind.scale})"
    if pt.is_dictionary(kind):
        return glue_type(kind.value_type)
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return f"array<{glue_type(kind.value_type)}>"
    if pt.is_map(kind):
        return f"map<{glue_type(kind.key_type)},{glue_type(kind.item_type)}>"
    if pt.is_struct(kind):
        _check_fields(field.name for field in kind)
        return f"struct<{','.join(f'{field.name}:{glue_type(field.type)}' for field in kind)}>"
    raise ValueError(f"a Glue catalogue has no type for {kind}")


def can_be_named(name: str) -> bool:
    """Whether Athena can name a column, or a field inside of one."""
    return re.fullmatch(r"\w+", name, re.ASCII) is not None


def _check_fields(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not can_be_named(name) or name.lower() in seen:
            reason = "is there twice, in upper and lower case" if name.lower() in seen else "Athena cannot name"
            raise ValueError(f"it has the field {name!r}, which {reason}")
        seen.add(name.lower())


def check_names(columns: Iterable[str], types: Mapping[str, str]) -> None:
    """Check that a pipeline's own columns can be registered, before a run rather than after it.

    Raises:
        ValueError: one cannot.
    """
    for name in columns:
        if not can_be_named(name):
            raise ValueError(f"Athena cannot name the column {name!r}: let the function give it another name.")
    for name, text in types.items():
        kind = parse_type(text)
        if not pt.is_null(kind):
            try:
                glue_type(kind)
            except ValueError as error:
                raise ValueError(f"column {name!r} of output.schema cannot be registered: {error}.") from None
