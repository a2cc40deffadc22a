"""What earlier runs have left: which records need not be computed again, and why the others must be.

The dataset consists of partitions (days, or one that is all of it). Of each it is known which run made it; that run's
markers tell which chunk holds which records' rows. A chunk whose records are all there, with the etags that they had
then, is taken over: its parts stay where they are, and the new run's ledger counts its records as skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.arrays import arrow, numpy
from shardkit.commit import current_result
from shardkit.ledger import OPEN, WHOLE, Ledger
from shardkit.runfolder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.storage import Folder


@dataclass
class Changes:
    """What has become of one partition's records since it was made; ``reason`` where all must be computed again."""

    new: int = 0
    changed: int = 0
    vanished: int = 0
    unchanged: int = 0
    again: int = 0
    reason: str = ""

    @property
    def any(self) -> bool:
        """Whether the partition must be made anew."""
        return bool(self.new or self.changed or self.vanished or self.reason)

    def to_dict(self) -> dict[str, Any]:
        """As the plan holds it: ``again`` are unchanged records whose chunk has others that are not."""
        return dict(vars(self))


@dataclass
class Comparison:
    """Records beside what earlier runs have left.

    ``taken`` gives for each record the number of the marker in ``markers`` whose chunk it is taken over with, or -1.
    ``changes`` are those of each partition, and ``made_by`` tells which run has made it.
    """

    taken: np.ndarray
    markers: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Changes] = field(default_factory=dict)
    made_by: dict[str, str | None] = field(default_factory=dict)

    @property
    def based_on(self) -> dict[str, str | None]:
        """The run that has made each partition that is to be made anew; None where there is none yet."""
        return {name: self.made_by[name] for name, changes in self.changes.items() if changes.any}


def partition_names(table: pa.Table, *, by_day: bool) -> tuple[np.ndarray, list[str]]:
    """The partition of each record, as a number and as the names that these stand for."""
    if not by_day:
        return np.zeros(len(table), np.int32), [WHOLE]
    column = table["group"]
    group = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return numpy(group.indices), group.dictionary.to_pylist()


def compare(table: pa.Table, output: Folder, *, by_day: bool, work: str) -> Comparison:
    """Find out what need not be computed again.

    Args:
        table: the records of the new listing.
        output: the folder of the dataset.
        by_day: whether each group is a partition; else all records are one.
        work: the digest of what is computed from each record; other work must be done again.
    """
    partition, names = partition_names(table, by_day=by_day)
    comparison = Comparison(np.full(len(table), -1, np.int64))
    current = current_result(output) or {}
    made = current.get("partitions", {}) if current.get("by_day") == by_day else {}
    by_run: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        rows = np.flatnonzero(partition == number)
        comparison.made_by[name] = made.get(name, {}).get("run")
        if name not in made:
            comparison.changes[name] = Changes(new=len(rows))
        elif made[name]["work"] != work:
            comparison.changes[name] = Changes(again=len(rows), reason="the function or what it is given has changed")
        else:
            by_run.setdefault(made[name]["run"], []).append(number)
    for run_id, numbers in by_run.items():
        _compare_run(RunFolder(output, run_id), table, {names[n]: n for n in numbers}, comparison, by_day=by_day)
    return comparison


def _compare_run(
    folder: RunFolder,
    table: pa.Table,
    names: dict[str, int],
    comparison: Comparison,
    *,
    by_day: bool,
) -> None:
    """Take over what one earlier run has made of some partitions, which ``names`` gives with their numbers."""
    partition = partition_names(table, by_day=by_day)[0]
    ledger = Ledger(folder)
    before = folder.records(["key", "group", "etags"])
    old_partition, old_names = partition_names(before, by_day=by_day)
    mine = np.flatnonzero(np.isin(partition, list(names.values())))
    old = np.flatnonzero(np.isin(old_partition, [i for i, name in enumerate(old_names) if name in names]))
    where = pc.index_in(
        before["key"].combine_chunks().take(arrow(old)), table["key"].combine_chunks().take(arrow(mine))
    )
    position = np.full(len(before), -1, np.int64)
    found = numpy(pc.fill_null(where, -1))
    position[old] = np.where(found >= 0, mine[found], -1)
    same = np.zeros(len(before), bool)
    there = old[found >= 0]
    same[there] = _etags(before, there) == _etags(table, position[there])
    same &= ledger.state != OPEN
    _take_over(folder, ledger, position, same, comparison)
    for name, number in names.items():
        now, then = partition == number, np.flatnonzero(old_partition == old_names.index(name))
        kept, gone = int((same[then]).sum()), int((position[then] < 0).sum())
        changed = len(then) - kept - gone
        comparison.changes[name] = Changes(
            new=int(now.sum()) - kept - changed,
            changed=changed,
            vanished=gone,
            unchanged=kept,
            again=kept - int((comparison.taken[now] >= 0).sum()),
        )


def _etags(table: pa.Table, rows: np.ndarray) -> np.ndarray:
    lists = table["etags"].combine_chunks().take(arrow(rows))
    joined: np.ndarray = pc.binary_join(lists, "\n").to_numpy(zero_copy_only=False)
    return joined


def _take_over(
    folder: RunFolder, ledger: Ledger, position: np.ndarray, same: np.ndarray, comparison: Comparison
) -> None:
    """Take over the chunks of which every record is as it was; in quarantine, their entries tell the new listing's row."""
    for marker, ids in ledger.settled():
        if not len(ids) or not same[ids].all():
            continue
        rows = position[ids]
        home = {"run": folder.run_id, "at": folder.parts_of(marker["shard"])}
        entries = ledger.quarantine_of(ids)
        known = dict(zip(ids.tolist(), rows.tolist(), strict=True))
        comparison.taken[rows] = len(comparison.markers)
        comparison.markers.append(
            marker
            | {
                "attempt": 0,
                "ids": None,
                "records": {"listed": len(ids), "done": len(ids) - len(entries), "quarantined": len(entries)},
                "seconds": 0.0,
                "parts": [home | part for part in marker["parts"]],
                "quarantine": [entry | {"record": known[entry["record"]]} for entry in entries],
                "taken_over": True,
            }
        )


def total(changes: Iterable[Changes]) -> Changes:
    """The sum over some partitions."""
    sums = Changes()
    for one in changes:
        for name in ("new", "changed", "vanished", "unchanged", "again"):
            setattr(sums, name, getattr(sums, name) + getattr(one, name))
    return sums
