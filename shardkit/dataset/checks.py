"""Checks before a run changes a dataset: whose dataset it is, what the run was planned for, which days it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.dataset.current import current_result
from shardkit.dataset.formats.kinds import format_of
from shardkit.errors import PipelineError, PlanMismatch, RunNotFound, RunReplaced, SchemaConflict
from shardkit.hints import Hint, joined
from shardkit.runfolder.steps import advice
from shardkit.storage.base import STATE_DIR
from shardkit.storage.side_by_side import together
from shardkit.tables.type_text import schema_of

if TYPE_CHECKING:
    from shardkit.runfolder.document_types import PlanDocument, Result
    from shardkit.runfolder.folder import RunFolder
    from shardkit.storage.base import Folder

ANEW = "Start a new run; it computes only what has changed since. What is in quarantine is tried again"


def check_owner(output: Folder, name: str) -> Result | None:
    """Check that ``output`` has no other pipeline's dataset; returns the result that describes the dataset there.

    Raises:
        PipelineError: there is one.
    """
    current = current_result(output)
    check_name(output, current, name)
    return current


def check_name(output: Folder, current: Result | None, name: str) -> None:
    """The same, for a result that was read already.

    Raises:
        PipelineError: it is another pipeline's.
    """
    if current is not None and current["name"] != name:
        raise PipelineError(
            f"{output.uri} holds the dataset of pipeline {current['name']!r} (run {current['run_id']}), not of "
            f"{name!r}.",
            hint=f"Choose another output, or give this pipeline the name {current['name']!r} to replace that dataset.",
        )


def check_base(run_id: str, plan: PlanDocument, current: Result | None) -> None:
    """Check that the days that a run will make are still as they were when it was planned.

    Raises:
        PlanMismatch: another run has rebuilt one meanwhile.
    """
    made = current["partitions"] if current is not None else {}
    for day, before in plan["based_on"].items():
        now_by = made[day]["run"] if day in made else None
        if now_by not in {before, run_id} and not (now_by is None and day in plan["dropped"]):
            raise PlanMismatch(
                f"Run {run_id}: {day} has been rebuilt by run {now_by} since this one was planned.",
                hint=Hint(
                    f"{ANEW} with days=[{day!r}], incremental=False.",
                    f"{ANEW} with --date {day} --set incremental=false.",
                ),
            )


def replaced_by(folder: RunFolder, result: Result | None, current: Result | None) -> str | None:
    """The run that has replaced the dataset of a run; None if any of that is left, or if the run has made none."""
    if result is None or current is None or current["run_id"] == folder.run_id:
        return None
    makers = {name: made["run"] for name, made in current["partitions"].items()}
    if folder.run_id in makers.values():
        return None
    mine = [name for name in folder.plan()["partitions"] or {} if name in makers]
    return makers[mine[0]] if mine else current["run_id"]


def check_not_replaced(folder: RunFolder) -> None:
    """Check that no later run has replaced the dataset of a run that is about to be resumed.

    Raises:
        RunReplaced: one has.
    """
    other = replaced_by(folder, *together([folder.result, lambda: current_result(folder.output)]))
    if other is not None:
        raise RunReplaced(
            f"The dataset of run {folder.run_id} was replaced by run {other}.",
            hint=advice(folder, lambda step: f"To make it the current one again: {step('resume', make_current=True)}"),
        )


def kept_days(plan: PlanDocument, current: Result | None) -> list[str]:
    """The partitions of the dataset that a run leaves as they are."""
    if current is None or not plan["by_day"]:
        return []
    return [name for name in current["partitions"] if name not in {*(plan["partitions"] or ()), *plan["dropped"]}]


def check_form(plan: PlanDocument, current: Result | None, form: dict[str, Any], output: Folder) -> list[str]:
    """Check that the days that a run makes have the same form as those that it leaves; returns the latter.

    Raises:
        PlanMismatch: they are not.
    """
    kept = kept_days(plan, current)
    if kept and current is not None and current["form"] != form:
        before = current["form"]
        names = [name for name in form if form[name] != before.get(name)]
        raise PlanMismatch(
            f"The other days of {output.uri} were made with another {' and '.join(names) or 'form'}.",
            hint=Hint(
                "Run all days once, without days, to make them alike.",
                "Run all days once, without --date and --since, to make them alike.",
            ),
        )
    return kept


def check_types(folder: RunFolder, result: Result, old: Result | None) -> None:
    """Check that columns have the types that they have in the days that stay, if the format wants that.

    Raises:
        SchemaConflict: one has another.
    """
    if old is None or not format_of(result["format"]).one_type or not kept_days(folder.plan(), old):
        return
    before = {field.name: field.type for field in schema_of(old)}
    for field in schema_of(result):
        if (kind := before.get(field.name, field.type)) != field.type:
            raise SchemaConflict(
                f"Column {field.name!r} is {field.type} in the days that are made, and {kind} in those that stay; "
                f"{result['format']} has one type for a column.",
                hint="Name its type in output.schema, or run all days once.",
            )


def result_on_disk(folder: RunFolder) -> Result:
    """The dataset that a run has made, if all of its files are still there.

    Raises:
        RunNotFound: the run has no dataset yet, or files of it are gone.
        RunReplaced: a later run has replaced it.
    """
    result, files = folder.result(), folder.output
    if result is None:
        raise RunNotFound(f"Run {folder.run_id} has no dataset yet.", hint="Resume it first.")
    there = {entry.key for entry in files.entries() if not entry.key.startswith(f"{STATE_DIR}/")}
    gone = next((file["path"] for file in result["files"] if file["path"] not in there), None)
    if gone is not None:
        replaced = "A later run has replaced this dataset."
        try:
            check_not_replaced(folder)
        except RunReplaced as error:
            raise RunReplaced(error.message, hint=joined(replaced, error.hint)) from None
        raise RunNotFound(f"Run {folder.run_id}: {files.uri}/{gone} is gone.", hint=replaced)
    return result
