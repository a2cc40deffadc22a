"""Rows of lists: what they say of files, and the keys that the files have in the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import InputError
from shardkit.storage.base import absolute_uri, is_remote
from shardkit.tables.arrays import scalar

if TYPE_CHECKING:
    from collections.abc import Callable

META = "meta"
ROWS = pa.schema(
    [("name", pa.string()), ("bytes", pa.int64()), ("etag", pa.string()), ("modified", pa.timestamp("us", "UTC"))]
)


def times_of(values: pa.Array) -> pa.Array:
    """Times in UTC, from texts in ISO 8601 or from times; those without a zone count as UTC."""
    utc = pa.timestamp("us", "UTC")
    if not pa.types.is_string(values.type):
        zoned = pa.types.is_timestamp(values.type) and values.type.tz
        return values.cast(utc) if zoned else values.cast(pa.timestamp("us")).cast(utc)
    plain = pc.replace_substring_regex(values, r"(Z|[+-]00:?00)$", "")
    plain = pc.if_else(pc.equal(plain, scalar("")), pa.scalar(None, pa.string()), plain)
    return plain.cast(pa.timestamp("us")).cast(utc)


def keys_under(root: str, *, relative_to: str) -> Callable[[pa.StringArray], pa.StringArray]:
    """What turns URIs into keys under ``root``; null for those that lie elsewhere.

    On this machine paths count as well; relative ones count from the folder ``relative_to``.
    """
    inside = f"{absolute_uri(root).rstrip('/')}/"

    def keys(uris: pa.StringArray) -> pa.StringArray:
        if not is_remote(root):
            uris = _local_paths(uris, f"{relative_to.rstrip('/')}/")
        cut = pc.utf8_slice_codeunits(uris, len(inside))
        return pc.if_else(pc.starts_with(uris, inside), cut, pa.scalar(None, pa.string()))

    return keys


def _local_paths(names: pa.StringArray, home: str) -> pa.StringArray:
    """Absolute paths of names that are paths or ``file://`` URIs; URIs of stores stay as they are."""
    files = pc.starts_with(names, "file://")
    if pc.any(files).as_py():
        from urllib.parse import unquote, urlsplit

        paths = [unquote(urlsplit(name).path) if name.startswith("file://") else name for name in names.to_pylist()]
        names = pa.array(paths, pa.string())
    whole = pc.or_(pc.starts_with(names, "/"), pc.match_substring(names, "://"))
    return pc.if_else(whole, names, pc.binary_join_element_wise(scalar(home), names, ""))


def checked(keys: pa.StringArray, source: str) -> pa.StringArray:
    """The same keys, each of which can be one.

    Raises:
        InputError: one is missing, ends with a slash, or has ``.`` or ``..`` as a part.
    """
    bad = pc.fill_null(pc.match_substring_regex(keys, r"^$|/$|(^|/)\.\.?(/|$)"), scalar(value=True))
    if bad.true_count:
        name = keys.filter(bad)[0].as_py()
        what = "has a row without a name" if not name else f"names {name!r}, which is no file's key"
        raise InputError(f"The list {source} {what}.", hint="Each row names one file, without ./ and ../ in its path.")
    return keys
