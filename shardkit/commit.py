"""The switch from one state of a dataset to the next.

New files are written whole under the run folder first. ``commit.json`` then says what is to happen, which from that
moment on will happen, if need be in a later process: the new files appear under their names, the result that lists
them is written, and the files that the pipeline's earlier result lists go. Nobody else's file is touched.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, RunBusy
from shardkit.runfolder import STATE_DIR, RunFolder, runs_of
from shardkit.storage import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.storage import Folder

STAGING = "dataset"


def staging(folder: RunFolder) -> Folder:
    """Where a run's dataset files are written before the switch."""
    return folder.files.child(STAGING)


@contextlib.contextmanager
def dataset_lock(output: Folder, *, patience_s: float = 0.0) -> Iterator[None]:
    """Keep other processes from switching the same dataset, once any half-done switch is finished.

    ``patience_s`` is how long to wait for another process that is at it.

    Raises:
        RunBusy: another process is at it.
    """
    with output.lock(
        f"{STATE_DIR}/lock", f"Another run is switching the dataset in {output.uri}.", patience_s=patience_s
    ):
        for run in _unfinished(output):
            _finish_switch(run)
        yield


def current_result(output: Folder) -> dict[str, Any] | None:
    """The result that describes the dataset as it is now: that of the run which finished last."""
    results = [result for run in runs_of(output) if (result := run.result()) is not None]
    return max(results, key=lambda result: result["switched"], default=None)


def check_owner(output: Folder, name: str) -> None:
    """See that no other pipeline's dataset lies in ``output``.

    Raises:
        PipelineError: there is one.
    """
    current = current_result(output)
    if current is not None and current["name"] != name:
        raise PipelineError(
            f"{output.uri} holds the dataset of pipeline {current['name']!r} (run {current['run_id']}), not of "
            f"{name!r}.",
            hint=f"Choose another output, or give this pipeline the name {current['name']!r} to replace that dataset.",
        )


def switch(folder: RunFolder, result: dict[str, Any]) -> None:
    """Make the files in ``staging`` the dataset, and ``result`` its description. The caller holds the dataset lock.

    Raises:
        StorageError: the switch could not be finished; it will be when the run is resumed.
    """
    old = current_result(folder.output)
    before = [file["path"] for file in old["files"]] if old else []
    if old is not None and old.get("by_day") and result["by_day"]:
        _carry_over(old, result)
    new = {file["path"] for file in result["files"]}
    gone = [path for path in before if path not in new]
    result["switched"] = (old["switched"] if old else 0) + 1
    folder.write("commit.json", {"result": result, "gone": gone})
    _finish_switch(folder)


def _carry_over(old: dict[str, Any], result: dict[str, Any]) -> None:
    """Have the new state hold the days that the run has not touched, as they are."""
    kept = {day for day in old["partitions"] if day not in result["partitions"]}
    files = [file for file in old["files"] if file["partition"] in kept]
    result["partitions"] = {day: old["partitions"][day] for day in kept} | result["partitions"]
    result["partitions"] = dict(sorted(result["partitions"].items()))
    result["files"] = sorted(files + result["files"], key=lambda file: str(file["path"]))
    result["rows"] = sum(file["rows"] for file in result["files"])
    result["bytes_out"] = sum(file["bytes"] for file in result["files"])
    result["columns"] = old["columns"] | result["columns"]


def _finish_switch(folder: RunFolder) -> None:
    """Carry out what ``commit.json`` says, wherever an earlier process left off."""
    commit = folder.read("commit.json")
    staged = {entry.key for entry in staging(folder).entries()}
    for file in commit["result"]["files"]:
        if file["path"] in staged:
            _place(staging(folder), File(folder.output, file["path"]))
    folder.write("result.json", commit["result"])
    for name in commit["gone"]:
        _remove(folder.output, name)
    folder.files.remove("commit.json")
    _tidy(folder)


def finish_switches(output: Folder) -> None:
    """Finish any switch of this output that a process left half-way; one that is under way is left to its process."""
    if _unfinished(output):
        with contextlib.suppress(RunBusy), dataset_lock(output):
            pass


def _unfinished(output: Folder) -> list[RunFolder]:
    return [run for run in runs_of(output) if run.files.exists("commit.json")]


def _place(staged: Folder, target: File) -> None:
    """Make a staged file appear in the dataset."""
    staged.place(target.key, target)


def _remove(output: Folder, name: str) -> None:
    """Remove a file, and the partition folders that it leaves empty."""
    output.remove(name)
    output.remove_empty_parents(name)


def _tidy(folder: RunFolder) -> None:
    """Remove what was staged; nobody counts on it any more."""
    folder.files.remove_all(STAGING)
