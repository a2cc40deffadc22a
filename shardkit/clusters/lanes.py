"""The lanes of a node whose library makes room for a node's next call while one goes on.

A lane is a thread that sees chunk after chunk through, as on one machine. While a chunk is in a lane, the one that
follows is known, so that the worker fetches its objects already; and while a chunk is uploaded, its lane has the next.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.runfolder.document_types import Marker
    from shardkit.workers.tasks import ChunkTask

FOLLOWER_S = 0.05  # how long a lane waits to know which chunk follows


@dataclass(frozen=True)
class Room:
    """How many calls a library makes at once in this process, and how the calling thread lets it make another."""

    calls: int
    make: Callable[[], None]


ROOM: ContextVar[Room | None] = ContextVar("room", default=None)
"""Set around a call by a cluster's library that can make room; otherwise a process has as many calls as it makes."""


@dataclass
class _Waiting:
    """A chunk on its way through a lane."""

    task: ChunkTask
    begun: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    markers: list[Marker] = field(default_factory=list)
    error: BaseException | None = None


class Lanes:
    """As many lanes as the library makes calls at once."""

    def __init__(self, see_through: Callable[[ChunkTask], list[Marker]], count: int) -> None:
        self._see_through = see_through
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._lane, name="shardkit-lane", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def see_through(self, task: ChunkTask, room: Room) -> list[Marker]:
        """Have a chunk seen through in a lane; once it is in one, there is room for another call."""
        waiting = _Waiting(task)
        self._waiting.put(waiting)
        waiting.begun.wait()
        room.make()
        waiting.ended.wait()
        if waiting.error is not None:
            raise waiting.error
        return waiting.markers

    def close(self) -> None:
        """End the lanes, in which nothing is left."""
        for _ in self._threads:
            self._waiting.put(None)

    def _lane(self) -> None:
        here = self._waiting.get()
        while here is not None:
            here.begun.set()
            following = None
            with contextlib.suppress(queue.Empty):
                following = self._waiting.get(timeout=FOLLOWER_S)
                here.task.ahead = following.task if following is not None else None
            try:
                here.markers = self._see_through(here.task)
            except BaseException as error:  # noqa: BLE001  it is raised where the chunk came from
                here.error = error
            here.ended.set()
            here = following or self._waiting.get()
