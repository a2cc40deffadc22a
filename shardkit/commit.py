"""The switch from one state of a dataset to the next.

New files are written whole under the run folder first. ``_shardkit/commit.json`` then says what is to happen, which
from that moment on will happen, if need be in a later process: the new files appear under their names,
``_shardkit/current.json`` becomes the result that lists them, and the files that only the one before listed go. Nobody
else's file is touched.
"""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, PlanMismatch, RunBusy, StorageError
from shardkit.ledger import WHOLE
from shardkit.runfolder import RUNS, STATE_DIR, RunFolder
from shardkit.storage import File
from shardkit.together import together
from shardkit.typetext import merged_schema, schema_to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from shardkit.storage import Folder

STAGING = "dataset"
COMMIT = f"{STATE_DIR}/commit.json"
CURRENT = f"{STATE_DIR}/current.json"


def staging(folder: RunFolder) -> Folder:
    """Where a run's dataset files are written before the switch."""
    return folder.files.child(STAGING)


@contextlib.contextmanager
def dataset_lock(output: Folder, *, patience_s: float = 0.0) -> Iterator[dict[str, Any] | None]:
    """Keep other processes from switching the same dataset, once any half-done switch is finished.

    Gives the result that describes the dataset as it is then.

    ``patience_s`` is how long to wait for another process that is at it.

    Raises:
        RunBusy: another process is at it.
    """
    with output.lock(
        f"{STATE_DIR}/lock", f"Another run is switching the dataset in {output.uri}.", patience_s=patience_s
    ):
        commit, current = together([lambda: _read(output, COMMIT), lambda: current_result(output)])
        if commit is not None:
            _finish_switch(output, commit)
            current = commit["result"]
        yield current


def current_result(output: Folder) -> dict[str, Any] | None:
    """The result that describes the dataset as it is now: that of the run which switched it last."""
    current = _read(output, CURRENT)
    if current is not None:
        return current
    results = [RunFolder(output, run_id).result() for run_id in output.children(RUNS)]
    return max((r for r in results if r is not None), key=lambda result: int(result["switched"]), default=None)


def _read(output: Folder, name: str) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(output.read(name))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StorageError(f"Cannot read {output.uri}/{name}: {error}.") from error
    return content


def check_owner(output: Folder, name: str) -> dict[str, Any] | None:
    """See that no other pipeline's dataset lies in ``output``; returns the result that describes the one there.

    Raises:
        PipelineError: there is one.
    """
    current = current_result(output)
    check_name(output, current, name)
    return current


def check_name(output: Folder, current: dict[str, Any] | None, name: str) -> None:
    """The same, of a result that is known.

    Raises:
        PipelineError: it is another pipeline's.
    """
    if current is not None and current["name"] != name:
        raise PipelineError(
            f"{output.uri} holds the dataset of pipeline {current['name']!r} (run {current['run_id']}), not of "
            f"{name!r}.",
            hint=f"Choose another output, or give this pipeline the name {current['name']!r} to replace that dataset.",
        )


def check_base(run_id: str, plan: dict[str, Any], current: dict[str, Any] | None) -> None:
    """See that the days that a run is to make are those that it was planned upon.

    Raises:
        PlanMismatch: one has been made anew meanwhile.
    """
    made = (current or {}).get("partitions", {})
    for day, before in plan.get("based_on", {}).items():
        now_by = made.get(day, {}).get("run")
        if now_by not in {before, run_id} and not (now_by is None and day in plan["dropped"]):
            raise PlanMismatch(
                f"Run {run_id}: {day} has been made anew by run {now_by} since this one was planned.",
                hint="Start a new run; it computes only what has changed since. What is in quarantine is tried again "
                f"with --date {day} --set incremental=false.",
            )


def kept_days(plan: dict[str, Any], current: dict[str, Any] | None) -> list[str]:
    """The partitions of the dataset that a run leaves as they are."""
    if current is None or not plan.get("by_day"):
        return []
    return [name for name in current.get("partitions", [WHOLE]) if name not in {*plan["partitions"], *plan["dropped"]}]


def check_form(plan: dict[str, Any], current: dict[str, Any] | None, form: dict[str, Any], output: Folder) -> list[str]:
    """See that the days that a run makes are of the same form as those that it leaves; returns these.

    Raises:
        PlanMismatch: they are not.
    """
    kept = kept_days(plan, current)
    if kept and current is not None and current.get("form") != form:
        before = current.get("form") or {}
        names = [name for name in form if form[name] != before.get(name)]
        raise PlanMismatch(
            f"The other days of {output.uri} were made with another {' and '.join(names) or 'form'}.",
            hint="Run all days once, without --date and --since, to make them alike.",
        )
    return kept


def switch(
    folder: RunFolder, result: dict[str, Any], old: dict[str, Any] | None, kept_files: Collection[str] = ()
) -> None:
    """Make the files in ``staging`` the dataset, and ``result`` its description instead of ``old``.

    The caller holds the dataset lock. ``kept_files`` are those of the days made anew that are not in ``staging``, for
    they stay as they are.

    Raises:
        PlanMismatch: another run has made the same days meanwhile.
        StorageError: the switch could not be finished; it will be when the run is resumed.
    """
    plan = folder.plan()
    check_base(folder.run_id, plan, old)
    before = [file["path"] for file in old["files"]] if old else []
    if not set(kept_files) <= set(before):
        raise PlanMismatch(
            f"Run {folder.run_id}: the dataset in {folder.output.uri} has been made anew meanwhile.",
            hint="Start a new run; it computes only what has changed since.",
        )
    if old is not None and (kept := check_form(plan, old, result["form"], folder.output)):
        _carry_over(old, result, kept)
    new = {file["path"] for file in result["files"]}
    gone = [path for path in before if path not in new]
    result["switched"] = (old["switched"] if old else 0) + 1
    commit = {"result": result, "gone": gone}
    _note(folder.output, COMMIT, commit)
    _finish_switch(folder.output, commit, staged=new - set(before))


def _carry_over(old: dict[str, Any], result: dict[str, Any], kept: list[str]) -> None:
    """Have the new state hold the days that the run has not touched, as they are."""
    files = [file for file in old["files"] if file["partition"] in set(kept)]
    result["partitions"] = dict(sorted(({day: old["partitions"][day] for day in kept} | result["partitions"]).items()))
    result["files"] = sorted(files + result["files"], key=lambda file: str(file["path"]))
    result["rows"] = sum(file["rows"] for file in result["files"])
    result["bytes_out"] = sum(file["bytes"] for file in result["files"])
    schema = merged_schema(old, result)
    result["columns"] = old["columns"] | result["columns"]
    result["schema"] = schema_to_text(schema)


def _finish_switch(output: Folder, commit: dict[str, Any], *, staged: set[str] | None = None) -> None:
    """Carry out what ``commit.json`` says, wherever an earlier process left off.

    ``staged`` are the files that nobody has placed yet, where that is known.
    """
    folder = RunFolder(output, commit["result"]["run_id"])
    if staged is None:
        staged = {entry.key for entry in staging(folder).entries()}
    new = [file["path"] for file in commit["result"]["files"] if file["path"] in staged]
    together([partial(_place, staging(folder), File(output, path)) for path in new])
    folder.write("result.json", commit["result"])
    _note(output, CURRENT, commit["result"])
    together([*(partial(_remove, output, name) for name in commit["gone"]), partial(_tidy, folder)])
    output.remove(COMMIT)


def finish_switches(output: Folder) -> None:
    """Finish a switch of this output that a process left half-way; one that is under way is left to its process."""
    if output.exists(COMMIT):
        with contextlib.suppress(RunBusy), dataset_lock(output):
            pass


def _note(output: Folder, name: str, content: dict[str, Any]) -> None:
    """Write one of the dataset's own files, atomically."""
    output.write(name, json.dumps(content, ensure_ascii=False).encode())


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
