"""The quarantine of a dataset of days: a day's records are in the quarantine of the run that made the day.

A later run of other days leaves such a day as it is, so its own ledger does not have all records that are missing.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.dataset.current import current_result
from shardkit.errors import Damaged
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.ledger import Ledger
from shardkit.storage.side_by_side import together
from shardkit.units import first_line

if TYPE_CHECKING:
    from shardkit.runfolder.document_types import QuarantineEntry, Result

VARIES = r"'[^']*'|\"[^\"]*\"|0x[0-9a-fA-F]+|\d+|\S*/\S*"


def entries_of(folder: RunFolder) -> list[QuarantineEntry]:
    """The quarantine of a run, each entry with the run's id."""
    return [{**entry, "run": folder.run_id} for entry in Ledger(folder).quarantine()]


def by_kind(entries: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The entries of records that failed alike, group by group, the largest group first.

    Parts of a message that differ from record to record, such as names and numbers, do not make it another kind.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        kind = re.sub(VARIES, "*", first_line(entry["message"]).replace(entry["key"], "*"))
        groups.setdefault((entry["error"], kind), []).append(entry)
    return sorted(groups.values(), key=len, reverse=True)


def own_days(folder: RunFolder) -> RunFolder:
    """A run's folder, narrowed to the days of the dataset that no other run has made since.

    The folder is not narrowed if these are all of the run's days, if none is left, or if the run has no days.
    """
    plan = folder.plan()
    if not plan["by_day"]:
        return folder
    mine = _makers(current_result(folder.output)).get(folder.run_id, [])
    return folder.narrowed(mine) if mine and set(mine) != set(plan["partitions"] or ()) else folder


def elsewhere(folder: RunFolder, current: Result | None) -> list[tuple[RunFolder, int]]:
    """Other runs whose days of the dataset have records in quarantine, and how many records.

    Each run's folder is narrowed to these days. ``current`` is the result that describes the present dataset.
    """
    if not folder.plan()["by_day"]:
        return []
    made = current["partitions"] if current is not None else {}
    runs = [
        RunFolder(folder.output, run_id).narrowed(days)
        for run_id, days in _makers(current).items()
        # Datasets of earlier versions have no such note.
        if run_id != folder.run_id and any(made[day].get("quarantined", 1) for day in days)
    ]
    counts = together([partial(_count, run) for run in runs])
    return [(run.encrypted(run.plan()), count) for run, count in zip(runs, counts, strict=True) if count]


def _makers(current: Result | None) -> dict[str, list[str]]:
    """The days of the dataset that each run has made; the runs in the order of their first days."""
    makers: dict[str, list[str]] = {}
    for day, made in current["partitions"].items() if current is not None else ():
        makers.setdefault(made["run"], []).append(day)
    return makers


def _count(folder: RunFolder) -> int:
    """How many records are in quarantine; 0 for a damaged run, which must not hide the others."""
    try:
        return Ledger(folder).quarantined if folder.exists() else 0
    except Damaged:
        return 0
