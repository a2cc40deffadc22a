"""Pass 2: parts to the dataset.

As a program it works alone on plain directories, as the macro/micro-sharding pattern's second script does:

    python -m shardkit.pass2_combine --input OUT... --output DATASET
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from shardkit.dataset.accounts import Account, check_parts, rows_of_parts
from shardkit.dataset.catalog import keep_registered
from shardkit.dataset.kept_files import CONTENTS
from shardkit.dataset.merge import merge_partitions
from shardkit.dataset.merge_days import merged_by_jobs
from shardkit.dataset.next_state import switching
from shardkit.dataset.recipe import Recipe
from shardkit.dataset.source import DamagedPart
from shardkit.dataset.sources import sources_of
from shardkit.dataset.writer import DataFile, Layout
from shardkit.runfolder.ledger import WHOLE
from shardkit.runfolder.limits import check_made
from shardkit.storage.base import File
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.ledger import Ledger


def run_pass2(
    ledger: Ledger, merge: Merge, attempt: Attempt, *, name: str, threads: int, fresh: bool = False
) -> dict[str, Any]:
    """Merge a run's parts and switch the dataset to them; returns the result.

    ``fresh`` says that nobody can have tried that before.

    Raises:
        LedgerError: records or parts are missing.
        NothingMade: no record is done, or there is no row.
        SchemaConflict: parts give a column types that cannot be unified.
        RunBusy: another run is switching the same dataset.
        CatalogError: the dataset is made, but could not be registered.
    """
    ledger.check()
    folder, parts = ledger.folder, ledger.partitions()
    recipe = Recipe.of(folder, merge)
    merged = merged_by_jobs(folder, parts, recipe)
    staged = {file.path for day in merged.values() for file in day.files}
    with undoing(ledger), switching(folder, attempt, name=name, fresh=fresh, staged=staged) as build:
        build.made_with, build.form = recipe.made_with, recipe.form
        build.columns, build.widen_ints = merge.schema, merge.widen_ints
        build.by_day, build.quarantined = folder.plan()["by_day"], ledger.quarantined_by_partition()
        rows = sum(part.rows for partition in parts.values() for part in partition)
        may_be_empty = merge.allow_empty or recipe.has_given_rows(folder, build.current)
        nothing_to_lose = merge.failures_counted and not (build.current and build.current["rows"])
        check_made(ledger, rows, allow_empty=may_be_empty, all_may_fail=nothing_to_lose)
        keeper = recipe.keeper(folder, build.current)
        sources = sources_of(folder, parts, merge, build.current, merged)
        written = dict(
            merge_partitions(build.staging, keeper, sources, merge, attempt, token=build.token, threads=threads)
        )
        build.accounts = {name: Account.of(parts[name], combined=merge.combine is not None) for name in parts}
        build.contents = keeper.contents
        for partition in parts:
            if (day := merged.get(partition)) is not None:
                keeper.contents.take_in(day.contents)
                build.add(partition, day.files, day.kept, day.written)
            else:
                build.add(partition, *written[partition])
        if merged:
            attempt.progress.note(
                f"{counted(len(merged), 'day')} merged by their own jobs, {len(written):,} by this one."
            )
        attempt.check()
        if keeper.contents.columns:
            folder.write(CONTENTS, keeper.contents.dump())
        build.describe(merge.layout, records=ledger.counts(), bytes_in=ledger.total_bytes)
        if merge.combine is not None:
            check_made(ledger, build.result["rows"], allow_empty=may_be_empty, combine=merge.combine.name)
    keep_registered(merge.glue, folder.output, changed=True)
    return build.result


@contextlib.contextmanager
def undoing(ledger: Ledger) -> Iterator[None]:
    """Where a part turns out to be damaged, have its chunk be computed again when the run is resumed."""
    try:
        yield
    except DamagedPart as error:
        raise DamagedPart(error.message, error.part, hint=ledger.undo(error.part)) from None


def publish_parts(ledger: Ledger, attempt: Attempt, *, name: str, allow_empty: bool) -> dict[str, Any]:
    """Make a run's parts the dataset as they are, which is what pass 1 alone leaves; returns the result.

    Raises:
        LedgerError: records or parts are missing.
        NothingMade: no record is done, or there is no row.
    """
    ledger.check()
    check_made(ledger, sum(part.rows for part in ledger.parts()), allow_empty=allow_empty)
    with switching(ledger.folder, attempt, name=name) as build:
        parts = ledger.parts()
        check_parts(parts, rows_of_parts(parts))
        build.accounts[WHOLE] = Account.of(parts, combined=False)
        for part in parts:
            shard, name = part.file.key.split("/")[1:]
            path = f"part-{shard}-{name.removesuffix('.parquet')}-{build.token}.parquet"
            part.file.folder.place(part.file.key, File(build.staging, path))
            build.add(WHOLE, [DataFile(path, part.rows, part.bytes)], [], build.schema)
        build.describe(Layout("parquet", 1, None, ()), records=ledger.counts(), bytes_in=ledger.total_bytes)
    return build.result


if __name__ == "__main__":
    from shardkit.cli.app import main

    main(["pass2", *sys.argv[1:]])
