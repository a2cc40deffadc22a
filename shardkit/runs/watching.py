"""What is shown while a run's jobs are driven: a line that says how far they are, and what happens to them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from shardkit.jobs.job import LAUNCHED, NEW
from shardkit.jobs.transitions import WAITS
from shardkit.jobs.wording import CAUSES_IN_WORDS
from shardkit.masking import masked
from shardkit.runfolder.meters import SHORT_CHARACTERS, JobMeter
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shardkit.engines.settings import Settings
    from shardkit.jobs import Store
    from shardkit.jobs.rounds import Change
    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.folder import RunFolder

ASKED = 100  # so many of the jobs that wait are asked for what


class Watch:
    """Shows how the jobs of a run are.

    Args:
        folder: The run's.
        engine: Where the jobs run.
        store: Their queue.
        progress: The display.
        run: The jobs' run in the queue.
        earlier: Jobs, by status, that are in the queue and do not count.
    """

    def __init__(
        self,
        folder: RunFolder,
        engine: Settings,
        store: Store,
        progress: Progress,
        *,
        run: str,
        earlier: Mapping[str, int],
    ) -> None:
        self._store, self._run, self._progress = store, run, progress
        self._meter = JobMeter(folder, earlier, look_every_s=engine.look_every_s)
        self._trouble = ""  # of the last round
        self._noted: set[str] = set()
        progress.start(self._meter.total)

    def show(self, trouble: str, changed: Sequence[Change]) -> None:
        """Show how the jobs are after a round of the queue."""
        counts = self._store.counts(run=self._run)
        reasons = self._reasons() if counts[LAUNCHED] else Counter()
        self._note_trouble(trouble)
        self._note_retries(changed)
        for reason, count in reasons.items():
            if len(reason) > SHORT_CHARACTERS:  # for which a narrow terminal's line has no room
                self._note(f"{counted(count, 'job')} {'waits' if count == 1 else 'wait'}: {reason}", reason)
        foremost = reasons.most_common(1)[0][0].partition(" (")[0] if reasons else ""
        self._progress.update(*self._meter.read(counts, trouble, foremost))

    def end(self) -> None:
        """Show how the jobs are at the end."""
        self._progress.update(*self._meter.read(None))

    def _reasons(self) -> Counter[str]:
        """What the jobs wait for that the engine has and has not begun."""
        jobs = self._store.jobs(run=self._run, status=LAUNCHED, limit=ASKED)
        return Counter(job.reason.removeprefix(WAITS) for job in jobs if job.reason.startswith(WAITS))

    def _note_trouble(self, trouble: str) -> None:
        """The line has little room for it; what is over with the next round is not worth more."""
        if trouble and trouble == self._trouble:
            self._note(f"Waiting: {masked(trouble)}", trouble)
        self._trouble = trouble

    def _note_retries(self, changed: Sequence[Change]) -> None:
        causes = {change.cause: change for change in reversed(changed) if change.status == NEW and change.cause}
        for cause, first in causes.items():
            count = sum(change.cause == cause and change.status == NEW for change in changed)
            text = f"{counted(count, 'job')} to be tried again ({CAUSES_IN_WORDS[cause]}), such as {first.name}: "
            self._note(text + masked(first.reason.splitlines()[0] if first.reason else cause), f"again: {cause}")

    def _note(self, text: str, about: str) -> None:
        if about not in self._noted:
            self._noted.add(about)
            self._progress.note(text)
