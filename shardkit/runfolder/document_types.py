"""The contents of the JSON documents of a run and of a dataset.

`documents` reads and writes them, and checks that a document has all fields that the types here require. A field that
an earlier version did not write is either filled in when a document is read (`earlier`), or is in a ``total=False``
half here, so that readers check whether it is there. The field ``version`` of each document is its format.
"""

from __future__ import annotations

from typing import Any, TypedDict

from shardkit.runfolder.list_types import PlannedList  # noqa: TC001  documents are checked by their types


class RecordCounts(TypedDict):
    """How many records a chunk has."""

    listed: int
    done: int
    quarantined: int


class LedgerCounts(RecordCounts):
    """How many records a run has."""

    skipped: int


# ---- markers


class _Part(TypedDict):
    name: str
    rows: int
    bytes: int


class MarkedPart(_Part, total=False):
    """A part that a chunk has committed: of ``run``, where it was taken over from there, in its folder ``at``."""

    run: str
    at: str
    spans: list[list[int]]  # the rows of it that count, if these are not all
    sums: list[list[int]]


class _Entry(TypedDict):
    record: int
    key: str
    error: str
    message: str


class QuarantineEntry(_Entry, total=False):
    """A record that failed for good, and how; outside of its marker with its ``shard``, ``chunk`` and ``run``.

    ``of_memory`` stands where it needs more memory than the machine has, and is true.
    """

    traceback: str | None
    seconds: float | None
    bytes: int | None
    signal: str | None
    peak_memory_bytes: int | None
    of_memory: bool
    attempt: int | None
    shard: int
    chunk: int
    run: str


class _Marker(TypedDict):
    shard: int
    chunk: int
    attempt: int
    records: RecordCounts
    ids: list[int] | None
    rows: int
    bytes_out: int
    parts: list[MarkedPart]
    quarantine: list[QuarantineEntry]


class LoggedLine(TypedDict):
    """A line that the function has logged about a record."""

    key: str
    text: str


class MarkedNotes(TypedDict):
    """What the function has noted about records that are done: sums, the first lines, and how many there were."""

    sums: dict[str, float]
    lines: list[LoggedLine]
    logged: int


class Timings(TypedDict):
    """When a chunk's records were worked on, by which worker, and in which job if the run has jobs.

    ``begin_s`` and ``end_s`` are the chunk's, in seconds since 1970, by the clock of the worker's machine. The other
    fields have a number for each record, in the chunk's order, packed by `number_text`. A gap is the time from the end
    of the record before, or from the beginning of the chunk, to the beginning of the record. It is negative for a
    record that was run by itself before its chunk.
    """

    worker: str
    job: str | None
    begin_s: float
    end_s: float
    gaps_us: str
    durations_us: str
    rows: str


class Marker(_Marker, total=False):
    """Commits a chunk. ``ids`` are the numbers of its records where these are not those of a planned chunk.

    ``gone`` are the positions in the chunk, as it was computed, of records that were not taken over with it, or that an
    earlier ``piece`` of it has. ``by`` is
    the attempt of a job that has done it (the name of its heartbeat), where others might have; ``execution`` is in the
    name of the marker's file.
    """

    version: int
    piece: int
    bytes_in: int
    seconds: float
    peak_memory_bytes: int
    repeated: dict[str, int]
    function_digest: str
    taken_over: bool
    gone: list[int]
    timings: Timings
    notes: MarkedNotes
    by: str
    execution: str


class Claim(TypedDict):
    """``claims/<shard>/<chunk>.json``: the attempt of another job that is at the chunk; the name of its heartbeat."""

    by: str


class TakenOver(TypedDict):
    """``taken_over.json``: the markers of chunks that earlier runs have done."""

    markers: list[Marker]


# ---- the plan


class PlanTotals(TypedDict):
    """A plan in numbers."""

    objects_listed: int
    objects_left_out: int
    left_out_sample: list[str]
    records: int
    bytes: int
    groups: int
    shards: int
    chunks: int
    jobs: int
    create_calls: int


class PlannedShard(TypedDict):
    """A shard; ``group`` is its name, where it is a single group that has one."""

    shard: int
    groups: int
    group_names: list[str]
    group: str | None
    records: int
    bytes: int
    chunks: int


class PlannedJob(TypedDict):
    """A job of pass 1, with an instance for each of its shards."""

    job: int
    shards: list[int]
    instances: int
    groups: int
    records: int
    bytes: int
    share_of_longest: float


class PartitionChanges(TypedDict):
    """How the records of a partition have changed since it was made, and why it is rebuilt."""

    new: int
    changed: int
    vanished: int
    unchanged: int
    reason: str
    again: int


class Unchanged(TypedDict):
    """The records and partitions that a run leaves as they are."""

    partitions: int
    records: int


class WrittenFile(TypedDict):
    """A file that was written with the plan."""

    bytes: int
    crc32: int


class _Plan(TypedDict):
    version: int
    run_id: str
    created: str
    digest: str
    function_digest: str
    input_digest: str
    pipeline: dict[str, Any]
    workers: int
    totals: PlanTotals
    shards: list[PlannedShard]
    jobs: list[PlannedJob]
    by_day: bool
    work: str
    form: dict[str, Any]
    merge_digest: str
    partitions: dict[str, PartitionChanges] | None
    based_on: dict[str, str | None]
    dropped: list[str]
    left: list[str]
    unchanged: Unchanged
    datasets_left_out: list[str]
    lists: list[PlannedList]


class PlanDocument(_Plan, total=False):
    """``plan.json``. What is optional stands in those that are written: of a plan that is only looked at it does not.

    ``pickles`` and ``files`` are in none of the first version; ``merge_of`` are the folders that pass 2 alone has
    merged; its plan holds nothing else. ``prepared`` means that the run's jobs are started by something that shardkit
    knows nothing of. ``aside`` is the run whose work it takes over though its new files have failed a check.
    """

    merge: bool
    python: str
    pickles: dict[str, str]
    files: dict[str, WrittenFile]
    merge_of: list[str]
    prepared: bool
    aside: str


# ---- the result, and the other documents


class _ResultFile(TypedDict):
    path: str
    rows: int
    bytes: int
    partition: str


class ResultFile(_ResultFile, total=False):
    """A file of the dataset; ``nulls`` are how many its columns have, those without any left out."""

    nulls: dict[str, int]


class MadeWith(TypedDict):
    """The digests of what is computed from each record, and of what is made of the rows."""

    work: str
    merge: str


class _Partition(MadeWith):
    run: str


class MadePartition(_Partition, total=False):
    """A partition of the dataset: the run that made it, and what with.

    ``rows`` counts the rows of its records, or is None if a combine has decided on them; ``noted_by`` is the run that
    has rewritten its files since.
    """

    quarantined: int
    rows: int | None
    noted_by: str


class _Result(TypedDict):
    run_id: str
    name: str
    records: LedgerCounts
    rows: int
    files: list[ResultFile]
    partitions: dict[str, MadePartition]
    by_day: bool
    form: dict[str, Any]
    columns: dict[str, str]
    format: str
    partition_by: list[str]
    bytes_in: int
    bytes_out: int
    switched: int
    generation: int  # the number of the build that has made the dataset: no two builds of a run have the same


class Result(_Result, total=False):
    """``result.json`` and ``current.json``: a dataset, and the run that has made it."""

    version: int
    status: str
    schema: str
    uniform: bool
    started: str
    finished: str
    seconds: float
    attempt: int


class Commit(TypedDict):
    """``commit.json``: the switch to ``result``, which ends with the file ``index`` and without the files ``gone``."""

    result: Result
    gone: list[str]
    index: str


class _Heartbeat(TypedDict):
    shard: int | str
    attempt: int
    state: str
    message: str | None
    started: str
    at: str


class Heartbeat(_Heartbeat, total=False):
    """``progress/*.json``: how far an attempt is. ``in_python`` is the message for users of Python."""

    version: int
    phase: str
    in_python: str
    reason: str
    seconds: float
    records: int
    bytes: int
    quarantined: int
    repeated: dict[str, int]
    repeated_by_workers: dict[str, int]
    left_s: float  # that the rest will take at the present pace, while there is a rest and a pace
    stolen: int  # records of other jobs' shards that it has done
    host: str
    pid: int


class Latest(TypedDict):
    """``latest.json``: the run that was planned, or gone on with, last."""

    run_id: str


class QueueCopy(TypedDict):
    """``jobs.json``: a copy of the queue of a run's jobs, in the format of queues."""

    format: int
    jobs: list[dict[str, Any]]


class ContentsDocument(TypedDict):
    """``contents.json``: for each file of the dataset, which rows of which of ``parts`` it holds."""

    parts: list[str]
    files: dict[str, list[Any]]
    columns: dict[str, list[list[str]]]


class DayNote(TypedDict):
    """``merged/<day>.json``: what a job has made of a day."""

    day: str
    basis: str
    schema: str
    written: str
    files: list[dict[str, Any]]
    kept: list[dict[str, Any]]
    contents: ContentsDocument
