"""Estimates of how much memory rows take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

NESTED = (list, tuple, dict)  # a union would be made for each value


def weight_of(row: dict[str, Any]) -> int:
    """About how many bytes of memory a row's values take; 0 if it cannot be found out."""
    try:
        return _weight(row.values())
    except Exception:  # noqa: BLE001  nested too deeply, or the user's own class: the conversion will raise the error
        return 0


def _weight(values: Iterable[Any]) -> int:
    """About how many bytes some values take; nested values are estimated from the first one inside."""
    total = 0
    for value in values:
        total += sys.getsizeof(value)
        if isinstance(value, NESTED) and value:
            total += len(value) * _weight([next(iter(value.values() if isinstance(value, dict) else value))])
    return total
