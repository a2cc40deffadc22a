"""What a worker is sent: the settings that stay the same for all its chunks, and one task for each chunk."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.inside.piece import columns_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from shardkit.functions import FunctionRef
    from shardkit.inside.rule import Inside
    from shardkit.runfolder.document_types import MarkedNotes, MarkedPart, QuarantineEntry
    from shardkit.storage.local_folder import LocalFolder
    from shardkit.storage.places import Places


ASYNC_CALLS = 32  # of an ``async def`` function, in each worker, if the pipeline does not say


@dataclass(frozen=True)
class Calling:
    """How the function is called.

    Args:
        batch: With so many records at once, as a list; None for one record, which is no list.
        concurrency: So many calls of an ``async def`` function wait at once in a worker; None if nobody has said.
        rate_per_s: So many calls may begin in a second, in all workers of a machine together.
        timeout_s: How long one call of an ``async def`` function may take; all others are watched from outside.
        own_rate: The rate is that of each worker by itself.
        awaits: The function is an ``async def``, as far as its source tells.
    """

    batch: int | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    timeout_s: float | None = None
    own_rate: bool = False
    awaits: bool = False

    @property
    def overlaps(self) -> bool:
        """Whether a worker may begin calls of its next chunk while those of the one before still wait."""
        return self.awaits or self.concurrency is not None

    @property
    def at_once(self) -> int:
        """How many records a worker may be at."""
        return (self.batch or 1) * (self.calls_at_once if self.overlaps else 1)

    @property
    def chunk_records(self) -> int:
        """How many records chunks have at least, or a multiple of that.

        With calls that wait, the next chunk has more than begin while the last calls of the one before still wait.
        """
        return 2 * self.at_once if self.overlaps else self.at_once

    def slower(self, parts: int, *, own_rate: bool = False) -> Calling:
        """The same for each of several that share the rate."""
        rate_per_s = self.rate_per_s / parts if self.rate_per_s is not None else None
        return replace(self, rate_per_s=rate_per_s, own_rate=own_rate)

    @property
    def calls_at_once(self) -> int:
        """How many calls a worker may be at, whatever the function is."""
        return self.concurrency or ASYNC_CALLS


@dataclass(frozen=True)
class WorkerSettings:
    """What stays the same for all chunks of a worker.

    ``places`` are where the input is, and how a store lets us in; the boto3 session is each worker's own.
    ``scratch`` is a folder for what comes from or goes to another store; None where input and output are both here.
    ``inside`` is how records are cut out of files, if they are.
    ``job`` is the name of the job that the worker belongs to, if it belongs to one.
    ``memory_bytes`` is the most that all workers of a machine may hold together; None for what the machine has.
    ``origin`` says that each row gets columns with its record and run.
    ``leaves`` says that records for which this machine has too little memory are left open, for a larger one.
    ``calling`` says how the function is called, and ``gpus`` how many devices are a worker's.
    """

    function: FunctionRef
    places: Places
    output: str
    run_id: str
    scratch: str | None
    by_stem: bool
    schema: dict[str, str] | None
    inside: Inside | None = None
    job: str | None = None
    memory_bytes: int | None = None
    leaves: bool = False
    origin: bool = False
    calling: Calling = field(default_factory=Calling)
    gpus: float | None = None


@dataclass
class Settled:
    """What is known of a record before its chunk is worked on again: it failed for good, or its parts are there.

    It began ``begin_s`` seconds after 1970, and took ``seconds``.
    """

    begin_s: float
    seconds: float
    failure: QuarantineEntry | None = None
    parts: list[MarkedPart] = field(default_factory=list)
    notes: MarkedNotes | None = None


@dataclass
class ChunkTask:
    """One chunk's records, or one of them alone.

    ``records`` is an Arrow IPC stream with ``key``, ``main``, ``bytes`` and ``objects``, and perhaps ``meta``; ``ids``
    are the records' row numbers in records.parquet, which the marker repeats where they are not a whole planned chunk
    (``explicit``). ``settled`` tells, by position, what need not be run again. The records from position ``until`` on
    are left to a later attempt. Those before ``begin`` have been committed, as an earlier ``piece`` of the chunk.
    ``alone`` is the position of the only record to run, whose outcome is not committed. ``ahead`` is the task that the
    same worker will most likely be given next. ``execution`` is in the names of the parts, where several may be at the
    chunk at once. ``by`` is the attempt of the job that does the chunk, where other jobs may do it too.
    ``largest_bytes`` is the size of the largest record; those at the positions ``left`` are not run, because there is
    too little memory here.
    """

    shard: int
    chunk: int
    attempt: int
    ids: list[int]
    records: bytes
    explicit: bool = False
    settled: dict[int, Settled] = field(default_factory=dict)
    until: int | None = None
    begin: int = 0
    piece: int = 0
    alone: int | None = None
    ahead: ChunkTask | None = None
    execution: str = ""
    by: str = ""
    largest_bytes: int = 0
    left: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chunk:
    """Records that go to a worker together, by their row numbers; ``is_planned`` if it is one of the plan's chunks.

    Of another job's shard, ``attempt`` is that of this job.
    """

    shard: int
    number: int
    records: np.ndarray
    is_planned: bool
    attempt: int | None = None

    def task(self, records: pa.Table, attempt: int, by: str = "") -> ChunkTask:
        """The chunk as a worker is sent it; ``records`` is the table of all records."""
        from shardkit.tables.arrays import arrow

        rows = records.take(arrow(self.records)).combine_chunks()
        ids = self.records.tolist()
        is_own = self.attempt is None
        return ChunkTask(
            self.shard,
            self.number,
            attempt if self.attempt is None else self.attempt,
            ids,
            records=records_to_bytes(rows),
            explicit=not self.is_planned,
            execution="" if is_own else by,
            by=by,
            largest_bytes=max(rows["bytes"].to_pylist(), default=0),
        )


OPTIONAL = ("meta",)  # columns of the table of records that only some runs have


def fetches(settings: WorkerSettings) -> bool:
    """Whether files are made for records: where objects are gathered, or records are inside of them."""
    return settings.inside is not None or settings.places.are_fetched


def columns_of_records(inside: Inside | None, *, are_fetched: bool) -> list[str]:
    """The columns of the table of records that `Chunk.task` takes; ``are_fetched`` if workers make files for them."""
    return ["key", "main", "bytes", "objects", *(["etags"] if are_fetched else []), *columns_of(inside)]


def records_to_bytes(records: pa.Table) -> bytes:
    """A table of records as a `ChunkTask` carries it."""
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, records.schema) as stream:
        stream.write_table(records)
    return sink.getvalue()


def arrivals_of(settings: WorkerSettings) -> str | None:
    """Where this worker's files arrive; None where they are here already."""
    if settings.scratch is None or not fetches(settings):
        return None
    return f"{settings.scratch}/input-{os.getpid()}"


def spool_of(settings: WorkerSettings) -> LocalFolder | None:
    """Where parts wait for their upload, which is not the worker's business; None where they go to their place."""
    from shardkit.storage.base import is_remote
    from shardkit.storage.local_folder import LocalFolder

    if settings.scratch is None or not is_remote(settings.output):
        return None
    return LocalFolder(Path(settings.scratch, "spool"))


def failure_entry(
    *,
    record: int,
    key: str,
    error: str,
    message: str,
    bytes: int,
    attempt: int,
    traceback: str | None = None,
    seconds: float | None = None,
    signal: str | None = None,
    peak_memory_bytes: int | None = None,
    of_memory: bool = False,
) -> QuarantineEntry:
    """One record's entry in the quarantine; ``of_memory`` if it failed for want of memory, though it ran alone."""
    entry: QuarantineEntry = {
        "record": record,
        "key": key,
        "error": error,
        "message": message,
        "traceback": traceback,
        "seconds": seconds,
        "bytes": bytes,
        "signal": signal,
        "peak_memory_bytes": peak_memory_bytes,
        "attempt": attempt,
    }
    if of_memory:
        entry["of_memory"] = True
    return entry
