"""About how much memory rows take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def weight_of(row: dict[str, Any]) -> int:
    """About how much memory a row's values take; 0 if they do not tell."""
    try:
        return _weight(row.values())
    except Exception:  # noqa: BLE001  nested too deeply, or the user's own class: the conversion will tell
        return 0


def _weight(values: Iterable[Any]) -> int:
    """About how much memory some values take, the nested ones by the first that they hold."""
    total = 0
    for value in values:
        total += sys.getsizeof(value)
        if isinstance(value, list | tuple | dict) and value:
            total += len(value) * _weight([next(iter(value.values() if isinstance(value, dict) else value))])
    return total
