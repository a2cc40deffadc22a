"""Shared by the tests of pages: what is in them, and what a browser makes of them."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# The library that draws the charts, which is not ours.
LIBRARY = re.compile(r"<script>const n=.*?</script>", re.DOTALL)
QUIET = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"


def charts_of(page: str) -> dict[str, dict[str, Any]]:
    """The specifications of a page's charts, by their names."""
    charts = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)
    assert charts is not None
    return dict(json.loads(charts[1]))


def headlines_of(page: str) -> list[str]:
    """The headlines of a page's charts, tables and texts."""
    return re.findall("<h3>(.*?)</h3>", page)


def opened_in_chromium(file: Path, profile: Path) -> tuple[str, str]:
    """A page as a browser has it after its scripts have run, and what it has written to its console."""
    done = subprocess.run(
        [
            "chromium", *(f"--{each}" for each in QUIET.split()), "--disable-component-update",
            "--enable-logging=stderr", "--virtual-time-budget=9000",
            f"--user-data-dir={profile / 'chromium'}", "--dump-dom", file.as_uri(),
        ],
        check=True, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
