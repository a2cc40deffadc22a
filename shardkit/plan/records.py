"""Objects to records to groups, on Arrow tables: there is no Python object for each file.

A listing (``key``, ``bytes``, ``etag`` and, if it is known, ``modified``; in the order of the keys) becomes a table of
records, in the order of their main objects' keys:

    key       string         the record's name in the input
    main      int32          which of its objects is the main one, the one that ``open(record)`` opens
    group     string         what must stay in one job; null if any two records may be separated
    bytes     int64          the size of all its objects
    objects   list<string>   the keys of all its objects, in key order
    etags     list<string>   the etags of all its objects
    meta      struct         what a manifest says of its main object besides; only if there is any

Records inside of objects have further columns, `shardkit.inside.piece.columns_of`, that say where in there they are.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError, PipelineError
from shardkit.plan.globs import matches
from shardkit.plan.groups import folder_of, group_records, with_dense_groups
from shardkit.plan.join import join, main_keys, single
from shardkit.plan.meta import META
from shardkit.storage.list_files import datasets_in
from shardkit.tables.arrays import arrow, numpy, one_chunk, positions
from shardkit.tables.spill import batches_of, filtered, values_of
from shardkit.times import is_wanted
from shardkit.tracebacks import user_traceback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from shardkit.plan.inside import Cutter

RECORD_KINDS = ("file", "stem", "directory")
COLUMNS = ["key", "main", "group", "bytes", "objects", "etags"]


@dataclass(frozen=True)
class Records:
    """The records of an input, and the objects that are in no record; folders that are datasets are not input."""

    table: pa.Table
    objects_listed: int
    objects_left_out: int
    left_out_sample: tuple[str, ...]
    datasets_left_out: tuple[str, ...] = ()

    def of_days(self, days: Sequence[str]) -> Records:
        """Only the records of some days.

        Raises:
            InputError: there are none.
        """
        group = one_chunk(self.table["group"])
        names = group.dictionary.to_pylist()
        wanted = np.array([is_wanted(name, days) for name in names], bool)
        rows = np.flatnonzero(wanted[numpy(group.indices)])
        if not len(rows):
            asked = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
            raise InputError(
                f"The input has no records of {asked}; it has {len(names):,} days, {names[0]} to {names[-1]}.",
                hint="Choose among these.",
            )
        return dataclasses.replace(self, table=with_dense_groups(self.table.take(arrow(rows))))


def record_keys(keys: pa.Array, records: str | Callable[[str], str | None]) -> pa.Array:
    """The key of the record that each object belongs to; null for an object that belongs to none."""
    if records == "file":
        return keys
    if records == "stem":
        return pc.replace_substring_regex(keys, r"(?s)(.)\.[^./]*$", r"\1")
    if records == "directory":
        return folder_of(keys)
    if callable(records):
        return _named_by(records, keys)
    near = difflib.get_close_matches(records, RECORD_KINDS, n=1)
    raise PipelineError(
        f"records: {records!r} is none of {', '.join(RECORD_KINDS)} or module:callable.",
        hint=f"Did you mean {near[0]!r}?" if near else "",
    )


def _named_by(function: Callable[[str], str | None], keys: pa.Array) -> pa.Array:
    names = []
    for key in keys:
        try:
            name = function(key.as_py())
        except Exception as error:
            raise PipelineError(
                f"records: {getattr(function, '__qualname__', function)} raised {type(error).__name__} on "
                f"{key.as_py()!r}: {error}\n"
                f"{user_traceback(error)}"
            ) from error
        if name is not None and not isinstance(name, str):
            raise PipelineError(
                f"The records function returned {type(name).__name__} for {key.as_py()!r}.",
                hint="It must return the record's key, a str, or None for an object that is in no record.",
            )
        names.append(name)
    return pa.array(names, type=pa.large_string())


def build_records(
    objects: pa.Table,
    *,
    records: str | Callable[[str], str | None] | Cutter = "file",
    pattern: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    shards: Mapping[str, Any] | None = None,
) -> Records:
    """Turn a listing, in key order, into records.

    Objects that match ``exclude`` are not input. Other objects with the same record key make one record, if one of
    them matches ``pattern``; the first that does, in the order of the keys, is the main object. A `Cutter` makes
    records of what is inside each object that matches. ``shards`` is the pipeline's section of that name, as plain
    data; it says what the groups are.

    Raises:
        InputError: no object matches ``pattern``, or a record has no date where groups are dates.
        PipelineError: ``records`` is not known, or returned something else than a key.
    """
    listed, datasets = len(objects), tuple(datasets_in(objects))
    if exclude:
        objects = filtered(objects, ~values_of(objects, lambda batch: matches(batch["key"], exclude)))
    numbers = ["bytes", *(["modified"] if _by_time(objects, shards) else [])]
    used, named = values_of(objects, lambda batch: matches(batch["key"], pattern)), True
    columns = COLUMNS
    if not isinstance(records, str) and not callable(records):
        build, columns = functools.partial(records.records, objects, used, numbers), COLUMNS + records.columns
    elif records == "file":
        build = functools.partial(single, objects, used, numbers)
    else:
        names, code = _named(objects, records)
        main, named = _first_mains(code, used, len(names)), len(names) > 0
        used = main >= 0
        build = functools.partial(join, objects, main, names, code, numbers)
    if not used.any():
        said = _nothing_matches(listed, objects["key"], pattern, exclude, named=named)
        raise InputError(said, hint=_passed_over(datasets))
    table = build()
    if not len(table):
        raise InputError(
            f"None of the {int(used.sum()):,} files holds a member that can be a record's main one.",
            hint="See records.pattern.",
        )
    newest = numpy(table["modified"]) if "modified" in numbers else None
    table = table.append_column("group", group_records(main_keys(table), table["key"], newest, shards))
    sample = tuple(objects["key"][row].as_py() for row in np.flatnonzero(~used)[:5].tolist())
    if META in table.column_names:
        columns = [*columns, META]
    return Records(table.select(columns), listed, listed - int(used.sum()), sample, datasets)


def _passed_over(datasets: Sequence[str]) -> str:
    """Why folders of the input were left out, if some were."""
    if not datasets:
        return ""
    named = datasets[0] if len(datasets) == 1 else f"{datasets[0]} and {len(datasets) - 1:,} more"
    are = "is a dataset" if len(datasets) == 1 else "are datasets"
    return f"What lies in {named} was left out, because it {are} of shardkit; name one as the input itself to read it."


def _by_time(objects: pa.Table, shards: Mapping[str, Any] | None) -> bool:
    """Whether groups depend on when objects were written, and the listing says when."""
    asked = shards is not None and "column" in shards
    return asked and "modified" in objects.column_names and not objects["modified"].null_count


def _named(objects: pa.Table, records: str | Callable[[str], str | None]) -> tuple[pa.Array, np.ndarray]:
    """The names of all records, and the number of each object's record among them; -1 for none."""
    runs, lengths = [], [np.zeros(0, np.int64)]
    for batch in batches_of(objects.select(["key"])):
        names = record_keys(batch["key"], records).cast(pa.string())
        # Most neighbours share a name, which is looked up once.
        same = pc.equal(names[1:], names[:-1])
        starts = np.flatnonzero(np.r_[True, ~(numpy(same) & numpy(pc.is_valid(same)))])
        runs.append(names.take(arrow(starts)))
        lengths.append(np.diff(np.r_[starts, len(names)]))
    encoded = one_chunk(pa.chunked_array(runs, pa.string())).dictionary_encode()
    return encoded.dictionary, np.repeat(positions(encoded.indices), np.concatenate(lengths))


def _first_mains(code: np.ndarray, is_main: np.ndarray, count: int) -> np.ndarray:
    """For each object, the row of its record's first main object; -1 if there is none, or no record."""
    kind = np.int32 if len(code) < 1 << 31 else np.int64
    mains = np.flatnonzero(is_main & (code >= 0)).astype(kind)[::-1]
    first = np.full(count + 1, -1, kind)  # the last one stands for no record
    first[code[mains]] = mains
    rows: np.ndarray = first[code]
    return rows


def _nothing_matches(
    listed: int, keys: pa.ChunkedArray, pattern: Sequence[str], exclude: Sequence[str], *, named: bool
) -> str:
    wanted = " or ".join(repr(p) for p in pattern)
    if not listed:
        return f"The input holds no files (looked for {wanted}; names starting with '_' or '.' are not input)."
    if not len(keys):
        return f"All {listed:,} files of the input are excluded by {', '.join(map(repr, exclude))}."
    sample = ", ".join(keys.slice(0, 3).to_pylist())
    if not named:
        return f"The records function names no record for any of the {len(keys):,} files, for example {sample}."
    return f"None of the input's {len(keys):,} files matches {wanted}; it holds, for example, {sample}."
