"""The plan of a run: what it will do, as plain data and a table of records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.plan.changes import unchanged
from shardkit.plan.describe import SERVICE, Launching, plan_text
from shardkit.runfolder.documents import FORMAT

if TYPE_CHECKING:
    import pyarrow as pa

    from shardkit.plan.compare import Comparison
    from shardkit.plan.records import Records


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    ``records`` is the table of records with, for each, its ``shard`` and ``chunk`` (both int32); ``content`` is what
    plan.json holds; ``taken_over`` are the markers of chunks that earlier runs have done. ``launching`` is how jobs
    come to run, which is no part of the work.
    """

    records: pa.Table
    content: dict[str, Any]
    taken_over: list[dict[str, Any]] = field(default_factory=list)
    launching: Launching = SERVICE

    @property
    def digest(self) -> str:
        """The digest of the run's work: two runs that have the same digest do the same."""
        return str(self.content["digest"])

    def text(self, *, rows: int | None = None) -> str:
        """What the run would do, for people; ``rows`` are those expected, if a sample was run."""
        return plan_text(self.content, rows=rows, launching=self.launching)

    def __str__(self) -> str:
        return self.text()


def totals(
    records: Records, table: pa.Table, shards: list[dict[str, Any]], jobs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The plan in numbers; ``table`` holds those of the records that the run will work on."""
    return {
        "objects_listed": records.objects_listed,
        "objects_left_out": records.objects_left_out,
        "left_out_sample": list(records.left_out_sample),
        "records": len(table),
        "bytes": sum(shard["bytes"] for shard in shards),
        "groups": sum(shard["groups"] for shard in shards),
        "shards": len(shards),
        "chunks": sum(shard["chunks"] for shard in shards),
        "jobs": len(jobs),
        "create_calls": len(jobs) + 1,  # the one more is pass 2
    }


def nothing_to_do(
    pipeline: dict[str, Any], comparison: Comparison | None, *, run_id: str, created: str
) -> dict[str, Any]:
    """The content of a plan in which no record needs to be computed."""
    none = dict.fromkeys(("records", "bytes", "groups", "shards", "chunks", "jobs", "create_calls"), 0)
    return {
        "version": FORMAT,
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
