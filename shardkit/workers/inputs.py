"""The objects of a record, as files of this machine while its function runs.

Objects of a store are fetched ahead: while the function works on one record, those of the next records arrive, several
at once, in the order in which they will be needed. Bytes and records held are limited; a record's files are removed
when it is done.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError
from shardkit.record import Record
from shardkit.storage.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shardkit.inside.piece import Piece
    from shardkit.storage.places import Places

READ_AHEAD_BYTES = 64 << 20
READ_AHEAD_RECORDS = 64
FETCH_THREADS = 16
QUICK_BYTES = 1 << 18
LOCAL_THREADS = 2  # for pieces of files of this machine, which keep the disk busy, or a CPU

Ticket = tuple[int, int, int]  # shard, chunk, position


@dataclass
class Wanted:
    """A record's objects: their keys, the etags that they must still have, and their total size in bytes.

    A record inside an object is a ``piece`` of it, and has files of its own.
    """

    objects: Sequence[str]
    etags: Sequence[str] | None
    bytes: int
    piece: Piece | None = None
    arrivals: list[Future[None]] = field(default_factory=list)

    @property
    def files(self) -> Sequence[str]:
        """The names of the files that arrive."""
        return self.objects if self.piece is None else self.piece.files


def open_inputs(
    places: Places, scratch: str | None, *, others: Callable[[], Sequence[str]] = list, at_once: int = 1
) -> LocalInputs | RemoteInputs:
    """Access to the objects in some places; what is not a file where it lies is brought to the folder ``scratch``.

    ``others`` returns the keys of some objects of the whole input, to find out whether the store refuses one or all.
    ``at_once`` is how many records are worked on together.
    """
    if scratch is None:
        return LocalInputs(places.root)
    return RemoteInputs(places, Path(scratch), others, at_once=at_once)


def record_at(root: str, piece: Piece | None, *, main: int, **fields: Any) -> Record | None:
    """The record whose files are in the folder ``root``; None for a piece in which there is no line."""
    if piece is None:
        return Record(root=root, main=main, **fields)
    if piece.rule.has_lines and not os.path.exists(f"{root}/{piece.files[0]}"):
        return None
    members = tuple(member.name for member in piece.members)
    return Record(root=root, main=piece.main, files=piece.files, range=piece.range, members=members, **fields)


class LocalInputs:
    """Objects that are files of this machine already."""

    def __init__(self, root: str) -> None:
        self._root = root

    def expect(self, wanted: Iterable[tuple[Ticket, Wanted]]) -> None:
        """Nothing to do: the files are here."""

    def fetch(self, ticket: Ticket) -> str:
        """The folder that the objects' keys are relative to."""
        return self._root

    def release(self, ticket: Ticket) -> None:
        """Nothing to do: the files stay where they are."""

    def forget(self) -> None:
        """Nothing to do: nothing is fetched ahead."""


class RemoteInputs:
    """Objects of a store, and pieces of any, fetched before their turns. Only the worker's main thread may use it."""

    def __init__(
        self, source: Places, scratch: Path, others: Callable[[], Sequence[str]] = list, *, at_once: int = 1
    ) -> None:
        self._source = source
        self._witness = Witness(source, others)
        self._root = scratch
        threads = FETCH_THREADS if source.store is not None else LOCAL_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shardkit-fetch")
        self._wanted: dict[Ticket, Wanted] = {}
        self._waiting: deque[Ticket] = deque()
        self._held: dict[Ticket, _Room] = {}
        self._free: list[_Room] = []
        self._held_bytes = 0
        self._at_once = at_once
        self._most = max(READ_AHEAD_RECORDS, 2 * at_once)

    def expect(self, wanted: Iterable[tuple[Ticket, Wanted]]) -> None:
        """Announce the records that come next, in their order, after those announced before."""
        for ticket, record in wanted:
            if ticket not in self._wanted:
                self._wanted[ticket] = record
                self._waiting.append(ticket)
        self._fill()

    def fetch(self, ticket: Ticket) -> str:
        """Wait until the record's files are here; returns the folder that their names are relative to.

        Raises:
            FileNotFoundError: an object is gone.
            ObjectChanged: one is not what it was when it was listed.
            ObjectDamaged: the record cannot be read out of it.
            ObjectRefused: the store refuses one, but not all.
            StorageError: the store cannot be reached, or refuses all.
        """
        if ticket not in self._held:
            self._waiting.remove(ticket)
            self._begin(ticket)
        wanted, path = self._wanted[ticket], self._held[ticket].path
        if (home := self._home(wanted)) is not None:
            return home
        for number, key in enumerate(wanted.objects):
            try:
                if wanted.arrivals:
                    wanted.arrivals[number].result()
                else:
                    self._get(wanted, number, path)
            except StorageError as error:
                self._witness.excuse(error, functools.partial(self._get, wanted, number, path))
            self._witness.readable = key
        return path

    def _home(self, record: Wanted) -> str | None:
        """The folder of the record's file, if it is a whole file of this machine."""
        is_here = record.piece is not None and record.piece.is_as_it_is and not self._source.are_fetched
        return self._source.root if is_here else None

    def _get(self, record: Wanted, number: int, path: str) -> None:
        key = record.objects[number]
        etag = record.etags[number] if record.etags is not None else None
        if record.piece is not None:
            from shardkit.inside.fetch import fetch_piece

            fetch_piece(self._source, record.piece, etag, path)
            return
        size = record.bytes if len(record.objects) == 1 else None
        self._source.get_file(key, Path(path, key), etag=etag, size=size)

    def release(self, ticket: Ticket) -> None:
        """Remove a record's files, whether all have arrived or not."""
        record = self._wanted.pop(ticket)
        for arrival in record.arrivals:
            if not arrival.cancel():
                with contextlib.suppress(Exception):  # fetch() has raised it, or nobody needs the object
                    arrival.result()
        room = self._held.pop(ticket)
        room.clear(record.files)
        self._free.append(room)
        self._held_bytes -= record.bytes
        self._fill()
        if not self._held and not self._waiting:  # nothing more is expected
            for room in self._free:
                room.remove()
            self._free.clear()

    def forget(self) -> None:
        """Drop the announced records that have not had their turn."""
        self._waiting.clear()
        for ticket in list(self._wanted):
            if ticket in self._held:
                self.release(ticket)
        self._wanted.clear()

    def _fill(self) -> None:
        while self._waiting and self._has_room(self._wanted[self._waiting[0]]):
            self._begin(self._waiting.popleft())

    def _is_quick(self, record: Wanted) -> bool:
        """Whether a record takes less time than to hand it to a thread, so that it is fetched when its turn comes."""
        return record.piece is not None and record.bytes <= QUICK_BYTES and self._source.store is None

    def _has_room(self, record: Wanted) -> bool:
        if self._is_quick(record):
            return False
        if len(self._held) < self._at_once:
            return True
        # A piece of the usual size is on its way while the function works on another.
        limit = READ_AHEAD_BYTES if record.piece is None else 2 * READ_AHEAD_BYTES
        return len(self._held) < self._most and self._held_bytes + record.bytes <= limit

    def _begin(self, ticket: Ticket) -> None:
        record = self._wanted[ticket]
        room = self._free.pop() if self._free else _Room(f"{self._root}/{len(self._held)}")
        self._held[ticket] = room
        self._held_bytes += record.bytes
        if self._home(record) is not None:
            return
        room.prepare(record.files)
        if self._is_quick(record):
            return
        for number in range(len(record.objects)):
            record.arrivals.append(self._threads.submit(self._get, record, number, room.path))


class _Room:
    """A folder for the files of one record at a time, because an object may have the name of another record's folder.

    The folders in it stay for the next record if its objects are in folders of the same names: making them can take
    longer than fetching a small object.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._folders: frozenset[str] = frozenset()

    def prepare(self, keys: Sequence[str]) -> None:
        """Make sure that nothing is in the way of files with these names."""
        folders = frozenset(_around(keys))
        if folders != self._folders:
            self.remove()
        self._folders = folders

    def clear(self, keys: Sequence[str]) -> None:
        """Remove the files, and whatever else the function has left."""
        try:
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.path}/{key}")
            if self._is_bare():
                return
        except OSError:
            pass  # the function has moved or removed something
        self.remove()

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _is_bare(self) -> bool:
        """Whether nothing but the folders is left."""
        inside = Counter(name.rpartition("/")[0] for name in self._folders if name)
        return all(len(os.listdir(f"{self.path}/{name}")) == inside[name] for name in self._folders)


def _around(keys: Iterable[str]) -> Iterator[str]:
    """The folders that files with these names are in, and those around them; the outermost is the empty string."""
    for home in {key.rpartition("/")[0] for key in keys}:
        names = home.split("/")
        yield from ("/".join(names[:count]) for count in range(len(names) + 1))
