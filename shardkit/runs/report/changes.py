"""What differs from the dataset before."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from shardkit.dataset.current import results_of_runs
from shardkit.pages.page import Cell
from shardkit.runs.report.data import null_percent, rows_of_partitions
from shardkit.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.pages.page import Page
    from shardkit.runfolder.document_types import Result
    from shardkit.runs.report.look import Look

PARTITIONS = 20
COUNTS: tuple[Literal["listed", "done", "quarantined", "skipped"], ...] = ("listed", "done", "quarantined", "skipped")


def add_changes(page: Page, look: Look) -> None:
    """Add a comparison with the dataset that the run has replaced or extended, if there was one."""
    result = look.result
    if result is None or result["switched"] < 2:
        return
    results, _ = results_of_runs(look.folder.output)
    earlier = [each for each in results if each["switched"] < result["switched"]]
    if not earlier:
        return
    before = earlier[-1]
    page.add_headline("What differs from the dataset before", f"which run {before['run_id']} made")
    page.add_table("Figures", ["", "Before", "Now", "Difference"], _figures(before, result), is_wide=False)
    changed = _columns(before, result)
    if changed:
        page.add_table("Columns", ["Column", "Before", "Now"], changed, is_wide=False)
    else:
        page.add_text("Columns", ["The columns and their types are the same."], is_wide=False)
    if nulls := _nulls(before, result):
        page.add_table("Nulls", ["Column", "Before", "Now"], nulls, is_wide=False)
    if rows := _partitions(before, result):
        note = f"The {PARTITIONS} that have changed most." if len(rows) == PARTITIONS else ""
        page.add_table("Rows by partition", ["Partition", "Before", "Now", "Difference"], rows, note=note)


def _figures(before: Result, now: Result) -> list[list[Cell]]:
    def row(name: str, old: float | None, new: float | None, text_of: Callable[[float], str]) -> list[Cell]:
        if old is None or new is None:
            return [Cell(name), *(Cell("-" if n is None else text_of(n), n) for n in (old, new)), Cell("-")]
        change = new - old
        share = f" ({change / old:+.1%})" if old and change else ""
        sign = "+" if change > 0 else "-" if change < 0 else ""
        return [
            Cell(name),
            Cell(text_of(old), old),
            Cell(text_of(new), new),
            Cell(f"{sign}{text_of(abs(change))}{share}", change),
        ]

    number = "{:,.0f}".format
    figures = [
        row("Rows", before["rows"], now["rows"], number),
        row("Files", len(before["files"]), len(now["files"]), number),
        row("Bytes", before["bytes_out"], now["bytes_out"], human_bytes),
        row("Partitions", len(before["partitions"]), len(now["partitions"]), number),
    ]
    counts = [row(f"Records {name}", before["records"][name], now["records"][name], number) for name in COUNTS]
    return [*figures, *counts, row("Time of the run", before.get("seconds"), now.get("seconds"), human_seconds)]


def _columns(before: Result, now: Result) -> list[list[Cell]]:
    """The columns that are new, gone or of another type."""
    old, new = before["columns"], now["columns"]
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return [[Cell(name), *(Cell(each.get(name, "-"), kind="left") for each in (old, new))] for name in changed]


def _nulls(before: Result, now: Result) -> list[list[Cell]]:
    """The columns whose share of nulls has changed, where the files of both datasets say how many they have."""
    old, new = _null_shares(before), _null_shares(now)
    if old is None or new is None:
        return []
    both = [name for name in now["columns"] if name in before["columns"]]
    shares = {name: (old.get(name, 0.0), new.get(name, 0.0)) for name in both}
    return [
        [Cell(name), *(Cell(null_percent(share), share) for share in pair)]
        for name, pair in shares.items()
        if null_percent(pair[0]) != null_percent(pair[1])
    ]


def _null_shares(result: Result) -> dict[str, float] | None:
    """The share of nulls in each column that has any; None if a file does not say it, or if there is no row."""
    if not result["rows"] or any("nulls" not in file for file in result["files"] if file["rows"]):
        return None
    counts: Counter[str] = Counter()
    for file in result["files"]:
        counts.update(file.get("nulls", {}))
    return {name: count / result["rows"] for name, count in counts.items()}


def _partitions(before: Result, now: Result) -> list[list[Cell]]:
    """The partitions whose rows have changed most."""
    old, new = rows_of_partitions(before), rows_of_partitions(now)
    if len(old) < 2 and len(new) < 2:
        return []
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name, 0) != new.get(name, 0)]
    names.sort(key=lambda name: -abs(new.get(name, 0) - old.get(name, 0)))
    rows = []
    for name in names[:PARTITIONS]:
        change = new.get(name, 0) - old.get(name, 0)
        both = (Cell("-", -1) if name not in each else Cell(f"{each[name]:,}", each[name]) for each in (old, new))
        rows.append([Cell(name), *both, Cell(f"{change:+,}", change)])
    return rows
