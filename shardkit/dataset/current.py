"""What a dataset is now, from ``current.json`` or, if that is lost, from the results of its runs."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from shardkit.dataset.switch_steps import COMMIT, note
from shardkit.errors import Damaged, RunBusy, StorageError
from shardkit.runfolder import documents
from shardkit.runfolder.document_types import Result
from shardkit.runfolder.names import CURRENT, RUNS
from shardkit.storage.base import STATE_DIR
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from shardkit.runfolder.document_types import ResultFile
    from shardkit.storage.base import Folder, State

D = TypeVar("D")


def current_result(output: Folder) -> Result | None:
    """The result that describes the dataset as it is now: that of the run which switched it last.

    If ``current.json`` is gone or damaged, the runs' own results are used.

    Raises:
        Damaged: these are of no use either.
        WrittenByNewer: it is of a later format.
    """
    return current_state(output)[0]


def current_state(output: Folder) -> tuple[Result | None, State]:
    """The same, and the state of ``current.json``."""
    data, state = output.read_state(CURRENT)
    if data is None:
        return _latest_of_runs(output, ""), {}
    try:
        return parsed(output, CURRENT, data, Result), state
    except Damaged as error:
        return _latest_of_runs(output, error.message), state


def parsed(output: Folder, name: str, data: bytes, kind: type[D]) -> D:
    """One of the dataset's documents.

    Raises:
        Damaged: it is not as it was written.
        WrittenByNewer: it is of a later format.
    """
    try:
        return documents.parse(data, kind, f"{output.uri}/{name}")
    except Damaged as error:
        raise Damaged(f"{output.uri}/{name} is damaged: {error.message}.") from None


def results_of_runs(output: Folder) -> tuple[list[Result], list[str]]:
    """The results of all runs, and the names of those that are damaged."""
    results, damaged = [], []
    for run_id in output.children(RUNS):
        try:
            name = f"{RUNS}/{run_id}/result.json"
            results.append(parsed(output, name, output.read(name), Result))
        except FileNotFoundError:
            continue
        except Damaged:
            damaged.append(f"{RUNS}/{run_id}/result.json")
    return sorted(results, key=lambda result: result["switched"]), damaged


def _latest_of_runs(output: Folder, why: str) -> Result | None:
    """The latest result of all runs, whose files are all there; ``why`` says what is damaged, if anything is."""
    results, damaged = results_of_runs(output)
    if not (results or damaged or why):
        return None  # a new dataset
    wrong = f"{damaged[0]} is damaged" if damaged else "" if results else "no run has a result"
    if not wrong and (missing := missing_file(output, results[-1]["files"])):
        wrong = f"the latest result of a run lists {missing}, which is not there as it was written"
    if wrong:
        first = why or f"{output.uri}/{CURRENT} is not there."
        raise Damaged(
            f"{first} The runs do not say either what the dataset is: {wrong}.",
            hint="Put the file back from a copy; or choose another output, or move this one away, and run again.",
        )
    if why:
        documents.say(f"{why} The dataset is that of run {results[-1]['run_id']}, as its own result says.")
    _mend(output, results[-1])
    return results[-1]


def _mend(output: Folder, result: Result) -> None:
    """Rewrite ``current.json``, unless another process is switching the dataset or we may not write."""
    with contextlib.suppress(RunBusy, StorageError), output.lock(f"{STATE_DIR}/lock", ""):
        if output.exists(COMMIT):
            return
        data, state = output.read_state(CURRENT)
        try:
            parsed(output, CURRENT, data or b"", Result)
        except Damaged:
            note(output, CURRENT, result, state)


def missing_file(output: Folder, files: list[ResultFile]) -> str:
    """The first of a dataset's files that is not there as it was written; empty if all are."""
    sizes = together([partial(output.size, file["path"]) for file in files])
    return next((f["path"] for f, size in zip(files, sizes, strict=True) if size != f["bytes"]), "")
