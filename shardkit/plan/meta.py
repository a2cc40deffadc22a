"""What manifests say of records besides their files: compared, and digested, as one text for each record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.tables.arrays import numpy, one_chunk, scalar, texts
from shardkit.tables.spill import batches_of

if TYPE_CHECKING:
    from collections.abc import Iterator

META = "meta"
BETWEEN, NOTHING = "\x1f", "\x00"


def meta_texts(table: pa.Table) -> Iterator[pa.StringArray]:
    """One text for each record, in several arrays: equal for two records if, and only if, their metadata are."""
    for batch in batches_of(table.select([META])):
        values = batch.column(0)
        fields = [
            pc.binary_join_element_wise(scalar(field.name), _as_text(values.field(number)), "=")
            for number, field in enumerate(values.type)
        ]
        yield pc.binary_join_element_wise(*fields, BETWEEN)


def same_meta(before: pa.Table, now: pa.Table) -> np.ndarray:
    """For each row of two tables, whether the metadata are the same; a table without any has none for all."""
    has = [META in table.column_names for table in (before, now)]
    if not all(has):
        return np.full(len(now), not any(has))
    then, here = (one_chunk(pa.chunked_array(list(meta_texts(table)), pa.string())) for table in (before, now))
    same: np.ndarray = numpy(pc.equal(then, here))
    return same


def _as_text(values: pa.Array) -> pa.StringArray:
    kind = values.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return texts([json.dumps(value, default=repr, ensure_ascii=True) for value in values.to_pylist()])
    return pc.fill_null(values.cast(pa.string()), scalar(NOTHING))
