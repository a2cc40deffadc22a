"""What a run has to keep to: how fast it may go, how much may fail, and that something comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.errors import BudgetExceeded, NothingMade
from shardkit.runfolder.steps import advice
from shardkit.units import counted, first_line

if TYPE_CHECKING:
    from shardkit.runfolder.ledger import Ledger

NOTHING_MADE = "so there is nothing to make a dataset of; what was there stays"


@dataclass(frozen=True)
class WorkLimits:
    """How fast pass 1 may go and how much may fail; none of it changes what is computed.

    ``timeout_s`` is for one record; ``max_failures`` a count, or a share such as ``"1%"``, rounded up.
    """

    workers: int
    timeout_s: float | None
    max_failures: int | str

    def max_quarantined(self, listed: int) -> int:
        """How many of ``listed`` records may fail."""
        if isinstance(self.max_failures, str):
            share = float(self.max_failures.rstrip("% ")) / 100
            return math.ceil(listed * share - 1e-9)
        return self.max_failures


def check_budget(ledger: Ledger, limits: WorkLimits) -> None:
    """Check that no more records are quarantined than ``limits`` allow of the whole run.

    Raises:
        BudgetExceeded: there are.
    """
    if ledger.quarantined > limits.max_quarantined(ledger.planned):
        message, hint = over_budget(ledger, limits)
        raise BudgetExceeded(message, hint=hint)


def over_budget(ledger: Ledger, limits: WorkLimits) -> tuple[str, str]:
    """The message and the hint for a run with too much in quarantine."""
    folder, entry = ledger.folder, ledger.quarantine()[0]
    allowed = limits.max_quarantined(ledger.planned)
    share = f"{limits.max_failures} = {allowed:,}" if isinstance(limits.max_failures, str) else f"{allowed:,}"
    message = (
        f"Run {folder.run_id}: {ledger.quarantined:,} of {ledger.listed:,} records are quarantined, more than "
        f"max_failures ({share}) allows. The first is {entry['key']}: {entry['error']}: {first_line(entry['message'])}"
    )
    hint = advice(
        folder,
        lambda step: (
            f"\nSee them all: {step('failures')}\nMend the function, then: {step.retry()}\n"
            f"Or go on as it is: {step('resume', max_failures='100%')}"
        ),
    )
    return message, hint


def check_made(
    ledger: Ledger, rows: int, *, allow_empty: bool, combine: str | None = None, all_may_fail: bool = False
) -> None:
    """Check that the records gave any rows; ``rows`` is the number left, perhaps by a ``combine``.

    A function that forgets its ``return`` looks like one without rows for any record, and must not replace a good
    dataset by an empty one. ``all_may_fail`` means that every record may be in quarantine: users who give
    ``max_failures`` as a number of records have said so, as long as no dataset is lost by it.

    Raises:
        NothingMade: no record is done; or there is no row, and that is not allowed.
    """
    folder, run = ledger.folder, f"Run {ledger.folder.run_id}"
    all_failed = ledger.quarantined > 0 and ledger.quarantined == ledger.listed
    if all_failed and all_may_fail:
        return
    if folder.days is None and all_failed:
        entry = ledger.quarantine()[0]
        raise NothingMade(
            f"{run}: all {counted(ledger.listed, 'record')} are quarantined, {NOTHING_MADE}. "
            f"The first is {entry['key']}: {entry['error']}: {first_line(entry['message'])}",
            hint=advice(
                folder,
                lambda step: f"\nSee them all: {step('failures')}\nMend the function, then: {step.retry()}",
            ),
        )
    if rows or allow_empty:
        return
    done = counted(ledger.done + ledger.skipped, "record")
    what, work = ("the function gave no row", "the function") if combine is None else (f"{combine} left no row", "it")
    raise NothingMade(
        f"{run}: {what} of {done}, {NOTHING_MADE}. Does {work} end with a return or a yield?",
        hint=advice(
            folder,
            lambda step: (
                "\nMend it, and start a new run.\nOr, if there is to be no row, set allow_empty: true in the pipeline, "
                f"and go on: {step('resume', allow_empty=True)}"
            ),
        ),
    )
