"""Seeing how far a run is: on a terminal, in a notebook, as plain lines when it is neither, or not at all."""

from __future__ import annotations

import html
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from shardkit.printable import printable
from shardkit.storage.requests import REPEATS, count_of, repeats_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.micro import Counts
    from shardkit.runfolder.folder import RunFolder

PLAIN_EVERY_S = 10.0
TROUBLE_CHARACTERS = 300


class Progress(Protocol):
    """A display of one pass after the other."""

    def start(self, total: int) -> None:
        """A pass begins, with so much to do."""

    def update(self, done: int, line: str) -> None:
        """How far it is, as a number and in words."""

    def finish(self) -> None:
        """It has ended, one way or another."""

    def note(self, text: str) -> None:
        """Something to tell at once."""


class Quiet:
    """Tells nothing."""

    def start(self, total: int) -> None:
        """A pass begins."""

    def update(self, done: int, line: str) -> None:
        """How far it is."""

    def finish(self) -> None:
        """It has ended."""

    def note(self, text: str) -> None:
        """Something to tell at once."""


class PlainLines(Quiet):
    """A line now and then on stderr, for logs."""

    def __init__(self, *, every_s: float = PLAIN_EVERY_S) -> None:
        self._every_s = every_s
        self._next = 0.0
        self._line = self._said = ""

    def start(self, total: int) -> None:
        """Wait a while before the first line."""
        self._next = time.monotonic() + self._every_s

    def update(self, done: int, line: str) -> None:
        """Say a line if it is time for one."""
        self._line = line
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self._say()

    def finish(self) -> None:
        """Say where the pass ended."""
        if self._line != self._said:
            self._say()

    def note(self, text: str) -> None:
        """Say it."""
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201  this is what it is for

    def _say(self) -> None:
        self._said = self._line
        self.note(self._line)


class Terminal(Quiet):
    """A live line at the bottom of the terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    def start(self, total: int) -> None:
        """Put up the bar."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (
            BarColumn(bar_width=24 if self._console.width >= 100 else 10),
            TextColumn("{task.fields[line]}", markup=False),
        )
        self._bar = Bar(*columns, console=self._console, redirect_stdout=False, refresh_per_second=5)
        self._task = self._bar.add_task("", total=max(total, 1), line="starting")
        self._bar.start()

    def update(self, done: int, line: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=done, line=line)

    def finish(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._console.print(printable(text), markup=False, soft_wrap=True)


class Notebook(Quiet):
    """One output line of the cell, rewritten in place; needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found,unused-ignore]

        self._html, self._display = HTML, display
        self._total = 1

    def start(self, total: int) -> None:
        """Put up the bar."""
        self._total = max(total, 1)
        self._handle: Any = self._display(self._bar(0, "starting"), display_id=True)

    def update(self, done: int, line: str) -> None:
        """Redraw the bar."""
        self._handle.update(self._bar(done, line))

    def note(self, text: str) -> None:
        """Show a line of its own."""
        print(printable(text), flush=True)  # noqa: T201  likewise

    def _bar(self, done: int, line: str) -> Any:
        return self._html(f'<progress value="{done}" max="{self._total}"></progress> <code>{html.escape(line)}</code>')


class Meter(Protocol):
    """Reads how far a pass is."""

    total: int

    def read(self) -> tuple[int, str]:
        """As a number of ``total``, and in words."""


class RecordMeter:
    """Pass 1: records, bytes, rates, the time left, the quarantine."""

    def __init__(self, records: int, size_bytes: int, before: Counts, counts: Callable[[], Counts]) -> None:
        self.total = records
        self._bytes = size_bytes
        self._before = before
        self._counts = counts
        self._begun = time.monotonic()
        self._own = REPEATS.counts()

    def read(self) -> tuple[int, str]:
        """Records handled, and a line about them."""
        counts = self._counts()
        elapsed = time.monotonic() - self._begun
        done = counts.records - self._before.records
        # What matters most comes first, for a narrow terminal shows no more.
        parts = [f"{counts.records:,}/{self.total:,} records", f"{counts.quarantined:,} quarantined"]
        if counts.begun or done:
            parts.append(human_bytes(counts.bytes))
        else:
            parts.append("starting workers")
        if done and elapsed > 0:
            rate = (counts.bytes - self._before.bytes) / elapsed
            parts.append(f"{done / elapsed:,.0f} records/s, {human_bytes(rate)}/s")
        left = f"ETA {human_seconds(self._left(counts, elapsed))}" if done and counts.records < self.total else ""
        parts.append(left or human_seconds(elapsed))
        if repeats := repeats_text(counts.repeated + (REPEATS.counts() - self._own)):
            parts.append(f"requests: {repeats}")
        return counts.records, " | ".join(parts)

    def _left(self, counts: Counts, elapsed: float) -> float:
        """Seconds left, by the mean of what records and what bytes say."""
        shares = [(self.total - counts.records) / max(counts.records - self._before.records, 1)]
        if counts.bytes > self._before.bytes:
            shares.append(max(self._bytes - counts.bytes, 0) / (counts.bytes - self._before.bytes))
        return elapsed * sum(shares) / len(shares)


class RowMeter:
    """Pass 2: rows merged."""

    def __init__(self, rows: int, count: Callable[[], int]) -> None:
        self.total = rows
        self._count = count
        self._begun = time.monotonic()

    def read(self) -> tuple[int, str]:
        """Rows merged, and a line about them."""
        rows = self._count()
        elapsed = time.monotonic() - self._begun
        rate = f" | {rows / elapsed:,.0f} rows/s" if elapsed > 0 and rows else ""
        return rows, f"merging: {rows:,}/{self.total:,} rows{rate} | {human_seconds(elapsed)}"


class JobMeter:
    """A run's jobs: how many have ended, and how many records they have handled together.

    ``earlier`` are jobs, by status, that are in the queue and do not count.
    """

    def __init__(self, folder: RunFolder, earlier: Mapping[str, int], *, look_every_s: float) -> None:
        self.total: int = folder.plan()["totals"]["records"]
        self._earlier = earlier
        self._folder = folder
        self._look_every_s = look_every_s
        self._next_look = 0.0
        self._begun = time.monotonic()
        self._records = self._quarantined = 0
        self._repeated: Counter[str] = Counter()
        self._line = ""

    def read(self, counts: Mapping[str, int] | None, trouble: str = "") -> tuple[int, str]:
        """Records handled, and a line about the run's jobs, by status; without them, as they are at the end."""
        if time.monotonic() >= self._next_look or counts is None:
            self._look()
            self._next_look = time.monotonic() + self._look_every_s
        if counts is not None:
            mine = {status: count - self._earlier.get(status, 0) for status, count in counts.items()}
            ended = sum(mine[status] for status in ("Completed", "Failed", "Stopped"))
            live = mine["Launched"] + mine["InProgress"]
            self._line = f"jobs: {ended:,}/{sum(mine.values()):,} ended, {live:,} running"
            if mine["Failed"]:
                self._line += f", {mine['Failed']:,} failed"
        parts = [self._line, f"{self._records:,}/{self.total:,} records", f"{self._quarantined:,} quarantined"]
        parts.append(human_seconds(time.monotonic() - self._begun))
        if repeats := repeats_text(self._repeated):
            parts.append(f"requests: {repeats}")
        if trouble:
            parts.append(trouble[:TROUBLE_CHARACTERS])
        return self._records, " | ".join(parts)

    def _look(self) -> None:
        latest = {str(beat["shard"]): beat for beat in self._folder.heartbeats() if "records" in beat}
        self._records = sum(int(beat["records"]) for beat in latest.values())
        self._quarantined = sum(int(beat["quarantined"]) for beat in latest.values())
        told = [count_of(beat) + Counter(beat.get("repeated_by_workers", {})) for beat in latest.values()]
        self._repeated = sum(told, Counter())


def human_bytes(size: float) -> str:
    """Bytes as a person reads them: ``1.4 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 file``, ``2,000 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human_seconds(seconds: float) -> str:
    """Seconds as a person reads them: ``42 s``, ``3 min 10 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def make_progress(*, quiet: bool) -> Progress:
    """The display that suits where the process runs."""
    if quiet:
        return Quiet()
    if _in_notebook():
        return Notebook()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Terminal()
    return PlainLines()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
