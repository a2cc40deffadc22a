"""Micro-sharding: how a shard's records become chunks, and how long workers take for them."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shardkit as sk
from shardkit.plan.chunks import RECORD_COST_BYTES, assign_chunks
from shardkit.plan.sizes import CHUNK_BYTES, CHUNK_RECORDS

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

WAYS = ("even", "balanced", "dynamic")
# Records and workers: fewer, as many and more of the ones than of the others, a multiple of them or one more or less.
COUNTS = [1, 2, 3, 4, 15, 16, 17, 31, 376, 10_007]
WORKERS = [1, 2, 3, 16, 64]


def heavy_tailed(count: int, seed: int = 0) -> np.ndarray:
    """Sizes as a collection of recordings has them: most are small, a few are a hundred times as large."""
    random = np.random.default_rng(seed)
    return (random.pareto(1.3, count) * 100_000).clip(max=200_000_000).astype(np.int64)


def chunk_sizes(chunk: np.ndarray) -> np.ndarray:
    return np.bincount(chunk)


def loads(chunk: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return np.bincount(chunk, weights=costs)


def is_contiguous(chunk: np.ndarray) -> bool:
    return bool(((np.diff(chunk) == 0) | (np.diff(chunk) == 1)).all())


# ---- what all ways have in common ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("how", WAYS)
def test_chunks_are_numbered_without_gaps_and_none_is_empty(how: str, workers: int) -> None:
    for count in COUNTS:
        chunk = assign_chunks(heavy_tailed(count), how=how, workers=workers)
        assert chunk.dtype == np.int32
        assert len(chunk) == count
        assert chunk.min() == 0
        assert (chunk_sizes(chunk) > 0).all()


@pytest.mark.parametrize("how", WAYS)
def test_no_records(how: str) -> None:
    assert len(assign_chunks(np.zeros(0, np.int64), how=how, workers=4)) == 0


@pytest.mark.parametrize("how", WAYS)
def test_one_record(how: str) -> None:
    assert assign_chunks(np.array([5]), how=how, workers=4).tolist() == [0]


@pytest.mark.parametrize("how", WAYS)
def test_fewer_records_than_workers_are_a_chunk_each(how: str) -> None:
    assert sorted(assign_chunks(np.array([5, 5, 5]), how=how, workers=16).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("how", WAYS)
def test_empty_files_count_for_something(how: str) -> None:
    sizes = chunk_sizes(assign_chunks(np.zeros(1600, np.int64), how=how, workers=16))
    assert len(sizes) >= 16
    assert sizes.max() <= 100


@pytest.mark.parametrize("how", WAYS)
def test_the_same_input_gives_the_same_chunks(how: str) -> None:
    sizes = heavy_tailed(500)
    assert (assign_chunks(sizes, how=how, workers=7) == assign_chunks(sizes.copy(), how=how, workers=7)).all()


# ---- even ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_even_has_as_many_chunks_as_workers_and_sizes_that_differ_by_one(workers: int) -> None:
    for count in COUNTS:
        chunk = assign_chunks(heavy_tailed(count), how="even", workers=workers)
        sizes = chunk_sizes(chunk)
        assert len(sizes) == min(count, workers)
        assert sizes.max() - sizes.min() <= 1
        assert is_contiguous(chunk)


def test_even_does_not_make_24_chunks_of_47_files_on_16_cpus() -> None:
    assert sorted(chunk_sizes(assign_chunks(np.ones(47, np.int64), how="even", workers=16)).tolist()) == [2] + [3] * 15


# ---- balanced --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_balanced_packs_as_well_as_longest_processing_time_first_does(workers: int) -> None:
    for count in COUNTS:
        sizes = heavy_tailed(count, seed=count)
        costs = sizes + RECORD_COST_BYTES
        chunk = assign_chunks(sizes, how="balanced", workers=workers)
        load = loads(chunk, costs)
        assert len(load) == min(count, workers)
        # Graham's bound for this rule: 4/3 - 1/(3m) of the best possible, which is at least the mean and the longest,
        # and, with more records than bins, at least what two of the first m + 1 take together.
        best = max(costs.sum() / workers, costs.max())
        if count > workers:
            longest = np.sort(costs)[::-1]
            best = max(best, longest[workers - 1] + longest[workers])
        assert load.max() <= best * (4 / 3 - 1 / (3 * workers)) + 1


def test_balanced_beats_even_where_sizes_are_in_order() -> None:
    sizes = np.arange(1, 101) * 1_000_000
    even, balanced = (loads(assign_chunks(sizes, how=how, workers=4), sizes) for how in ("even", "balanced"))
    assert balanced.max() < 1.02 * sizes.sum() / 4
    assert even.max() > 1.7 * sizes.sum() / 4


# ---- dynamic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", WORKERS)
def test_dynamic_is_contiguous(workers: int) -> None:
    for count in COUNTS:
        assert is_contiguous(assign_chunks(heavy_tailed(count), how="dynamic", workers=workers))


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_dynamic_begins_large_and_ends_small(workers: int) -> None:
    sizes = np.full(20_000, 10_000)
    load = loads(assign_chunks(sizes, how="dynamic", workers=workers), sizes) / sizes.sum() * workers
    assert load[0] == pytest.approx(1 / 8, rel=0.05) or load[0] == pytest.approx(CHUNK_RECORDS / 20_000 * workers)
    assert load[-workers:].max() <= 1 / 60  # what a worker may be left alone with at the end
    assert (np.diff(load) <= 1e-4 * workers).all()  # never larger than the one before
    assert len(load) <= 64 * workers


def test_a_huge_record_is_a_chunk_of_its_own() -> None:
    sizes = np.full(1000, 10_000)
    sizes[500] = 5_000_000_000
    chunk = assign_chunks(sizes, how="dynamic", workers=4)
    assert (chunk == chunk[500]).sum() == 1


def test_a_chunk_is_never_so_large_that_a_crash_costs_much() -> None:
    many = chunk_sizes(assign_chunks(np.zeros(1_000_000, np.int64), how="dynamic", workers=1))
    assert many.max() <= CHUNK_RECORDS
    large = np.full(1000, 100_000_000)
    assert loads(assign_chunks(large, how="dynamic", workers=1), large).max() <= CHUNK_BYTES


def test_small_shards_are_not_cut_as_finely_as_if_they_were_alone(files: WriteFiles, tmp_path: Path) -> None:
    folder = files([f"day-{day:02d}/{n}" for day in range(40) for n in range(20)])
    plan = sk.Pipeline(function=len, input=folder, output=tmp_path / "out", shards={}, workers=2).plan()
    totals = plan.content["totals"]
    assert totals["shards"] == 40
    assert totals["chunks"] <= 2 * 64 + 40


# ---- how long workers take with them ---------------------------------------------------------------------------


def makespan(chunk: np.ndarray, seconds: np.ndarray, expected: np.ndarray, speeds: list[float]) -> float:
    """When the last of the workers is done, if chunks are handed out as workers come free, the costliest first."""
    free = [(0.0, number) for number in range(len(speeds))]
    work = loads(chunk, seconds)
    for i in np.argsort(-loads(chunk, expected), kind="stable"):
        at, number = heapq.heappop(free)
        heapq.heappush(free, (at + work[i] / speeds[number], number))
    return max(at for at, _ in free)


def compare(sizes: np.ndarray, seconds: np.ndarray, speeds: list[float]) -> dict[str, float]:
    """The time that each rule takes, as a multiple of the best possible."""
    expected = sizes + RECORD_COST_BYTES
    best = max(seconds.sum() / sum(speeds), seconds.max() / max(speeds))
    return {
        how: makespan(assign_chunks(sizes, how=how, workers=len(speeds)), seconds, expected, speeds) / best
        for how in WAYS
    }


MIXES: dict[str, Any] = {
    "heavy-tailed": heavy_tailed,
    "the large ones last": lambda count, seed: np.sort(heavy_tailed(count, seed)),
    "the large ones first": lambda count, seed: np.sort(heavy_tailed(count, seed))[::-1],
    "all the same": lambda count, seed: np.full(count, 50_000),
}


@pytest.mark.parametrize("workers", [2, 8, 32])
@pytest.mark.parametrize("mix", MIXES)
def test_dynamic_is_never_much_worse_than_the_others(mix: str, workers: int) -> None:
    random = np.random.default_rng(1)
    for seed in range(5):
        sizes = MIXES[mix](3000, seed)
        # What a record takes goes with its size, but not exactly.
        seconds = (sizes + RECORD_COST_BYTES) * random.lognormal(0, 0.7, len(sizes))
        took = compare(sizes, seconds, [1.0] * workers)
        assert took["dynamic"] <= 1.1 * min(took.values())
        assert took["dynamic"] <= 1.25


def test_dynamic_does_not_wait_for_a_slow_worker() -> None:
    for seed in range(5):
        sizes = heavy_tailed(3000, seed)
        took = compare(sizes, (sizes + RECORD_COST_BYTES).astype(float), [1.0] * 7 + [0.4])
        assert took["dynamic"] <= 1.15
        assert took["balanced"] >= 2


@pytest.mark.whole
def test_the_ways_differ_in_the_run_only_by_their_chunks(files: WriteFiles, tmp_path: Path) -> None:
    folder = files({f"{n:02d}": "x" * (n * 37 % 11) for n in range(30)})
    found = {}
    for how in WAYS:
        run = sk.run(lambda r: {"key": r.key, "n": r.bytes}, folder, tmp_path / how, chunks=how, workers=2, quiet=True)
        assert run.summary().records == {"listed": 30, "done": 30, "quarantined": 0, "skipped": 0}
        found[how] = sorted(map(str, run.dataset().to_table().to_pylist()))
    assert found["even"] == found["balanced"] == found["dynamic"]
