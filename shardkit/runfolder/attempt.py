"""One attempt at a run, from its start to its end: heartbeat, display, orderly interruption."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from shardkit.errors import RunFailed, RunInterrupted, ShardkitError
from shardkit.runfolder.steps import advice
from shardkit.storage.interruption import INTERRUPTION, GivenUp
from shardkit.storage.requests import REPEATS
from shardkit.times import now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.document_types import Heartbeat
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.meters import Counts, Meter
    from shardkit.runfolder.stop import Stop
    from shardkit.storage.locks import Held

TICK_S = 0.25
HEARTBEAT_S = 5.0
STEALING = "stealing"  # the phase of a job that does chunks of other jobs
INTERRUPT_PATIENCE_S = 10.0


class Tally(Protocol):
    """Counts the work of pass 1."""

    def counts(self) -> Counts:
        """The counts as of now."""

    def check_budget(self) -> None:
        """Ask for the end when more records are quarantined than allowed."""


class Attempt:
    """Runs beside both passes and writes under ``progress/`` how the attempt goes.

    ``begun`` is when the attempt began, on the clock of ``time.monotonic``; ``command`` continues its work.
    ``shard`` is the shard of a job of its own, or ``all``; ``number`` is the lowest number that the attempt may have.
    ``fresh`` means that nobody can have worked on the run before, which saves a look. ``patience_s`` is how long
    records in flight may take once it is interrupted.
    """

    def __init__(
        self,
        folder: RunFolder,
        progress: Progress,
        *,
        begun: float,
        command: str = "resume",
        shard: int | str = "all",
        number: int = 1,
        fresh: bool = False,
        patience_s: float = INTERRUPT_PATIENCE_S,
    ) -> None:
        self._command = command
        self._patience_s = patience_s
        self._shard = shard
        self.number = number if fresh else max(number, folder.next_attempt(shard))
        self.progress = progress
        self.started = now()
        self._folder = folder
        self._begun = begun
        self._own = REPEATS.counts()
        self._held: Held | None = None
        self._phase = "pass 1"
        self._counts: Counts | None = None
        self._tally: Tally | None = None
        self._stolen: Tally | None = None
        self._stop: Stop | None = None
        self._meter: Meter | None = None
        self._left_s: float | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name="shardkit-heartbeat", daemon=True)
        self._handlers: dict[int, Any] = {}

    def holding(self, held: Held) -> Attempt:
        """The same attempt, which ends once the lock of its run is lost."""
        self._held = held
        return self

    def check(self) -> None:
        """Check that this process may still work on the run.

        Raises:
            LockLost: it is not; the process was paused for so long that another may have taken over.
        """
        if self._held is not None:
            self._held.check()

    @property
    def name(self) -> str:
        """Its own among all attempts at a run, and that of its heartbeat."""
        return f"{self._shard}-{self.number:04d}"

    @property
    def seconds(self) -> float:
        """How long the attempt has taken so far."""
        return time.monotonic() - self._begun

    @contextlib.contextmanager
    def pass1(self, tally: Tally, stop: Stop, meter: Meter) -> Iterator[None]:
        """Watch over pass 1: its budget, its display, its end on a signal."""
        self._stop, self._tally = stop, tally
        self._display(self.progress.start, meter.total)
        self._meter = meter  # from now on the other thread shows it
        try:
            yield
        finally:
            self._show()
            self._count()
            self._left_s = 0.0
            self._tally = self._meter = self._stop = None
            self._display(self.progress.finish)

    @contextlib.contextmanager
    def stealing(self, tally: Tally, stop: Stop, meter: Meter) -> Iterator[None]:
        """Watch over work on other jobs' chunks, after pass 1; what is done counts as theirs."""
        before, self._phase = self._phase, STEALING
        self._stop, self._stolen = stop, tally
        with contextlib.suppress(ShardkitError):
            self._write("running")  # so that no other job takes it for one at its own shard
        self._display(self.progress.start, meter.total)
        self._meter = meter
        try:
            yield
        finally:
            self._show()
            self._meter = self._stop = None
            self._phase = before
            self._display(self.progress.finish)

    @contextlib.contextmanager
    def pass2(self, meter: Meter) -> Iterator[None]:
        """Watch over pass 2."""
        self._phase = "pass 2"
        self._display(self.progress.start, meter.total)
        self._meter = meter
        try:
            yield
        finally:
            self._show()
            self._meter = None
            self._display(self.progress.finish)

    def _live(self) -> None:
        last = time.monotonic()
        while not self._end.wait(TICK_S):
            if (tally := self._tally) is not None:
                tally.check_budget()
            self._end_if_lost()
            self._show()
            if time.monotonic() - last > HEARTBEAT_S:
                last = time.monotonic()
                with contextlib.suppress(ShardkitError):  # a full disk shows where it matters, at the parts
                    self._write("running")

    def _end_if_lost(self) -> None:
        """End pass 1, which would go on for nothing; its committed parts can do no harm."""
        stop = self._stop
        if stop is not None and self._held is not None and (lost := self._held.lost) is not None:
            stop.ask(lost, patience_s=0.0)

    def _show(self) -> None:
        if (meter := self._meter) is not None:
            done, line = meter.read()
            self._display(self.progress.update, done, line)

    @staticmethod
    def _display(show: Callable[..., None], *what: Any) -> None:
        # A terminal or a pipe that has gone must not end the run; nor a signal in the middle of another message.
        with contextlib.suppress(OSError, RuntimeError):
            show(*what)

    def _count(self) -> None:
        if (tally := self._tally) is not None:
            self._counts = tally.counts()

    def _write(self, state: str, error: BaseException | None = None) -> None:
        self._count()
        self._folder.write_heartbeat(self._heartbeat(state, error))

    def _heartbeat(self, state: str, error: BaseException | None = None) -> Heartbeat:
        beat: Heartbeat = {
            "shard": self._shard,
            "attempt": self.number,
            "state": state,
            "message": str(error) if error is not None else None,
            "phase": self._phase,
            "repeated": dict(REPEATS.counts() - self._own),
            "started": self.started,
            "at": now(),
            "seconds": round(self.seconds, 3),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if isinstance(error, ShardkitError):
            beat |= {"message": error.command_text, "in_python": str(error), "reason": error.message}
        if (counts := self._counts) is not None:
            beat |= {"records": counts.records, "bytes": counts.bytes, "quarantined": counts.quarantined}
            beat["repeated_by_workers"] = dict(counts.repeated)  # also in the markers
        if self._stolen is not None:
            beat["stolen"] = self._stolen.counts().records
        if (left_s := meter.left_s() if (meter := self._meter) is not None else self._left_s) is not None:
            beat["left_s"] = round(left_s, 3)
        return beat

    def _claim(self) -> None:
        """Take a number that no other attempt has, so that no other attempt writes files of that number."""
        while not self._folder.claim_attempt(self._heartbeat("running")):
            self.number += 1

    def go_on_as_next(self, why: str) -> None:
        """Go on under the next number, because something of what was begun under this one was lost."""
        self.progress.note(f"{why}; going on.")
        with contextlib.suppress(ShardkitError):
            self._write("failed", RunFailed(why))
        self.number += 1
        self._claim()

    def _on_signal(self, number: int, _: Any) -> None:
        INTERRUPTION.note()
        stop = self._stop
        if stop is None:
            raise KeyboardInterrupt  # and not yet RunInterrupted, which the user's combine might catch as an Exception
        patience = 0.0 if isinstance(stop.error, RunInterrupted) else self._patience_s
        stop.ask(self._interruption(), patience_s=patience)
        if patience and number == signal.SIGINT:
            self._display(self.progress.note, "Interrupted: committing what is done (Ctrl-C again stops at once).")

    def _interruption(self) -> RunInterrupted:
        hint = resume_hint(self._folder, command=self._command)
        return RunInterrupted(f"Run {self._folder.run_id} was interrupted.", hint=hint)

    def __enter__(self) -> Attempt:
        self._claim()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._end.set()
        self._thread.join()
        interrupted = isinstance(error, KeyboardInterrupt | GivenUp)
        state = "done" if error is None else "interrupted" if interrupted else "failed"
        with contextlib.suppress(ShardkitError):
            self._write(state, error)
        if interrupted and not isinstance(error, RunInterrupted):
            raise self._interruption() from None


def resume_hint(folder: RunFolder, *, command: str = "resume") -> str:
    """A hint that says how to go on with a run."""
    if command == "pass2":
        return "Its inputs are as they were; give the pass2 command again."
    return advice(folder, lambda step: f"What was committed is kept; go on with: {step(command)}")
