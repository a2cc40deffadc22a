"""The calls of one chunk that wait for something, and what has come of those that have ended."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shardkit.tables.weight import weight_of
from shardkit.workers.replies import LEFT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from shardkit.notes import Notes
    from shardkit.tables.rows import Result
    from shardkit.workers.chunk_run import ChunkRun
    from shardkit.workers.large_record import LargeRecord
    from shardkit.workers.tasks import ChunkTask


@dataclass
class Outcome:
    """What one record gave: rows or an error; and from when to when, by the chunk's clock.

    ``elsewhere`` says why it should run in another worker, if it should.
    """

    begun: float
    ended: float
    result: Result | None = None
    failure: BaseException | None = None
    notes: Notes | None = None
    large: LargeRecord | None = None
    elsewhere: str = ""

    @property
    def held_bytes(self) -> int:
        """About how much memory its rows take until it is their turn."""
        if self.result is None:
            return 0
        rows = self.result.rows
        of_rows: int = len(rows) * weight_of(rows[-1]) if rows else 0
        return of_rows + sum(int(table.nbytes) for table in self.result.tables)


@dataclass(eq=False)
class Flight:
    """One chunk's calls.

    Args:
        run: The chunk on its way to its marker.
        task: What it is to do.
        waiting: The positions of each call that has not begun, in their order.
        order: The positions whose rows have not been taken, in their order.
        calls: The calls that have begun and not ended, by their first position.
        under_way: How many records each of these has.
        outcomes: What has ended, by position, until it is its turn.
        ends: The position before which the work is to end, if not with the last record, and why the rest should run
            elsewhere, if it should.
    """

    run: ChunkRun
    task: ChunkTask
    waiting: deque[list[int]]
    order: deque[int]
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    under_way: dict[int, int] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    held_bytes: int = 0
    ends: tuple[int, str] | None = None

    @classmethod
    def of(cls, run: ChunkRun, task: ChunkTask, units: Iterable[list[int]]) -> Flight:
        """The calls of a chunk, one for each unit; nothing has begun."""
        flight = cls(run, task, deque(), deque())
        for unit in units:
            if task.alone is None and (unit[0] == task.until or unit[0] in task.left):
                flight.ends = unit[0], LEFT if unit[0] in task.left else ""
                break
            flight.order += unit
            if unit[0] not in task.settled:
                flight.waiting.append(unit)
        return flight

    def note(self, i: int, outcome: Outcome) -> None:
        """Keep the outcome of a record until it is its turn."""
        self.outcomes[i] = outcome
        self.held_bytes += outcome.held_bytes

    def take(self, i: int) -> Outcome:
        """The outcome of a record, whose turn it is."""
        outcome = self.outcomes.pop(i)
        self.held_bytes -= outcome.held_bytes
        return outcome

    def drop(self) -> None:
        """Remove what records have written whose turn will not come."""
        for outcome in self.outcomes.values():
            if outcome.large is not None:
                outcome.large.drop()
        self.outcomes.clear()


def drop_failed(outcome: Outcome) -> None:
    """Remove what a failed record has written.

    Raises:
        StorageError: it has failed because nothing could be written.
    """
    if outcome.large is not None:
        outcome.large.drop()
        if outcome.large.storage_error is not None:
            raise outcome.large.storage_error
