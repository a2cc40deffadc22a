"""Columns as PyTorch's tensors: numbers, and lists of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import torch

from shardkit.errors import PipelineError


def are_numbers(kind: pa.DataType) -> bool:
    """Whether values of a type are numbers, truth values, or lists of such."""
    if _is_list(kind):
        return are_numbers(kind.value_type)
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def as_tensors(column: pa.Array, name: str) -> Any:
    """A column as a tensor if its values are numbers, or lists that are of one length; else as a list.

    Lists of numbers that differ in length are a list of tensors. A null is NaN among fractions.

    Raises:
        PipelineError: a null is where no tensor can have one.
    """
    if not are_numbers(column.type):
        return column.to_pylist()
    return _lists(column, name) if _is_list(column.type) else _numbers(column, name)


def no_nulls(name: str) -> PipelineError:
    """The error about nulls among numbers."""
    return PipelineError(
        f"Column {name!r} has nulls, which a tensor of its type cannot have.",
        hint="Leave it out by columns=[...], or let the function return another value there, or NaN.",
    )


def _numbers(column: pa.Array, name: str) -> torch.Tensor:
    if column.null_count and not pt.is_floating(column.type):
        raise no_nulls(name)
    values = column.to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.require(values, requirements=["W", "C"]))  # a copy: Arrow's memory stays as it is


def _lists(column: pa.Array, name: str) -> Any:
    if column.null_count:
        raise no_nulls(name)
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    inside = as_tensors(column.flatten(), name)
    if isinstance(inside, torch.Tensor):
        if len(lengths) and (lengths == lengths[0]).all():
            return inside.reshape(len(lengths), int(lengths[0]), *inside.shape[1:])
        return list(inside.split(lengths.tolist()))
    ends = np.cumsum(lengths).tolist()
    return [inside[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
