"""What earlier runs have left: which records need not be computed again, and why the others must be.

The dataset consists of partitions: its days, or one partition that is all of it. Its result names the run that made
each of them, and that run's markers say which chunk holds the rows of which records. A record whose objects have not
changed since is taken over with its chunk: the parts stay where they are, rows of other records in them no longer
count, and the new run's ledger counts the record as skipped.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shardkit.errors import Damaged
from shardkit.plan.groups import partition_names
from shardkit.plan.meta import META, same_meta
from shardkit.plan.reuse import TakenOver, take_over
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.ledger import Ledger
from shardkit.tables.arrays import arrow, numpy, one_chunk, positions, scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.plan.digests import Basis
    from shardkit.runfolder.document_types import MadePartition, Marker, Result
    from shardkit.storage.base import Folder

COLUMNS = ["key", "main", "group", "bytes", "objects", "etags", "shard"]
READ_AT_ONCE = 8  # earlier runs' records
COMPARED_AT_ONCE = 1 << 17  # records; what is compared is copied
OTHER_WORK = "the function or what it is given has changed"
OTHER_MERGE = "combine or the output's form has changed"
FOLDER_GONE = "the folder of run {} is gone"
FOLDER_DAMAGED = "the folder of run {} is damaged"
KEPT_ASIDE = "the new files of run {} have failed a check"


@dataclass
class Changes:
    """How one partition's records have changed since it was made; ``reason`` if it is rebuilt anyway."""

    new: int = 0
    changed: int = 0
    vanished: int = 0
    unchanged: int = 0
    reason: str = ""

    @property
    def any(self) -> bool:
        """Whether the partition must be rebuilt."""
        return bool(self.new or self.changed or self.vanished or self.reason)


@dataclass(frozen=True)
class Aside:
    """A run whose new files are kept aside: it has made ``partitions`` of a ``form``, but they are not in the dataset.

    ``stands`` means that nobody need check these files once more, if they are still those that would be made.
    """

    run_id: str
    partitions: dict[str, MadePartition]
    form: dict[str, Any]
    stands: bool

    def has_made(self, name: str, basis: Basis) -> bool:
        """Whether it has computed rows of a partition as the new run would."""
        return name in self.partitions and self.partitions[name]["work"] in {basis.work, basis.work_before}

    def is_same_form(self, name: str, basis: Basis) -> bool:
        """Whether it has made such files of a partition as the new run would."""
        return self.form == basis.form and self.partitions[name]["merge"] == basis.merge


@dataclass
class Comparison:
    """Records compared with what earlier runs have left.

    ``taken`` is, for each record, the number of the marker in ``markers`` with whose chunk it is taken over, or -1.
    ``records_at`` is, for each marker and each position in its chunk as it was computed, the record there, or -1.
    ``changes`` are the changes of each partition, ``made_by`` is the run that made it. Of the partitions that no longer
    have records, ``dropped`` are removed and ``left`` stay. ``aside`` is the run whose new files are kept aside, and
    it ``waits`` if just these files would be made.
    """

    taken: np.ndarray
    markers: list[Marker] = field(default_factory=list)
    records_at: list[np.ndarray] = field(default_factory=list)
    changes: dict[str, Changes] = field(default_factory=dict)
    made_by: dict[str, str | None] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    aside: str | None = None
    waits: bool = False

    @property
    def aside_of_plan(self) -> str | None:
        """The run that is kept aside, as far as the plan has to do with it: it waits, or it may wait after this run."""
        return self.aside if self.waits or self.based_on else None

    @property
    def based_on(self) -> dict[str, str | None]:
        """For each partition that is to be rebuilt or removed, the run that made it; None if there is none yet."""
        names = [*(name for name, changes in self.changes.items() if changes.any), *self.dropped]
        return {name: self.made_by[name] for name in names}

    def add(self, taken_over: TakenOver) -> None:
        """Add a chunk that is taken over; records that it shares with an earlier one are now its own."""
        self.taken[taken_over.rows] = len(self.markers)
        self.records_at.append(taken_over.rows_at)
        self.markers.append(taken_over.marker)


def compare(
    table: pa.Table,
    output: Folder,
    current: Result | None,
    basis: Basis,
    *,
    all_days: bool,
    recompute: bool,
    aside: Aside | None = None,
) -> Comparison:
    """Find out what need not be computed again.

    Args:
        table: the records of the new listing.
        output: the folder of the dataset.
        current: the result that describes the present dataset.
        basis: how the new run makes partitions.
        all_days: whether the listing is of all days; if not, partitions without records are left alone.
        recompute: whether everything is computed again, whatever earlier runs have done.
        aside: the run whose new files are kept aside.
    """
    partition, names = partition_names(table, by_day=basis.by_day)
    counts = np.bincount(partition, minlength=len(names)).tolist()
    comparison = Comparison(np.full(len(table), -1, np.int64), aside=aside.run_id if aside is not None else None)
    present = current["partitions"] if current is not None else {}
    made = present if current is not None and current["by_day"] == basis.by_day else {}
    same_form = current is not None and current["form"] == basis.form
    by_run: dict[str, dict[str, int]] = {}
    for number, name in enumerate(names):
        comparison.made_by[name] = made[name]["run"] if name in made else None
        if name not in made:
            comparison.changes[name] = Changes(new=counts[number])
        elif recompute:
            comparison.changes[name] = Changes(reason="incremental is false")
        elif made[name]["work"] not in {basis.work, basis.work_before}:
            comparison.changes[name] = Changes(reason=OTHER_WORK)
        else:
            other = not same_form or made[name]["merge"] != basis.merge
            comparison.changes[name] = Changes(reason=OTHER_MERGE if other else "")
            by_run.setdefault(made[name]["run"], {})[name] = number
    # As one Arrow chunk, because rows are taken from all over it, several times.
    earlier = _Earlier(table.combine_chunks() if by_run or aside else table, partition, comparison)
    earlier.compare(output, by_run, by_day=basis.by_day)
    without = [name for name in present if name not in comparison.changes] if all_days else []
    drop = basis.by_day and (recompute or not same_form)
    comparison.dropped, comparison.left = (without, []) if drop else ([], without)
    comparison.made_by |= {name: present[name]["run"] for name in comparison.dropped}
    if aside is not None:
        earlier.compare_aside(output, aside, basis, names)
    return comparison


class _Earlier:
    """Compares the new listing with the records of earlier runs, one run after the other."""

    def __init__(self, table: pa.Table, partition: np.ndarray, comparison: Comparison) -> None:
        self._table = table
        self._partition = partition
        self._comparison = comparison
        self._order = np.argsort(partition, kind="stable")
        self._ends = np.cumsum(np.bincount(partition)) if len(partition) else np.zeros(0, np.int64)

    def _rows(self, number: int) -> np.ndarray:
        rows: np.ndarray = self._order[self._ends[number - 1] if number else 0 : self._ends[number]]
        return rows

    def compare(self, output: Folder, by_run: dict[str, dict[str, int]], *, by_day: bool) -> None:
        """Find the changes of partitions; ``by_run`` has their numbers, under the run that made each."""
        for folder, before in _read_records(output, list(by_run)):
            numbers = by_run[folder.run_id]
            try:
                if before is not None:
                    self._compare_run(folder, before, numbers, by_day=by_day)
                    continue
                why = FOLDER_DAMAGED if folder.exists() else FOLDER_GONE
            except Damaged:
                why = FOLDER_DAMAGED
            for name in numbers:
                self._comparison.changes[name] = Changes(reason=why.format(folder.run_id))

    def compare_aside(self, output: Folder, aside: Aside, basis: Basis, names: list[str]) -> None:
        """Take over what a run has computed whose new files are kept aside; nothing is left if these are the files."""
        changes = self._comparison.changes
        numbers = {
            name: number for number, name in enumerate(names) if changes[name].any and aside.has_made(name, basis)
        }
        if not numbers:
            return
        why = KEPT_ASIDE.format(aside.run_id)
        for name in numbers:
            changes[name] = Changes(reason=why if aside.is_same_form(name, basis) else OTHER_MERGE)
        self.compare(output, {aside.run_id: numbers}, by_day=basis.by_day)
        exactly = numbers.keys() == aside.partitions.keys() == {name for name in names if changes[name].any}
        as_made = all(changes[name] == Changes(unchanged=changes[name].unchanged, reason=why) for name in numbers)
        self._comparison.waits = aside.stands and exactly and as_made and not self._comparison.dropped
        if self._comparison.waits:
            for name in numbers:
                changes[name].reason = ""

    def _compare_run(self, folder: RunFolder, before: pa.Table, numbers: dict[str, int], *, by_day: bool) -> None:
        codes, names = partition_names(before, by_day=by_day)
        number_of = np.array([numbers.get(name, -1) for name in names], np.int64)
        then = number_of[codes]
        position = self._positions(before, then, sorted(numbers.values()))
        same = np.zeros(len(before), bool)
        matched = np.flatnonzero(position >= 0)
        for start in range(0, len(matched), COMPARED_AT_ONCE):
            some = matched[start : start + COMPARED_AT_ONCE]
            same[some] = _same_objects(before.take(arrow(some)), self._table.take(arrow(position[some])))
        changed = []
        for name, number in numbers.items():
            old = then == number
            kept, gone = int((same & old).sum()), int((old & (position < 0)).sum())
            changes = self._comparison.changes[name]
            changes.unchanged, changes.vanished = kept, gone
            changes.changed = int(old.sum()) - kept - gone
            changes.new = len(self._rows(number)) - kept - changes.changed
            if changes.any:
                changed.append(number)
        same &= np.isin(then, changed)
        if same.any():
            shards = np.unique(numpy(before["shard"])[same]).tolist() if by_day else None
            for taken_over in take_over(Ledger(folder, shards), before, position, same):
                self._comparison.add(taken_over)

    def _positions(self, before: pa.Table, then: np.ndarray, numbers: list[int]) -> np.ndarray:
        """For each earlier record, its row in the new listing, if it is there in the same partition; else -1."""
        old = np.flatnonzero(then >= 0)
        mine = np.concatenate([self._rows(number) for number in numbers])
        keys = one_chunk(self._table["key"]).take(arrow(mine))
        index = positions(pc.index_in(one_chunk(before["key"]).take(arrow(old)), keys))
        row = mine[index]
        position = np.full(len(before), -1, np.int64)
        position[old] = np.where((index >= 0) & (self._partition[row] == then[old]), row, -1)
        return position


def _read_records(output: Folder, run_ids: list[str]) -> Iterator[tuple[RunFolder, pa.Table | None]]:
    """The records of earlier runs, a few read side by side; None where they are gone or damaged."""

    def read(folder: RunFolder) -> pa.Table | None:
        try:
            return folder.records(COLUMNS, if_there=[META])
        except Damaged:
            return None

    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="shardkit-compare") as pool:
        for start in range(0, len(run_ids), READ_AT_ONCE):
            some = [RunFolder(output, run_id) for run_id in run_ids[start : start + READ_AT_ONCE]]
            yield from zip(some, pool.map(read, some), strict=True)


def _same_objects(before: pa.Table, now: pa.Table) -> np.ndarray:
    """For each row, whether both records are of the same objects, unchanged, and a manifest says the same of them."""
    same = (numpy(before["main"]) == numpy(now["main"])) & (numpy(before["bytes"]) == numpy(now["bytes"]))
    for name in ("objects", "etags"):
        then, here = (pc.binary_join(one_chunk(table[name]), scalar("\n")) for table in (before, now))
        same &= numpy(pc.fill_null(pc.equal(then, here), scalar(value=False)))
    same &= same_meta(before, now)
    result: np.ndarray = same
    return result
