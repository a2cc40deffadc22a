"""NumPy arrays as values: masked ones with their nulls, and all in the byte order that Arrow accepts."""

from __future__ import annotations

import sys
from itertools import chain
from typing import Any

import numpy as np

CONTAINERS = (dict, list, tuple, set)
DEEPEST = 1000


def as_arrow_takes(values: list[Any], kinds: set[type]) -> list[Any]:
    """The values with nulls for what is masked, even inside containers, and their arrays as Arrow accepts them."""
    # Without this module there are no masked arrays, so that the values of a JSON file need not be searched.
    if "numpy.ma" in sys.modules and _holds_masked(values, kinds):
        masked = _masked_inside(values, kinds)
        with_masks = any(array.mask.any() for array in masked)
        return [_unmasked(value, with_masks=with_masks) for value in values]
    if any(issubclass(kind, np.ndarray) for kind in kinds):
        return [_native(value) for value in values]
    return values


def _holds_masked(values: list[Any], kinds: set[type]) -> bool:
    """Whether there is a masked array; searches level by level, which is fast."""
    for _ in range(DEEPEST):
        if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
            return True
        inside: list[Any] = []
        for kind in kinds:
            if issubclass(kind, dict):
                inside += chain.from_iterable(value.values() for value in values if type(value) is kind)
            elif issubclass(kind, CONTAINERS):
                inside += chain.from_iterable(value for value in values if type(value) is kind)
            elif issubclass(kind, np.ndarray):
                inside += chain.from_iterable(v for v in values if type(v) is kind and v.dtype == object and v.ndim)
        if not inside:
            return False
        values, kinds = inside, set(map(type, inside))
    raise RecursionError("values are nested too deeply: maximum recursion depth exceeded")


def _masked_inside(values: Any, kinds: set[type]) -> list[Any]:
    """The masked arrays among values of these kinds, and inside them."""
    masked = []
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        masked += [value for value in values if isinstance(value, np.ma.MaskedArray)]
    if any(issubclass(kind, (*CONTAINERS, np.ndarray)) for kind in kinds):
        for value in values:
            if (inside := _inside(value)) and (inner := set(map(type, inside))):
                masked += _masked_inside(inside, inner)
    return masked


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set):
        return value
    has_objects = isinstance(value, np.ndarray) and value.dtype == object and value.ndim
    return list(value) if has_objects and not isinstance(value, np.ma.MaskedArray) else None


def _unmasked(value: Any, *, with_masks: bool) -> Any:
    """``value`` without masks; if there are any, all masked arrays become lists, so that they have one type."""
    if isinstance(value, np.ma.MaskedArray):
        if value.ndim == 0:
            return None if value.mask.any() else value.item()
        if value.ndim > 1 or not with_masks:
            return _native(value.data)
        return [None if masked else v for v, masked in zip(value.data, np.ma.getmaskarray(value), strict=True)]
    if isinstance(value, dict):
        return {name: _unmasked(inner, with_masks=with_masks) for name, inner in value.items()}
    if (inside := _inside(value)) is not None:
        return [_unmasked(inner, with_masks=with_masks) for inner in inside]
    return _native(value)


def _native(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if not value.ndim:
        return value.item()
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
