"""The quarantine, grouped by the error and the place in the user's code, and requests that were repeated."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardkit.pages.page import Cell
from shardkit.units import first_line, human_bytes

if TYPE_CHECKING:
    from shardkit.pages.page import Page
    from shardkit.runfolder.document_types import QuarantineEntry
    from shardkit.runs.report.look import Look

GROUPS = 50
NAMED = 3
PLACE = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+), in (?P<function>.*)$', re.MULTILINE)


def add_failures(page: Page, look: Look) -> None:
    """Add what failed, and what was repeated."""
    entries = look.ledger.quarantine()
    repeated = look.summary.repeated
    if not entries and not repeated:
        return
    page.add_headline("Failures")
    if entries:
        groups: dict[tuple[str, str], list[QuarantineEntry]] = {}
        for entry in entries:
            groups.setdefault((entry["error"], place_of(entry)), []).append(entry)
        largest = sorted(groups.items(), key=lambda group: -len(group[1]))
        note = "" if len(groups) <= GROUPS else f"{len(groups) - GROUPS:,} more kinds of failure are left out."
        rows = [_group_row(place, group) for (_, place), group in largest[:GROUPS]]
        columns = ["Error", "Records", "Where", "Such as", "Traceback of the first"]
        page.add_table("Records in quarantine", columns, rows, note=note)
    if repeated:
        rows = [[Cell(why), Cell(f"{count:,}", count)] for why, count in sorted(repeated.items())]
        page.add_table("Requests that were repeated", ["Why", "Times"], rows, is_wide=False)


def place_of(entry: QuarantineEntry) -> str:
    """The last place in the traceback of a failure; empty if there is none, as when a process dies."""
    places = list(PLACE.finditer(entry.get("traceback") or ""))
    if not places:
        return ""
    last = places[-1]
    return f"{last['file'].rpartition('/')[2]}:{last['line']}, in {last['function']}"


def _group_row(place: str, group: list[QuarantineEntry]) -> list[Cell]:
    first = group[0]
    keys = ", ".join(entry["key"] for entry in group[:NAMED])
    more = f" and {len(group) - NAMED:,} more" if len(group) > NAMED else ""
    peak = first.get("peak_memory_bytes")
    killed = (
        f"{first['signal']}, peak memory {human_bytes(peak)}" if first.get("signal") and peak else first.get("signal")
    )
    return [
        Cell(f"{first['error']}: {first_line(first['message'])}"),
        Cell(f"{len(group):,}", len(group)),
        Cell(place or killed or "-", kind="left"),
        Cell(keys + more, kind="left"),
        Cell((first.get("traceback") or "-").rstrip(), kind="code"),
    ]
