"""Thrift's compact protocol, in which Parquet's footers are written; it works without the definitions of the structs.

A struct is read with every field that it has, known or not, so that it can be written again as it was.

Source: the Thrift project's specification of the compact protocol.
"""

from __future__ import annotations

from typing import Any, NamedTuple

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, _, STRUCT = range(1, 13)
_INTEGERS = {I16, I32, I64}
_LONG_LIST = 15  # from so many items on, the length is written separately


class Field(NamedTuple):
    """A value and its type. A list is a pair of its items' type and its items, a struct a `Struct`.

    For writing, a struct may also be given as its bytes.
    """

    kind: int
    value: Any


Struct = dict[int, Field]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("the struct ends in the middle of a value")
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def struct(self) -> Struct:
        fields: Struct = {}
        number = 0
        while head := self._byte():
            kind = head & 0x0F
            number = number + (head >> 4) if head >> 4 else self._integer()
            # The type of a boolean field is its value.
            fields[number] = Field(kind, None if kind in (TRUE, FALSE) else self._value(kind))
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < _LONG_LIST else self._varint()
            return head & 0x0F, [self._value(head & 0x0F) for _ in range(count)]
        if kind in (TRUE, FALSE, BYTE):  # in a list, a byte each
            return self._byte()
        if kind == DOUBLE:
            return self._bytes(8)
        raise ValueError(f"the struct has a field of type {kind}, which cannot be read")


def read_struct(data: bytes) -> Struct:
    """The struct at the beginning of ``data``.

    Raises:
        ValueError: there is none, or it holds a map.
    """
    try:
        return _Reader(data).struct()
    except IndexError:
        raise ValueError("the struct ends in the middle of a value") from None


def write_struct(struct: Struct) -> bytes:
    """The bytes of a struct."""
    out = bytearray()
    _write_struct(out, struct)
    return bytes(out)


def _write_struct(out: bytearray, struct: Struct | bytes) -> None:
    if isinstance(struct, bytes):
        out += struct
        return
    last = 0
    for number, (kind, value) in sorted(struct.items()):
        if 0 < number - last < 16:
            out.append((number - last) << 4 | kind)
        else:
            out.append(kind)
            _write_varint(out, _zigzag(number))
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, value)
        last = number
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_varint(out, _zigzag(value))
    elif kind == BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind in (LIST, SET):
        items_kind, items = value
        out.append(min(len(items), _LONG_LIST) << 4 | items_kind)
        if len(items) >= _LONG_LIST:
            _write_varint(out, len(items))
        for item in items:
            _write_value(out, items_kind, item)
    elif kind == DOUBLE:
        out += value
    else:
        out.append(value)


def _zigzag(number: int) -> int:
    return number * 2 if number >= 0 else -number * 2 - 1


def _write_varint(out: bytearray, number: int) -> None:
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
