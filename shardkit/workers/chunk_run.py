"""One chunk on its way from records to a marker, in a worker."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.inside.piece import pieces_of
from shardkit.runfolder.claims import commit
from shardkit.runfolder.marked_notes import merged, notes_of
from shardkit.tracebacks import error_message, user_traceback
from shardkit.workers.inputs import Wanted, record_at
from shardkit.workers.tasks import failure_entry, spool_of
from shardkit.workers.timing import ChunkTimes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

    from shardkit.inside.rule import Inside
    from shardkit.notes import Notes
    from shardkit.record import Record
    from shardkit.runfolder.document_types import MarkedNotes, Marker, QuarantineEntry
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.parts import Part
    from shardkit.workers.inputs import LocalInputs, RemoteInputs, Ticket
    from shardkit.workers.large_record import LargeRecord
    from shardkit.workers.tasks import ChunkTask, Settled, WorkerSettings


class ChunkRun:
    """One chunk on its way from records to a marker."""

    def __init__(
        self,
        task: ChunkTask,
        settings: WorkerSettings,
        schema: pa.Schema | None,
        folder: RunFolder,
        inputs: LocalInputs | RemoteInputs,
        *,
        worker: str,
        names: set[str],
    ) -> None:
        import pyarrow as pa

        from shardkit.runfolder.names import part_base
        from shardkit.tables.origin import Origin
        from shardkit.tables.rows import collect
        from shardkit.workers.large_record import LargeRecord
        from shardkit.workers.parts import PartsWriter

        self.task = task
        self.collect = collect
        self._large_record = LargeRecord
        self._settings = settings
        self._folder = folder
        self._inputs = inputs
        table = pa.ipc.open_stream(task.records).read_all()
        self.keys: list[str] = table["key"].to_pylist()
        self.bytes: list[int] = table["bytes"].to_pylist()
        self._mains: list[int] = table["main"].to_pylist()
        self._objects: list[list[str]] = table["objects"].to_pylist()
        self._etags: list[list[str] | None] = _etags_of(table)
        self._meta = table["meta"].to_pylist() if "meta" in table.column_names else None
        self._pieces = pieces_of(table, settings.inside)
        self._failures: dict[int, QuarantineEntry] = {}
        self.times = ChunkTimes(worker, settings.job)
        self._names = names
        self._notes: dict[int, MarkedNotes] = {}
        self._end = len(self.keys)
        self._released: set[int] = set()
        self.writer = PartsWriter(
            (spool_of(settings) or self._folder.files).child(self._folder.parts_of(task.shard)),
            part_base(task.chunk, task.attempt, piece=task.piece, execution=task.execution, alone=task.alone),
            schema=schema,
            give_up=lambda result, error: self.fail(result.index, error),
            origin=Origin(self.keys, settings.run_id) if settings.origin else None,
        )

    def large_record(self, i: int) -> LargeRecord:
        """What takes a record's rows if they are many."""
        return self._large_record(i, self.keys[i], self.writer.aside)

    def record(self, i: int) -> Record | None:
        """The record at a position, its files here; None for a piece without a line."""
        arrived = self._inputs.fetch((self.task.shard, self.task.chunk, i))
        return record_at(
            arrived,
            self._pieces[i],
            self.keys[i],
            tuple(self._objects[i]),
            main=self._mains[i],
            bytes=self.bytes[i],
            by_stem=self._settings.by_stem,
            names=self._names,
            meta=self._meta[i] if self._meta is not None else None,
        )

    def announce(self) -> None:
        """Begin to fetch the objects."""
        self._inputs.expect(self.wanted())

    def wanted(self) -> Iterator[tuple[Ticket, Wanted]]:
        """The objects of the records that are to be run, in their order."""
        task = self.task
        for i in self.positions():
            if i not in task.settled and i not in task.left and i not in self._released:
                wanted = Wanted(self._objects[i], self._etags[i], self.bytes[i], self._pieces[i])
                yield (task.shard, task.chunk, i), wanted

    @staticmethod
    def wanted_first(task: ChunkTask, count: int, inside: Inside | None) -> Iterator[tuple[Ticket, Wanted]]:
        """The same of another task's first records."""
        import pyarrow as pa

        table = pa.ipc.open_stream(task.records).read_all().slice(0, count)
        objects, sizes = table["objects"].to_pylist(), table["bytes"].to_pylist()
        rows = zip(objects, _etags_of(table), sizes, pieces_of(table, inside), strict=True)
        for i, row in enumerate(rows):
            yield (task.shard, task.chunk, i), Wanted(*row)

    def note(self, i: int, notes: Notes) -> None:
        """Keep what the function has noted about a record, unless it fails after all."""
        self._notes[i] = notes_of(self.keys[i], notes)

    def end(self, i: int, *, begun: float, rows: int, failure: BaseException | None = None) -> None:
        """A record that has ``begun`` by the clock of ``times`` has had its turn; if it failed, ``rows`` are 0."""
        self._inputs.release((self.task.shard, self.task.chunk, i))
        ended = self.times.clock()
        if failure is None:
            self.times.add(begun, ended, rows)
        else:
            self.note_end(i, begun=begun, ended=ended, rows=rows, failure=failure)

    def release(self, i: int) -> None:
        """A record's objects are not needed any more."""
        self._inputs.release((self.task.shard, self.task.chunk, i))
        self._released.add(i)

    def note_end(self, i: int, *, begun: float, ended: float, rows: int, failure: BaseException | None = None) -> None:
        """The next record, in their order, has ended as `end` says, a while ago perhaps."""
        self.times.add(begun, ended, rows)
        if failure is not None:
            self.fail(i, failure, seconds=ended - begun)

    def positions(self) -> Iterable[int]:
        """The positions of the records whose turn it is."""
        return range(self.task.begin, len(self.keys)) if self.task.alone is None else (self.task.alone,)

    def cut(self, i: int) -> None:
        """Leave the records from position ``i`` on to a later attempt."""
        self._end = i

    def take(self, i: int, settled: Settled) -> None:
        """Put on record what is known of a record already."""
        from shardkit.runfolder.parts import Part

        if settled.failure is not None:
            self._failures[i] = settled.failure
        else:
            self.writer.adopt([Part.of(part) for part in settled.parts])
            if settled.notes is not None:
                self._notes[i] = settled.notes
        self.times.add_earlier(settled.begin_s, settled.seconds, sum(part["rows"] for part in settled.parts))

    def fail(self, i: int, error: BaseException, *, seconds: float | None = None) -> None:
        """Put a record in quarantine."""
        self._failures[i] = failure_entry(
            record=self.task.ids[i],
            key=self.keys[i],
            bytes=self.bytes[i],
            error=type(error).__name__,
            message=error_message(error),
            traceback=user_traceback(error),
            seconds=seconds,
            attempt=self.task.attempt,
        )

    def commit(self, repeats: dict[str, int]) -> Marker:
        """Finish the parts and write the marker, unless somebody else does; returns the marker.

        What it returns is without the timings if it is written, because nobody asks the worker for these.
        """
        seconds = self.times.seconds
        parts: list[Part] = self.writer.close()
        task = self.task
        first, end = (task.begin, self._end) if task.alone is None else (task.alone, task.alone + 1)
        listed = end - first
        whole = listed == len(self.keys) and not task.explicit
        marker: Marker = {
            "shard": task.shard,
            "chunk": task.chunk,
            "attempt": task.attempt,
            "piece": task.piece,
            "records": {"listed": listed, "done": listed - len(self._failures), "quarantined": len(self._failures)},
            "ids": None if whole else task.ids[first:end],
            "rows": self.writer.rows,
            "bytes_in": sum(self.bytes[first:end]),
            "bytes_out": sum(part.bytes for part in parts),
            "seconds": round(seconds, 6),
            "peak_memory_bytes": peak_memory_bytes(),
            "repeated": repeats,
            "function_digest": self._settings.function.digest,
            "parts": [part.to_dict() for part in parts],
            "quarantine": [self._failures[i] for i in sorted(self._failures)],
            "timings": self.times.timings(seconds, failed=[i - first for i in self._failures]),
        }
        notes = [self._notes[i] for i in sorted(self._notes) if i not in self._failures]
        if notes:
            marker["notes"] = merged(notes)
        if first and task.alone is None:
            marker["gone"] = [*range(first)]  # parts number their records from the beginning of the whole chunk
        if task.by:
            marker["by"] = task.by
        if task.alone is None and listed and spool_of(self._settings) is None:
            commit(self._folder, marker)
            del marker["timings"]
        return marker


def _etags_of(table: pa.Table) -> list[list[str] | None]:
    return table["etags"].to_pylist() if "etags" in table.column_names else [None] * len(table)


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had, in bytes."""
    with contextlib.suppress(OSError, StopIteration, ValueError):  # not on Linux
        # What getrusage tells here is never less than what the parent had when it started this process.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
