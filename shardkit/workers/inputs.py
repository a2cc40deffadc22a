"""The objects of a record, as files of this machine while its function runs.

Objects of a store are fetched ahead: while the function works on one record, those of the next records arrive, several
at once, in the order in which they will be needed. Bytes and records held are limited; a record's files are removed
when it is done. Small pieces of objects are held in memory, and are files only where the function asks for a path.
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
from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.errors import StorageError
from shardkit.held import Held
from shardkit.inside.blocks import BlocksAhead
from shardkit.record import Record
from shardkit.storage.local import open_new, writing
from shardkit.storage.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shardkit.inside.piece import Piece
    from shardkit.inside.source import Source
    from shardkit.storage.places import Places

READ_AHEAD_BYTES = 64 << 20
READ_AHEAD_RECORDS = 64
FETCH_THREADS = 16
QUICK_BYTES = 1 << 18
LOCAL_THREADS = 2  # for pieces of files of this machine, which keep the disk busy, or a CPU

Ticket = tuple[int, int, int]  # shard, chunk, position

_forks = [0]  # how many processes this one has forked


def _count_fork() -> None:
    _forks[0] += 1


os.register_at_fork(after_in_parent=_count_fork)


@dataclass(slots=True)
class Wanted:
    """A record's objects: their keys, the etags that they must still have, and their total size in bytes.

    A record inside an object is a ``piece`` of it, and has files of its own.
    """

    objects: Sequence[str]
    etags: Sequence[str] | None
    bytes: int
    piece: Piece | None = None
    arrivals: list[Future[Arrived]] = field(default_factory=list)
    is_quick: bool = False

    @property
    def etag(self) -> str | None:
        """That of the object, if it is one."""
        return self.etags[0] if self.etags is not None else None

    @property
    def files(self) -> Sequence[str]:
        """The names of the files that arrive."""
        return self.objects if self.piece is None else self.piece.files


class Arrived(NamedTuple):
    """A record's files: the folder that their names are relative to, and what is held in memory of them.

    ``is_blank`` stands for a piece in which there is no line.
    """

    root: str
    held: Held | None = None
    is_blank: bool = False


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


def record_at(
    arrived: Arrived,
    piece: Piece | None,
    key: str,
    objects: tuple[str, ...],
    *,
    main: int,
    bytes: int = 0,
    by_stem: bool = False,
    names: set[str] | None = None,
    meta: dict[str, Any] | None = None,
) -> Record | None:
    """The record with these files; None for a piece in which there is no line."""
    root, held, is_blank = arrived
    if is_blank:
        return None
    if piece is None:
        return Record(key, objects, main=main, root=root, bytes=bytes, by_stem=by_stem, names=names, meta=meta)
    return Record(
        key,
        objects,
        main=piece.main,
        root=root,
        bytes=bytes,
        by_stem=by_stem,
        names=names,
        meta=meta,
        files=piece.files,
        range=piece.range,
        members=piece.names,
        held=held,
    )


class LocalInputs:
    """Objects that are files of this machine already."""

    def __init__(self, root: str) -> None:
        self._arrived = Arrived(root)

    def expect(self, wanted: Iterable[tuple[Ticket, Wanted]]) -> None:
        """Nothing to do: the files are here."""

    def fetch(self, ticket: Ticket) -> Arrived:
        """The folder that the objects' keys are relative to."""
        return self._arrived

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
        self._is_local = source.store is None
        self._has_homes = not source.are_fetched
        self._latest: tuple[tuple[str, str | None], Source] | None = None
        threads = LOCAL_THREADS if self._is_local else FETCH_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shardkit-fetch")
        self._blocks = BlocksAhead(self._threads.submit)
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
                record.is_quick = self._is_quick(record)
        self._fill()

    def fetch(self, ticket: Ticket) -> Arrived:
        """Wait until the record's files are here.

        Raises:
            FileNotFoundError: an object is gone.
            ObjectChanged: one is not what it was when it was listed.
            ObjectDamaged: the record cannot be read out of it.
            ObjectRefused: the store refuses one, but not all.
            StorageError: the store cannot be reached, or refuses all.
        """
        room = self._held.get(ticket)
        if room is None:
            self._waiting.remove(ticket)
            room = self._begin(ticket)
        wanted = self._wanted[ticket]
        if wanted.piece is not None:
            home = self._home(wanted.piece)
            return Arrived(home) if home is not None else self._had(wanted, 0, room)
        for number in range(len(wanted.objects)):
            self._had(wanted, number, room)
        return Arrived(room.path)

    def _had(self, wanted: Wanted, number: int, room: _Room) -> Arrived:
        """Wait until an object of a record is here, or the piece of it that the record is."""
        try:
            arrived = wanted.arrivals[number].result() if wanted.arrivals else self._get(wanted, number, room)
        except StorageError as error:
            arrived = self._witness.excuse(error, functools.partial(self._get, wanted, number, room))
        self._witness.readable = wanted.objects[number]
        return arrived

    def _begin_blocks(self, piece: Piece, etag: str | None) -> None:
        if (extent := piece.extent) is not None:
            with contextlib.suppress(FileNotFoundError):
                self._blocks.begin(self._opened(piece, etag), extent[0])

    def _home(self, piece: Piece) -> str | None:
        """The folder of a piece's file, if it is a whole file of this machine."""
        return self._source.root if self._has_homes and piece.is_as_it_is else None

    def _get(self, record: Wanted, number: int, room: _Room) -> Arrived:
        key = record.objects[number]
        etag = record.etags[number] if record.etags is not None else None
        if record.piece is not None:
            from shardkit.inside.fetch import fetch_piece

            return room.taken(fetch_piece(self._source, self._opened(record.piece, etag), record.piece, room.path))
        size = record.bytes if len(record.objects) == 1 else None
        self._source.get_file(key, Path(room.path, key), etag=etag, size=size)
        return Arrived(room.path)

    def _opened(self, piece: Piece, etag: str | None) -> Source:
        """The object of a piece, which is mostly that of the piece before."""
        source, of = self._latest, (piece.key, etag)
        if source is None or source[0] != of:
            from shardkit.inside.fetch import source_of

            source = self._latest = of, source_of(self._source, piece, etag)
        return source[1]

    def release(self, ticket: Ticket) -> None:
        """Remove a record's files, whether all have arrived or not."""
        record = self._wanted.pop(ticket)
        for arrival in record.arrivals:
            if not arrival.cancel():
                with contextlib.suppress(Exception):  # fetch() has raised it, or nobody needs the object
                    arrival.result()
        room = self._held.pop(ticket)
        room.clear()
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
        self._blocks.forget()
        for ticket in list(self._wanted):
            if ticket in self._held:
                self.release(ticket)
        self._wanted.clear()

    def _fill(self) -> None:
        while self._waiting and self._has_room(self._wanted[self._waiting[0]]):
            self._begin(self._waiting.popleft())

    def _is_quick(self, record: Wanted) -> bool:
        """Whether a record takes less time than to hand it to a thread, so that it is fetched when its turn comes.

        Of a store, the blocks of the object that it is in are read ahead.
        """
        piece = record.piece
        if piece is None or record.bytes > QUICK_BYTES:
            return False
        if self._is_local:
            return True
        extent = piece.extent
        if extent is None or extent[1] - extent[0] > QUICK_BYTES:
            return False
        with contextlib.suppress(FileNotFoundError):  # which its own turn will raise
            self._blocks.expect(self._opened(piece, record.etag), *extent)
        return True

    def _has_room(self, record: Wanted) -> bool:
        if record.is_quick:
            return False
        if len(self._held) < self._at_once:
            return True
        # A piece of the usual size is on its way while the function works on another.
        limit = READ_AHEAD_BYTES if record.piece is None else 2 * READ_AHEAD_BYTES
        return len(self._held) < self._most and self._held_bytes + record.bytes <= limit

    def _begin(self, ticket: Ticket) -> _Room:
        record = self._wanted[ticket]
        room = self._free.pop() if self._free else _Room(f"{self._root}/{len(self._held)}")
        self._held[ticket] = room
        self._held_bytes += record.bytes
        if record.piece is not None and self._home(record.piece) is not None:
            return room
        room.begin(record.files, are_made=record.piece is None)
        if record.is_quick:
            if not self._is_local and record.piece is not None:
                self._begin_blocks(record.piece, record.etag)
        else:
            for number in range(len(record.objects)):
                record.arrivals.append(self._threads.submit(self._get, record, number, room))
        return room


class _Room:
    """A folder for the files of one record at a time, because an object may have the name of another record's folder.

    The folders in it stay for the next record if its objects are in folders of the same names: making them can take
    longer than fetching a small object. Nothing is made as long as all files are in memory.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._folders: frozenset[str] = frozenset()
        self._files: Sequence[str] = ()
        self._made: Sequence[str] = ()
        self._held: Held | None = None
        self._has_folders = False
        self._forks = 0

    def begin(self, files: Sequence[str], *, are_made: bool) -> None:
        """Expect files with these names; ``are_made`` says that they will be made, whatever their sizes."""
        self._files, self._made, self._held, self._forks = files, (), None, _forks[0]
        if self._has_folders and frozenset(_around(files)) != self._folders:
            self.remove()
        if are_made:
            self._note_made()

    def taken(self, contents: dict[str, bytes] | None) -> Arrived:
        """The files of a piece of an object, of which those with ``contents`` are in memory."""
        if contents is None:
            return Arrived(self.path, is_blank=True)
        if len(contents) < len(self._files):
            self._note_made()
        held = self._held = Held(contents, self._make) if contents else None
        return Arrived(self.path, held)

    def _make(self, contents: dict[str, bytes]) -> None:
        self._note_made()
        for name, content in contents.items():
            path = f"{self.path}/{name}"
            with writing(path), open_new(path) as file:
                file.write(content)

    def _note_made(self) -> None:
        if not self._made:
            self._made, self._folders, self._has_folders = self._files, frozenset(_around(self._files)), True

    def clear(self) -> None:
        """Remove the files, and whatever else the function has left."""
        if self._held is not None:
            self._held.drop()
        try:
            for key in self._made:
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
        self._has_folders = False

    def _is_bare(self) -> bool:
        """Whether nothing but the folders is left."""
        if not self._has_folders:  # then only a process that the function has forked may have made it
            return self._forks == _forks[0] or not os.path.lexists(self.path)
        inside = Counter(name.rpartition("/")[0] for name in self._folders if name)
        return all(len(os.listdir(f"{self.path}/{name}")) == inside[name] for name in self._folders)


def _around(keys: Iterable[str]) -> Iterator[str]:
    """The folders that files with these names are in, and those around them; the outermost is the empty string."""
    for home in {key.rpartition("/")[0] for key in keys}:
        names = home.split("/")
        yield from ("/".join(names[:count]) for count in range(len(names) + 1))
