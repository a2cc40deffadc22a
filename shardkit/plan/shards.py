"""Groups to shards, and shards to jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import PipelineError
from shardkit.tables.arrays import arrow, numpy, one_chunk
from shardkit.tables.packing import evenly, in_order, longest_first

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.runfolder.document_types import PlannedJob, PlannedShard

GROUPS_NAMED = 5  # how many of a shard's groups the plan names; records.parquet has them all


def number_shards(table: pa.Table, rule: Mapping[str, Any] | None, *, max_jobs: int | None = None) -> np.ndarray:
    """The shard of each record; shards are numbered by their first groups, or by their first records.

    With ``max_jobs`` there are so many at most, whatever the rule says.
    """
    count = len(table)
    if rule is None:
        return np.zeros(count, np.int32)
    if rule["by"] == "s3key":
        _check_single_objects(table)
        dealt: np.ndarray = np.arange(count, dtype=np.int32) % np.int32(min(rule["instances"], count))
        return dealt
    # Each record counts one byte more than it has, so that empty ones are spread too.
    sizes = numpy(table["bytes"]) + 1
    if rule["by"] == "size":
        wanted = rule["count"] if "count" in rule else -(-int(sizes.sum() - count) // rule["target"])
        return evenly(sizes, bins=min(max(wanted, 1), count, max_jobs or count))
    group: np.ndarray = numpy(one_chunk(table["group"]).indices)
    groups = int(group.max()) + 1
    most = min(rule.get("max_jobs", groups), max_jobs or groups)
    if groups <= most:
        return group
    of_groups = np.zeros(groups, np.int64)
    np.add.at(of_groups, group, sizes)
    packed: np.ndarray = in_order(longest_first(of_groups, bins=most))[group]
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


def by_shard(shard: np.ndarray) -> tuple[np.ndarray | slice, np.ndarray, np.ndarray]:
    """The records in the order of their shards, where each shard begins in that order, and how many records it has."""
    in_order = (shard[1:] >= shard[:-1]).all()
    order = slice(None) if in_order else np.argsort(shard, kind="stable")
    counts = np.bincount(shard)
    return order, np.cumsum(counts) - counts, counts


def describe_shards(table: pa.Table, *, grouped: bool, named: bool) -> list[PlannedShard]:
    """The shards as plain data; ``named`` says whether a shard of a single group has that group's name."""
    shard = numpy(table["shard"])
    order, starts, records = by_shard(shard)
    size = np.add.reduceat(numpy(table["bytes"])[order], starts).tolist()
    chunks = (np.maximum.reduceat(numpy(table["chunk"])[order], starts) + 1).tolist()
    names, ends = (
        _names_by_shard(one_chunk(table["group"]), shard) if grouped else ([], np.zeros(len(records), np.int64))
    )
    begin = 0
    described: list[PlannedShard] = []
    for number, (end, count) in enumerate(zip(ends.tolist(), records.tolist(), strict=True)):
        described.append(
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
    return described


def _names_by_shard(group: pa.DictionaryArray, shard: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The groups in the order of their shards, and where each shard's groups end in that order."""
    shard_of_group = np.zeros(len(group.dictionary), np.int32)
    shard_of_group[numpy(group.indices)] = shard
    order = np.argsort(shard_of_group, kind="stable")
    return group.dictionary.take(arrow(order)).to_pylist(), np.cumsum(np.bincount(shard_of_group))


def describe_jobs(shards: list[PlannedShard], *, together: bool) -> list[PlannedJob]:
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
