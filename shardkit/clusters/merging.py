"""Days merged on the nodes of a cluster, side by side, for pass 2 to take as they are."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joblib import Parallel, delayed

from shardkit.clusters.backend import NAME, Calls, Lost
from shardkit.clusters.code import unpacked
from shardkit.errors import ShardkitError
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.ledger import Ledger
from shardkit.runfolder.meters import RowMeter
from shardkit.storage.open import folder as folder_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.clusters.base import Cluster
    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.meters import Meter


@dataclass(frozen=True)
class DayMerging:
    """What a node needs to merge the days of a shard; ``code`` is as for `NodeWork`."""

    output: str
    run_id: str
    days: frozenset[str] | None
    on_top: bool
    merge: Merge
    code: str | None

    def __call__(self, shard: int) -> dict[str, Any]:
        """Merge the days of a shard; returns its ``shard``, and the ``error`` if they are left to pass 2."""
        from shardkit.dataset.merge_days import merge_days

        folder = RunFolder(folder_at(self.output), self.run_id, self.days, self.on_top)
        try:
            folder = folder.encrypted(folder.plan())
            merge_days(Ledger(folder, [shard]), self._merge(folder), _Unwatched(), threads=1)
        except ShardkitError as error:
            return {"shard": shard, "error": error.message}
        return {"shard": shard}

    def _merge(self, folder: RunFolder) -> Merge:
        combine = self.merge.combine
        if combine is None or combine.pickled is not None or self.code is None:
            return self.merge
        return dataclasses.replace(
            self.merge, combine=dataclasses.replace(combine, source_dir=unpacked(folder.output, self.code))
        )


class _Unwatched:
    """An attempt as a merge on a node sees it: the driver watches over it."""

    @contextlib.contextmanager
    def pass2(self, _: Meter) -> Iterator[None]:
        yield

    def check(self) -> None:
        pass


def merge_days_on(cluster: Cluster, ledger: Ledger, merge: Merge, attempt: Attempt, *, code: str | None) -> None:
    """Merge a run's days on the nodes of a cluster, those of a shard on one; what fails is left to pass 2."""
    folder = ledger.folder
    rows = {marker["shard"]: 0 for marker in ledger.markers}
    for marker in ledger.markers:
        rows[marker["shard"]] += marker["rows"]
    work = DayMerging(folder.output.uri, folder.run_id, folder.days, folder.on_top, merge, code)
    merged: list[int] = []
    options = {"backend": NAME, "calls": Calls(cluster), "pre_dispatch": cluster.most_out, "batch_size": 1}
    parallel = Parallel(cluster.size, return_as="generator_unordered", **options)
    with attempt.pass2(RowMeter(sum(rows.values()), lambda: sum(rows[shard] for shard in merged))):
        for outcome in parallel(delayed(work)(shard) for shard in sorted(rows, key=lambda shard: -rows[shard])):
            if isinstance(outcome, Lost):
                attempt.progress.note(f"The days of shard {outcome.argument} are left to the driver: {outcome.error}")
            elif "error" in outcome:
                attempt.progress.note(
                    f"The days of shard {outcome['shard']} are left to the driver: {outcome['error']}"
                )
            else:
                merged.append(outcome["shard"])
