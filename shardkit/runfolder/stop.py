"""A request to stop work: who asks for it, and how long the records in flight may take."""

from __future__ import annotations

import time

from shardkit.errors import RunInterrupted


class Stop:
    """Whether, why and how urgently the work must stop."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._deadline: float | None = None

    @property
    def asked(self) -> bool:
        """Whether no more records may begin."""
        return self.error is not None

    @property
    def out_of_patience(self) -> bool:
        """Whether to give up the records in flight."""
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def is_urgent(self) -> bool:
        """Whether there is a time by which all work must have stopped."""
        return self._deadline is not None

    def ask(self, error: BaseException, *, patience_s: float | None) -> None:
        """Ask for the end: records in flight may take ``patience_s`` more (None: as long as they need)."""
        if self.error is None or isinstance(error, RunInterrupted):
            self.error = error
        if patience_s is not None:
            self._deadline = time.monotonic() + patience_s
