"""NumPy arrays as Arrow arrays and back, without pandas.

pyarrow's own conversions import pandas, if it is installed, to see whether they were given a Series; that takes longer
than listing some thousand files and planning a run.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def arrow(values: np.ndarray) -> pa.Array:
    """A one-dimensional array of booleans, or of integers of 32 or 64 bits, as an Arrow array."""
    if values.dtype == bool:
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    kind = {4: pa.int32(), 8: pa.int64()}[values.dtype.itemsize]
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, copied only where it is in several pieces."""
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
