"""When, where and for how long each record and each chunk of a run was worked on, according to its markers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.runfolder.ledger import Ledger
from shardkit.tables.arrays import arrow
from shardkit.tables.number_text import numbers_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder

US = 1_000_000
OUTCOMES = ["done", "quarantined"]
UNKNOWN = np.iinfo(np.int64).min


@dataclass(frozen=True)
class RunTimings:
    """What a run's markers say about time, as two tables.

    ``records`` has a row for each time that a record was run to its end; a record that was tried again after it had
    been in quarantine has a row for each try. The columns: ``record`` (the key), ``shard``, ``chunk``, ``job`` (the
    name, if the run has jobs), ``attempt`` (of the run or the job), ``worker``, ``begin`` (UTC), ``seconds``,
    ``bytes`` (of the objects), ``rows``, and ``outcome``, which is ``done`` or ``quarantined``.

    ``chunks`` has a row for each committed chunk, in order of time: ``shard``, ``chunk``, ``job``, ``attempt``,
    ``worker``, ``begin``, ``end``, ``records``, ``quarantined``, ``rows``, ``bytes_in``, ``bytes_out`` and
    ``peak_memory_bytes``, the most that the worker's process has had meanwhile.

    What is taken over from earlier runs is in neither. Earlier versions did not note the worker and the times; these
    are null.
    """

    records: pa.Table
    chunks: pa.Table

    @classmethod
    def of(cls, folder: RunFolder) -> RunTimings:
        """The timings of one run."""
        return cls.of_ledger(Ledger(folder))

    @classmethod
    def of_ledger(cls, ledger: Ledger) -> RunTimings:
        """The same, where the ledger has been read."""
        settled = [(marker, ids) for marker, ids in ledger.settled() if not marker.get("taken_over")]
        return cls(_records(ledger, settled), _chunks([marker for marker, _ in settled]))


def chunk_timings(folder: RunFolder) -> pa.Table:
    """The timings of a run's chunks alone."""
    return _chunks([marker for marker in Ledger(folder).markers if not marker.get("taken_over")])


def _chunks(markers: list[Marker]) -> pa.Table:
    import pyarrow as pa

    timings = [marker.get("timings") for marker in markers]
    begins = [UNKNOWN if each is None else round(each["begin_s"] * US) for each in timings]
    ends = [UNKNOWN if each is None else round(each["end_s"] * US) for each in timings]
    chunks = pa.table(
        {
            **_origin(markers, np.arange(len(markers))),
            "begin": _times(np.array(begins, np.int64)),
            "end": _times(np.array(ends, np.int64)),
            "records": _numbers([marker["records"]["listed"] for marker in markers]),
            "quarantined": _numbers([marker["records"]["quarantined"] for marker in markers]),
            "rows": _numbers([marker["rows"] for marker in markers]),
            **{
                name: _nullable(np.array([marker.get(name, UNKNOWN) for marker in markers], np.int64))
                for name in ("bytes_in", "bytes_out", "peak_memory_bytes")
            },
        }
    )
    return chunks.sort_by([("begin", "ascending")])


def _records(ledger: Ledger, settled: list[tuple[Marker, np.ndarray]]) -> pa.Table:
    import pyarrow as pa

    nothing = np.zeros(0, np.int64)
    numbers = [(nothing,) * 5, *((ids, *_record_numbers(marker, ids)) for marker, ids in settled)]
    ids, begins, durations, rows, failed = (np.concatenate(each) for each in zip(*numbers, strict=True))
    chunk = np.repeat(np.arange(len(settled)), [len(ids) for _, ids in settled])
    return pa.table(
        {
            "record": ledger.folder.records(["key"])["key"].take(arrow(ids)),
            **_origin([marker for marker, _ in settled], chunk),
            "begin": _times(begins),
            "seconds": pa.array(durations / US, mask=durations == UNKNOWN),
            "bytes": arrow(ledger.bytes[ids]),
            "rows": _nullable(rows),
            "outcome": _coded(OUTCOMES, failed),
        }
    )


def _record_numbers(marker: Marker, ids: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of each record of a chunk: when it began, how long it took, its rows, and whether it failed."""
    failed = np.isin(ids, [entry["record"] for entry in marker["quarantine"]])
    timings = marker.get("timings")
    unknown = np.full(len(ids), UNKNOWN)
    if timings is None:
        return unknown, unknown, unknown, failed
    try:
        gaps, durations, rows = map(numbers_of, (timings["gaps_us"], timings["durations_us"], timings["rows"]))
    except ValueError:  # somebody has changed the marker
        return unknown, unknown, unknown, failed
    if not len(gaps) == len(durations) == len(rows) == len(ids):
        return unknown, unknown, unknown, failed
    begins = round(timings["begin_s"] * US) + np.cumsum(gaps + durations) - durations
    return begins, durations, rows, failed


def _origin(markers: list[Marker], chunk: np.ndarray) -> dict[str, Any]:
    """The columns that say where a record or a chunk was worked on; ``chunk`` are the numbers of markers."""
    shards, numbers, attempts = (
        arrow(np.array([marker[name] for marker in markers], np.int32)[chunk]) for name in ("shard", "chunk", "attempt")
    )
    timings = [marker.get("timings") for marker in markers]
    jobs = [each["job"] if each is not None else None for each in timings]
    workers = [each["worker"] if each is not None else None for each in timings]
    return {
        "shard": shards,
        "chunk": numbers,
        "job": _repeated(jobs, chunk),
        "attempt": attempts,
        "worker": _repeated(workers, chunk),
    }


def _repeated(names: Sequence[str | None], chunk: np.ndarray) -> pa.DictionaryArray:
    """The names of the markers, for each record."""
    distinct = list(dict.fromkeys(name for name in names if name is not None))
    places = {name: place for place, name in enumerate(distinct)}
    codes = np.array([-1 if name is None else places[name] for name in names], np.int32)
    return _coded(distinct, codes[chunk])


def _coded(names: list[str], codes: np.ndarray) -> pa.DictionaryArray:
    """Names by their numbers; -1 is null."""
    import pyarrow as pa

    indices = pa.array(codes.astype(np.int32), mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string()))


def _times(us: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return _nullable(us).cast(pa.timestamp("us", "UTC"))


def _nullable(numbers: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(numbers, mask=numbers == UNKNOWN)


def _numbers(values: list[int]) -> pa.Array:
    return arrow(np.array(values, np.int64))
