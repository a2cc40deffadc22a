"""The quarantine of a dataset of days: a day's records are in the quarantine of the run that made the day.

A later run of other days leaves such a day as it is, so what its own ledger tells is not all that the dataset lacks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from shardkit.dataset.switch import current_result
from shardkit.errors import Damaged
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.ledger import Ledger
from shardkit.storage.side_by_side import together


def entries_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The quarantine of a run, each entry with the run's id."""
    return [{**entry, "run": folder.run_id} for entry in Ledger(folder).quarantine()]


def own_days(folder: RunFolder) -> RunFolder:
    """A run's folder for the days of the dataset that it has made and no other run since; as it is where that is all.

    A run that has made no days, or of which nothing is left, stays as it is too.
    """
    plan = folder.plan()
    if not plan.get("by_day"):
        return folder
    mine = _makers(current_result(folder.output)).get(folder.run_id, [])
    return folder.narrowed(mine) if mine and set(mine) != set(plan["partitions"]) else folder


def elsewhere(folder: RunFolder, current: dict[str, Any] | None) -> list[tuple[RunFolder, int]]:
    """The other runs that have made days of the dataset with records in quarantine, and how many these are.

    Each run's folder is for these days alone. ``current`` is the result that describes the dataset as it is now.
    """
    if not folder.plan().get("by_day"):
        return []
    made = (current or {}).get("partitions", {})
    runs = [
        RunFolder(folder.output, run_id).narrowed(days)
        for run_id, days in _makers(current).items()
        # Datasets of before have no such note.
        if run_id != folder.run_id and any(made[day].get("quarantined", 1) for day in days)
    ]
    counts = together([partial(_count, run) for run in runs])
    return [(run.encrypted(run.plan()), count) for run, count in zip(runs, counts, strict=True) if count]


def _makers(current: dict[str, Any] | None) -> dict[str, list[str]]:
    """Which days of the dataset each run has made; the runs in the order of their first days."""
    makers: dict[str, list[str]] = {}
    for day, made in ((current or {}).get("partitions") or {}).items():
        makers.setdefault(made["run"], []).append(day)
    return makers


def _count(folder: RunFolder) -> int:
    """How many records are in quarantine, as far as that can be read: a damaged run keeps nobody from the others."""
    try:
        return Ledger(folder).quarantined if folder.exists() else 0
    except Damaged:
        return 0
