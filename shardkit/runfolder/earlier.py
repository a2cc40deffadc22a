"""Fills in the fields that documents of earlier versions lack, so that no reader has to ask which version wrote one.

A document is filled in when it is read; its file stays unchanged. A value that nobody can know is empty: an empty
digest differs from every other, so everything made with it is recomputed.

The document may be damaged, so nothing here relies on a field being there, or on its type: `shapes` checks that later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.runfolder.document_types import Commit, PlanDocument, Result
from shardkit.runfolder.names import WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

_TOTALS = (
    "objects_listed",
    "objects_left_out",
    "records",
    "bytes",
    "groups",
    "shards",
    "chunks",
    "jobs",
    "create_calls",
)


def _fill_in_plan(plan: dict[str, Any]) -> None:
    """Fill in a plan of the first version, or one of pass 2 alone, which names only the folders it merged."""
    if "merge_of" in plan:
        names = ("run_id", "digest", "function_digest", "input_digest")
        empty: dict[str, Any] = {"pipeline": {}, "workers": 0, "totals": {}, "shards": [], "version": 1}
        _add(plan, dict.fromkeys(names, "") | empty)
    totals, shards = plan.get("totals"), plan.get("shards")
    if isinstance(totals, dict):
        _add(totals, dict.fromkeys(_TOTALS, 0) | {"left_out_sample": []})
    for shard in _objects(shards):
        if "groups" not in shard:
            name = shard.get("group")
            _add(shard, {"groups": int(name is not None), "group_names": [] if name is None else [name]})
    nothing = {"partitions": 0, "records": 0}
    later = {"by_day": False, "work": "", "form": {"days": None}, "merge_digest": ""}
    changes: dict[str, Any] = {"partitions": None, "based_on": {}, "dropped": [], "left": [], "unchanged": nothing}
    _add(plan, later | changes | {"merge": True, "datasets_left_out": [], "lists": []})
    if "jobs" not in plan:
        plan["jobs"] = _jobs_of(_objects(shards))


def _jobs_of(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A job for each shard, as they would be planned today."""
    sizes = [size if isinstance(size := shard.get("bytes"), int) else 0 for shard in shards]
    longest = max(sizes, default=0)
    return [
        {
            "job": number,
            "shards": [shard.get("shard")],
            "instances": 1,
            "groups": shard.get("groups"),
            "records": shard.get("records"),
            "bytes": size,
            "share_of_longest": round(size / longest, 4) if longest else 1.0,
        }
        for number, (shard, size) in enumerate(zip(shards, sizes, strict=True))
    ]


def _fill_in_result(result: dict[str, Any]) -> None:
    form = {"days": None, "format": result.get("format"), "partition_by": result.get("partition_by")}
    _add(result, {"by_day": False, "form": form, "columns": {}})
    if not (result.get("partitions") or result["by_day"]):
        result["partitions"] = {WHOLE: {"run": result.get("run_id")}}
    partitions = result.get("partitions")
    for partition in _objects(list(partitions.values()) if isinstance(partitions, dict) else []):
        _add(partition, {"work": "", "merge": ""})
    for file in _objects(result.get("files")):
        _add(file, {"partition": WHOLE})


def _fill_in_commit(commit: dict[str, Any]) -> None:
    _add(commit, {"index": ""})
    for result in _objects([commit.get("result")]):
        _fill_in_result(result)


def _add(content: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        content.setdefault(name, value)


def _objects(values: Any) -> list[dict[str, Any]]:
    """The objects in a list; the check of the document's shape reports all other values."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


FILLED_IN: dict[Any, Callable[[dict[str, Any]], None]] = {
    PlanDocument: _fill_in_plan,
    Result: _fill_in_result,
    Commit: _fill_in_commit,
}
