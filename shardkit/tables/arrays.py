"""Conversion of NumPy arrays and plain Python values to Arrow, and of Arrow arrays to NumPy, without pandas.

pyarrow's own conversions import pandas, if it is installed, to find out whether they were given a Series. That takes
longer than listing some thousand files and planning a run, or than everything else that a worker does before its first
record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Sequence

PLAIN: dict[type, tuple[pa.DataType, Any]] = {
    bool: (pa.bool_(), False),
    int: (pa.int64(), 0),
    float: (pa.float64(), 0.0),
    np.int64: (pa.int64(), 0),
    np.float64: (pa.float64(), 0.0),
    str: (pa.string(), ""),
}
"""Simple types of Python values, with Arrow's types for them and the value that stands in for None."""


def plain_array(values: Sequence[Any], kind: type) -> pa.Array | None:
    """Values of the type ``kind``, one of `PLAIN`, or None, as an array of Arrow's type for it.

    Returns None if one does not fit: an integer of more than 64 bits, text with half a surrogate pair.
    """
    arrow_type, zero = PLAIN[kind]
    missing = [i for i, value in enumerate(values) if value is None]
    nulls = None
    if missing:
        values = [zero if value is None else value for value in values]
        valid = np.ones(len(values), bool)
        valid[missing] = False
        nulls = pa.py_buffer(np.packbits(valid, bitorder="little"))
    try:
        if kind is str:
            offsets, data = text_buffers(values)
            if len(data) >= 1 << 31:
                return None
            content = [pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
        else:
            numbers: np.ndarray = np.fromiter(values, np.dtype(kind), len(values))
            content = [pa.py_buffer(np.packbits(numbers, bitorder="little") if kind is bool else numbers)]
    except (OverflowError, UnicodeEncodeError):
        return None
    return pa.Array.from_buffers(arrow_type, len(values), [nulls, *content], len(missing))


def scalar(value: bool | float | str) -> pa.Scalar:  # noqa: FBT001  it is what it is
    """A value of a type in `PLAIN` as an Arrow scalar."""
    array: Any = plain_array([value], type(value))
    return array[0]


def texts(values: Sequence[str]) -> pa.StringArray:
    """Texts, less than 2 GiB of them, as an array.

    Raises:
        UnicodeEncodeError: one has half a surrogate pair.
    """
    offsets, data = text_buffers(values)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data))


def text_buffers(values: Sequence[str]) -> tuple[np.ndarray, bytes]:
    """The offsets of the texts in their joined UTF-8, including the end of the last, and that UTF-8.

    Raises:
        UnicodeEncodeError: one has half a surrogate pair.
    """
    data = "".join(values).encode()
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    if len(data) != int(lengths.sum()):
        lengths = np.fromiter((len(value.encode()) for value in values), np.int64, len(values))
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets, data


def arrow(values: np.ndarray) -> pa.Array:
    """A one-dimensional array of booleans, or of integers of 32 or 64 bits, as an Arrow array."""
    if values.dtype == bool:
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    kind = {4: pa.int32(), 8: pa.int64()}[values.dtype.itemsize]
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, copied only if it is in several pieces."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numpy(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """An Arrow array of booleans or integers, without nulls, as a NumPy array."""
    if isinstance(values, pa.ChunkedArray):
        chunks = [numpy(chunk) for chunk in values.chunks]
        return chunks[0] if len(chunks) == 1 else np.concatenate([np.zeros(0, np.int64), *chunks])
    begin, end = values.offset, values.offset + len(values)
    if pa.types.is_boolean(values.type):
        bits = np.frombuffer(values.buffers()[1], np.uint8) if len(values) else np.zeros(0, np.uint8)
        return np.unpackbits(bits, count=end, bitorder="little")[begin:].astype(bool)
    kind = np.dtype(f"{'i' if pa.types.is_signed_integer(values.type) else 'u'}{values.type.bit_width // 8}")
    return np.frombuffer(values.buffers()[1], kind)[begin:end] if len(values) else np.zeros(0, kind)


def positions(indices: pa.Array) -> np.ndarray:
    """Arrow's indices of 32 bits as a NumPy array; -1 stands for null."""
    return numpy(pc.fill_null(indices, scalar(-1).cast(indices.type)) if indices.null_count else indices)
