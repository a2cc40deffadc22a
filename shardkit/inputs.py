"""The objects of a record, as files of this machine while its function runs.

Objects of a store are fetched ahead: while the function works on one record, those of the next ones arrive, several
at once, in the order in which they will be needed. What is held is bounded in bytes and in records; a record's files
go when it is done.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.storage import folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shardkit.storage import Access, Folder

READ_AHEAD_BYTES = 64 << 20
READ_AHEAD_RECORDS = 64
FETCH_THREADS = 16

Ticket = tuple[int, int, int]  # shard, chunk, position


@dataclass
class Wanted:
    """A record's objects: keys, the etags that they must still have, their size in bytes together."""

    objects: Sequence[str]
    etags: Sequence[str] | None
    bytes: int
    arrivals: list[Future[None]] = field(default_factory=list)


def open_inputs(uri: str, scratch: str | None, access: Access) -> LocalInputs | RemoteInputs:
    """The way to the objects under ``uri``; ``scratch`` is where those of a store arrive."""
    return LocalInputs(uri) if scratch is None else RemoteInputs(folder(uri, access), Path(scratch))


class LocalInputs:
    """Objects that are files of this machine already."""

    def __init__(self, root: str) -> None:
        self._root = root

    def expect(self, wanted: Iterable[tuple[Ticket, Wanted]]) -> None:
        """They are here."""

    def fetch(self, ticket: Ticket) -> str:
        """The folder that the objects' keys count from."""
        return self._root

    def release(self, ticket: Ticket) -> None:
        """The files stay where they are."""

    def forget(self) -> None:
        """Nothing was expected."""


class RemoteInputs:
    """Objects of a store, fetched before their records' turns; for the worker's own thread alone."""

    def __init__(self, source: Folder, scratch: Path) -> None:
        self._source = source
        self._root = scratch
        self._threads = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="shardkit-fetch")
        self._wanted: dict[Ticket, Wanted] = {}
        self._waiting: deque[Ticket] = deque()
        self._held: set[Ticket] = set()
        self._held_bytes = 0

    def expect(self, wanted: Iterable[tuple[Ticket, Wanted]]) -> None:
        """Tell which records' turns come, in their order; what was told before comes first."""
        for ticket, record in wanted:
            if ticket not in self._wanted:
                self._wanted[ticket] = record
                self._waiting.append(ticket)
        self._fill()

    def fetch(self, ticket: Ticket) -> str:
        """Wait until the record's objects are here; returns the folder that their keys count from.

        Raises:
            FileNotFoundError: an object is gone.
            ObjectChanged: one is not what it was when it was listed.
            StorageError: the store cannot be reached.
        """
        if ticket not in self._held:
            self._waiting.remove(ticket)
            self._begin(ticket)
        for arrival in self._wanted[ticket].arrivals:
            arrival.result()
        return str(self._place(ticket))

    def release(self, ticket: Ticket) -> None:
        """Remove a record's files, whether all have arrived or not."""
        record = self._wanted.pop(ticket)
        for arrival in record.arrivals:
            if not arrival.cancel():
                with contextlib.suppress(Exception):  # fetch() has told it, or nobody wants to know
                    arrival.result()
        shutil.rmtree(self._place(ticket), ignore_errors=True)
        self._held.remove(ticket)
        self._held_bytes -= record.bytes
        self._fill()

    def forget(self) -> None:
        """Drop all that was expected and has not had its turn."""
        self._waiting.clear()
        for ticket in list(self._wanted):
            if ticket in self._held:
                self.release(ticket)
        self._wanted.clear()

    def _fill(self) -> None:
        while self._waiting and self._has_room(self._wanted[self._waiting[0]].bytes):
            self._begin(self._waiting.popleft())

    def _has_room(self, size: int) -> bool:
        if not self._held:
            return True
        return len(self._held) < READ_AHEAD_RECORDS and self._held_bytes + size <= READ_AHEAD_BYTES

    def _begin(self, ticket: Ticket) -> None:
        record = self._wanted[ticket]
        self._held.add(ticket)
        self._held_bytes += record.bytes
        etags = record.etags if record.etags is not None else [None] * len(record.objects)
        alone = len(record.objects) == 1
        for key, etag in zip(record.objects, etags, strict=True):
            size = record.bytes if alone else None
            path = self._place(ticket) / key
            record.arrivals.append(self._threads.submit(self._source.get_file, key, path, etag=etag, size=size))

    def _place(self, ticket: Ticket) -> Path:
        """A folder of the record's own: an object may have the name of another one's folder."""
        return self._root / "-".join(map(str, ticket))
