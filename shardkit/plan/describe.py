"""Plans as text for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.units import counted, human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.document_types import PlanDocument, PlannedShard

SHARDS_SHOWN = 10
LONG_LAUNCH_S = 600
INSIDE = {"lines": "lines", "csv": "rows of CSV", "tar": "members", "zip": "members", "parquet": "row groups"}


@dataclass(frozen=True)
class Launching:
    """Where jobs are launched, by which call, and how many a second at most; None where that takes no time.

    ``larger`` are instance types for records that need more memory.
    """

    where: str
    creates_per_s: float | None
    call: str = "CreateProcessingJob"
    larger: tuple[str, ...] = ()


SERVICE = Launching("SageMaker", 1.0)  # what it takes from an account, whatever its quotas


def plan_text(content: PlanDocument, *, rows: int | None = None, launching: Launching = SERVICE) -> str:
    """What a run would do, from a plan's content; ``rows`` is how many are expected, if a sample was run."""
    totals = content["totals"]
    pipeline = content["pipeline"]
    if not totals["records"]:
        same = counted(content["unchanged"]["records"], "record")
        nothing = f"Pipeline {pipeline['name']}: nothing has changed in {same}; {_left_to_do(content)}."
        return "\n".join([nothing, *_left_lines(content)])
    source, output = pipeline["input"], pipeline["output"]
    workers = counted(content["workers"], "worker")
    chunks = counted(totals["chunks"], f"{pipeline['chunks']} chunk")
    lines = [
        f"Pipeline {pipeline['name']}: {pipeline['function']} over {_source(source)}, {_rule(pipeline)}",
        *_list_lines(content),
        f"  objects  {totals['objects_listed']:,} listed, {totals['objects_left_out']:,} in no record"
        + (f", such as {totals['left_out_sample'][0]}" if totals["left_out_sample"] else ""),
        *_passed_over(content),
        f"  records  {totals['records']:,} of {human_bytes(totals['bytes'])}"
        + (f" in {counted(totals['groups'], 'group')}" if totals["groups"] else ""),
        f"  shards   {totals['shards']:,}, in {chunks}, for {workers}",
        *_shard_lines(content),
        *_job_lines(content, launching),
        *_change_lines(content),
        *_check_lines(pipeline),
        f"  output   {output['uri']}, {output['format']}, {_expected_files(output, rows)}",
    ]
    return "\n".join(lines)


def _left_to_do(content: PlanDocument) -> str:
    if (aside := content.get("aside")) is None:
        return "nothing to do"
    return f"the new files of run {aside} have failed a check, and wait to be accepted"


def _source(source: dict[str, Any]) -> str:
    """Where the input is, and which of its files are looked for."""
    parts = source.get("parts")
    if parts:
        return ", ".join(f"{part['name']}: {part['uri']} ({' '.join(part['pattern'])})" for part in parts)
    return f"{source['uri']} ({' '.join(source['pattern'])})"


def _check_lines(pipeline: dict[str, Any]) -> Iterator[str]:
    """What the new files must fulfil."""
    checks = pipeline.get("checks") or {}
    named = [
        name if value is True else f"{name} {value if isinstance(value, str) else ', '.join(value)}"
        for name, value in checks.items()
    ]
    if named:
        yield f"  checks   {'; '.join(named)}"


def _list_lines(content: PlanDocument) -> Iterator[str]:
    """How manifests compare with what is there."""
    for each in content["lists"]:
        counts = [f"{each['rows']:,} rows in {each['manifest']}"]
        if each["outside"]:
            counts.append(f"{each['outside']:,} of files elsewhere, which are no input")
        if each["asked"]:
            counts.append(f"{each['asked']:,} without a size or etag, for which the store was asked")
        yield f"  list     {', '.join(counts)}"
        if each["missing"]:
            more = ", ..." if each["missing"] > len(each["missing_sample"]) else ""
            named = f"{', '.join(each['missing_sample'])}{more}"
            yield f"  missing  {counted(each['missing'], 'file')} of the list: {named}; reading will fail for each"


def _passed_over(content: PlanDocument) -> Iterator[str]:
    """Folders of the input that are datasets."""
    if names := content["datasets_left_out"]:
        yield f"  left out {', '.join(names)}: datasets of shardkit, no input unless named themselves"


def _change_lines(content: PlanDocument) -> Iterator[str]:
    """Which partitions would be rebuilt, and why."""
    partitions = content["partitions"] or {}
    if not partitions:
        return
    yield from _left_lines(content)
    same = content["unchanged"]
    yield f"  changes  {counted(len(partitions), 'partition')} to be rebuilt, {same['partitions']:,} as they are"
    for name, changes in list(partitions.items())[:SHARDS_SHOWN]:
        numbers = {kind: changes[kind] for kind in ("new", "changed", "vanished", "unchanged")}
        counts = [f"{number:,} {kind}" for kind, number in numbers.items() if number]
        if changes["again"]:
            counts.append(f"{changes['again']:,} computed again")
        if changes["reason"] or changes["again"]:
            counts[-1:] = [f"{counts[-1]}: {changes['reason'] or 'in the same chunk as one that has changed'}"]
        yield f"    {name or 'all':<12} {', '.join(counts)}"
    if len(partitions) > SHARDS_SHOWN:
        yield f"    ... and {len(partitions) - SHARDS_SHOWN:,} more"


def _left_lines(content: PlanDocument) -> Iterator[str]:
    """Days of the dataset that the input no longer has."""
    stay = "stay in the dataset; incremental: false drops them"
    for days, fate in ((content["left"], stay), (content["dropped"], "go")):
        if days:
            named = ", ".join(name or "the dataset without days" for name in days[:3])
            yield f"  gone     {counted(len(days), 'partition')} without records ({named}) {fate}"


def _rule(pipeline: dict[str, Any]) -> str:
    rule = pipeline["records"]
    if isinstance(rule, dict):
        size = f", about {human_bytes(rule['target_bytes'])} each" if "target_bytes" in rule else ""
        return f"records inside files: {INSIDE[rule['inside']]}{size}"
    return f"records by {rule}" if ":" in rule else f"one record a {rule}"


def _shard_lines(content: PlanDocument) -> Iterator[str]:
    if content["pipeline"]["shards"] is None:
        return
    shards = content["shards"]
    longest = max(shard["bytes"] for shard in shards)
    shown = sorted(shards, key=lambda s: -s["bytes"])[:SHARDS_SHOWN]
    labels = [_groups_of(shard) for shard in shown]
    width = max(24, *map(len, labels)) if labels[0] else 0
    for shard, label in zip(shown, labels, strict=True):
        share = shard["bytes"] / longest if longest else 1
        yield (
            f"    {shard['shard']:5d}  {label:<{width}} {counted(shard['records'], 'record'):>17}  "
            f"{human_bytes(shard['bytes']):>9}  {counted(shard['chunks'], 'chunk'):>12}  {share:4.0%} of the longest"
        )
    if len(shards) > SHARDS_SHOWN:
        yield f"    ... and {len(shards) - SHARDS_SHOWN:,} more, none larger"


def _groups_of(shard: PlannedShard) -> str:
    if not shard["groups"]:
        return ""
    name, more = shard["group_names"][0], shard["groups"] - 1
    return f"{name} and {more:,} more" if more else name


def _job_lines(content: PlanDocument, launching: Launching) -> Iterator[str]:
    """How many jobs the shards are on an engine, and how long it takes to launch them."""
    rule, totals = content["pipeline"]["shards"], content["totals"]
    if rule is None and not content["pipeline"].get("engine"):
        return
    instances = content["jobs"][0]["instances"]
    spread = f" of {instances} instances" if instances > 1 else ""
    calls = totals["create_calls"]
    rate = launching.creates_per_s
    seconds = math.ceil(calls / rate) if rate is not None else 0
    least = f"{seconds} s" if seconds < 60 else human_seconds(seconds)
    launched = f", on {launching.where}"
    if rate is not None:
        each = "one" if rate == 1 else f"{rate:g}"
        launched = f": {calls:,} calls of {launching.call}, at {each} a second at least {least}"
    yield f"  jobs     {totals['jobs']:,}{spread} and 1 for pass 2{launched}"
    wanted = rule.get("count", rule.get("instances", 0)) if rule else 0
    if wanted > totals["shards"]:
        yield f"           ({wanted:,} were asked for; there are no more records to share out)"
    if launching.larger:
        yield f"           (records that need more memory go on with {', then '.join(launching.larger)})"
    if seconds > LONG_LAUNCH_S:
        yield f"           (to launch so many takes long: {_fewer(rule)})"


def _fewer(rule: dict[str, Any]) -> str:
    if rule["by"] == "size":
        return "a larger shards.target makes fewer" if "target" in rule else "a lower shards.count makes fewer"
    return "shards.max_jobs, such as 100, packs whole groups into fewer"


def _expected_files(output: dict[str, Any], rows: int | None) -> str:
    per_file = output["rows_per_file"]
    target = f"about {human_bytes(output['target_bytes'])}" if output["target_bytes"] else ""
    size = " or ".join(filter(None, [f"{per_file:,} rows" if output["rows_per_file"] else "", target]))
    size = f"files of {size}" if size else "one file"
    if output["partition_by"]:
        size += f" in partitions by {', '.join(output['partition_by'])}"
    if rows is None:
        return f"{size} (--sample estimates how many)"
    files = counted(-(-rows // per_file) if per_file else 1, "file")
    at_least = "at least " if output["target_bytes"] or output["partition_by"] else ""
    return f"{size}: about {counted(rows, 'row')} in {at_least}{files}"
