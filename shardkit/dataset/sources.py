"""The rows of each partition that will be merged, with one schema for all."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from pyarrow.types import is_floating, is_integer

from shardkit.dataset.accounts import check_parts
from shardkit.dataset.checks import kept_days
from shardkit.dataset.source import DamagedPart, one_schema, read_source
from shardkit.errors import PipelineError
from shardkit.tables.type_text import schema_of
from shardkit.tables.unify import holds_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from shardkit.dataset.day_notes import DayMerge
    from shardkit.dataset.merge import Merge
    from shardkit.dataset.source import Source
    from shardkit.runfolder.document_types import Result
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart, Ledger


def sources_of(
    folder: RunFolder,
    parts: dict[str, list[CommittedPart]],
    merge: Merge,
    current: Result | None,
    merged: dict[str, DayMerge],
) -> dict[str, tuple[list[CommittedPart], Source]]:
    """The parts and rows of each partition that will be merged, with one schema for all.

    Days that jobs have merged with another schema are removed from ``merged``, and will be merged here.

    Raises:
        SchemaConflict: the partitions, or those that stay as they are, give a column types that cannot be unified.
        PipelineError: the rows have a column with the name of the partition of days.
    """
    sources = {name: source_of(parts[name], merge) for name in parts if name not in merged}
    day = merge.layout.day_column
    if day is not None and any(day in source.schema.names for source in sources.values()):
        raise PipelineError(
            f"The rows have a column {day!r}, which is the name of the dataset's partition of days.",
            hint="Rename it in the function, then start a new run.",
        )
    if day is not None and merge.schema is None:
        staying = {}
        if merge.combine is None and (kept := kept_days(folder.plan(), current)) and current is not None:
            staying = {
                f"the days that stay, such as {kept[-1]}": merge.stored(
                    schema_of(current, without=current["partition_by"])
                )
            }
        made = {name: merged[name].schema if name in merged else sources[name].schema for name in parts}

        def fits(column: str, kind: pa.DataType) -> bool:
            types = [schema.field(column).type for schema in staying.values() if column in schema.names]
            types = [one for one in types if not (is_integer(one) and is_floating(kind))]  # only asked about for a hint
            rows = [sources.get(name) or source_of(parts[name], merge) for name in parts]
            return all(holds_all(one, kind) for one in types) and all(source.fits(column, kind) for source in rows)

        schema = one_schema(staying | made, widen_ints=merge.widen_ints, fits=fits)
        for name in [name for name in merged if _columns(merged[name].schema) != _columns(schema)]:
            del merged[name]
            sources[name] = source_of(parts[name], merge)
        sources = {name: replace(source, schema=schema) for name, source in sources.items()}
    return {name: (parts[name], source) for name, source in sources.items()}


def _columns(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {column.name: column.type for column in schema}


def source_of(parts: list[CommittedPart], merge: Merge) -> Source:
    """The rows of some parts, as many as their markers say.

    Raises:
        DamagedPart: a part has other rows.
        SchemaConflict: the parts give a column types that cannot be unified.
    """
    files, spans = [part.file for part in parts], [part.spans for part in parts]
    source = read_source(files, spans=spans, schema=merge.schema, widen_ints=merge.widen_ints)
    source = replace(source, schema=merge.stored(source.schema))
    check_parts(parts, [rows for rows, _ in source.sizes])
    return source


@contextlib.contextmanager
def undoing_damaged_chunks(ledger: Ledger) -> Iterator[None]:
    """If a part turns out to be damaged, make sure that its chunk is computed again when the run is resumed."""
    try:
        yield
    except DamagedPart as error:
        raise DamagedPart(error.message, error.part, hint=ledger.undo(error.part)) from None
