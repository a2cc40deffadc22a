"""A SQLite file that processes and threads share: opening, reading, writing in transactions, and its errors."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import weakref
from typing import TYPE_CHECKING

from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.errors import StoreDamaged, StoreError
from shardkit.jobs.sqlite_schema import SCHEMA_VERSION, WAIT_FOR_LOCK_S, prepare
from shardkit.user_state import keep_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

FILE_HINT = "Give a file on a local disk that this program may write to."
DAMAGED_HINT = (
    "Put it back from a copy (its -wal file too), or move it away and submit again; what jobs have done is kept. "
    "The queue of a run is made again from the run folder: shardkit resume."
)
# What SQLite says, and what to do about it.
CURES: tuple[tuple[tuple[str, ...], type[StoreError], str], ...] = (
    (("locked", "busy"), StoreError, "Another program holds it: wait for that to end, or end it, and try again."),
    (("readonly", "read-only"), StoreError, "Give yourself write permission for the file and its folder."),
    (("is full",), StoreError, "Free some space on its disk, and try again; what was written before is kept."),
    (
        ("disk I/O error",),  # also of a full disk, where there is no space for the -shm file
        StoreError,
        "Free some space on its disk, or give a file on another one, and try again; what was written before is kept.",
    ),
    (("malformed", "not a database", "no such table", "no such column"), StoreDamaged, DAMAGED_HINT),
)


class SQLiteFile:
    """The file, and this process's connection to it."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None, private: bool = True) -> None:
        self.path = os.fspath(path)
        self._private = private and self.path != ":memory:"
        self._clock = clock or RealClock()
        self._lock = threading.RLock()
        self._inherited: list[sqlite3.Connection] = []
        self._connect()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._closing()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        """Open the file, for this process: a connection does not survive a fork."""
        if self._private:
            keep_private(self.path)
        try:
            db = sqlite3.connect(self.path, timeout=WAIT_FOR_LOCK_S, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            version = prepare(db)
        except sqlite3.Error as error:
            db.close()  # or the error, which refers to it, would keep the lock of what was begun
            raise self._unusable(error) from error
        if version not in {0, SCHEMA_VERSION}:
            db.close()
            kind = "a newer" if version > SCHEMA_VERSION else "another"
            raise StoreError(
                f"{self.path} was written by {kind} version of shardkit.",
                hint="Use that version, or another file.",
            )
        self._db, self._pid = db, os.getpid()
        self._closing = weakref.finalize(self, db.close)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._pid != os.getpid():
                self._closing.detach()
                self._inherited.append(self._db)  # the parent's: not ours to close
                self._connect()
            try:
                yield self._db
            except (sqlite3.Error, json.JSONDecodeError) as error:
                raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        """The error for a failure of the file, with its cure."""
        text = str(error)
        of_the_file = isinstance(error, sqlite3.OperationalError)
        otherwise = (StoreError, FILE_HINT) if of_the_file else (StoreDamaged, DAMAGED_HINT)
        cures = ((kind, hint) for words, kind, hint in CURES if any(word in text for word in words))
        kind, hint = next(cures, otherwise)
        return kind(f"{self.path} cannot be used as a store of jobs: {text}.", hint=hint)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, while nobody else writes; all of it is kept, or nothing."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # on a full disk SQLite has rolled back by itself
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
