"""Records to groups: what must stay in one job, by folder or by date. All on Arrow arrays, like the records.

The groups are a dictionary array, whose dictionary lists them in the order in which jobs are numbered: folders in the
order of the keys, dates by time.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError
from shardkit.runfolder.names import WHOLE
from shardkit.tables.arrays import arrow, numpy, one_chunk, scalar
from shardkit.times import date_expression, zone_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MICROSECONDS_A_DAY = 86_400_000_000
UNDATED_NAMED = 3
ENCODED_AT_ONCE = 1 << 17

DATE_FORMATS = {4: "%Y", 7: "%Y-%m", 10: "%Y-%m-%d", 13: "%Y-%m-%dT%H"}


def has_groups(shards: Mapping[str, Any] | None) -> bool:
    """Whether there are groups at all: a cut by size or by object may separate any two records."""
    return shards is None or shards["by"] in {"directory", "date"}


def partition_names(table: pa.Table, *, by_day: bool) -> tuple[np.ndarray, list[str]]:
    """The partition of each record, as a number and as the names that these stand for."""
    if not by_day:
        return np.zeros(len(table), np.int32), [WHOLE]
    group = one_chunk(table["group"])
    return numpy(group.indices), group.dictionary.to_pylist()


def group_records(
    keys: Iterable[pa.Array], records: pa.ChunkedArray, modified: np.ndarray | None, shards: Mapping[str, Any] | None
) -> pa.DictionaryArray:
    """The group of each record; null where there are no groups.

    Args:
        keys: of each record's main object, in several arrays.
        records: the records' own keys, for messages.
        modified: when the newest object of each was written, in microseconds since 1970, UTC; None where the listing
            does not say.
        shards: the pipeline's section of that name, as plain data.

    Raises:
        InputError: a record has no date.
    """
    if not has_groups(shards):
        return pa.DictionaryArray.from_arrays(pa.nulls(len(records), pa.int32()), pa.nulls(0, pa.string()))
    if shards is None or shards["by"] == "directory":
        depth = shards["depth"] if shards else 1
        return _encoded(group_by_directory(some, depth=depth).cast(pa.string()) for some in keys)
    if "column" not in shards:
        return _group_by_path_date(keys, records, shards["path"])
    if modified is None:
        raise InputError(
            "The listing of this input does not say when its files were written.",
            hint="Use shards.path, a pattern for the dates in the files' names, instead of shards.column.",
        )
    some_times = (modified[start : start + ENCODED_AT_ONCE] for start in range(0, len(modified), ENCODED_AT_ONCE))
    zone = shards.get("zone")
    days = _encoded(arrow(_local(times, zone) // MICROSECONDS_A_DAY).cast(pa.int32()) for times in some_times)
    return _in_order(days.indices, days.dictionary.view(pa.date32()).cast(pa.string()))


def _encoded(values: Iterable[pa.Array]) -> pa.DictionaryArray:
    """Several arrays as one, whose dictionary lists the values in the order of their first appearance."""
    return one_chunk(pa.chunked_array([some.dictionary_encode() for some in values]).unify_dictionaries())


def _local(times: np.ndarray, zone: str | None) -> np.ndarray:
    """Times in UTC as the clocks of a zone show them; in microseconds since 1970."""
    if zone is None or zone == "UTC":
        return times
    zone_of(zone)
    local = pc.local_timestamp(arrow(times).cast(pa.timestamp("us", zone)))
    shown: np.ndarray = numpy(local.cast(pa.int64()))
    return shown


def folder_of(keys: pa.Array) -> pa.Array:
    """The folder part of each key; ``.`` for a key at the root."""
    nested = pc.replace_substring_regex(keys, r"(?s)^[^/]*$", ".")
    return pc.replace_substring_regex(nested, r"(?s)/[^/]*$", "")


def group_by_directory(keys: pa.Array, *, depth: int) -> pa.Array:
    """The first ``depth`` folders of each key; ``.`` for a key at the root."""
    folder = folder_of(keys)
    extra = rf"(?s)^([^/]*(?:/[^/]*){{{depth - 1}}})/.*$"
    return pc.replace_substring_regex(folder, extra, r"\1")


def _group_by_path_date(keys: Iterable[pa.Array], records: pa.ChunkedArray, path: str) -> pa.DictionaryArray:
    expression, rewrite = date_expression(path)

    def dates() -> Iterator[pa.Array]:
        for some in keys:
            dated = pc.match_substring_regex(some, expression)
            yield pc.if_else(dated, pc.replace_substring_regex(some, expression, rewrite), scalar("")).cast(pa.string())

    dates_of_records = _encoded(dates())
    names = pc.replace_substring_regex(dates_of_records.dictionary, r"-([0-9])\b", r"-0\1")
    names = pc.replace_substring_regex(names, r"^(.{10})-", r"\1T")
    dated = np.array([_is_date(name) for name in names.to_pylist()], bool)
    if not dated.all():
        raise _undated(records, dated[numpy(dates_of_records.indices)], path)
    return _in_order(dates_of_records.indices, names)


def _is_date(name: str) -> bool:
    if len(name) not in DATE_FORMATS:
        return False  # where there is no date, the name is empty
    try:
        datetime.strptime(name, DATE_FORMATS[len(name)])  # noqa: DTZ007  only whether there is such a day
    except ValueError:
        return False
    return True


def _in_order(codes: pa.Array, names: pa.Array) -> pa.DictionaryArray:
    """The same dictionary array with its dictionary sorted, and without names that it holds twice."""
    distinct = names.dictionary_encode()
    order = numpy(pc.sort_indices(distinct.dictionary)).astype(np.int64)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    ranks = rank[numpy(distinct.indices)][numpy(codes)]
    return pa.DictionaryArray.from_arrays(arrow(ranks), distinct.dictionary.take(arrow(order)))


def _undated(records: pa.ChunkedArray, dated: np.ndarray, path: str) -> InputError:
    missing = np.flatnonzero(~dated)
    sample = ", ".join(records[row].as_py() for row in missing[:UNDATED_NAMED].tolist())
    has = "has" if len(missing) == 1 else "have"
    some = "such as " if len(missing) > UNDATED_NAMED else ""
    return InputError(
        f"{len(missing):,} of {len(dated):,} records {has} no date where shards.path ({path}) looks for "
        f"it: {some}{sample}.",
        hint="Write shards.path as the dates stand in the files' names, leave these files out with input.exclude, or "
        "use shards.column: modified.",
    )


def with_dense_groups(table: pa.Table) -> pa.Table:
    """The same table, without groups in its dictionary that no record has."""
    group = one_chunk(table["group"])
    used = np.unique(numpy(group.indices)) if len(group) and group.null_count == 0 else None
    if used is None or len(used) == len(group.dictionary):
        return table
    codes = np.searchsorted(used, numpy(group.indices)).astype(np.int32)
    dense = pa.DictionaryArray.from_arrays(arrow(codes), group.dictionary.take(arrow(used)))
    return table.set_column(table.schema.get_field_index("group"), "group", dense)
