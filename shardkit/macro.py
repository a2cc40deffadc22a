"""Macro-sharding: groups to shards, and the plan of a run.

Planning is a pure function of a listing and a pipeline; the plan is plain data that a person can read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shardkit.arrays import arrow, numpy
from shardkit.micro import SMALLEST_SHARE, assign_chunks, record_costs

if TYPE_CHECKING:
    from shardkit.records import Records

PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    ``records`` is the table of records with, for each, its ``shard`` and ``chunk`` (both int32); ``content`` is what
    plan.json holds.
    """

    records: pa.Table
    content: dict[str, Any]

    @property
    def digest(self) -> str:
        """Tells whether two runs would do the same work."""
        return str(self.content["digest"])


def make_plan(
    records: Records,
    *,
    pipeline: dict[str, Any],
    function_digest: str,
    by_group: bool,
    chunks: str,
    workers: int,
    run_id: str,
    created: str,
) -> Plan:
    """Plan a run.

    Args:
        records: what the listing became.
        pipeline: the pipeline as plain data; goes into the plan as it is.
        function_digest: of the function's source.
        by_group: one shard a group; else all records are one shard.
        chunks: ``dynamic``, ``balanced`` or ``even``.
        workers: vCPUs that a shard's job has.
        run_id: names the run.
        created: the time, in ISO 8601.
    """
    table = records.table
    shard = _number_shards(table, by_group=by_group)
    chunk = np.zeros(len(table), np.int32)
    sizes = numpy(table["bytes"])
    # One machine's workers do all shards, so a small shard need not be cut as finely as if it were alone.
    least_cost = float(record_costs(sizes).sum()) * SMALLEST_SHARE / workers
    order = np.argsort(shard, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(shard[order]) > 0])
    shards = []
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        rows = order[start:stop]
        chunk[rows] = assign_chunks(sizes[rows], how=chunks, workers=workers, least_cost=least_cost)
        first = int(rows[0])
        shards.append(
            {
                "shard": int(shard[first]),
                "group": table["group"][first].as_py() if by_group else None,
                "records": len(rows),
                "bytes": int(sizes[rows].sum()),
                "chunks": int(chunk[rows].max()) + 1,
            }
        )
    table = table.append_column("shard", arrow(shard)).append_column("chunk", arrow(chunk))
    input_digest = _digest_table(table)
    content = {
        "version": PLAN_VERSION,
        "run_id": run_id,
        "created": created,
        "digest": digest_of({"work": work_of(pipeline), "function": function_digest, "input": input_digest}),
        "function_digest": function_digest,
        "input_digest": input_digest,
        "pipeline": pipeline,
        "workers": workers,
        "totals": {
            "objects_listed": records.objects_listed,
            "objects_left_out": records.objects_left_out,
            "left_out_sample": list(records.left_out_sample),
            "records": len(table),
            "bytes": int(sizes.sum()),
            "groups": len(table["group"].unique()),
            "shards": len(shards),
            "chunks": len(np.unique(shard.astype(np.int64) << 32 | chunk)),
        },
        "shards": shards,
    }
    return Plan(table, content)


def _number_shards(table: pa.Table, *, by_group: bool) -> np.ndarray:
    if not by_group:
        return np.zeros(len(table), np.int32)
    codes = table["group"].combine_chunks()
    codes = codes.indices if pa.types.is_dictionary(codes.type) else codes.dictionary_encode().indices
    return numpy(codes).astype(np.int32)


# What decides which records there are and what is computed from each. The rest of a pipeline may change between a
# run and its resumption: how fast it works, how much may fail, and all that pass 2 does.
WORK_FIELDS = ("input", "function", "records", "shards", "chunks")


def work_of(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The fields that a run and its resumption must have in common."""
    return {name: pipeline.get(name) for name in WORK_FIELDS}


def digest_of(value: Any) -> str:
    """The sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_table(table: pa.Table) -> str:
    """The sha256 of which objects there are, as which records, in which state."""
    digest = hashlib.sha256()
    for name in ("key", "bytes", "objects", "etags"):
        column = table[name]
        flat = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        for buffer in flat.buffers():
            if buffer is not None:
                digest.update(buffer)
    return digest.hexdigest()


def differences(plan: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In words, what keeps ``other`` from being the same work as ``plan``."""
    found = []
    ours, theirs = work_of(plan["pipeline"]), work_of(other["pipeline"])
    for name in (n for n in WORK_FIELDS if ours[n] != theirs[n]):
        found.append(f"{name} was {json.dumps(ours[name])} and is {json.dumps(theirs[name])}")  # noqa: PERF401  one of three sources
    if plan["function_digest"] != other["function_digest"]:
        found.append("the function's source has changed")
    if plan["input_digest"] != other["input_digest"] and ours["input"] == theirs["input"]:
        before, now = plan["totals"], other["totals"]
        found.append(
            f"the input has changed ({before['records']:,} records of {before['bytes']:,} bytes before, "
            f"{now['records']:,} of {now['bytes']:,} now)"
        )
    return found
