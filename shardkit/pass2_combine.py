"""Pass 2: a run's parts become the files of the dataset, and the dataset is switched to them.

    parts --dataset/source.py--> rows --dataset/merge.py--> new files --dataset/switch.py--> the dataset (--> catalogue)

The new files are written beside the present dataset, where no reader sees them, and the switch puts them in its place.
So a crash at any moment leaves the dataset either as it was or as the run makes it. A run on this machine calls it
when pass 1 has ended (runs/here.py); on an engine it is a job of its own (runs/container/job.py).

As a program it works alone on plain directories, as the macro/micro-sharding pattern's second script does:

    python -m shardkit.pass2_combine --input OUT... --output DATASET
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from shardkit.dataset.accounts import Account
from shardkit.dataset.catalogs import keep_registered
from shardkit.dataset.kept_files import CONTENTS
from shardkit.dataset.merge import merge_partitions
from shardkit.dataset.next_state import switching
from shardkit.dataset.recipe import Recipe
from shardkit.dataset.sources import sources_of, undoing_damaged_chunks
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardkit.dataset.build import Build
    from shardkit.dataset.day_notes import DayMerge
    from shardkit.dataset.kept_files import Keeper
    from shardkit.dataset.merge import Merge, Written
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import Result
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart, Ledger


def run_pass2(
    ledger: Ledger,
    merge: Merge,
    attempt: Attempt,
    *,
    name: str,
    threads: int,
    fresh: bool = False,
    merged: bool = False,
) -> Result:
    """Merge a run's parts and switch the dataset to them; returns the result.

    Args:
        ledger: the run's, with no record open.
        merge: what to make of the parts: format, size of files, partitions, a combine.
        attempt: shows how far it is, and keeps the heartbeat.
        name: the pipeline's; a dataset that another pipeline has made is not replaced.
        threads: how many to read and write with.
        fresh: nobody can have tried this before.
        merged: jobs, or the nodes of a cluster, may have merged days already.

    Raises:
        LedgerError, NothingMade: records or parts are missing; or no record is done, or there is no row.
        ChecksFailed: the new files do not pass the pipeline's checks; they are kept aside.
        SchemaConflict: parts give a column types that cannot be unified.
        RunBusy: another run is switching the same dataset.
        CatalogError: the dataset is made, but could not be registered.
    """
    # The ledger balances, and each part that it counts on is there.
    ledger.check()

    # A partition is a day, or all of the dataset. Jobs on an engine, or nodes of a cluster, have merged theirs already.
    folder, parts = ledger.folder, ledger.partitions()
    recipe = Recipe.of(folder, merge)
    by_jobs = _merged_elsewhere(folder, parts, recipe) if merged else {}
    staged = {file.path for day in by_jobs.values() for file in day.files}

    # The files are checked and switched to at the end of this block, if nothing is raised in it.
    changing = switching(folder, attempt, name=name, fresh=fresh, staged=staged, checks=merge.checks)
    with undoing_damaged_chunks(ledger), changing as build:
        build.note_recipe(recipe, ledger)
        recipe.check_made(ledger, build.current, rows=sum(part.rows for some in parts.values() for part in some))

        # Parts to files, one partition after the other. Files of the present dataset whose rows all count are kept.
        keeper = recipe.keeper(folder, build.current)
        sources = sources_of(folder, parts, merge, build.current, by_jobs)
        merging = merge_partitions(build.staging, keeper, sources, merge, attempt, token=build.token, threads=threads)
        written = dict(merging)

        # The next state of the dataset: the files of all partitions, in order, and which rows each of them holds.
        build.accounts = {name: Account.of(parts[name], combined=merge.combine is not None) for name in parts}
        attempt.check()
        _add_all(folder, build, keeper, parts, written=written, by_jobs=by_jobs)
        _tell(attempt, by_jobs, written)
        build.describe(merge.layout, records=ledger.counts(), bytes_in=ledger.total_bytes)
        recipe.check_combined(ledger, build.current, rows=build.result["rows"])

    # The dataset is switched; if its table in the catalogue cannot be, a later run does that.
    keep_registered(merge, folder.output, changed=True)
    return build.result


def _merged_elsewhere(folder: RunFolder, parts: dict[str, list[CommittedPart]], recipe: Recipe) -> dict[str, DayMerge]:
    from shardkit.dataset.merge_days import merged_by_jobs

    return merged_by_jobs(folder, parts, recipe)


def _tell(attempt: Attempt, by_jobs: Mapping[str, DayMerge], written: Mapping[str, Written]) -> None:
    if by_jobs:
        elsewhere = counted(len(by_jobs), "day")
        attempt.progress.note(f"{elsewhere} merged where they were computed, {len(written):,} here.")


def _add_all(
    folder: RunFolder,
    build: Build,
    keeper: Keeper,
    partitions: Iterable[str],
    *,
    written: Mapping[str, Written],
    by_jobs: Mapping[str, DayMerge],
) -> None:
    """Add the files of all partitions, each of which was merged where it was computed, or here."""
    build.contents = keeper.contents
    for partition in partitions:
        if (day := by_jobs.get(partition)) is not None:
            keeper.contents.take_in(day.contents)
            build.add(partition, day.files, day.kept, day.written)
        else:
            build.add(partition, *written[partition])
    if keeper.contents.columns:
        folder.write(CONTENTS, keeper.contents.dump())


if __name__ == "__main__":
    from shardkit.__main__ import main

    main(["pass2", *sys.argv[1:]])
