"""Shows how far a run is: on a terminal, in a notebook, otherwise as plain lines, or not at all."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from shardkit.printable import printable

PLAIN_EVERY_S = 10.0


class Progress(Protocol):
    """Shows one pass after the other."""

    def start(self, total: int) -> None:
        """Begin a pass with so much to do."""

    def update(self, done: int, line: str) -> None:
        """Show how far the pass is, as a number and in words."""

    def finish(self) -> None:
        """End the pass, whether it succeeded or not."""

    def note(self, text: str) -> None:
        """Show a message at once."""


class Quiet:
    """Shows nothing."""

    def start(self, total: int) -> None:
        """Do nothing."""

    def update(self, done: int, line: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class PlainLines(Quiet):
    """Writes a line to stderr now and then, for logs."""

    def __init__(self, *, every_s: float = PLAIN_EVERY_S) -> None:
        self._every_s = every_s
        self._next = 0.0
        self._line = self._said = ""

    def start(self, total: int) -> None:
        """Wait a while before the first line."""
        self._next = time.monotonic() + self._every_s

    def update(self, done: int, line: str) -> None:
        """Write a line if it is time for one."""
        self._line = line
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self._say()

    def finish(self) -> None:
        """Write how far the pass came."""
        if self._line != self._said:
            self._say()

    def note(self, text: str) -> None:
        """Write the line."""
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
        """Show the bar."""
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
        """Show the bar."""
        self._total = max(total, 1)
        self._handle: Any = self._display(self._bar(0, "starting"), display_id=True)

    def update(self, done: int, line: str) -> None:
        """Redraw the bar."""
        self._handle.update(self._bar(done, line))

    def note(self, text: str) -> None:
        """Show a line of its own."""
        print(printable(text), flush=True)  # noqa: T201  likewise

    def _bar(self, done: int, line: str) -> Any:
        import html

        return self._html(f'<progress value="{done}" max="{self._total}"></progress> <code>{html.escape(line)}</code>')


def make_progress(*, quiet: bool, in_logs: bool = True) -> Progress:
    """The display for a terminal, a notebook or a log, by where the process runs; without ``in_logs`` no log."""
    if quiet:
        return Quiet()
    if _in_notebook():
        return Notebook()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Terminal()
    return PlainLines() if in_logs else Quiet()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
