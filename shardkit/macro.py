"""Macro-sharding: groups become shards, shards become jobs, and all of it together is the plan of a run.

    records  1 2 | 3 | 4 5 | 6    from the listing of the input        (plan/records.py, plan/join.py)
    groups   A   | B | C   | D    what has to stay in one job          (plan/groups.py)
    shards   0       | 1          one or more whole groups             (plan/shards.py)
    chunks   0 | 1   | 0   | 1    what one worker takes at a time      (plan/chunks.py, plan/cut.py)
    jobs     0       | 1          each does a shard, or all side by side on instances of their own

Planning is a pure function: the same listing and the same pipeline always give the same plan. It writes nothing, it
starts nothing, and the plan is plain data that a person can read before anything runs. The run's input is listed by
`shardkit.runs.planning`, which calls this; what it plans is run here or on an engine (runs/here.py, runs/on_engine.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shardkit.plan.changes import changed_records, changes_of, markers_taken_over, still_taken, unchanged
from shardkit.plan.cut import Cut, cut_chunks
from shardkit.plan.digests import digest_of, digest_of_records, work_digest, work_of
from shardkit.plan.groups import has_groups
from shardkit.plan.plan import Plan, nothing_to_do, totals
from shardkit.plan.shards import describe_jobs, describe_shards, number_shards
from shardkit.runfolder.documents import FORMAT
from shardkit.tables.arrays import arrow, numpy, one_chunk

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.plan.compare import Comparison
    from shardkit.plan.records import Records
    from shardkit.runfolder.document_types import PlanDocument

DATASETS_NAMED = 5  # of the folders of the input that are datasets, and so no input


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
    max_jobs: int | None = None,
    by_day: bool = False,
    comparison: Comparison | None = None,
    at_once: int = 1,
) -> Plan:
    """Plan a run.

    Args:
        records: the records of the input, with their groups.
        pipeline: the pipeline as plain data; the plan repeats it. Its ``shards`` say how to cut.
        function_digest: a digest of the function's source.
        chunks: ``dynamic``, ``balanced`` or ``even``.
        workers: how many vCPUs a shard's job has.
        run_id: the name of the run.
        created: the time, in ISO 8601.
        own_instances: every shard has an instance of its own; else the same workers do one shard after the other.
        max_jobs: how many jobs there may be at most, whatever ``shards`` say.
        by_day: every group is a partition of the dataset, so that no chunk may hold records of two.
        at_once: how many records a worker is at together.
        comparison: with what earlier runs have done; the plan leaves out partitions in which nothing has changed.

    Raises:
        PipelineError: single objects are to be dealt out, but a record has several.
    """
    # Records: only those of days (or of the whole input) in which something has changed since the last run.
    table, taken, rows = changed_records(records.table, comparison, by_day=by_day)
    about: dict[str, Any] = {"run_id": run_id, "created": created, "workers": workers}
    if not len(table):
        return Plan(table, nothing_to_do(pipeline, comparison, **about))

    # Groups to shards: the shard of each record.
    shard = number_shards(table, pipeline.get("shards"), max_jobs=max_jobs)

    # Shards to chunks: the chunk of each record. Chunks of earlier runs whose records still stand are taken over.
    cut = Cut(chunks, workers, own_instances=own_instances, at_once=at_once)
    taken, chunk = _number_chunks(table, shard, taken, cut, by_day=by_day)
    table = table.append_column("shard", arrow(shard)).append_column("chunk", arrow(chunk))

    # Shards to jobs, and all of it as plain data.
    about |= {"pipeline": pipeline, "function_digest": function_digest, "by_day": by_day}
    content = _document(records, table, comparison, taken=taken, **about)
    markers = markers_taken_over(comparison, taken, rows, shard, chunk) if comparison is not None else []
    return Plan(table, content, markers)


def _number_chunks(
    table: pa.Table, shard: np.ndarray, taken: np.ndarray, cut: Cut, *, by_day: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The marker that each record is taken over with, or -1, and the chunk of each."""
    unit = numpy(one_chunk(table["group"]).indices).astype(np.int32) if by_day else shard
    taken = still_taken(taken, shard, unit, numpy(table["bytes"]), workers=cut.workers)
    return taken, cut_chunks(table, shard, unit, taken, cut, by_day=by_day)


def _document(
    records: Records,
    table: pa.Table,
    comparison: Comparison | None,
    *,
    pipeline: dict[str, Any],
    function_digest: str,
    workers: int,
    run_id: str,
    created: str,
    by_day: bool,
    taken: np.ndarray,
) -> PlanDocument:
    """The plan as plain data, with its jobs: one for each shard, or one for all of them."""
    rule = pipeline.get("shards")
    shards = describe_shards(table, grouped=has_groups(rule), named=rule is not None)
    jobs = describe_jobs(shards, together=rule is not None and rule["by"] == "s3key")

    # The digest is what a resumption compares: the same work by the same function on the same records.
    input_digest = digest_of_records(table)
    return {
        "version": FORMAT,
        "run_id": run_id,
        "created": created,
        "digest": digest_of({"work": work_of(pipeline), "function": function_digest, "input": input_digest}),
        "function_digest": function_digest,
        "input_digest": input_digest,
        "pipeline": pipeline,
        "workers": workers,
        "totals": totals(records, table, shards, jobs),
        "shards": shards,
        "jobs": jobs,
        "by_day": by_day,
        "work": work_digest(pipeline, function_digest),
        "form": {},
        "merge_digest": "",
        "partitions": changes_of(comparison, table, taken, by_day=by_day),
        "based_on": comparison.based_on if comparison else {},
        "dropped": comparison.dropped if comparison else [],
        "left": comparison.left if comparison else [],
        "unchanged": unchanged(comparison),
        "datasets_left_out": list(records.datasets_left_out[:DATASETS_NAMED]),
        "lists": [],
    }
