"""The part of a run's page about the checks of its new files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from shardkit.pages.page import Cell
from shardkit.runs.checked import results_of_checks

if TYPE_CHECKING:
    from shardkit.pages.page import Page
    from shardkit.runs.report.look import Look


def add_checks(page: Page, look: Look) -> None:
    """Add a table of the checks, if the run has made any."""
    results = results_of_checks(look.folder) if look.summary.checks else []
    if not results:
        return
    page.add_headline("Checks")
    cells = [
        [
            Cell("passed" if result["passed"] else "FAILED"),
            Cell(result["name"]),
            Cell(result["message"]),
            Cell(f"{result['offending']:,}", result["offending"]),
            Cell("\n".join(json.dumps(row, ensure_ascii=False) for row in result["sample"])),
        ]
        for result in results
    ]
    page.add_table("Checks of the new files", ["", "Check", "Found", "Offending", "Such as"], cells)
