"""The user's own computation on the merged rows: its input, and what it yields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.errors import PipelineError, SchemaConflict
from shardkit.tables.rows import as_table
from shardkit.tables.schema import conform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.dataset.source import Source


class Batches:
    """The argument of ``combine``: all rows as record batches, which may be iterated more than once.

    Examples:
        >>> def combine(batches):
        ...     total = sum(batch.num_rows for batch in batches)    # a first time, for what must be known first
        ...     for batch in batches:                               # and again, for the rows
        ...         yield batch.append_column("share", pa.array([1 / total] * batch.num_rows))
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def schema(self) -> pa.Schema:
        """The schema of all batches."""
        return self._source.schema

    @property
    def num_rows(self) -> int:
        """The rows of all batches together."""
        return self._source.num_rows

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for table in self._source.tables():
            yield from table.combine_chunks().to_batches()


def _named_types(schema: pa.Schema, rows: pa.Schema) -> pa.Schema:
    """The schema with the rows' types for columns that have no value yet."""
    types = {field.name: field.type for field in rows}
    return pa.schema([(f.name, types.get(f.name, f.type) if pa.types.is_null(f.type) else f.type) for f in schema])


def combined(
    source: Source, function: Callable[[Batches], Any], name: str, *, stored: Callable[[pa.Schema], pa.Schema]
) -> Iterator[pa.Table]:
    """What the user's ``combine`` yields, as tables of one schema.

    That is the schema of the first table with rows: without rows, types often differ from those of the other tables.
    ``stored`` says how a schema is stored. Tables without rows are skipped; if there are no others, the first one is
    yielded.
    """
    must = "It must yield record batches, Tables or DataFrames."
    first: pa.Schema | None = None
    empty: pa.Table | None = None
    produced = function(Batches(source))
    if as_table(produced) is not None:
        produced = [produced]
    if isinstance(produced, str | bytes) or not isinstance(produced, Iterable):
        raise PipelineError(f"combine: {name} returned {type(produced).__name__}.", hint=must)
    for item in produced:
        table = as_table(item)
        if table is None:
            raise PipelineError(f"combine: {name} yielded {type(item).__name__}.", hint=must)
        if not len(table):
            empty = table if empty is None else empty
            continue
        first = _named_types(table.schema, source.schema) if first is None else first
        new = next((column for column in table.column_names if column not in first.names), None)
        try:
            if new is not None:
                raise pa.ArrowInvalid(f"column {new!r} is not in the first one")
            yield conform(table, stored(first))
        except pa.ArrowException as error:
            raise SchemaConflict(f"combine: {name} yielded batches that differ: {error}.") from error
    if first is None and empty is not None:
        yield conform(empty, stored(empty.schema))
