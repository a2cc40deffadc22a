"""The checks of a run's new files: how they ended, and the switch to files that failed them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shardkit.dataset.checks import check_not_replaced
from shardkit.dataset.held import CHECKS, checks_failed, checks_of, held_build, held_by
from shardkit.dataset.switch import finish_switches
from shardkit.errors import Damaged
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.display import make_progress
from shardkit.runs.planning import planned_merge, planned_pipeline
from shardkit.units import counted

if TYPE_CHECKING:
    from shardkit.errors import ChecksFailed
    from shardkit.runfolder.check_types import CheckResult
    from shardkit.runfolder.document_types import Result
    from shardkit.runfolder.folder import RunFolder

COLUMNS = ["name", "passed", "message", "offending", "sample"]


def results_of_checks(folder: RunFolder) -> list[CheckResult]:
    """How each check of the run's last build ended; none if it had none, or has merged nothing yet.

    Raises:
        Damaged: their document is not as it was written.
    """
    folder.plan()  # without which there is no run
    document = checks_of(folder)
    return document["results"] if document is not None else []


def outcome(folder: RunFolder, result: Result | None) -> dict[str, Any]:
    """The checks in short; nothing if the run has none.

    How many have ``passed``, which ``failed``, when they were ``accepted``, and whether files are ``held`` aside.
    """
    try:
        document = checks_of(folder)
    except Damaged:
        return {}
    if document is None:
        return {}
    failed = [each["name"] for each in document["results"] if not each["passed"]]
    switched = result is not None and result["generation"] >= document["generation"]
    accepted = document["accepted"] or (result["finished"] if failed and switched and result is not None else None)
    return {
        "passed": len(document["results"]) - len(failed),
        "failed": failed,
        "accepted": accepted,
        "held": held_by(document, result) is not None,
    }


def outcome_text(checks: dict[str, Any]) -> str:
    """The same as a line of text."""
    text = f"{checks['passed']:,} passed"
    if checks["failed"]:
        text += f", {len(checks['failed']):,} failed: {'; '.join(checks['failed'])}"
    if checks["held"]:
        return f"{text}; the new files are kept aside"
    return f"{text}; accepted all the same" if checks["accepted"] else text


def still_aside(folder: RunFolder, records: int) -> ChecksFailed:
    """The error that says that the new files of a run still wait to be accepted, and are what would be made again."""
    checks = checks_of(folder)
    results = checks["results"] if checks is not None else []
    same = f"Nothing has changed in {counted(records, 'record')} since, so nothing was computed again"
    return checks_failed(folder, results, since=f"{same}, and the dataset waits until the new files are accepted.")


def accept_held(folder: RunFolder, *, quiet: bool) -> None:
    """Switch the dataset to the files that a run keeps aside, though its checks have failed.

    Raises:
        RunNotFound: it keeps none.
        PlanMismatch, RunReplaced: another run has switched the dataset since.
        RunBusy: somebody works on the run.
    """
    from shardkit.dataset.catalogs import keep_registered
    from shardkit.dataset.day_claims import holding_days
    from shardkit.dataset.next_state import accept

    begun = time.monotonic()
    finish_switches(folder.output, must=True)
    check_not_replaced(folder)
    plan = folder.plan()
    merge = planned_merge(folder, planned_pipeline(plan, {}), {})
    with folder.lock() as held, holding_days(folder, plan):
        document = checks_of(folder)
        result = folder.result()
        if document is not None and document["held"] is not None and held_by(document, result) is None:
            # The switch was made, and its process ended before it could note that.
            folder.write(CHECKS, {**document, "held": None, "accepted": document["checked"]})
        else:
            held_build(folder)
        attempt = Attempt(folder, make_progress(quiet=quiet), begun=begun, command="checks").holding(held)
        with attempt:
            if document is not None and held_by(document, result) is not None:
                accept(folder, attempt, merge)
    keep_registered(merge, folder.output, changed=True)
