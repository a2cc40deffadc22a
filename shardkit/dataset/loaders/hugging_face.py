"""Opens the files of a run with Hugging Face's `datasets`."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.dataset.formats.hugging_face import HuggingFace, check_types
from shardkit.dataset.formats.kinds import check_installed
from shardkit.dataset.loaders.rows import Rows
from shardkit.dataset.read import partition_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardkit.storage.base import Folder

REPEATED_ROWS = 1 << 16  # in memory, of a column whose value is that of a folder


def open_with_datasets(
    folder: Folder, result: Mapping[str, Any], columns: Sequence[str] | None, *, streaming: bool
) -> Any:
    """The files that a result lists as a ``datasets.Dataset``, or with ``streaming`` an ``IterableDataset``.

    Raises:
        PipelineError: `datasets` is not installed, has no type for a column, or cannot read the format.
        StorageError: a file cannot be read.
    """
    check_installed("hf", what="run.hf()")
    import datasets

    rows = Rows(folder, result, columns)
    check_types(rows.schema, "run.hf()")
    if not rows.paths:
        empty = datasets.Dataset(rows.schema.empty_table())
        return empty.to_iterable_dataset() if streaming else empty
    if isinstance(rows.format, HuggingFace) and not streaming and (mapped := _mapped(folder, result, rows)) is not None:
        return mapped
    from shardkit.dataset.loaders.hugging_face_builder import RunFiles

    builder = RunFiles(rows=rows, hash=_identity(rows), dataset_name=str(result["name"]))
    if streaming:
        return builder.as_streaming_dataset(split="train")
    builder.download_and_prepare()
    return builder.as_dataset(split="train")


def _identity(rows: Rows) -> str:
    """What the cache of `datasets` keeps rows under, and what it makes of them: the files of a run never change."""
    what = [rows.uri, rows.paths, rows.sizes, str(rows.schema)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _mapped(folder: Folder, result: Mapping[str, Any], rows: Rows) -> Any:
    """The files where they lie, mapped into memory; None if they are objects, or some are of days with other types."""
    from datasets import Dataset
    from datasets.table import InMemoryTable, MemoryMappedTable, concat_tables

    filesystem, base = folder.arrow()
    if filesystem is not None:
        return None
    tables = []
    for path, count in zip(rows.paths, rows.counts, strict=True):
        partition = partition_of(result, path)
        wanted = pa.schema([field for field in rows.schema if field.name not in partition])
        file = MemoryMappedTable.from_file(f"{base}/{path}")
        if not set(wanted.names) <= set(file.column_names):
            return None
        file = file.select(wanted.names)
        if file.schema.remove_metadata() != wanted:
            return None
        values = {name: value for name, value in partition.items() if name in rows.schema.names}
        if values:
            fields = [rows.schema.field(name) for name in values]
            repeated = [_repeated(value, rows.schema.field(name).type, count) for name, value in values.items()]
            beside = InMemoryTable(pa.Table.from_arrays(repeated, schema=pa.schema(fields)))
            file = concat_tables([file, beside], axis=1) if wanted.names else beside
        tables.append(file)
    return Dataset(concat_tables(tables), fingerprint=_identity(rows)).select_columns(rows.schema.names)


def _repeated(value: Any, kind: pa.DataType, count: int) -> pa.ChunkedArray:
    """One value many times, in the memory of a few."""
    block = pa.repeat(pa.scalar(value, kind), min(count, REPEATED_ROWS))
    whole, rest = divmod(count, len(block) or 1)
    return pa.chunked_array([*[block] * whole, *([block.slice(0, rest)] if rest else [])], kind)
