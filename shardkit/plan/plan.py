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
    from shardkit.runfolder.document_types import Marker, PlanDocument, PlannedJob, PlannedShard, PlanTotals


NO_TOTALS: PlanTotals = {
    "objects_listed": 0,
    "objects_left_out": 0,
    "left_out_sample": [],
    "records": 0,
    "bytes": 0,
    "groups": 0,
    "shards": 0,
    "chunks": 0,
    "jobs": 0,
    "create_calls": 0,
}


@dataclass(frozen=True, repr=False)
class Plan:
    """What a run will do.

    ``records`` is the table of records with, for each, its ``shard`` and ``chunk`` (both int32); ``content`` is what
    plan.json holds; ``taken_over`` are the markers of chunks that earlier runs have done. ``launching`` is how jobs
    come to run, which is no part of the work.
    """

    records: pa.Table
    content: PlanDocument
    taken_over: list[Marker] = field(default_factory=list)
    launching: Launching = SERVICE

    @property
    def digest(self) -> str:
        """The digest of the run's work: two runs that have the same digest do the same."""
        return self.content["digest"]

    def text(self, *, rows: int | None = None) -> str:
        """What the run would do, for people; ``rows`` are those expected, if a sample was run."""
        return plan_text(self.content, rows=rows, launching=self.launching)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        totals = self.content["totals"]
        return f"Plan({self.content['pipeline'].get('name')!r}, {totals['records']:,} records, {totals['jobs']:,} jobs)"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:  # noqa: FBT001  IPython passes it so
        printer.text(self.text())

    def _repr_html_(self) -> str:
        from shardkit.plan.view import plan_view

        return plan_view(self.content, self.records, self.text())


def totals(records: Records, table: pa.Table, shards: list[PlannedShard], jobs: list[PlannedJob]) -> PlanTotals:
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
    pipeline: dict[str, Any], comparison: Comparison | None, *, run_id: str, created: str, workers: int
) -> PlanDocument:
    """The content of a plan in which no record needs to be computed."""
    return {
        "version": FORMAT,
        "run_id": run_id,
        "created": created,
        "digest": "",
        "function_digest": "",
        "input_digest": "",
        "pipeline": pipeline,
        "workers": workers,
        "totals": NO_TOTALS,
        "shards": [],
        "jobs": [],
        "by_day": False,
        "work": "",
        "form": {},
        "merge_digest": "",
        "partitions": {},
        "based_on": {},
        "dropped": [],
        "left": comparison.left if comparison else [],
        "unchanged": unchanged(comparison),
        "datasets_left_out": [],
        "lists": [],
    }
