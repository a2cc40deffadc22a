"""Work stealing: a job that has done its own shard does chunks of slower jobs. The rules are in `runfolder/claims.py`.

It claims a chunk only if it will be done with it before the job whose chunk it is, by what that one's heartbeat says;
so where all jobs are about as fast, nothing is claimed. It ends once there is nothing left to claim.
"""

from __future__ import annotations

import contextlib
import math
import random
import sys
import threading
import time
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from shardkit.errors import RunFailed, RunInterrupted, ShardkitError
from shardkit.micro import cost_of, run_chunks
from shardkit.plan.chunks import record_costs
from shardkit.runfolder import claims, heartbeats
from shardkit.runfolder.attempt import HEARTBEAT_S
from shardkit.runfolder.meters import Counts, StealMeter
from shardkit.runfolder.others import CLOSE_LOOK_S, Others
from shardkit.runfolder.stop import Stop
from shardkit.units import counted
from shardkit.workers.tally import Tally
from shardkit.workers.tasks import Chunk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import Heartbeat
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.limits import WorkLimits
    from shardkit.workers.work import Workers

WORTH_S = 2.0  # a job that will have ended by then is left alone
SOONER_SHARE = 0.75  # of the time that a job will still need: a chunk of it has to take less here
UNKNOWN_S = 2 * HEARTBEAT_S  # a shard that would take this job so long is worth a look before its job has a pace
LOOKED_AT = 256  # heartbeats at most, at each look: each costs a request
SHARDS_AT_ONCE = 4  # that are looked at closely
LAST_S = 10.0  # for the chunks in progress when its own time is over


def steal(ledger: Ledger, pool: Workers, limits: WorkLimits, attempt: Attempt, *, until: float = math.inf) -> int:
    """Do chunks of slower jobs as long as there are any; returns how many of their records have been done.

    What goes wrong with them does not concern this job, whose own work is done: it ends, and they are left to others.

    Args:
        ledger: Of this job's own shard.
        pool: The workers.
        limits: How long a record may take, and how many may fail.
        attempt: Of this job.
        until: When it has to end, on the clock of ``time.monotonic``.

    Raises:
        RunInterrupted: by SIGTERM.
    """
    stop = Stop()
    tally = Tally(pool.slots(), stop, before=Counts(0, 0, 0), max_quarantined=limits.max_quarantined(ledger.planned))
    thief = _Thief(ledger, attempt.name, workers=pool.size)
    with attempt.stealing(tally, stop, StealMeter(tally.counts)), _ending(stop, until):
        try:
            while not stop.asked and (first := thief.patiently(stop)) is not None:
                chunks, others, timeout_s = chain([first], thief.chunks()), thief.others, limits.timeout_s
                with others.watching():
                    run_chunks(
                        thief.folder,
                        pool,
                        chunks,
                        tally,
                        stop,
                        attempt=attempt,
                        timeout_s=timeout_s,
                        others=others,
                        ahead=pool.size,
                    )
        except RunInterrupted:
            raise
        except ShardkitError as error:
            sys.stderr.write(f"The rest is left to other jobs: {error}\n")
        if isinstance(stop.error, RunInterrupted):
            raise stop.error
    if records := tally.counts().records:
        sys.stderr.write(f"{counted(records, 'record')} done for slower jobs.\n")
    return records


@contextlib.contextmanager
def _ending(stop: Stop, until: float) -> Iterator[None]:
    """Ask for the end at that time."""
    if math.isinf(until):
        yield
        return
    end = RunFailed("The time of this job is nearly over.")
    timer = threading.Timer(max(until - time.monotonic(), 0.0), stop.ask, [end], {"patience_s": LAST_S})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Thief:
    """Finds and claims chunks of other jobs' shards."""

    def __init__(self, ledger: Ledger, by: str, *, workers: int) -> None:
        self.others = Others(ledger, by, closely=True)
        self._ledger = ledger
        self.folder: RunFolder = ledger.folder
        self._by = by
        self._cost_per_s = _pace(ledger)
        self._costs = np.bincount(ledger.shard, record_costs(ledger.bytes))
        self._workers = workers
        self._jobs = _Jobs(self.folder, by, self._expected_s)
        self._chunks: dict[int, list[tuple[int, np.ndarray, float]]] = {}  # of a shard, the last ones first
        self._planned: dict[tuple[int, int], int] = {}  # how many records a chunk has
        self._taken: set[tuple[int, int]] = set()
        self._holders: dict[tuple[int, int], str] = {}
        self._looked = -math.inf

    def patiently(self, stop: Stop) -> Chunk | None:
        """The next chunk; waits for one as long as jobs that have claimed chunks give no sign of life."""
        while (chunk := self._next()) is None:
            claimed = [chunk for chunk in self._candidates() if self._is_claimed(chunk)]
            for chunk in claimed:
                if self._jobs.is_gone(holder := self._holder(chunk)) and self._take_over(chunk, holder):
                    return chunk
            if stop.asked or not any(self._jobs.may_be_gone(self._holder(chunk)) for chunk in claimed):
                return None
            time.sleep(CLOSE_LOOK_S)
        return chunk

    def chunks(self) -> Iterator[Chunk]:
        """Chunks that are claimed at the moment at which they are asked for; ends if there is none then."""
        try:
            while (chunk := self._next()) is not None:
                yield chunk
        except ShardkitError as error:  # joblib would lose it
            sys.stderr.write(f"No more is claimed of other jobs: {error}\n")

    def _next(self) -> Chunk | None:
        """The first chunk that nobody has claimed."""
        self._look()
        for chunk in self._candidates():
            if not self._is_claimed(chunk) and claims.claim(self.folder, chunk.shard, chunk.number, self._by):
                self._taken.add((chunk.shard, chunk.number))
                return chunk
        return None

    def _candidates(self) -> Iterator[Chunk]:
        """Open chunks that this job would do sooner than their own, with their open records."""
        for beat in self._jobs.slow():
            shard, sooner_s = int(beat["shard"]), SOONER_SHARE * self._jobs.left_s(beat)
            for number, records, cost in self._chunks.get(shard, ()):
                left = self.others.open(records)
                if len(left) and (shard, number) not in self._taken and cost <= sooner_s * self._cost_per_s:
                    is_whole = len(left) == self._planned[shard, number]
                    yield Chunk(shard, number, left, is_whole, self._jobs.latest[shard])

    def _is_claimed(self, chunk: Chunk) -> bool:
        return chunk.number in self.others.claimed(chunk.shard)

    def _holder(self, chunk: Chunk) -> str:
        """The attempt that has claimed a chunk."""
        key = chunk.shard, chunk.number
        if key not in self._holders:
            self._holders[key] = claims.holder(self.folder, *key)
        return self._holders[key]

    def _take_over(self, chunk: Chunk, holder: str) -> bool:
        key = chunk.shard, chunk.number
        if not claims.take_over(self.folder, *key, self._by, instead_of=holder):
            del self._holders[key]  # somebody else has
            return False
        self._taken.add(key)
        return True

    def _expected_s(self, shard: int) -> float:
        return float(self._costs[shard]) / (self._cost_per_s * self._workers)

    def _look(self) -> None:
        if time.monotonic() - self._looked < CLOSE_LOOK_S:
            return
        self._jobs.look()
        for beat in self._jobs.slow():
            shard = int(beat["shard"])
            if shard not in self._chunks and len(self.others.watched) < SHARDS_AT_ONCE:
                self._watch(shard)
        self.others.look(unless_s=CLOSE_LOOK_S / 2)
        self._looked = time.monotonic()

    def _watch(self, shard: int) -> None:
        ledger = self._ledger
        settled = [ledger.records_of(marker) for marker in self.folder.taken_over([shard])]
        chunks = [
            (number, np.setdiff1d(records, np.concatenate(settled)) if settled else records)
            for number, records in ledger.planned_chunks(shard).items()
        ]
        self._planned |= {(shard, number): len(records) for number, records in ledger.planned_chunks(shard).items()}
        costs = [(number, records, cost_of(ledger, records)) for number, records in chunks if len(records)]
        self._chunks[shard] = sorted(costs, key=lambda chunk: (chunk[2], -chunk[0]))
        if costs:
            self.others.watch(shard, np.concatenate([records for _, records, _ in costs]))


def _pace(ledger: Ledger) -> float:
    """What a worker of this job does in a second, in the unit of `cost_of`; infinite if it has done nothing itself."""
    own = [(marker, ids) for marker, ids in ledger.settled() if not marker.get("taken_over") and len(ids)]
    seconds = sum(marker.get("seconds", 0.0) for marker, _ in own)
    return sum(cost_of(ledger, ids) for _, ids in own) / seconds if seconds else math.inf


class _Jobs:
    """The latest attempts of a run's jobs, as their heartbeats show them.

    ``expected_s`` says how long a shard would take the job that looks.
    """

    def __init__(self, folder: RunFolder, by: str, expected_s: Callable[[int], float]) -> None:
        self.latest: dict[int, int] = {}
        self._folder = folder
        self._expected_s = expected_s
        self._own = heartbeats.attempt_of(by)[0]
        self._beats: dict[str, Heartbeat] = {}  # by the attempt's name, as they were read last
        self._seen: dict[str, tuple[str, float, bool]] = {}  # their states, since when, and whether they have changed
        self._unread: set[str] = set()
        self._ages_s: dict[str, float] = {}

    def look(self) -> None:
        """Read the heartbeats that have changed.

        Raises:
            StorageError: they cannot be listed or read.
        """
        now, entries = time.monotonic(), self._folder.files.entries(heartbeats.FOLDER)
        newest = max((entry.modified for entry in entries), default=0.0)  # all by one clock, that of the store
        for entry in entries:
            name = entry.key.rpartition("/")[2].removesuffix(".json")
            shard, number = heartbeats.attempt_of(name)
            if not shard.isdecimal() or shard == self._own:
                continue
            self.latest[int(shard)] = max(number, self.latest.get(int(shard), 0))
            self._ages_s[name] = newest - entry.modified
            state, _, _ = self._seen.get(name, ("", 0.0, False))
            if state != entry.etag:
                self._seen[name] = entry.etag, now, bool(state)
                self._unread.add(name)
        self._unread = set(filter(self._is_latest, self._unread))
        some = random.sample(sorted(self._unread), min(len(self._unread), LOOKED_AT))
        names = [f"{heartbeats.FOLDER}/{name}.json" for name in some]
        for name, data in zip(some, self._folder.files.read_many(names), strict=True):
            self._beats[name] = heartbeats.parsed(self._folder, f"{heartbeats.FOLDER}/{name}.json", data)
        self._unread -= set(some)

    def _is_latest(self, name: str) -> bool:
        shard, number = heartbeats.attempt_of(name)
        return self.latest.get(int(shard)) == number

    def slow(self) -> list[Heartbeat]:
        """The jobs that will be at their own shards for a while, as they were when they last wrote; the slowest first.

        Those whose attempt has died are among them, until the next one has begun.
        """
        beats = [beat for name, beat in self._beats.items() if self._is_latest(name)]
        slow = [
            beat
            for beat in beats
            if beat["state"] in {"running", "interrupted"}
            and beat.get("phase") == "pass 1"
            and self.left_s(beat) > WORTH_S
        ]
        return sorted(slow, key=self.left_s, reverse=True)

    def left_s(self, beat: Heartbeat) -> float:
        """How long a job will be at its own shard, by what it says; before it has done a record, by this job's pace."""
        if "left_s" in beat:
            age_s = self._ages_s.get(f"{beat['shard']}-{beat['attempt']:04d}", 0.0)
            return beat["left_s"] - min(age_s, HEARTBEAT_S)  # one that is older is of a job that has died
        here_s = self._expected_s(int(beat["shard"]))
        if "records" in beat:
            return max(here_s, beat.get("seconds", 0.0))
        return here_s if here_s >= UNKNOWN_S else 0.0  # it has only just begun

    def is_gone(self, attempt: str) -> bool:
        """Whether an attempt that has claimed something has ended, or has given no sign of life for long."""
        shard, number = heartbeats.attempt_of(attempt)
        if not shard.isdecimal() or self.latest.get(int(shard), 0) > number or attempt not in self._seen:
            return True
        beat = self._beats.get(attempt)
        if beat is not None and beat["state"] != "running":
            return True
        return time.monotonic() - self._seen[attempt][1] >= claims.CLAIM_S

    def may_be_gone(self, attempt: str) -> bool:
        """Whether an attempt has not been seen alive yet, so that its claims may become void."""
        return self.is_gone(attempt) or not self._seen[attempt][2]
