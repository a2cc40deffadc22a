"""What lies under a prefix of an object store, as an Arrow table: many prefixes are listed side by side.

A store lists a thousand keys a request, one request after the other. So the folders of the first levels are found
first, level by level, and then all are listed at once. No Python object is made a key.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Callable

LISTED_AT_ONCE = 32
ENOUGH_FOLDERS = 16
LEVELS = 4
PAGE = 1000
SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("bytes", pa.int64()),
        ("etag", pa.large_string()),
        ("modified", pa.timestamp("us", "UTC")),
    ]
)


def list_objects(store: Any, prefix: str, ask: Callable[[Callable[[], Any]], Any]) -> pa.Table:
    """Every object under ``prefix``, in key order: ``key`` (what follows it), ``bytes``, ``etag`` and ``modified``.

    Args:
        store: an obstore store.
        prefix: empty, or ending with a slash.
        ask: makes a request, repeats it where that helps, and turns its errors into ours.
    """
    found: list[pa.Table] = []
    folders = [prefix]
    with ThreadPoolExecutor(LISTED_AT_ONCE, thread_name_prefix="shardkit-list") as pool:
        for _ in range(LEVELS):
            if not 0 < len(folders) < ENOUGH_FOLDERS:
                break
            levels = list(pool.map(lambda folder: ask(lambda: _level(store, folder)), folders))
            found += [objects for objects, _ in levels]
            folders = [folder for _, below in levels for folder in below]
        found += pool.map(lambda folder: ask(lambda: _everything(store, folder)), folders)
    table = pa.concat_tables([SCHEMA.empty_table(), *found])
    key = pc.utf8_slice_codeunits(table["key"], len(prefix)) if prefix else table["key"]
    table = table.set_column(0, "key", key)
    return table.take(pc.sort_indices(table["key"])).combine_chunks()


def _level(store: Any, folder: str) -> tuple[pa.Table, list[str]]:
    """The objects right in a folder, and the folders in it."""
    listed = store.list_with_delimiter(folder or None, return_arrow=True)
    below = [f"{path.rstrip('/')}/" for path in listed["common_prefixes"]]
    return _table([pa.table(listed["objects"])]), below


def _everything(store: Any, folder: str) -> pa.Table:
    """The objects in a folder and below."""
    pages = store.list(folder or None, chunk_size=PAGE, return_arrow=True)
    return _table([pa.Table.from_batches([pa.record_batch(page)]) for page in pages])


def _table(pages: list[pa.Table]) -> pa.Table:
    columns = []
    for page in pages:
        etag = pc.utf8_trim(pc.fill_null(page["e_tag"].cast(pa.large_string()), ""), characters='"')
        values = [page["path"].cast(pa.large_string()), page["size"].cast(pa.int64()), etag, page["last_modified"]]
        columns.append(pa.Table.from_arrays(values, schema=SCHEMA))
    return pa.concat_tables([SCHEMA.empty_table(), *columns])
