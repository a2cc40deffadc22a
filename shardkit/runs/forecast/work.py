"""From the timings of a sample to what each job of a plan will take, with the spread that the sample shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shardkit.plan.shards import by_shard
from shardkit.runs.forecast.service import JobWork
from shardkit.tables.arrays import numpy

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import pyarrow as pa

MANY_CHUNKS = 20  # for each worker: then the order in which workers take them no longer matters


@dataclass(frozen=True)
class RecordTimes:
    """What records of a sample took.

    Args:
        seconds: Of each, on one worker.
        bytes: Of each.
        chunk_s: What a chunk takes beside its records.
    """

    seconds: np.ndarray
    bytes: np.ndarray
    chunk_s: float = 0.0

    def drawn(self, sizes: np.ndarray, dice: np.random.Generator) -> np.ndarray:
        """What records of these sizes may take, in seconds.

        The sample is drawn again from itself, with repetitions, so that what it cannot know shows from draw to draw.
        From the draw follow a time that each record takes, and one for each byte; and how much single records deviate.
        """
        picked = dice.integers(0, len(self.seconds), len(self.seconds))
        seconds, sizes_there = self.seconds[picked], self.bytes[picked].astype(np.float64)
        each, per_byte = line_through(sizes_there, seconds)
        expected = each + per_byte * sizes_there
        ratios = np.divide(seconds, expected, out=np.ones_like(seconds), where=expected > 0)
        drawn: np.ndarray = (each + per_byte * sizes) * ratios[dice.integers(0, len(ratios), len(sizes))]
        return drawn


def line_through(sizes: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """The seconds for each record and for each byte that fit best; neither is below zero."""
    spread = sizes - sizes.mean()
    square = float(spread @ spread)
    per_byte = float(spread @ seconds) / square if square else 0.0
    if per_byte <= 0:
        return float(seconds.mean()), 0.0
    each = float(seconds.mean() - per_byte * sizes.mean())
    if each < 0:
        return 0.0, float(seconds.sum() / sizes.sum())
    return each, per_byte


class PlannedWork:
    """The chunks of a plan, ready for draws of what they take.

    Args:
        records: The plan's records, with ``bytes``, ``shard`` and ``chunk``.
        jobs: The shards of each job.
        workers: How many take chunks in each job.
        done: Shard and chunk of those that are taken over from earlier runs.
        shared: Whether jobs that are done do chunks of others.
        merge_share: Seconds for each byte of input that a job merges by itself.
    """

    def __init__(
        self,
        records: pa.Table,
        jobs: Sequence[Sequence[int]],
        *,
        workers: int,
        done: Collection[tuple[int, int]] = (),
        shared: bool = False,
        merge_share: float = 0.0,
    ) -> None:
        shard, chunk, sizes = (numpy(records[name]) for name in ("shard", "chunk", "bytes"))
        if done:
            width = max(int(chunk.max(initial=0)), *(number for _, number in done)) + 1
            taken = np.array([of * width + number for of, number in done], np.int64)
            left = ~np.isin(shard.astype(np.int64) * width + chunk, taken)
            shard, chunk, sizes = shard[left], chunk[left], sizes[left]
        order = np.lexsort((chunk, shard))
        self._sizes = sizes[order]
        keys = np.stack([shard[order], chunk[order]])
        self._chunk_starts = np.flatnonzero(np.append(True, (keys[:, 1:] != keys[:, :-1]).any(axis=0)))
        self._shard_of_chunk = keys[0][self._chunk_starts] if len(order) else np.zeros(0, np.int32)
        self._jobs, self._workers, self._shared = jobs, workers, shared
        self._shards = 1 + max((each for job in jobs for each in job), default=-1)
        self._merge_s = merge_share * np.bincount(shard, sizes, minlength=self._shards)

    def drawn(self, times: RecordTimes, dice: np.random.Generator) -> list[JobWork]:
        """What each job may take: one draw."""
        if not len(self._sizes):
            return [JobWork(float(self._merge_s[list(job)].max())) for job in self._jobs]
        chunk_s = np.add.reduceat(times.drawn(self._sizes, dice), self._chunk_starts) + times.chunk_s
        took, begins, longest, chunks = (np.zeros(self._shards) for _ in range(4))
        order, starts, counts = by_shard(self._shard_of_chunk)
        del order  # the chunks are in the order of their shards
        for number in np.flatnonzero(counts).tolist():
            mine = chunk_s[starts[number] : starts[number] + counts[number]]
            took[number], begins[number], longest[number] = span_of(mine, self._workers)
            chunks[number] = len(mine)
        took += self._merge_s
        shared = self._shared & (chunks > self._workers)
        return [self._job(list(job), took, begins, longest, shared) for job in self._jobs]

    def _job(
        self, shards: list[int], took: np.ndarray, begins: np.ndarray, longest: np.ndarray, shared: np.ndarray
    ) -> JobWork:
        last = shards[int(took[shards].argmax())]
        return JobWork(float(took[last]), float(begins[last]), float(longest[last]), bool(shared[last]))


def span_of(chunk_s: np.ndarray, workers: int) -> tuple[float, float, float]:
    """How long workers take who take one chunk after the other; when the longest chunk begins, and what it takes."""
    at = int(chunk_s.argmax())
    longest = float(chunk_s[at])
    if len(chunk_s) <= workers:
        return longest, 0.0, longest
    if workers == 1 or len(chunk_s) > MANY_CHUNKS * workers:
        begins = (np.cumsum(chunk_s) - chunk_s) / workers
        return float(max((begins + chunk_s).max(), chunk_s.sum() / workers)), float(begins[at]), longest
    import heapq

    free = [0.0] * workers
    begin = 0.0
    for number, seconds in enumerate(chunk_s.tolist()):
        if number == at:
            begin = free[0]
        heapq.heapreplace(free, free[0] + seconds)
    return max(free), begin, longest
