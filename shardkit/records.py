"""Objects to records to groups, on Arrow tables: no Python object a file.

A listing (``key``, ``bytes``, ``etag`` and, where that is known, ``modified``; in key order) becomes a table of records
in the order of their main objects' keys:

    key       string         the record's name in the input
    main      int32          which of its objects is the main one, the one that ``open(record)`` opens
    group     string         what must stay in one job; null where any two records may part
    bytes     int64          of all its objects
    objects   list<string>   the keys of all its objects, in key order
    etags     list<string>   theirs
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.arrays import arrow, numpy, one_chunk
from shardkit.days import is_wanted
from shardkit.errors import InputError, PipelineError
from shardkit.functions import user_traceback
from shardkit.groups import folder_of, group_records, with_dense_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RECORD_KINDS = ("file", "stem", "directory")


@dataclass(frozen=True)
class Records:
    """The records of an input, and what of it belongs to none."""

    table: pa.Table
    objects_listed: int
    objects_left_out: int
    left_out_sample: tuple[str, ...]

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


def glob_to_re2(pattern: str) -> str:
    """A glob as an RE2 expression over whole keys.

    ``*`` and ``?`` stop at a ``/``, ``**`` does not; a pattern without a ``/`` is matched against the file's name.
    """
    deep = "/" in pattern
    anywhere = "" if deep else "(?:.*/)?"
    return f"(?s)^{anywhere}{''.join(_token_to_re2(token, deep=deep) for token in GLOB.findall(pattern))}$"


# The last but one is [...], which as in a shell holds no slash, and a bracket only as its first character.
GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[(?:[!^]|(?![!^]))(?:\][^]/]*|[^]/]+)\]|.", re.DOTALL)


def _token_to_re2(token: str, *, deep: bool) -> str:
    wild = {"**/": "(?:.*/)?", "**": ".*" if deep else "[^/]*", "*": "[^/]*", "?": "[^/]"}
    if token in wild:
        return wild[token]
    if len(token) == 1:
        return re.escape(token)
    excluded = token[1] in "!^"
    inside = re.sub(r"[\\\[\]]", r"\\\g<0>", token[1 + excluded : -1])
    return f"[^/{inside}]" if excluded else f"[{inside}]"


def matches(keys: pa.Array, patterns: Sequence[str]) -> pa.Array:
    """Which of ``keys`` match any of the globs, as a boolean array."""
    found = arrow(np.zeros(len(keys), bool))
    for pattern in patterns:
        if pattern in {"*", "**"}:
            return arrow(np.ones(len(keys), bool))
        try:
            found = pc.or_(found, pc.match_substring_regex(keys, glob_to_re2(pattern)))
        except pa.ArrowInvalid as error:
            raise PipelineError(f"{pattern!r} is no pattern for files: {error}.") from error
    return found


def record_keys(keys: pa.Array, records: str | Callable[[str], str | None]) -> pa.Array:
    """The key of the record that each object belongs to; null for an object of none."""
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
    records: str | Callable[[str], str | None] = "file",
    pattern: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    shards: Mapping[str, Any] | None = None,
) -> Records:
    """Turn a listing, in key order, into records.

    Objects that match ``exclude`` are no input. Of the others, those that share a record key make one record, if
    one of them matches ``pattern``: the first that does, in key order, is its main object. ``shards`` is the pipeline's
    section of that name, as plain data; it tells the groups.

    Raises:
        InputError: no object matches ``pattern``, or a record has no date where groups are dates.
        PipelineError: ``records`` is not known, or returned something else than a key.
    """
    listed = len(objects)
    if exclude:
        objects = objects.filter(pc.invert(matches(objects["key"].combine_chunks(), exclude)))
    keys = _one_chunk(objects["key"])
    is_main = matches(keys, pattern)
    names = record_keys(keys, records)
    is_main = pc.and_(is_main, pc.is_valid(names))
    codes = pc.dictionary_encode(names).indices
    mains = np.flatnonzero(numpy(is_main))
    if not len(mains):
        raise InputError(_nothing_found(listed, keys, names, pattern, exclude))
    code = numpy(pc.fill_null(codes, -1) if codes.null_count else codes)
    # The first main object of each record, in key order; objects of records without one are left out.
    first_main = np.full(int(code.max()) + 1, -1, np.int64)
    first_main[code[mains][::-1]] = mains[::-1]
    kept = np.flatnonzero((code >= 0) & (first_main[code] >= 0))
    order = kept[np.lexsort((kept, first_main[code[kept]]))]
    table = _assemble(objects, names, order, first_main[code[order]], shards)
    left = np.setdiff1d(np.arange(len(keys)), kept, assume_unique=True)
    sample = tuple(keys.take(arrow(left[:5])).to_pylist())
    return Records(table, listed, listed - len(kept), sample)


def _assemble(
    objects: pa.Table, names: pa.Array, order: np.ndarray, main: np.ndarray, shards: Mapping[str, Any] | None
) -> pa.Table:
    """One row a record, from objects put in ``order``, with each object's record told by its ``main`` object."""
    starts = np.flatnonzero(np.r_[True, main[1:] != main[:-1]])
    offsets = arrow(np.r_[starts, len(order)].astype(np.int32))
    main_index = main[starts]
    position = np.empty(len(objects), np.int64)
    position[order] = np.arange(len(order))
    rows = objects.take(arrow(order))
    sizes = np.r_[0, np.cumsum(numpy(rows["bytes"]))]
    main_keys = _one_chunk(objects["key"]).take(arrow(main_index))
    keys = names.take(arrow(main_index)).cast(pa.string())
    return pa.table(
        {
            "key": keys,
            "main": arrow((position[main_index] - starts).astype(np.int32)),
            "group": group_records(main_keys, keys, _newest(rows, starts), shards),
            "bytes": arrow(np.diff(sizes[np.r_[starts, len(order)]])),
            "objects": pa.ListArray.from_arrays(offsets, _one_chunk(rows["key"]).cast(pa.string())),
            "etags": pa.ListArray.from_arrays(offsets, _one_chunk(rows["etag"]).cast(pa.string())),
        }
    )


def _newest(rows: pa.Table, starts: np.ndarray) -> np.ndarray | None:
    """When the newest of each record's objects was written, in microseconds since 1970; None if that is not known."""
    if "modified" not in rows.column_names or rows["modified"].null_count:
        return None
    return np.maximum.reduceat(numpy(_one_chunk(rows["modified"]).cast(pa.int64())), starts)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _nothing_found(listed: int, keys: pa.Array, names: pa.Array, pattern: Sequence[str], exclude: Sequence[str]) -> str:
    wanted = " or ".join(repr(p) for p in pattern)
    if not listed:
        return f"The input holds no files (looked for {wanted}; names starting with '_' or '.' are not input)."
    if not len(keys):
        return f"All {listed:,} files of the input are excluded by {', '.join(map(repr, exclude))}."
    sample = ", ".join(keys.slice(0, 3).to_pylist())
    if names.null_count == len(names):
        return f"The records function names no record for any of the {len(keys):,} files, for example {sample}."
    return f"None of the input's {len(keys):,} files matches {wanted}; it holds, for example, {sample}."
