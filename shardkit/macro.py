"""Macro-sharding: groups to shards, shards to jobs, and the plan of a run.

Planning is a pure function of a listing and a pipeline; the plan is plain data that a person can read.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import PipelineError
from shardkit.micro import (
    CHUNK_BYTES,
    CHUNK_RECORDS,
    SMALLEST_SHARE,
    assign_chunks,
    record_costs,
)
from shardkit.plan.changes import changes_of, markers_taken_over, number_within, still_taken, unchanged
from shardkit.plan.compare import partition_names
from shardkit.plan.groups import has_groups, with_dense_groups
from shardkit.runfolder.documents import FORMAT as PLAN_VERSION
from shardkit.storage.base import ACCESS_FIELDS
from shardkit.tables.arrays import arrow, numpy, one_chunk
from shardkit.tables.packing import evenly, in_order, longest_first
from shardkit.tables.spill import batches_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from shardkit.plan.compare import Comparison
    from shardkit.plan.records import Records

DATASETS_NAMED = 5  # of the folders of the input that are datasets, and so no input
GROUPS_NAMED = 5  # of a shard's groups, those that the plan names; records.parquet has them all


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

        return plan_text(self)


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
    shard = _number_shards(table, rule)
    unit = numpy(one_chunk(table["group"]).indices).astype(np.int32) if by_day else shard
    taken = still_taken(taken, shard, unit, numpy(table["bytes"]), workers=workers)
    cut = Cut(chunks, workers, own_instances=own_instances)
    chunk = _cut(table, shard, unit, taken, cut, by_day=by_day)
    table = table.append_column("shard", arrow(shard)).append_column("chunk", arrow(chunk))
    shards = _describe_shards(table, grouped=has_groups(rule), named=rule is not None)
    jobs = _describe_jobs(shards, together=rule is not None and rule["by"] == "s3key")
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
            "bytes": sum(part["bytes"] for part in shards),
            "groups": sum(part["groups"] for part in shards),
            "shards": len(shards),
            "chunks": sum(part["chunks"] for part in shards),
            "jobs": len(jobs),
            "create_calls": len(jobs) + 1,  # the one more is pass 2
        },
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


@dataclass(frozen=True)
class Cut:
    """How records are cut into chunks."""

    how: str
    workers: int
    own_instances: bool


def _cut(
    table: pa.Table, shard: np.ndarray, unit: np.ndarray, taken: np.ndarray, cut: Cut, *, by_day: bool
) -> np.ndarray:
    """The chunk of each record: that of an earlier run which it is taken over with, else a new one of its unit."""
    chunk = np.zeros(len(table), np.int32)
    free, sizes = taken < 0, numpy(table["bytes"])
    if free.all():
        chunk = _number_chunks(sizes, unit, cut)
    elif free.any():
        dense, number = np.unique(unit[free], return_inverse=True)
        # What is left of a unit is not cut finer than all of it would be, or each redo would leave more small chunks.
        least = np.bincount(unit, record_costs(sizes))[dense] * (SMALLEST_SHARE / cut.workers)
        chunk[free] = _number_chunks(sizes[free], number.astype(np.int32), cut, least=least)
    if by_day or not free.all():
        chunk = number_within(shard, unit, taken, chunk)
    return chunk


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


def work_digest(pipeline: dict[str, Any], function_digest: str, *, named: bool = True) -> str:
    """Tells whether the same would be computed from the same record.

    ``function_digest`` is of a whole module, so the function's name counts too. Datasets of before were made without
    (not ``named``).
    """
    return digest_of(
        {
            "function": function_digest,
            "records": pipeline.get("records"),
            "input": pipeline.get("input", {}).get("uri"),
            "schema": pipeline.get("output", {}).get("schema"),
        }
        | ({"name": pipeline.get("function")} if named else {})
    )


def _number_shards(table: pa.Table, rule: Mapping[str, Any] | None) -> np.ndarray:
    """The shard of each record; shards are numbered by their first groups, or by their first records."""
    count = len(table)
    if rule is None:
        return np.zeros(count, np.int32)
    if rule["by"] == "s3key":
        _check_single_objects(table)
        dealt: np.ndarray = np.arange(count, dtype=np.int32) % np.int32(min(rule["instances"], count))
        return dealt
    # A record counts for a byte more than it has, so that empty ones are spread too.
    sizes = numpy(table["bytes"]) + 1
    if rule["by"] == "size":
        wanted = rule["count"] if "count" in rule else -(-int(sizes.sum() - count) // rule["target"])
        return evenly(sizes, bins=min(max(wanted, 1), count))
    group: np.ndarray = numpy(one_chunk(table["group"]).indices)
    groups = int(group.max()) + 1
    if groups <= rule.get("max_jobs", groups):
        return group
    of_groups = np.zeros(groups, np.int64)
    np.add.at(of_groups, group, sizes)
    packed: np.ndarray = in_order(longest_first(of_groups, bins=rule["max_jobs"]))[group]
    return packed


def _check_single_objects(table: pa.Table) -> None:
    objects = numpy(pc.list_value_length(table["objects"]))
    if objects.max() == 1:
        return
    several = np.flatnonzero(objects > 1)
    are = "is" if len(several) == 1 else "are"
    example = table.slice(int(several[0]), 1).to_pylist()[0]
    names = ", ".join(example["objects"][:3]) + (", ..." if len(example["objects"]) > 3 else "")
    raise PipelineError(
        f"shards: by: s3key deals out objects one by one and keeps none together, but {len(several):,} of "
        f"{len(table):,} records {are} of several objects, such as {example['key']} ({names}); an instance could get "
        "a record in part.",
        hint="Use by: size, with count for the number of jobs, or by: directory or date: these keep records whole.",
    )


def _number_chunks(sizes: np.ndarray, shard: np.ndarray, cut: Cut, *, least: np.ndarray | None = None) -> np.ndarray:
    """The chunk of each record within its shard; ``least`` is what a chunk of each shard costs at the least."""
    # Workers that do all shards need not have a small one cut as finely as if it were alone.
    whole_cost = float(record_costs(sizes.sum(), len(sizes)))
    least_cost = 0.0 if cut.own_instances else whole_cost * SMALLEST_SHARE / cut.workers
    chunk = np.zeros(len(sizes), np.int32)
    order, starts, counts = _by_shard(shard)
    whole = counts == 1
    if cut.how == "dynamic":
        total = record_costs(np.add.reduceat(sizes[order], starts), counts)
        whole |= (total <= min(least_cost, CHUNK_BYTES)) & (counts <= CHUNK_RECORDS)
    for i in np.flatnonzero(~whole):
        among = slice(starts[i], starts[i] + counts[i])
        rows = among if isinstance(order, slice) else order[among]
        wanted = least_cost if least is None else max(least_cost, float(least[i]))
        chunk[rows] = assign_chunks(sizes[rows], how=cut.how, workers=cut.workers, least_cost=wanted)
    return chunk


def _by_shard(shard: np.ndarray) -> tuple[np.ndarray | slice, np.ndarray, np.ndarray]:
    """Records in the order of their shards, where each shard begins in it, and how many records it has."""
    in_order = (shard[1:] >= shard[:-1]).all()
    order = slice(None) if in_order else np.argsort(shard, kind="stable")
    counts = np.bincount(shard)
    return order, np.cumsum(counts) - counts, counts


def _describe_shards(table: pa.Table, *, grouped: bool, named: bool) -> list[dict[str, Any]]:
    """The shards as plain data; ``named`` is whether one that is a single whole group goes by its name."""
    shard = numpy(table["shard"])
    order, starts, records = _by_shard(shard)
    size = np.add.reduceat(numpy(table["bytes"])[order], starts).tolist()
    chunks = (np.maximum.reduceat(numpy(table["chunk"])[order], starts) + 1).tolist()
    names, ends = (
        _names_by_shard(one_chunk(table["group"]), shard) if grouped else ([], np.zeros(len(records), np.int64))
    )
    begin = 0
    found = []
    for number, (end, count) in enumerate(zip(ends.tolist(), records.tolist(), strict=True)):
        found.append(
            {
                "shard": number,
                "groups": end - begin,
                "group_names": names[begin : min(end, begin + GROUPS_NAMED)],
                "group": names[begin] if named and end - begin == 1 else None,
                "records": count,
                "bytes": size[number],
                "chunks": chunks[number],
            }
        )
        begin = end
    return found


def _names_by_shard(group: pa.DictionaryArray, shard: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The groups in the order of their shards, and where each shard's end."""
    shard_of_group = np.zeros(len(group.dictionary), np.int32)
    shard_of_group[numpy(group.indices)] = shard
    order = np.argsort(shard_of_group, kind="stable")
    return group.dictionary.take(arrow(order)).to_pylist(), np.cumsum(np.bincount(shard_of_group))


def _describe_jobs(shards: list[dict[str, Any]], *, together: bool) -> list[dict[str, Any]]:
    """The jobs as plain data: one a shard; or all shards in one job, each on an instance of its own."""
    jobs = [shards] if together else [[shard] for shard in shards]
    sizes = [sum(shard["bytes"] for shard in job) for job in jobs]
    longest = max(sizes)
    return [
        {
            "job": number,
            "shards": [shard["shard"] for shard in job],
            "instances": len(job),
            "groups": sum(shard["groups"] for shard in job),
            "records": sum(shard["records"] for shard in job),
            "bytes": size,
            "share_of_longest": round(size / longest, 4) if longest else 1.0,
        }
        for number, (job, size) in enumerate(zip(jobs, sizes, strict=True))
    ]


# What decides which records there are and what is computed from each. The rest of a pipeline may change between a
# run and its resumption: how fast it works, how much may fail, and all that pass 2 does.
WORK_FIELDS = ("input", "function", "records", "shards", "chunks")


def work_of(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The fields that a run and its resumption must have in common."""
    work = {name: pipeline.get(name) for name in WORK_FIELDS}
    if isinstance(source := work["input"], dict):  # how a bucket is read does not change what lies in it
        work["input"] = {name: value for name, value in source.items() if name not in ACCESS_FIELDS}
    return work


def digest_of(value: Any) -> str:
    """The sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_table(table: pa.Table) -> str:
    """The sha256 of which objects there are, as which records, in which state."""
    digest = hashlib.sha256()
    for name in ("key", "bytes", "objects", "etags"):
        _add_column(digest.update, table.schema.field(name).type, functools.partial(_chunks, table.select([name])))
    return digest.hexdigest()


def _chunks(table: pa.Table) -> Iterator[pa.Array]:
    return (batch.column(0) for batch in batches_of(table) if len(batch))


def _add_column(add: Callable[[Any], None], kind: pa.DataType, chunks: Callable[[], Iterator[pa.Array]]) -> None:
    """Add a column's buffers as they would be, were it one chunk."""
    if pa.types.is_integer(kind):
        for chunk in chunks():
            add(numpy(chunk))
        return
    end = 0
    add(np.zeros(1, np.int32))
    for chunk in chunks():
        offsets = _offsets(chunk)
        add((offsets[1:] + (end - offsets[0])).astype(np.int32))
        end += int(offsets[-1] - offsets[0])
    if pa.types.is_list(kind):
        _add_column(add, kind.value_type, lambda: (chunk.flatten() for chunk in chunks()))
        return
    for chunk in chunks():
        begin, end = _offsets(chunk)[[0, -1]].tolist()
        if end > begin:
            add(chunk.buffers()[2][begin:end])


def _offsets(chunk: pa.StringArray | pa.ListArray) -> np.ndarray:
    """Where each of a chunk's values begins, and where the last ends, int64."""
    return np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)


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
