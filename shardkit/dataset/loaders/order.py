"""In which order a loader reads the rows of a run, and which of them: each row once an epoch, over all readers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from shardkit.dataset.loaders.rows import BATCH_ROWS
from shardkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.dataset.loaders.rows import Piece, Rows

# To mix rows, so many places of the dataset are read side by side, and so many bytes of files from each at once.
PLACES = 4
STEP_BYTES = 4 << 20


@dataclass(frozen=True)
class Share:
    """One of several readers among whom the rows are dealt: a worker of a rank."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    def of(self, rows: int, *, even: bool) -> tuple[int, int]:
        """Which of so many rows are the reader's, from where to where; ``even``: as many as for all other ranks."""
        rows -= rows % self.ranks if even else 0
        begin, end = _part(0, rows, self.rank, self.ranks)
        return _part(begin, end, self.worker, self.workers)


def _part(begin: int, end: int, number: int, of: int) -> tuple[int, int]:
    return begin + (end - begin) * number // of, begin + (end - begin) * (number + 1) // of


@dataclass(frozen=True)
class Step:
    """Some rows of a piece that are read at once."""

    piece: Piece
    begin: int
    end: int


@dataclass(frozen=True)
class Order:
    """The order of the rows in one epoch: as they lie in the files, or shuffled."""

    rows: Rows
    shuffle: bool
    seed: int
    epoch: int

    def windows(self, share: Share, *, even: bool) -> Iterator[tuple[Step | None, ...]]:
        """What one reader reads, one after the other: the rows of each window are mixed if they are shuffled.

        A window has a step from each of up to `PLACES` places, or None where a place is at its end.
        """
        begin, end = share.of(sum(self.rows.counts), even=even)
        if not self.shuffle:
            return ((step,) for step in self._steps(begin, end))
        places = [self._steps(*_part(begin, end, place, PLACES)) for place in range(PLACES)]
        return itertools.zip_longest(*places)

    def mixed(self, window: int, rows: int, share: Share) -> pa.Array | None:
        """The order of the rows in a window of a reader; None if they stay as they are."""
        if not self.shuffle:
            return None
        return pa.array(self._chance(1, share.rank, share.worker, window).permutation(rows))

    def _steps(self, begin: int, end: int) -> Iterator[Step]:
        """The rows from one place in the epoch to another, a few at a time."""
        counts = self.rows.counts
        files = self._chance(2).permutation(len(counts)).tolist() if self.shuffle else range(len(counts))
        start = 0
        for file in files:
            if start < end and start + counts[file] > begin:
                yield from self._steps_in(file, begin - start, end - start)
            start += counts[file]

    def _steps_in(self, file: int, begin: int, end: int) -> Iterator[Step]:
        at_once = self._rows_at_once(file)
        pieces = self.rows.pieces(file)
        if self.shuffle:
            pieces = [pieces[place] for place in self._chance(3, file).permutation(len(pieces))]
        start = 0
        for piece in pieces:
            first, last = max(begin - start, 0), min(end - start, piece.rows)
            for row in range(first, last, at_once):
                yield Step(piece, row, min(row + at_once, last))
            start += piece.rows

    def _rows_at_once(self, file: int) -> int:
        bytes_of_row = max(self.rows.sizes[file] // max(self.rows.counts[file], 1), 1)
        return min(max(STEP_BYTES // bytes_of_row, 1), BATCH_ROWS)

    def _chance(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, *what])


class Cursor:
    """Reads steps that follow each other without opening a piece again."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._piece: Piece | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._at = 0  # the row of the piece that the batch begins with
        self._batch: pa.RecordBatch | None = None

    def read(self, step: Step) -> list[pa.RecordBatch]:
        """The rows of a step."""
        if step.piece != self._piece or step.begin < self._at:
            self._piece, self._at, self._batch = step.piece, 0, None
            self._batches = self._rows.batches(step.piece)
        found, row = [], step.begin
        while row < step.end:
            batch = self._batch = self._batch if self._batch is not None else self._next(step)
            if (have := self._at + len(batch)) > row:
                taken = batch.slice(row - self._at, step.end - row)
                found.append(taken)
                row += len(taken)
            if have <= step.end:
                self._at, self._batch = have, None
        return found

    def _next(self, step: Step) -> pa.RecordBatch:
        batch = next(self._batches, None)
        if batch is None:
            path = self._rows.paths[step.piece.file]
            raise StorageError(f"{self._rows.uri}/{path} has {self._at:,} rows in a piece, and more are noted for it.")
        return batch
