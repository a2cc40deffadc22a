"""Days merged by the jobs that have computed them, so that pass 2 need not."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from shardkit.dataset.current import current_result
from shardkit.dataset.day_notes import DayMerge, day_merges
from shardkit.dataset.merge import merge_partitions
from shardkit.dataset.recipe import Recipe
from shardkit.dataset.sources import source_of
from shardkit.dataset.switch_steps import staging

if TYPE_CHECKING:
    from shardkit.dataset.merge import Merge, Watcher
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart, Ledger


def merge_days(ledger: Ledger, merge: Merge, attempt: Watcher, *, threads: int) -> int:
    """Merge the days of a job whose records are all settled, so that pass 2 need not; returns how many.

    Raises:
        LedgerError: records or parts are missing.
        SchemaConflict, CombineError, StorageError: as in pass 2, which will try again.
    """
    ledger.check()
    folder, current = ledger.folder, current_result(ledger.folder.output)
    sources = {day: (parts, source_of(parts, merge)) for day, parts in ledger.partitions().items()}
    if any(merge.layout.day_column in source.schema.names for _, source in sources.values()):
        return 0  # pass 2 will report that
    recipe = Recipe.of(folder, merge)
    keeper = recipe.keeper(folder, current)
    token = f"{folder.run_id}-{secrets.token_hex(4)}"  # so that another attempt's files have other names
    home = staging(folder)
    for day, (files, kept, schema) in merge_partitions(
        home, keeper, sources, merge, attempt, token=token, threads=threads
    ):
        parts, source = sources[day]
        contents = keeper.contents.of(day, [file.path for file in (*kept, *files)])
        DayMerge(day, recipe.basis(day, parts, current), source.schema, schema, files, kept, contents).note(folder)
    return len(sources)


def merged_by_jobs(folder: RunFolder, parts: dict[str, list[CommittedPart]], recipe: Recipe) -> dict[str, DayMerge]:
    """The days that jobs have merged in the way in which this process would."""
    merged = day_merges(folder)
    current = current_result(folder.output) if merged else None
    of_plan = {day: merged[day] for day in parts if day in merged}
    return {day: merge for day, merge in of_plan.items() if merge.basis == recipe.basis(day, parts[day], current)}
