"""Records run in this very process, so that prints, breakpoints and debuggers work; nothing is written."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from bdb import BdbQuit
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.errors import InputError, ObjectChanged, PipelineError
from shardkit.functions import is_async, name_of
from shardkit.inside.piece import pieces_of
from shardkit.runs.tried import Everything, Tried, TriedRecord
from shardkit.tables.arrays import numpy
from shardkit.tables.rows import FIRST_LOOK, Result, collect, fit, to_batches
from shardkit.tables.schema import parse_schema
from shardkit.tracebacks import error_message, user_traceback, users_part
from shardkit.workers.answers import by_record
from shardkit.workers.calling import awaited, check_not_concurrent, made
from shardkit.workers.chunk_run import peak_memory_bytes
from shardkit.workers.inputs import Arrived, Wanted, open_inputs, record_at
from shardkit.workers.memory import forget_peak, resident_bytes
from shardkit.workers.steps import coroutine_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from shardkit.inside.piece import Piece
    from shardkit.record import Record
    from shardkit.spec.spec import Spec

PIECE_ROWS = 8192
ROWS_KEPT = 1000  # of each record


def try_records(pipeline: Spec, wanted: int | list[str], *, only: bool = False) -> Tried:
    """Run some records of a pipeline's input: those with these keys, or a number of them, spread over all sizes.

    With ``only`` what the function raises is raised.

    Raises:
        InputError: there is no record of that key, or the input cannot be read.
        PipelineError: the function cannot be loaded, or the number is not at least 1.
    """
    __tracebackhide__ = True
    from shardkit.runs.listing import with_roots
    from shardkit.runs.planning import make_run_plan
    from shardkit.times import new_run_id

    if isinstance(wanted, int) and wanted < 1:
        raise PipelineError(f"{wanted} records cannot be tried: expected 1 or more.")
    pipeline = with_roots(pipeline)
    plan = make_run_plan(pipeline, function_ref=pipeline.function_ref(), run_id=new_run_id(), recompute=True)
    sizes = numpy(plan.records["bytes"])
    chosen = spread(sizes, wanted) if isinstance(wanted, int) else [row_of(plan.records, key) for key in wanted]
    given = pipeline.function
    function = ready(given) if callable(given) else pipeline.function_ref().load(make=made)
    trial = Trial(pipeline, function)
    tried = trial.run(plan.records.take(chosen), only=only)
    if pipeline.batch is None:  # a record by itself takes longer than one of a batch
        at_once = pipeline.calling(pipeline.function_ref()).at_once
        tried.everything = Everything(sizes, pipeline.worker_count() * at_once)
    return tried


def ready(given: Callable[..., Any]) -> Callable[..., Any]:
    """The callable that takes records: an object of a class, or the function itself, which a debugger then finds."""
    function: Callable[..., Any] = made(given) if isinstance(given, type) else given
    return function


def spread(sizes: np.ndarray, count: int) -> list[int]:
    """Row numbers of ``count`` records of all sizes, the smallest first, and the largest of all among them."""
    order = np.argsort(sizes, kind="stable")
    places = np.linspace(len(order) - 1, 0, min(count, len(order))).round().astype(np.int64)
    chosen: list[int] = order[places[::-1]].tolist()
    return chosen


def row_of(records: pa.Table, key: str) -> int:
    """The row number of a record.

    Raises:
        InputError: there is none of that key.
    """
    import difflib

    import pyarrow.compute as pc

    row = pc.index(records["key"], key).as_py()
    if row < 0:
        name = key.rpartition("/")[2]
        like = records["key"].filter(pc.match_substring(records["key"], name)) if name else records["key"]
        some = (like if len(like) else records["key"])[:10_000].to_pylist()
        near = difflib.get_close_matches(key, some, n=1, cutoff=0.3)
        raise InputError(f"There is no record {key!r}.", hint=f"Did you mean {near[0]}?" if near else "")
    return int(row)


class Trial:
    """Runs records with one function, in the way in which a worker does; keeps so many rows of each."""

    def __init__(self, pipeline: Spec, function: Callable[..., Any], *, rows_kept: int = ROWS_KEPT) -> None:
        self._pipeline = pipeline
        self._rows_kept = rows_kept
        self._function = function
        self._is_async = is_async(function)
        if not self._is_async:
            check_not_concurrent(name_of(function), pipeline.concurrency)
        self._schema = parse_schema(pipeline.output.columns) if pipeline.output.columns else None
        self._places = pipeline.places()
        self._fetches = self._places.are_fetched or pipeline.inside is not None

    def run(self, records: pa.Table, *, only: bool = False, told: list[str] | None = None) -> Tried:
        """Run the records of a table; ``only`` as for `try_records`, and ``told`` what is known to be different."""
        __tracebackhide__ = True
        tried = Tried(notes=list(told or ()), widen_ints=self._pipeline.output.widen_ints)
        if self._pipeline.batch is not None:
            tried.notes.append(
                f"Each record is a batch of its own here; a run makes batches of {self._pipeline.batch}."
            )
        with tempfile.TemporaryDirectory(prefix="shardkit-try-") as scratch:
            inputs = open_inputs(self._places, scratch if self._fetches else None)
            pieces = pieces_of(records, self._pipeline.inside)
            for number, (row, piece) in enumerate(zip(records.to_pylist(), pieces, strict=True)):
                ticket = (0, 0, number)
                with self._fetched(inputs, ticket, row, piece, tried) as arrived:
                    record = record_at(
                        arrived,
                        piece,
                        row["key"],
                        tuple(row["objects"]),
                        main=row["main"],
                        bytes=row["bytes"],
                        by_stem=self._pipeline.by_stem,
                        meta=row.get("meta"),
                    )
                    one = self._one(record) if record is not None else TriedRecord(row["key"], row["bytes"])
                tried.records.append(one)
                if one.error is not None and only:
                    raise one.error
        tried.notes += tried.changes
        return tried

    @contextlib.contextmanager
    def _fetched(
        self, inputs: Any, ticket: Any, row: dict[str, Any], piece: Piece | None, tried: Tried
    ) -> Iterator[Arrived]:
        """The files of a record; if an object of it has changed since it was listed, it is among the changes.

        Raises:
            InputError: one is gone.
            ObjectDamaged: the record cannot be read out of it.
            ObjectRefused, StorageError: the store does not give one.
        """
        etags = row.get("etags")
        if piece is None:  # a piece is checked when it is read
            tried.changes += self._places.changes_since(row["objects"], etags)
        if not self._fetches:
            yield Arrived(self._places.root)
            return
        inputs.expect([(ticket, Wanted(row["objects"], etags, row["bytes"], piece))])
        try:
            arrived = inputs.fetch(ticket)
        except ObjectChanged as error:
            tried.changes.append(error.message)
            inputs.release(ticket)
            inputs.expect([(ticket, Wanted(row["objects"], None, row["bytes"], piece))])
            arrived = inputs.fetch(ticket)
        try:
            yield arrived
        finally:
            inputs.release(ticket)

    def _given(self, record: Record) -> Any:
        """What the function gives for a record."""
        __tracebackhide__ = True
        argument = record if self._pipeline.batch is None else [record]
        given = self._function(argument)
        if self._is_async:
            given = awaited(coroutine_of(given))
        return given if self._pipeline.batch is None else by_record(given, [record])[0]

    def _one(self, record: Record) -> TriedRecord:
        __tracebackhide__ = True
        one = TriedRecord(record.key, record.bytes)
        rows = _Rows(record.key, self._schema, self._rows_kept)
        before = resident_bytes(os.getpid())
        forget_peak()
        begun = time.perf_counter()
        try:
            rows.finish(collect(self._given(record), 0, record.key, rows))
        except (KeyboardInterrupt, BdbQuit):
            raise
        except BaseException as error:  # noqa: BLE001  as in a run, where even SystemExit costs only its record
            one.error = error
            one.message = f"{type(error).__name__}: {error_message(error)}"
            one.traceback = user_traceback(error) if users_part(error) is not None else ""
        one.seconds = time.perf_counter() - begun
        one.peak_memory_bytes = max(peak_memory_bytes() - before, 0)
        one.notes = record.notes
        if one.error is None:
            one.rows, one.table = rows.count, rows.table()
        return one


class _Rows:
    """Takes the rows of one record as a run does, so that it refuses what a run refuses, and keeps the first ones."""

    def __init__(self, key: str, schema: pa.Schema | None, most: int) -> None:
        self._key = key
        self._most = most
        self._schema = schema
        self._kept: list[pa.Table] = []
        self.count = 0

    def look(self, rows: list[dict[str, Any]]) -> int:
        """Take the rows, and empty the list, if they are many."""
        if len(rows) < PIECE_ROWS:
            return PIECE_ROWS
        self._take(Result(0, self._key, rows=rows[:]))
        rows.clear()
        return FIRST_LOOK

    def look_at(self, tables: list[pa.Table]) -> None:
        """Take the tables, and empty the list."""
        self._take(Result(0, self._key, tables=tables[:]))
        tables.clear()

    def finish(self, rest: Result) -> Result:
        """Take the last rows."""
        self._take(rest)
        return Result(0, self._key)

    def _take(self, result: Result) -> None:
        tables = [fit(table, self._schema) if self._schema is not None else table for table in result.tables]
        if result.rows:
            tables += [batch.table for batch in to_batches([result], self._schema, _raise)]
        for table in tables:
            self.count += len(table)
            room = self._most - sum(map(len, self._kept))
            if room > 0:
                self._kept.append(table.slice(0, room))

    def table(self) -> pa.Table:
        """The rows that are kept."""
        import pyarrow as pa

        return pa.concat_tables(self._kept, promote_options="permissive") if self._kept else pa.table({})


def _raise(_: Result, error: Exception) -> None:
    raise error
