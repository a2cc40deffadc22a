"""Cells of lists as NumPy arrays, for formats that hold arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

if TYPE_CHECKING:
    from collections.abc import Iterator


def number_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the numbers, or truth values, that a list holds, or lists in it; None if it holds anything else."""
    depth = 0
    while pt.is_list(kind) or pt.is_large_list(kind):
        kind, depth = kind.value_type, depth + 1
    is_number = pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind)
    return kind if depth and is_number else None


def arrays_of(lists: pa.Array) -> Iterator[np.ndarray | None]:
    """Each cell of lists of numbers as an array, of as many dimensions as lists are in each other; None for a null.

    Raises:
        ValueError: a list holds nulls, or lists of different lengths.
    """
    for cell in lists:
        yield None if cell.values is None else _array(cell.values)


def _array(values: pa.Array) -> np.ndarray:
    shape = [len(values)]
    while pt.is_list(values.type) or pt.is_large_list(values.type):
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if values.null_count or len(lengths) > 1:
            raise ValueError("lists in it differ in length")
        shape.append(int(lengths[0]) if len(lengths) else 0)
        values = values.flatten()
    if values.null_count:
        raise ValueError("a list in it holds a null")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
