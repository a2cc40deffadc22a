"""The switch from one state of a dataset to the next.

New files are written whole under the run folder first. Then ``_shardkit/commit.json`` says what will happen, and from
that moment on it does happen, if need be in a later process: the new files appear under their names,
``_shardkit/current.json`` becomes the result that lists them, and files that only the previous result listed are
removed. No other files are touched. If the dataset is in an Iceberg table, whose snapshots name older files, nothing is
removed: `clean` does that, once the snapshots have expired.

A switch that cannot be finished for a while (a missing permission, a store that refuses a copy) keeps nobody from
looking at the runs and the dataset, which is what ``current.json`` says. A switch that can never be finished, because a
staged file is lost or ``commit.json`` is damaged, is given up: the files that it has put in place are removed, and the
dataset stays as it was.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, cast

from shardkit.dataset.checks import check_base, check_form
from shardkit.dataset.current import current_state, missing_file, parsed, results_of_runs
from shardkit.dataset.index_file import index_name, old_index, without_versioned, write_index
from shardkit.dataset.switch_steps import COMMIT, LockedDataset, Switch, keeps_old_files, name_of, note, remove, staging
from shardkit.errors import Damaged, PlanMismatch, RunBusy, StorageError, WrittenByNewer
from shardkit.hints import Hint, joined
from shardkit.runfolder import documents
from shardkit.runfolder.document_types import Commit, Result
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import CURRENT, RUNS
from shardkit.runfolder.steps import advice
from shardkit.storage.base import STATE_DIR, File
from shardkit.storage.side_by_side import together
from shardkit.tables.type_text import merged_schema, schema_to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from shardkit.dataset.writer import Layout
    from shardkit.runfolder.document_types import ResultFile
    from shardkit.storage.base import Folder, State

SWITCH_PATIENCE_S = 600.0


@contextlib.contextmanager
def dataset_lock(output: Folder, *, patience_s: float = 0.0) -> Iterator[LockedDataset]:
    """Keep other processes from switching the same dataset, once any half-done switch is finished.

    ``patience_s`` is how long to wait for another process that holds the lock.

    Raises:
        RunBusy: another process holds it.
    """
    with output.lock(
        f"{STATE_DIR}/lock", f"Another run is switching the dataset in {output.uri}.", patience_s=patience_s
    ) as held:
        dataset = LockedDataset(output, held)
        _look(dataset)
        yield dataset


def _look(dataset: LockedDataset) -> None:
    """Read the state of a dataset, after finishing any half-done switch."""
    output = dataset.output
    (commit, commit_state), (dataset.result, dataset.state) = together(
        [partial(_read_commit, output), partial(current_state, output)]
    )
    if commit is _DAMAGED:
        commit = _rebuilt(output, dataset.result)
    if commit is not None:
        _finish(dataset, Switch(dataset, commit, commit_state), commit["result"])


_DAMAGED = cast("Commit", {})


def _read_commit(output: Folder) -> tuple[Commit | None, State]:
    data, state = output.read_state(COMMIT)
    try:
        return (None if data is None else parsed(output, COMMIT, data, Commit)), state
    except Damaged:
        return _DAMAGED, state


def switch(
    folder: RunFolder,
    result: Result,
    dataset: LockedDataset,
    kept_files: Collection[str] = (),
    rewritten: Mapping[str, ResultFile] | None = None,
    *,
    of_jobs: Collection[str] = (),
) -> None:
    """Make the files in ``staging`` the dataset, and ``result`` its description.

    ``kept_files`` are files of rebuilt days that stay as they are, so that they are not in ``staging``. ``rewritten``
    has staged files that replace files of the other days, by the paths of these. ``of_jobs`` are the staged files that
    jobs have written.

    Raises:
        PlanMismatch: another run has rebuilt the same days meanwhile.
        LockLost: this process was paused for so long that another one has switched the dataset.
        StorageError: the switch could not be finished; it will be when the run is resumed.
    """
    plan, old, before = folder.plan(), dataset.result, dataset.files
    check_base(folder.run_id, plan, old)
    if not set(kept_files) <= set(before):
        raise PlanMismatch(
            f"Run {folder.run_id}: the dataset in {folder.output.uri} has been replaced meanwhile.",
            hint="Start a new run; it computes only what has changed since.",
        )
    if old is not None and (kept := check_form(plan, old, result["form"], folder.output)):
        _carry_over(old, result, kept, rewritten or {})
    new = {file["path"] for file in result["files"]}
    gone = [path for path in before if path not in new] + old_index(folder.output, old, result)
    result["switched"] = (old["switched"] if old else 0) + 1
    result["version"] = documents.FORMAT
    own, jobs = staging(folder, result["generation"]), staging(folder)
    sources = {path: File(jobs if path in of_jobs else own, path) for path in new - set(before)}
    commit: Commit = {"result": result, "gone": gone, "index": index_name(result)}
    commit_state, result_state = _begin(dataset, folder, commit)
    under_way = Switch(dataset, commit, commit_state, of_jobs=of_jobs)
    under_way.confirm()
    under_way.finish(sources, result_state)


def _begin(dataset: LockedDataset, folder: RunFolder, commit: Commit) -> tuple[State, State]:
    """Write ``commit.json``; returns its state, and that of the run's result, which is still the previous one.

    Raises:
        RunBusy: another run has just switched the dataset.
    """
    base = dataset.state
    while True:
        dataset.lock.check()
        commit_state, result_state = together(
            [partial(note, folder.output, COMMIT, commit), partial(folder.files.state, "result.json")]
        )
        if commit_state is not None:
            return commit_state, result_state
        _look(dataset)  # a process that was paused has left its own: that switch is finished now, or given up
        if dataset.state != base:
            raise RunBusy(
                f"Run {folder.run_id}: another run has just switched the dataset in {folder.output.uri}.",
                hint=advice(folder, lambda step: f"Go on: {step('resume')}"),
            )


def _carry_over(old: Result, result: Result, kept: list[str], rewritten: Mapping[str, ResultFile]) -> None:
    """Take the days that the run has not made into the new state, unchanged except for rewritten files."""
    files = [rewritten.get(file["path"], file) for file in old["files"] if file["partition"] in set(kept)]
    days = {day: old["partitions"][day] for day in kept}
    for day in {file["partition"] for file in rewritten.values()} & set(kept):
        days[day] = {**days[day], "noted_by": result["run_id"]}
    result["partitions"] = dict(sorted((days | result["partitions"]).items()))
    result["files"] = sorted(files + result["files"], key=lambda file: file["path"])
    result["rows"] = sum(file["rows"] for file in result["files"])
    result["bytes_out"] = sum(file["bytes"] for file in result["files"])
    schema = merged_schema(old, result)
    result["columns"] = old["columns"] | result["columns"]
    result["schema"] = schema_to_text(schema)


def _finish(dataset: LockedDataset, left: Switch, result: Result) -> None:
    """Finish a switch that another process left, or give it up if it is outdated or one of its files is lost."""
    output, folder = dataset.output, RunFolder(dataset.output, result["run_id"])
    try:
        if _is(dataset.result, result):
            left.clear_up([file["path"] for file in result["files"]])
            return
        if dataset.result is not None and dataset.result["switched"] >= result["switched"]:
            left.tidy()
            _remove_all_but(output, dataset.result, [file["path"] for file in result["files"]])
            return  # the process that began it was paused, and another run has switched the dataset meanwhile
        staged, result_state = together([left.staged, partial(folder.files.state, "result.json")])
        sizes = {name: size for name, (_, size) in staged.items()}
        lost = missing_file(output, [file for file in result["files"] if sizes.get(file["path"]) != file["bytes"]])
        if not lost:
            names = [file["path"] for file in result["files"] if file["path"] in staged]
            left.finish({name: staged[name][0] for name in names}, result_state)
            return
        _give_up(output, dataset.result, result)
    except StorageError as error:
        raise StorageError(
            f"The switch of {output.uri} to the dataset of run {folder.run_id} is not finished: {error.message}",
            hint=joined(
                error.hint,
                f"Until then the dataset is what {CURRENT} says. Then finish the switch:",
                advice(folder, lambda step: step("resume")),
            ),
        ) from error
    stays = (
        f"Run {folder.run_id} could not switch the dataset in {output.uri}: {lost} is lost. The dataset stays as it was"
    )
    documents.say(advice(folder, lambda step: f"{stays}; make the file again: {step('resume')}"))


def _is(current: Result | None, result: Result) -> bool:
    """Whether the dataset is already what a result describes."""
    return current is not None and _state_of(current) == _state_of(result)


def _state_of(result: Result) -> tuple[str, int, int]:
    return result["run_id"], result["switched"], result["generation"]


def _rebuilt(output: Folder, current: Result | None) -> Commit | None:
    """What a damaged ``commit.json`` must have said, from the results of the runs; None if the switch is given up.

    A run whose result is later than the dataset's was about to switch to it, and all its files were in their places by
    then. Without such a run, staged files and the files of other results are leftovers, and are removed.
    """
    results, _ = results_of_runs(output)
    latest = max(results, key=lambda result: result["switched"], default=None)
    stay = {file["path"] for file in current["files"]} if current is not None else set()
    if latest is not None and latest["switched"] > (current["switched"] if current is not None else 0):
        documents.say(f"{output.uri}/{COMMIT} is damaged; the result of run {latest['run_id']} is used instead.")
        gone = sorted(stay - {file["path"] for file in latest["files"]})
        return {"result": latest, "gone": gone, "index": index_name(latest)}
    if current is not None and index_name(current):
        write_index(output, current, lambda: True)
    folders = [RunFolder(output, run_id) for run_id in output.children(RUNS)]
    staged = [name_of(entry.key) for folder in folders for entry in staging(folder).entries()]
    _remove_all_but(output, current, [*staged, *(file["path"] for result in results for file in result["files"])])
    now = f"that of run {current['run_id']}" if current else "not there yet"
    documents.say(
        f"{output.uri}/{COMMIT} is damaged. The switch that was under way is given up, and the dataset is {now}; "
        "resume the run that was to replace it."
    )
    return None


def _give_up(output: Folder, current: Result | None, result: Result) -> None:
    """Leave the dataset as it was before the switch to a result."""
    folder = RunFolder(output, result["run_id"])
    if current is not None and current["run_id"] == folder.run_id:
        folder.write("result.json", current)
    else:
        folder.files.remove("result.json")
    _remove_all_but(output, current, [file["path"] for file in result["files"]])


def _remove_all_but(output: Folder, current: Result | None, paths: list[str]) -> None:
    """Remove those of the files that are not the dataset's, and the note of the switch that they were for."""
    stay = {file["path"] for file in current["files"]} if current is not None else set()
    going = [] if keeps_old_files(output) else without_versioned(sorted({*paths} - stay), current)
    together([partial(remove, output, path) for path in going])
    output.remove(COMMIT)


def keep_index(layout: Layout, output: Folder) -> None:
    """Write the index of a dataset again if it is lost or damaged, and the format has one."""
    if layout.kind.index:
        with dataset_lock(output, patience_s=SWITCH_PATIENCE_S) as dataset:
            if dataset.result is not None and index_name(dataset.result):
                write_index(output, dataset.result, dataset.is_present)


def finish_switches(output: Folder, *, must: bool = False) -> None:
    """Finish a switch of this output that a process left half-way; one that is under way is left to its process.

    A switch that cannot be finished now is reported and left, so that the dataset can be read all the same.

    Raises:
        StorageError: it cannot be finished now, and ``must`` is set.
        WrittenByNewer: a newer shardkit has begun it.
    """
    if output.exists(COMMIT):
        try:
            with dataset_lock(output):
                pass
        except RunBusy:
            pass
        except StorageError as error:
            if must or isinstance(error, WrittenByNewer):
                raise
            documents.say(Hint(str(error), error.command_text))
