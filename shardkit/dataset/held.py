"""A build whose checks have failed: its files stay staged in the run folder, until somebody accepts them.

``checks.json`` in the run folder is written when the files are, so a crash leaves either an unfinished run, which is
merged and checked again, or a build that can be accepted. The switch itself is that of every build.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shardkit.errors import ChecksFailed, Damaged, PlanMismatch, RunNotFound, WrittenByNewer
from shardkit.runfolder.check_types import ChecksDocument
from shardkit.runfolder.find import latest_run
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.steps import advice
from shardkit.storage.side_by_side import together
from shardkit.times import now
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Any

    from shardkit.dataset.build import Build
    from shardkit.runfolder.check_types import CheckResult, HeldBuild
    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Folder

CHECKS = "checks.json"


def checks_of(folder: RunFolder) -> ChecksDocument | None:
    """How the checks of a run's last build ended; None if there were none.

    Raises:
        Damaged: the document is not as it was written.
    """
    return folder.read_if_there(CHECKS, ChecksDocument)


def held_by(checks: ChecksDocument | None, result: Result | None) -> HeldBuild | None:
    """The build that a run keeps aside; None if there is none, or if the run's ``result`` is that build's."""
    if checks is None or (result is not None and result["generation"] >= checks["generation"]):
        return None
    return checks["held"]


def check_build(
    folder: RunFolder, build: Build, checks: Mapping[str, Any], old: Result | None, *, of_jobs: Collection[str]
) -> None:
    """Check the rows of a build, and note how that ended; the caller holds the dataset's lock.

    Raises:
        ChecksFailed: a check has failed; the build stays aside.
    """
    from shardkit.dataset.data_checks import results_of

    results = results_of(checks, build, folder.output, old)
    failed = [result for result in results if not result["passed"]]
    document: ChecksDocument = {
        "checked": now(),
        "generation": build.number,
        "results": results,
        "held": _held(build, checks, old, of_jobs) if failed else None,
        "accepted": None,
    }
    folder.write(CHECKS, document)
    if failed:
        raise checks_failed(folder, results)


def _held(build: Build, checks: Mapping[str, Any], old: Result | None, of_jobs: Collection[str]) -> HeldBuild:
    return {
        "result": build.result,
        "kept": build.kept,
        "of_jobs": sorted(of_jobs),
        "columns": build.merge.schema,
        "widen_ints": build.merge.widen_ints,
        "switched": _switches(old),
        "checks": dict(checks),
    }


def _switches(present: Result | None) -> int:
    return present["switched"] if present is not None else 0


def checks_failed(folder: RunFolder, results: list[CheckResult], *, since: str = "") -> ChecksFailed:
    """The error that says which checks have failed, and what to do; ``since`` what has come of the input since."""
    failed = [result for result in results if not result["passed"]]
    named = "; ".join(f"{result['name']} ({result['message']})" for result in failed)
    state = "The dataset stays as it was, and the new files are kept aside."
    return ChecksFailed(
        f"Run {folder.run_id}: {len(failed)} of {counted(len(results), 'check')} failed: {named}. {since or state}",
        hint=advice(
            folder,
            lambda step: (
                f"\nSee what offends: {step('checks')}\n"
                "Switch to the new files all the same: "
                f"{step('accept') if step.in_python else step('checks', accept=True)}\n"
                "Or mend the cause, and run again."
            ),
        ),
    )


def kept_aside(output: Folder, current: Result | None, *, but: str) -> tuple[RunFolder, HeldBuild] | None:
    """The run that keeps a build aside until somebody accepts it, and that build; None if there is none.

    It is the output's latest run, or the one that was kept aside when that was planned: it may have been of other days,
    or have been killed. The run ``but`` is none: it is planned once more, and has to be what it was.
    """
    folder = latest_run(output)
    try:
        while folder is not None and not _has_made_all(folder, current):
            held = held_by(checks_of(folder), folder.result())
            if held is not None and folder.run_id != but and _waits(folder, held, current):
                return folder, held
            before = folder.plan().get("aside")
            folder = RunFolder(output, before) if before is not None and RunFolder(output, before).exists() else None
    except (Damaged, WrittenByNewer):
        pass
    return None


def _has_made_all(folder: RunFolder, current: Result | None) -> bool:
    """Whether the present dataset is all of that run, so that nothing that was kept aside before is still wanted."""
    return current is not None and folder.run_id == current["run_id"] and not current["by_day"]


def _waits(folder: RunFolder, held: HeldBuild, present: Result | None) -> bool:
    """Whether a build, or some of its days, can still be accepted."""
    return is_current(folder, held, present) or bool(_days_waiting(folder, held, present))


def _days_waiting(folder: RunFolder, held: HeldBuild, present: Result | None) -> list[str]:
    """The days of a build that no other run has rebuilt since it was planned."""
    if not held["result"]["by_day"]:
        return []
    made, before = present["partitions"] if present is not None else {}, folder.plan()["based_on"]
    makers = {name: made[name]["run"] if name in made else None for name in held["result"]["partitions"]}
    return [name for name, maker in makers.items() if maker == before.get(name)]


def held_build(folder: RunFolder) -> tuple[HeldBuild, ChecksDocument]:
    """The build that a run keeps aside, and its checks.

    Raises:
        RunNotFound: there is none.
    """
    checks = checks_of(folder)
    held = held_by(checks, folder.result())
    if checks is None or held is None:
        why = "its checks have passed" if checks is not None and not checks["accepted"] else "nothing is kept aside"
        raise RunNotFound(f"Run {folder.run_id} has no new files to accept: {why}.", hint="")
    return held, checks


def check_staged(folder: RunFolder, held: HeldBuild, home_of: Callable[[str], Folder]) -> None:
    """See that the files of a build are still staged: a process that was killed may have begun to rewrite them.

    Raises:
        Damaged: one is gone, or is not as it was written.
    """
    kept = set(held["kept"])
    staged = [file for file in held["result"]["files"] if file["path"] not in kept]
    sizes = together([partial(home_of(file["path"]).size, file["path"]) for file in staged])
    lost = next((file["path"] for file, size in zip(staged, sizes, strict=True) if size != file["bytes"]), None)
    if lost is not None:
        raise Damaged(
            f"Run {folder.run_id}: {lost} is no longer among the files that are kept aside.",
            hint=advice(folder, lambda step: f"Merge and check them again: {step('resume')}"),
        )


def is_current(folder: RunFolder, held: HeldBuild, present: Result | None) -> bool:
    """Whether the dataset is still the one that a build was compared with; of days, each may be switched by itself."""
    if held["result"]["by_day"]:
        return len(_days_waiting(folder, held, present)) == len(held["result"]["partitions"])
    return _switches(present) == held["switched"]


def checks_stand(held: HeldBuild, checks: Mapping[str, Any] | None, present: Result | None) -> bool:
    """Whether a build would fail again: these are the checks that it has failed, against the same dataset."""
    return held.get("checks") == checks and _switches(present) == held["switched"]


def check_base(folder: RunFolder, held: HeldBuild, present: Result | None) -> None:
    """See that the dataset is still the one that the build was compared with.

    Raises:
        PlanMismatch: another run has switched it since.
    """
    if held["result"]["by_day"] or is_current(folder, held, present):
        return  # that of days is seen to, day by day, when they are switched
    by = f"run {present['run_id']}" if present is not None else "somebody"
    raise PlanMismatch(
        f"Run {folder.run_id}: the dataset in {folder.output.uri} was switched by {by} since these files were checked.",
        hint=advice(folder, lambda step: f"Merge and check them again: {step('resume')}; or start a new run."),
    )
