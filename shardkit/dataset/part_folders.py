"""Folders of parts: the output of pass 1 alone, and the input of pass 2 alone."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from shardkit.dataset.accounts import Account, check_parts, is_ours, rows_of_parts
from shardkit.dataset.current import current_result
from shardkit.dataset.next_state import switching
from shardkit.dataset.switch import finish_switches
from shardkit.dataset.switch_steps import keeps_old_files
from shardkit.dataset.writer import DataFile, Layout
from shardkit.errors import InputError
from shardkit.hints import Hint
from shardkit.runfolder.attempt import resume_hint
from shardkit.runfolder.find import latest_run
from shardkit.runfolder.limits import check_made
from shardkit.runfolder.names import WHOLE
from shardkit.storage.base import File

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import LedgerCounts, Result
    from shardkit.runfolder.ledger import Ledger
    from shardkit.storage.base import Folder


def publish_parts(ledger: Ledger, attempt: Attempt, *, name: str, allow_empty: bool) -> Result:
    """Make a run's parts the dataset as they are, the output of pass 1 alone; returns the result.

    Raises:
        LedgerError: records or parts are missing.
        NothingMade: no record is done, or there is no row.
    """
    ledger.check()
    parts = ledger.parts()
    check_made(ledger, sum(part.rows for part in parts), allow_empty=allow_empty)
    with switching(ledger.folder, attempt, name=name) as build:
        check_parts(parts, rows_of_parts(parts))
        build.accounts[WHOLE] = Account.of(parts, combined=False)
        for part in parts:
            shard, name = part.file.key.split("/")[1:]
            path = f"part-{shard}-{name.removesuffix('.parquet')}-{build.token}.parquet"
            part.file.folder.copy_to(part.file.key, File(build.staging, path))
            build.add(WHOLE, [DataFile(path, part.rows, part.bytes)], [], build.schema)
        build.describe(Layout("parquet", 1, None, ()), records=ledger.counts(), bytes_in=ledger.total_bytes)
    return build.result


def parquet_files(root: Folder) -> list[tuple[File, int]]:
    """The parts in a folder with their sizes in bytes, in the order of their names.

    Raises:
        InputError: there are none, or the run that makes them is not finished.
    """
    latest = latest_run(root)
    if latest is not None and latest.result() is None:
        raise InputError(f"Run {latest.run_id} in {root.uri} is not finished.", hint=resume_hint(latest))
    finish_switches(root)
    listed = root.objects().select(["key", "bytes"]).to_pylist()
    if keeps_old_files(root):
        present = noted_of(root)
        listed = [item for item in listed if item["key"] in present]
    parts = [(File(root, item["key"]), item["bytes"]) for item in listed if item["key"].endswith(".parquet")]
    if not parts and latest is None:
        raise InputError(f"{root.uri} holds no Parquet files.", hint="Give the folders that pass 1 wrote.")
    return parts


def noted_of(root: Folder) -> dict[str, int]:
    """The files of the dataset in a folder, and the rows noted for each; empty if no run has made it."""
    result = current_result(root)
    return {file["path"]: file["rows"] for file in result["files"]} if result is not None else {}


def check_inputs(noted: dict[File, int], actual: dict[File, int]) -> None:
    """Check that the inputs have the files that runs have made there, with the noted rows, and no older files.

    Raises:
        InputError: they are not.
    """
    made = {file.folder for file in noted}
    for file in {**noted, **actual}:
        rows, wanted = actual.get(file), noted.get(file)
        if rows == wanted or (wanted is None and not (file.folder in made and is_ours(file.key))):
            continue
        if wanted is None:
            what = "is not a file of the dataset there, but is named like one"
        else:
            what = "is gone" if rows is None else f"has {rows:,} rows, and {wanted:,} are noted for it"
        uri = file.folder.uri
        hint = Hint(f"See what is wrong: print(sk.check({uri!r}))", f"See what is wrong: shardkit check {quote(uri)}")
        raise InputError(f"{file} {what}.", hint=hint)


def ledgers_of(roots: Sequence[Folder]) -> LedgerCounts:
    """The sum of the ledgers of the runs that wrote the inputs, if there are any."""
    results = [result for result in map(current_result, roots) if result is not None]
    return {
        "listed": sum(result["records"]["listed"] for result in results),
        "done": sum(result["records"]["done"] for result in results),
        "quarantined": sum(result["records"]["quarantined"] for result in results),
        "skipped": sum(result["records"]["skipped"] for result in results),
    }
