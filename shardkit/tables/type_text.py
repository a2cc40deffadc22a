"""Schemas as text, complete as in results; and types read back from the form in which Arrow prints them."""

from __future__ import annotations

import base64
import contextlib
import functools
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.errors import PipelineError
from shardkit.tables.schema import parse_type, split_outside

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# Types whose printed name differs from the name that Arrow accepts.
NAMES = {
    "float": "float32",
    "halffloat": "float16",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
LISTS = {"list": pa.list_, "large_list": pa.large_list}


def schema_to_text(schema: pa.Schema) -> str:
    """A schema as text, in Arrow's own serialisation, which loses nothing."""
    return base64.b64encode(schema.serialize()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The schema that `schema_to_text` has written."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def schema_of(result: Mapping[str, Any], *, without: Collection[str] = ()) -> pa.Schema:
    """The columns of a dataset that a result describes, except those in ``without``.

    Old results have only the types as Arrow prints them: columns whose type cannot be read back are left out.
    """
    if "schema" in result:
        schema = schema_from_text(result["schema"])
        return pa.schema([field for field in schema if field.name not in without])
    fields = []
    for name, text in result["columns"].items():
        if name not in without:
            with contextlib.suppress(PipelineError):
                fields.append(pa.field(name, printed_type(text)))
    return pa.schema(fields)


def merged_schema(old: Mapping[str, Any], new: Mapping[str, Any]) -> pa.Schema:
    """The columns of two results, those of the older first, with the types that they have in the newer."""
    fields = {field.name: field for field in (*schema_of(old), *schema_of(new))}
    return pa.schema(list(fields.values()))


@functools.lru_cache(1024)
def printed_type(text: str) -> pa.DataType:  # noqa: PLR0911  a kind of type a line
    """The type that Arrow prints as ``text``; ``float`` is the one of 32 bits.

    Raises:
        PipelineError: it cannot be read back.
    """
    text = text.strip()
    if text in NAMES:
        return parse_type(NAMES[text])
    if (match := re.fullmatch(r"fixed_size_binary\[(\d+)\]", text)) is not None:
        return pa.binary(int(match[1]))
    if (match := re.fullmatch(r"decimal(32|64|128|256)\((\d+), (-?\d+)\)", text)) is not None:
        kind: pa.DataType = getattr(pa, f"decimal{match[1]}")(int(match[2]), int(match[3]))
        return kind
    if (match := re.fullmatch(r"fixed_size_list<(.*)>\[(\d+)\]", text, re.DOTALL)) is not None:
        return pa.list_(_field(match[1]), int(match[2]))
    kind_name, bracket, rest = text.partition("<")
    inner = rest.removesuffix(">")
    if not bracket or inner == rest:
        return parse_type(text)
    if kind_name in LISTS:
        return LISTS[kind_name](_field(inner))
    if kind_name == "struct":
        return pa.struct([_field(field) for field in split_outside(inner)] if inner else [])
    if kind_name == "map":
        key, item, *_ = (re.sub(r" \('\w+'\)$", "", side) for side in split_outside(inner))
        return pa.map_(printed_type(key), printed_type(item))
    if kind_name == "dictionary":
        return printed_type(split_outside(inner)[0].removeprefix("values="))
    return parse_type(text)


def _field(text: str) -> pa.Field:
    name, _, kind = text.partition(": ")
    required = kind.endswith(" not null")
    return pa.field(name.strip(), printed_type(kind.removesuffix(" not null")), nullable=not required)
