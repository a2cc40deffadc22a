"""Objects to records, batch by batch, so that a long listing is never in memory as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from shardkit.plan.meta import META
from shardkit.tables.arrays import arrow, numpy, one_chunk
from shardkit.tables.spill import BATCH_ROWS, Spill, batches_of, filtered, forget_pages, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXTS = pa.schema([("key", pa.string()), ("objects", pa.list_(pa.string())), ("etags", pa.list_(pa.string()))])
FAR_APART = 4  # if the objects of records lie among so many others, the whole listing is read into memory


def single(objects: pa.Table, used: np.ndarray, numbers: Sequence[str]) -> pa.Table:
    """One record for each object that is used. The texts are shared with the objects, not copied."""
    objects = filtered(objects, used)
    alone = arrow(np.arange(BATCH_ROWS + 1, dtype=np.int32))
    batches = []
    for batch in batches_of(objects.select(["key", "etag"])):
        key, etag = (column.cast(pa.string()) for column in batch.columns)
        lists = [pa.ListArray.from_arrays(alone[: len(batch) + 1], texts) for texts in (key, etag)]
        batches.append(pa.RecordBatch.from_arrays([key, *lists], schema=TEXTS))
    table = pa.Table.from_batches(batches, schema=TEXTS)
    table = table.append_column("main", arrow(np.zeros(len(objects), np.int32)))
    for name in numbers:
        table = table.append_column(name, arrow(_integers(objects, name)))
    return table.append_column(META, objects[META]) if META in objects.column_names else table


def join(objects: pa.Table, main: np.ndarray, names: pa.Array, code: np.ndarray, numbers: Sequence[str]) -> pa.Table:
    """Records of several objects, in the order of their main ones; ``main`` is, for each object, its main one's row."""
    order = np.flatnonzero(main >= 0).astype(main.dtype)
    mains = main[order]
    if (mains[1:] < mains[:-1]).any():
        by_main = np.argsort(mains, kind="stable")
        order, mains = order[by_main], mains[by_main]
    starts = np.flatnonzero(np.r_[True, mains[1:] != mains[:-1]])
    table = _texts(objects, order, starts, names, code[mains[starts]])
    table = table.append_column("main", arrow(np.add.reduceat(order < mains, starts, dtype=np.int32)))
    for name in numbers:
        of_all = np.add if name == "bytes" else np.maximum
        table = table.append_column(name, arrow(of_all.reduceat(_integers(objects, name)[order], starts)))
    if META in objects.column_names:
        table = table.append_column(META, objects[META].take(arrow(mains[starts])))
    return table


def _texts(objects: pa.Table, order: np.ndarray, starts: np.ndarray, names: pa.Array, code: np.ndarray) -> pa.Table:
    """The name of each record, and the keys and etags of its objects, which begin at one of ``starts`` in ``order``."""
    texts = objects.select(["key", "etag"])
    spill = Spill(TEXTS)
    kept = []
    for first in range(0, len(starts), BATCH_ROWS):
        begins = starts[first : first + BATCH_ROWS]
        begin, *_ = begins
        end = starts[first + BATCH_ROWS] if first + BATCH_ROWS < len(starts) else len(order)
        rows = order[begin:end]
        low, high = int(rows.min()), int(rows.max()) + 1
        if high - low > FAR_APART * len(rows):
            texts = texts.combine_chunks()  # to be taken from all over the table
        some = texts.slice(low, high - low).combine_chunks()
        if high - low > len(rows) or (rows[1:] < rows[:-1]).any():
            some = some.take(arrow(rows - low))
        offsets = arrow(np.r_[begins - begin, len(rows)].astype(np.int32))
        lists = [pa.ListArray.from_arrays(offsets, one_chunk(column.cast(pa.string()))) for column in some.columns]
        key = names.take(arrow(code[first : first + BATCH_ROWS]))
        kept.append(spill.keep(pa.RecordBatch.from_arrays([key, *lists], schema=TEXTS)))
        forget_pages()
    return spill.table(kept)


def _integers(objects: pa.Table, name: str) -> np.ndarray:
    return values_of(objects.select([name]), lambda batch: batch[name].cast(pa.int64()))


def main_keys(table: pa.Table) -> Iterator[pa.StringArray]:
    """The key of each record's main object, in several arrays."""
    for batch in batches_of(table.select(["main", "objects"])):
        keys, main = batch["objects"].flatten(), numpy(batch["main"])
        starts = numpy(batch["objects"].offsets)[:-1]
        yield keys if len(keys) == len(main) else keys.take(arrow(starts - starts[0] + main))
