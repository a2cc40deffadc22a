"""Merges parts into the files of a dataset, with the user's combine if there is one."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import pyarrow as pa

from shardkit.dataset.combine import combined
from shardkit.dataset.shuffle import shuffled
from shardkit.dataset.writer import DataFile, Layout, write_dataset, write_stream
from shardkit.errors import CombineError, ShardkitError
from shardkit.runfolder.meters import RowMeter
from shardkit.tracebacks import user_traceback

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import AbstractContextManager

    from shardkit.dataset.iceberg.tables import IcebergTable
    from shardkit.dataset.kept_files import Keeper
    from shardkit.dataset.source import Source
    from shardkit.functions import FunctionRef
    from shardkit.runfolder.ledger import CommittedPart
    from shardkit.runfolder.meters import Meter
    from shardkit.storage.base import Folder

# The new files of a partition, the old files that are kept, and the schema.
Written: TypeAlias = "tuple[list[DataFile], list[DataFile], pa.Schema]"


class Watcher(Protocol):
    """Whoever watches over a merge, as an `Attempt` does."""

    def pass2(self, meter: Meter) -> AbstractContextManager[None]:
        """Watch over pass 2."""

    def check(self) -> None:
        """Check that the merge may go on.

        Raises:
            LockLost: it may not.
        """


@dataclass(frozen=True)
class Merge:
    """How pass 2 merges the parts."""

    layout: Layout
    schema: dict[str, str] | None = None
    widen_ints: bool = False
    combine: FunctionRef | None = None
    glue: dict[str, Any] | None = None  # the table of Glue to register the dataset as
    iceberg: IcebergTable | None = None
    shuffle: int | None = None  # the seed of the rows' order
    allow_empty: bool = False
    checks: dict[str, Any] | None = None  # of the new files, before the switch
    failures_counted: bool = False  # whether max_failures is a number of records, which may be all of them

    def stored(self, schema: pa.Schema) -> pa.Schema:
        """The schema in which columns are stored: that of an Iceberg table has fewer types, and only known ones.

        Raises:
            SchemaConflict: Iceberg has no type for a column.
        """
        if self.iceberg is None:
            return schema
        from shardkit.dataset.iceberg.types import stored_schema

        return stored_schema(schema)

    def reads_as(self, columns: pa.Schema, schema: pa.Schema) -> bool:
        """Whether all readers that the dataset is for read a file with these columns as ``schema``."""
        if self.iceberg is None or not self.layout.kind.tabular:
            return not self.layout.kind.tabular
        from shardkit.dataset.iceberg.types import read_as

        return read_as(columns, schema)

    def ordered(self, source: Source, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Tables that are made of the rows of ``source``, in the order in which these are written."""
        if self.shuffle is None:
            return tables
        day = zlib.crc32((self.layout.day or "").encode())
        return shuffled(tables, seed=self.shuffle ^ day, size_bytes=sum(size for _, size in source.sizes))

    def digest(self) -> str:
        """A digest of all that decides what is made of the rows, except how they are cut into files."""
        combine = [self.combine.name, self.combine.digest] if self.combine is not None else None
        order = [] if self.shuffle is None else [self.shuffle]
        return hashlib.sha256(json.dumps([combine, self.widen_ints, *order]).encode()).hexdigest()


def write_merged(
    folder: Folder,
    source: Source,
    merge: Merge,
    *,
    token: str,
    threads: int | None,
    numbers_taken: Collection[int] = (),
) -> tuple[list[DataFile], pa.Schema]:
    """Write the parts of ``source`` as dataset files under ``folder``, their names carrying ``token``.

    Returns the files, and the schema of the dataset with its partition columns. The last three arguments are as for
    `write_dataset`.

    Raises:
        SchemaConflict: a value does not fit its column.
        CombineError: the user's function raised.
        StorageError: something could not be read or written.
    """
    if merge.combine is None and merge.shuffle is not None:
        files = write_stream(
            folder, merge.ordered(source, source.tables()), merge.layout, token=token, threads=threads or 1
        )
        return files, source.schema
    if merge.combine is None:
        files = write_dataset(folder, source, merge.layout, token=token, threads=threads, numbers_taken=numbers_taken)
        return files, source.schema
    function = merge.combine.load()
    schemas: list[pa.Schema] = []

    def tables() -> Iterator[pa.Table]:
        for table in combined(source, function, merge.combine.name if merge.combine else "", stored=merge.stored):
            schemas[:] = [table.schema]
            yield table

    try:
        rows = merge.ordered(source, tables())
        files = write_stream(folder, rows, merge.layout, token=token, threads=threads or 1)
        return files, schemas[0] if schemas else pa.schema([])
    except ShardkitError:
        raise
    except Exception as error:
        raise CombineError(
            f"combine: {merge.combine.name} raised {type(error).__name__}: {error}\n{user_traceback(error)}",
            hint="Fix it, then resume the run; pass 1 is not done again.",
        ) from error


def merge_partitions(
    home: Folder,
    keeper: Keeper,
    sources: dict[str, tuple[list[CommittedPart], Source]],
    merge: Merge,
    attempt: Watcher,
    *,
    token: str,
    threads: int,
) -> Iterator[tuple[str, Written]]:
    """Write each partition's rows in ``home``; yields its new files, the old files that are kept, and the schema."""
    keeper.look_up(sources)
    work = {partition: keeper.keep(partition, *parts_and_source) for partition, parts_and_source in sources.items()}
    rows, read = sum(k.rest.num_rows for k in work.values()), lambda: sum(sum(k.rest.read) for k in work.values())
    with attempt.pass2(RowMeter(rows, read)):
        for partition, kept in work.items():
            attempt.check()
            files, schema = write_merged(
                home,
                kept.rest,
                replace(merge, layout=replace(merge.layout, day=partition or None)),
                token=token,
                threads=threads,
                numbers_taken=kept.numbers,
            )
            keeper.note(partition, kept, files)
            yield partition, (files, kept.files, schema)
