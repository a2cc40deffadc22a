"""Macro-sharding: groups to shards, shards to jobs, and the plan of a run.

Planning is a pure function of a listing and a pipeline; the plan is plain data that a person can read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.plan.changes import changes_of, markers_taken_over, still_taken, unchanged
from shardkit.plan.compare import partition_names
from shardkit.plan.cut import Cut, cut_chunks
from shardkit.plan.digests import digest_of, digest_of_records, work_digest, work_of
from shardkit.plan.groups import has_groups, with_dense_groups
from shardkit.plan.shards import describe_jobs, describe_shards, number_shards
from shardkit.runfolder.documents import FORMAT as PLAN_VERSION
from shardkit.tables.arrays import arrow, numpy, one_chunk

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.plan.compare import Comparison
    from shardkit.plan.records import Records

DATASETS_NAMED = 5  # of the folders of the input that are datasets, and so no input


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    ``records`` is the table of records with, for each, its ``shard`` and ``chunk`` (both int32); ``content`` is what
    plan.json holds; ``taken_over`` are the markers of chunks that earlier runs have done.
    """

    records: pa.Table
    content: dict[str, Any]
    taken_over: list[dict[str, Any]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Tells whether two runs would do the same work."""
        return str(self.content["digest"])

    def __str__(self) -> str:
        from shardkit.plan.describe import plan_text

        return plan_text(self.content)


def make_plan(
    records: Records,
    *,
    pipeline: dict[str, Any],
    function_digest: str,
    chunks: str,
    workers: int,
    run_id: str,
    created: str,
    own_instances: bool = False,
    by_day: bool = False,
    comparison: Comparison | None = None,
) -> Plan:
    """Plan a run.

    Args:
        records: what the listing became.
        pipeline: the pipeline as plain data; goes into the plan as it is. Its ``shards`` tell how to cut.
        function_digest: of the function's source.
        chunks: ``dynamic``, ``balanced`` or ``even``.
        workers: vCPUs that a shard's job has.
        run_id: names the run.
        created: the time, in ISO 8601.
        own_instances: every shard has an instance of its own; else the same workers do one shard after the other.
        by_day: every group is a partition of the dataset, so that no chunk may hold records of two.
        comparison: with what earlier runs have done; the plan leaves out partitions in which nothing has changed.

    Raises:
        PipelineError: single objects are to be dealt out, but a record has several.
    """
    rule = pipeline.get("shards")
    table, taken, rows = _with_changes(records.table, comparison, by_day=by_day)
    if not len(table):
        return Plan(table, _nothing_to_do(pipeline, comparison, run_id=run_id, created=created))
    shard = number_shards(table, rule)
    unit = numpy(one_chunk(table["group"]).indices).astype(np.int32) if by_day else shard
    taken = still_taken(taken, shard, unit, numpy(table["bytes"]), workers=workers)
    cut = Cut(chunks, workers, own_instances=own_instances)
    chunk = cut_chunks(table, shard, unit, taken, cut, by_day=by_day)
    table = table.append_column("shard", arrow(shard)).append_column("chunk", arrow(chunk))
    shards = describe_shards(table, grouped=has_groups(rule), named=rule is not None)
    jobs = describe_jobs(shards, together=rule is not None and rule["by"] == "s3key")
    input_digest = digest_of_records(table)
    content = {
        "version": PLAN_VERSION,
        "run_id": run_id,
        "created": created,
        "digest": digest_of({"work": work_of(pipeline), "function": function_digest, "input": input_digest}),
        "function_digest": function_digest,
        "input_digest": input_digest,
        "pipeline": pipeline,
        "workers": workers,
        "totals": _totals(records, table, shards, jobs),
        "shards": shards,
        "jobs": jobs,
        "by_day": by_day,
        "work": work_digest(pipeline, function_digest),
        **changes_of(comparison, table, taken, by_day=by_day),
        "unchanged": unchanged(comparison),
        "datasets_left_out": list(records.datasets_left_out[:DATASETS_NAMED]),
    }
    if comparison is None:
        return Plan(table, content)
    return Plan(table, content, markers_taken_over(comparison, taken, rows, shard, chunk))


def _totals(
    records: Records, table: pa.Table, shards: list[dict[str, Any]], jobs: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "objects_listed": records.objects_listed,
        "objects_left_out": records.objects_left_out,
        "left_out_sample": list(records.left_out_sample),
        "records": len(table),
        "bytes": sum(part["bytes"] for part in shards),
        "groups": sum(part["groups"] for part in shards),
        "shards": len(shards),
        "chunks": sum(part["chunks"] for part in shards),
        "jobs": len(jobs),
        "create_calls": len(jobs) + 1,  # the one more is pass 2
    }


def _with_changes(
    table: pa.Table, comparison: Comparison | None, *, by_day: bool
) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """The records of partitions in which something has changed.

    Also the marker that each is taken over with, or -1, and which rows of the listing these were.
    """
    if comparison is None:
        return table, np.full(len(table), -1, np.int32), np.zeros(0, np.int64)
    partition, names = partition_names(table, by_day=by_day)
    changed = np.array([comparison.changes[name].any for name in names], bool)
    rows = np.flatnonzero(changed[partition])
    kept = table if len(rows) == len(table) else table.take(arrow(rows))
    return with_dense_groups(kept), comparison.taken[rows], rows


def _nothing_to_do(
    pipeline: dict[str, Any], comparison: Comparison | None, *, run_id: str, created: str
) -> dict[str, Any]:
    none = dict.fromkeys(("records", "bytes", "groups", "shards", "chunks", "jobs", "create_calls"), 0)
    return {
        "version": PLAN_VERSION,
        "run_id": run_id,
        "created": created,
        "digest": "",
        "pipeline": pipeline,
        "totals": none,
        "shards": [],
        "jobs": [],
        "partitions": {},
        "left": comparison.left if comparison else [],
        "unchanged": unchanged(comparison),
    }
