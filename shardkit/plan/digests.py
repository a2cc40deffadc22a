"""Digests of a run's work: whether two runs would do the same, and if not, what differs."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from shardkit.plan.meta import META, meta_texts
from shardkit.storage.base import ACCESS_FIELDS
from shardkit.tables.arrays import numpy
from shardkit.tables.spill import batches_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.runfolder.document_types import PlanDocument


@dataclass(frozen=True)
class Basis:
    """How the new run makes partitions, which is compared with how the present ones were made.

    ``work`` is the digest of what is computed from each record, ``merge`` the digest of what is made of the rows.
    ``form`` is what all partitions of a dataset have in common. ``work_before`` is the digest that an earlier version
    would have noted.
    """

    by_day: bool
    work: str
    merge: str
    form: dict[str, Any]
    work_before: str = ""


def work_digest(pipeline: dict[str, Any], function_digest: str, *, named: bool = True) -> str:
    """The digest of what is computed from a record: with the same digest, the same record gives the same rows.

    ``function_digest`` covers a whole module, so the function's name counts too. Earlier versions left it out (not
    ``named``).
    """
    return digest_of(
        {
            "function": function_digest,
            "records": pipeline.get("records"),
            "input": _where(pipeline.get("input", {})),
            "schema": pipeline.get("output", {}).get("schema"),
        }
        | ({"name": pipeline.get("function")} if named else {})
        | ({"origin": True} if pipeline.get("output", {}).get("origin") else {})
    )


def _where(source: dict[str, Any]) -> Any:
    """Where an input lies: its URI, or those of several inputs by their names."""
    parts = source.get("parts")
    return {part["name"]: part.get("uri") for part in parts} if parts else source.get("uri")


# The fields that decide which records there are and what is computed from each. The others may change between a run
# and its resumption: how fast it works, how much may fail, and everything that pass 2 does.
WORK_FIELDS = ("input", "function", "records", "shards", "chunks")


def work_of(pipeline: dict[str, Any]) -> dict[str, Any]:
    """The fields that a run and its resumption must have in common."""
    work = {name: pipeline.get(name) for name in WORK_FIELDS}
    if isinstance(source := work["input"], dict):  # how a bucket is read does not change what lies in it
        work["input"] = _without_access(source)
    if isinstance(rule := work["shards"], dict):  # which job does a chunk does not change what comes of it
        work["shards"] = {name: value for name, value in rule.items() if name != "steal"}
    return work


def _without_access(source: dict[str, Any]) -> dict[str, Any]:
    content = {name: value for name, value in source.items() if name not in ACCESS_FIELDS}
    if "parts" in content:
        content["parts"] = [_without_access(part) for part in content["parts"]]
    return content


def digest_of(value: Any) -> str:
    """The sha256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_records(table: pa.Table) -> str:
    """The sha256 of the records: which objects each of them has, and in which state these are."""
    digest = hashlib.sha256()
    if META in table.column_names:
        _add_column(digest.update, pa.string(), lambda: (some for some in meta_texts(table) if len(some)))
    for name in ("key", "bytes", "objects", "etags"):
        _add_column(digest.update, table.schema.field(name).type, functools.partial(_chunks, table.select([name])))
    return digest.hexdigest()


def _chunks(table: pa.Table) -> Iterator[pa.Array]:
    return (batch.column(0) for batch in batches_of(table) if len(batch))


def _add_column(add: Callable[[Any], None], kind: pa.DataType, chunks: Callable[[], Iterator[pa.Array]]) -> None:
    """Add a column's buffers as they would be if it were one chunk."""
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


def differences(plan: PlanDocument, other: PlanDocument) -> list[str]:
    """How the work of ``other`` differs from that of ``plan``, in words."""
    words = []
    ours, theirs = work_of(plan["pipeline"]), work_of(other["pipeline"])
    for name in (n for n in WORK_FIELDS if ours[n] != theirs[n]):
        words.append(f"{name} was {json.dumps(ours[name])} and is {json.dumps(theirs[name])}")  # noqa: PERF401  one of three sources
    if plan["function_digest"] != other["function_digest"]:
        words.append("the function's source has changed")
    if plan["input_digest"] != other["input_digest"] and ours["input"] == theirs["input"]:
        before, now = plan["totals"], other["totals"]
        words.append(
            f"the input has changed ({before['records']:,} records of {before['bytes']:,} bytes before, "
            f"{now['records']:,} of {now['bytes']:,} now)"
        )
    return words
