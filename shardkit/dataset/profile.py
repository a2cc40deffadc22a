"""What the columns of a dataset hold: nulls and ranges from the files' statistics, the rest from a sample of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from shardkit.dataset.formats.kinds import format_of
from shardkit.dataset.read import open_dataset
from shardkit.storage.base import File
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

FOOTERS = 256  # files whose statistics are read, from all over the dataset
SAMPLED_GROUPS = 6
SAMPLED_ROWS = 20_000
LARGEST_CHUNK_BYTES = 32 << 20  # of a column in a row group; larger ones are not sampled
BINS = 16
TOP = 4


@dataclass
class Column:
    """A column of a dataset.

    Args:
        name: Its name; of a field within a struct with a dot.
        type: Its Arrow type, as text.
        nulls: How many of its values are null; None if that is not known.
        values: How many values ``nulls`` are of.
        low: The least value; None if that is not known.
        high: The largest value.
        bins: How many values of the sample are in each of some equal ranges from ``first`` to ``last``.
        top: The most frequent values of the sample, each with how often it is there.
        distinct: How many different values the sample has, if these are not numbers.
    """

    name: str
    type: str
    nulls: int | None = None
    values: int = 0
    low: Any = None
    high: Any = None
    bins: list[int] = field(default_factory=list)
    first: Any = None
    last: Any = None
    top: list[tuple[str, int]] = field(default_factory=list)
    distinct: int | None = None


@dataclass
class Profile:
    """The columns of a dataset; ``sampled`` rows were read, and the statistics of ``footers`` of its ``files``."""

    columns: list[Column]
    files: int
    footers: int
    sampled: int


def profile(output: Folder, result: Result) -> Profile:
    """Look at a dataset's columns, reading little of it."""
    columns = {name: Column(name, kind) for name, kind in result["columns"].items()}
    paths = [file["path"] for file in result["files"] if file["rows"]]
    if format_of(result["format"]).like_parts:
        chosen = _spread(paths, FOOTERS)
        footers = dict(zip(chosen, together([partial(_footer, File(output, path)) for path in chosen]), strict=True))
        for footer in footers.values():
            _add_statistics(columns, footer)
        sample = _sample(output, footers)
        read = len(footers)
    elif not format_of(result["format"]).tabular:
        sample, read = pa.table({}), 0
    else:
        sample, read = open_dataset(output, result).head(SAMPLED_ROWS), 0
        for name in set(sample.column_names) & set(columns):
            columns[name].nulls, columns[name].values = sample[name].null_count, len(sample)
    for name in set(sample.column_names) & set(columns):
        _add_sample(columns[name], sample[name])
    return Profile(list(columns.values()), len(paths), read, len(sample))


def _spread(items: list[str], most: int) -> list[str]:
    """Up to so many of the items, from all over them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).astype(int)).tolist()]


def _footer(file: File) -> pq.FileMetaData:
    with file.open() as opened:
        return pq.read_metadata(opened)


def _add_statistics(columns: dict[str, Column], footer: pq.FileMetaData) -> None:
    """Add the nulls and ranges that a file's footer has, of columns that are not nested."""
    for g in range(footer.num_row_groups):
        group = footer.row_group(g)
        for c in range(group.num_columns):
            chunk = group.column(c)
            column = columns.get(chunk.path_in_schema)
            if column is not None:
                _add_chunk(column, chunk)


def _add_chunk(column: Column, chunk: pq.ColumnChunkMetaData) -> None:
    statistics = chunk.statistics
    if statistics is None:
        return
    if statistics.has_null_count:
        column.nulls = (column.nulls or 0) + statistics.null_count
        column.values += chunk.num_values
    if statistics.has_min_max:
        low, high = statistics.min, statistics.max
        column.low = low if column.low is None else min(column.low, low)
        column.high = high if column.high is None else max(column.high, high)


def _sample(output: Folder, footers: dict[str, pq.FileMetaData]) -> pa.Table:
    """Rows of some row groups from all over the files, without columns that are too large to look at."""
    groups = [(path, g) for path, footer in footers.items() for g in range(footer.num_row_groups)]
    if not groups:
        return pa.table({})
    chosen = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, SAMPLED_GROUPS).astype(int)).tolist()]
    rows = SAMPLED_ROWS // len(chosen)
    tables = together([partial(_rows_of, File(output, path), g, footers[path], rows) for path, g in chosen])
    return pa.concat_tables(tables, promote_options="permissive")


def _rows_of(file: File, number: int, footer: pq.FileMetaData, rows: int) -> pa.Table:
    """The first rows of a row group."""
    group = footer.row_group(number)
    sizes: dict[str, int] = {}
    for c in range(group.num_columns):
        name = group.column(c).path_in_schema
        sizes[name] = sizes.get(name, 0) + group.column(c).total_uncompressed_size
    plain = [
        f.name for f in footer.schema.to_arrow_schema() if sizes.get(f.name, LARGEST_CHUNK_BYTES) < LARGEST_CHUNK_BYTES
    ]
    with file.open() as opened:
        batches = pq.ParquetFile(opened).iter_batches(rows, row_groups=[number], columns=plain)
        return pa.Table.from_batches([next(batches)])


def _add_sample(column: Column, values: pa.ChunkedArray) -> None:
    """Add how the values of a sample are distributed."""
    if pt.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    numbers = _as_numbers(values)
    if numbers is not None:
        if len(numbers) and numbers.min() < numbers.max():
            counts, edges = np.histogram(numbers, BINS)
            column.bins = counts.tolist()
            column.first, column.last = edges[0], edges[-1]
    elif pt.is_boolean(values.type) or pt.is_string(values.type) or pt.is_large_string(values.type):
        counted = sorted(pc.value_counts(values.drop_null()).to_pylist(), key=lambda each: -each["counts"])
        column.distinct = len(counted)
        column.top = [(str(each["values"]), each["counts"]) for each in counted[:TOP]]


def _as_numbers(values: pa.ChunkedArray) -> np.ndarray | None:
    """The finite values as numbers, if they have an order that numbers have."""
    kind = values.type
    if pt.is_temporal(kind) and not pt.is_interval(kind):
        wide = values.cast(pa.int64() if kind.bit_width == 64 else pa.int32())
    elif pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind):
        wide = values
    else:
        return None
    numbers: np.ndarray = (
        wide.drop_null().cast(pa.float64(), safe=False).combine_chunks().to_numpy(zero_copy_only=False)
    )
    finite: np.ndarray = numbers[np.isfinite(numbers)]
    return finite
