"""What a function gave for a batch of records, by record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shardkit.record import Record
from shardkit.tables.frames import is_pandas

if TYPE_CHECKING:
    from collections.abc import Sequence

CURE = "return a list with one item for each record, or give pairs (record, rows)"


def by_record(returned: Any, records: Sequence[Record]) -> list[Any]:
    """What each record has given, in a form that a function of one record may return.

    A function of a batch says in one of two ways whose rows are whose. It returns a list or tuple with one item for
    each record, in their order, each of which is what a function of one record may return. Or it returns or yields
    pairs: a record or its key, and rows of it; a record may be in several pairs, or in none. None means no rows at all.

    Raises:
        TypeError: it is neither.
        Exception: whatever the function raises while it yields.
    """
    if returned is None:
        return [None] * len(records)
    if _is_table(returned):
        raise TypeError(
            f"the function returned one {_name(returned)} for a batch of {len(records)} records: {CURE}, "
            "as frame.groupby(COLUMN) does for a column of the records' keys"
        )
    if isinstance(returned, Mapping | str | bytes) or not isinstance(returned, Iterable):
        raise TypeError(f"the function returned {_name(returned)} for a batch of {len(records)} records: {CURE}")
    if not isinstance(returned, list | tuple):
        return _of_pairs(returned, records)
    if returned and not all(_is_pair(item) for item in returned) and len(returned) == len(records):
        return list(returned)
    if all(_is_pair(item) for item in returned):
        return _of_pairs(returned, records)
    raise TypeError(
        f"the function returned a {_name(returned)} of {len(returned)} items for a batch of {len(records)} records, "
        f"and whose they are is not said: {CURE}"
    )


def _of_pairs(pairs: Iterable[Any], records: Sequence[Record]) -> list[Any]:
    given: dict[str, list[Any]] = {record.key: [] for record in records}
    for pair in pairs:
        if not _is_pair(pair):
            raise TypeError(
                f"the function gave {_name(pair)} for a batch of {len(records)} records, and whose it is is not said: "
                f"{CURE}"
            )
        owner, rows = pair
        key = owner.key if isinstance(owner, Record) else owner
        if key not in given:
            raise TypeError(f"the function gave rows of {key!r}, which is no record of its batch")
        given[key].append(rows)
    return [_together(each) for each in given.values()]


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Record | str)


def _together(given: list[Any]) -> Any:
    """What one record was given in several pairs."""
    if not given:
        return None
    return given[0] if len(given) == 1 else _items(given)


def _items(given: list[Any]) -> Iterator[Any]:
    for each in given:
        if isinstance(each, list | tuple | Iterator):
            yield from each
        else:
            yield each


def _is_table(value: Any) -> bool:
    return is_pandas(value, "DataFrame") or hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")


def _name(value: Any) -> str:
    return type(value).__name__
