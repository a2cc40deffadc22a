"""The queue of a run's jobs: its own, which the process that watches the run drives, or one that another serves."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shardkit.errors import Damaged
from shardkit.jobs import SQLiteStore, adopt, drive, export_jobs, import_jobs, monitor, stop
from shardkit.jobs.errors import StoreDamaged
from shardkit.jobs.open import open_store
from shardkit.jobs.service import trouble_of
from shardkit.runfolder.document_types import QueueCopy
from shardkit.runfolder.documents import dump, parse, say
from shardkit.runfolder.names import STOP
from shardkit.runfolder.steps import advice
from shardkit.storage.local import writing
from shardkit.storage.local_folder import LocalFolder
from shardkit.user_state import PRIVATE_FOLDER, state_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardkit.engines.settings import Settings
    from shardkit.jobs import Report, Store
    from shardkit.jobs.rounds import Change
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.sections import Queue

    Show = Callable[[str, Sequence[Change]], None]

SNAPSHOT = "jobs.json"
SNAPSHOT_EVERY_S = 15.0


class RunQueue(Protocol):
    """The queue that holds the jobs of one run."""

    store: Store

    def keep(self) -> None:
        """Make sure that another machine finds the jobs as they are now."""

    def refresh(self) -> None:
        """Ask the engine for the state of the jobs, if nobody else does."""

    def stop_if_asked(self) -> None:
        """Stop the jobs if somebody has asked for that, perhaps on another machine."""

    def drive(self, jobs: int, show: Show) -> None:
        """Stay until all jobs of the run have ended; ``jobs`` is how many were submitted just now.

        ``show`` is called after every round, with a text about what is wrong with the queue, if anything is, and with
        the jobs that have changed, as far as this process knows.
        """


def run_queue(folder: RunFolder, base: str, engine: Settings, queue: Queue | None) -> RunQueue:
    """The queue of a run whose jobs' names begin with ``base``."""
    return OwnQueue(folder, base, engine) if queue is None else ServedQueue(base, engine, queue)


class OwnQueue:
    """A queue in a file, for one run; the run folder has a copy of it for other machines."""

    def __init__(self, folder: RunFolder, base: str, engine: Settings) -> None:
        self._folder, self._base, self._engine = folder, base, engine
        self._policy = engine.policy()
        self._copy_due = self._stop_due = 0.0
        self._copy_is_old = True
        path, beside = _store_path(folder), isinstance(folder.output, LocalFolder)
        with writing(path.parent):
            path.parent.mkdir(mode=0o755 if beside else PRIVATE_FOLDER, parents=True, exist_ok=True)
        self._private = not beside  # beside the output, everybody who sees the output may look
        self.store: Store = self._opened(path)
        self._catch_up()

    def _opened(self, path: Path) -> Store:
        """The store in the queue's file; a damaged file is put aside if there is a copy of what was in it."""
        try:
            store = SQLiteStore(path, private=self._private)
            store.counts(run=self._base)
        except StoreDamaged as error:
            if not self._folder.files.exists(SNAPSHOT):
                raise
            say(f"{error.message} It is made again from {self._folder.uri}/{SNAPSHOT}.")
            for file in path.parent.glob(f"{path.name}*"):
                file.rename(file.with_name(f"damaged-{file.name}"))
            return SQLiteStore(path, private=self._private)
        return store

    def _catch_up(self) -> None:
        """Take in jobs that were submitted since this queue was last used, on another machine for instance."""
        name = f"{self._folder.uri}/{SNAPSHOT}"
        try:
            copy = parse(self._folder.files.read(SNAPSHOT), QueueCopy, name)
            taken = import_jobs(self.store, copy)
        except FileNotFoundError:
            return
        except (Damaged, LookupError, TypeError, ValueError, AttributeError) as error:
            if sum(self.store.counts(run=self._base).values()):  # the copy is of these, and the next one replaces it
                say(f"{name} is damaged, which does not matter: the queue itself is there.")
                return
            raise Damaged(
                f"Run {self._folder.run_id}: {name} is damaged, and nothing else knows its jobs: {error}.",
                hint=advice(
                    self._folder,
                    lambda step: (
                        "See in the engine's own list that they have ended. Then delete the file and go on; what they "
                        f"have committed is kept: {step('resume')}"
                    ),
                ),
            ) from None
        if taken:
            adopt(self.store, self._engine.client(), name_contains=self._base, policy=self._policy)

    def keep(self) -> None:
        """Keep a copy of the queue in the run folder."""
        self._copy_is_old = False
        self._copy_due = time.monotonic() + SNAPSHOT_EVERY_S
        self._folder.files.write(SNAPSHOT, dump(export_jobs(self.store)))

    def refresh(self) -> None:
        """Ask the engine how the jobs are."""
        monitor(self.store, self._engine.client(), policy=self._policy, force=True)

    def stop_if_asked(self) -> None:
        """Check now and then whether somebody has asked for a stop, and then stop the jobs."""
        if time.monotonic() >= self._stop_due:
            self._stop_due = time.monotonic() + self._engine.look_every_s
            if self._folder.files.exists(STOP):
                stop(self.store, self._engine.client(), run=self._base)

    def drive(self, jobs: int, show: Show) -> None:
        """Launch and watch."""

        def after_round(seen: Report, report: Report) -> None:
            show(report.trouble or seen.trouble, [*seen.changed, *report.changed])
            self.stop_if_asked()
            self._copy_is_old |= bool(seen.changed or report.changed or report.calls)
            if self._copy_is_old and time.monotonic() >= self._copy_due:
                self.keep()

        drive(self.store, self._engine.client(), policy=self._policy, on_round=after_round)


class ServedQueue:
    """A table of jobs that somebody else launches and monitors; here they are only submitted and looked at."""

    def __init__(self, base: str, engine: Settings, queue: Queue) -> None:
        self._base, self._engine, self._place = base, engine, queue.place
        self.store: Store = open_store(queue.place, session=engine.session())

    def keep(self) -> None:
        """Nothing to do: the table has everything."""

    def refresh(self) -> None:
        """Nothing to do: the server of the queue asks the engine."""

    def stop_if_asked(self) -> None:
        """Nothing to do: the request to stop is in the table already."""

    def drive(self, jobs: int, show: Show) -> None:
        """Watch."""
        while True:
            counts = self.store.counts(run=self._base)
            left = counts["New"] + counts["Launched"] + counts["InProgress"]
            trouble = trouble_of(self.store, time.time(), place=self._place, engine=self._engine.kind)
            show(trouble if left else "", [])
            if not left and sum(counts.values()) >= jobs:  # what was just submitted may not be in the index yet
                return
            time.sleep(self._engine.look_every_s)


def _store_path(folder: RunFolder) -> Path:
    """The queue lies in the run folder; if that is in an object store, in the folder of the user's own state."""
    if isinstance(folder.output, LocalFolder):
        return folder.path / "jobs.sqlite"
    return Path(state_path("runs", f"{hashlib.sha256(folder.uri.encode()).hexdigest()[:32]}.sqlite"))
