"""Folders of parts, such as pass 1 alone leaves them: the input of pass 2 alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.dataset.accounts import is_ours
from shardkit.dataset.switch import current_result, finish_switches
from shardkit.errors import InputError
from shardkit.runfolder.attempt import resume_hint
from shardkit.runfolder.find import latest_run
from shardkit.storage.base import File

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.storage.base import Folder


def parquet_files(root: Folder) -> list[tuple[File, int]]:
    """The parts in a folder with their sizes in bytes, in order of their names.

    Raises:
        InputError: there are none, or they are not all there yet.
    """
    latest = latest_run(root)
    if latest is not None and latest.result() is None:
        raise InputError(f"Run {latest.run_id} in {root.uri} is not finished.", hint=resume_hint(latest))
    finish_switches(root)
    listed = root.objects().select(["key", "bytes"]).to_pylist()
    found = [(File(root, item["key"]), item["bytes"]) for item in listed if item["key"].endswith(".parquet")]
    if not found and latest is None:
        raise InputError(f"{root.uri} holds no Parquet files.", hint="Give the folders that pass 1 wrote.")
    return found


def noted_of(root: Folder) -> dict[str, int]:
    """The files of the dataset in a folder, and the rows that are noted of each; none where no run has made it."""
    result = current_result(root)
    return {file["path"]: file["rows"] for file in result["files"]} if result is not None else {}


def check_inputs(noted: dict[File, int], there: dict[File, int]) -> None:
    """See that the files that runs have made in the inputs are there, with the rows that are noted, and no older ones.

    Raises:
        InputError: they are not.
    """
    made = {file.folder for file in noted}
    for file in {**noted, **there}:
        rows, wanted = there.get(file), noted.get(file)
        if rows == wanted or (wanted is None and not (file.folder in made and is_ours(file.key))):
            continue
        if wanted is None:
            what = "is no file of the dataset there, but is named as if it were"
        else:
            what = "is gone" if rows is None else f"has {rows:,} rows, and {wanted:,} are noted of it"
        raise InputError(f"{file} {what}.", hint=f"See what is wrong: shardkit check {file.folder.uri}")


def ledgers_of(roots: Sequence[Folder]) -> dict[str, int]:
    """The sum of the ledgers of the runs that wrote the inputs, where they tell."""
    total = {"listed": 0, "done": 0, "quarantined": 0, "skipped": 0}
    for root in roots:
        if (result := current_result(root)) is not None:
            total = {name: count + result["records"][name] for name, count in total.items()}
    return total
