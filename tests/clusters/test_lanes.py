"""The lanes of a node, for a library that makes its next call as soon as there is room for it."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from crashing import wait_for

from shardkit.clusters import lanes
from shardkit.clusters.lanes import Lanes, Room


@dataclass
class Task:
    number: int
    ahead: Task | None = None


class Library:
    """Makes one call at a time, and the next as soon as there is room."""

    def __init__(self, see_through: Any, calls: int) -> None:
        self.lanes = Lanes(see_through, 1)
        self._left = iter(range(calls))
        self._threads = ThreadPoolExecutor(calls)
        self.answers: dict[int, Future[Any]] = {}
        self.make_next()

    def make_next(self) -> None:
        number = next(self._left, None)
        if number is not None:
            self.answers[number] = self._threads.submit(
                self.lanes.see_through,
                Task(number),
                Room(1, self.make_next),  # type: ignore[arg-type]
            )

    def close(self) -> None:
        self._threads.shutdown()
        self.lanes.close()


def test_a_lane_takes_one_chunk_at_a_time_and_knows_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "FOLLOWER_S", 1.0)
    seen: list[tuple[int, int | None]] = []
    busy = threading.Lock()

    def see_through(task: Task) -> list[Any]:
        assert busy.acquire(blocking=False), "the lane has another"
        seen.append((task.number, task.ahead.number if task.ahead is not None else None))
        busy.release()
        if task.number == 1:
            raise ValueError("no chunk can be done")
        return [f"marker {task.number}"]

    library = Library(see_through, 4)
    wait_for(lambda: len(library.answers) == 4 and all(answer.done() for answer in library.answers.values()))
    library.close()
    assert seen == [(0, 1), (1, 2), (2, 3), (3, None)]
    with pytest.raises(ValueError, match="no chunk"):
        library.answers[1].result()
    assert [library.answers[number].result() for number in (0, 2, 3)] == [[f"marker {number}"] for number in (0, 2, 3)]
