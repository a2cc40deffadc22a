"""Processes of one machine that share its memory: each pauses for a record of another that has to prove itself.

Locks belong to opened files, so that two objects of this process are to each other as two processes are.
"""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, wait_for

from shardkit.runfolder.stop import Stop
from shardkit.workers.board import GIVE_WAY, GO_ON, REST
from shardkit.workers.gate import Gate
from shardkit.workers.memory import Room
from shardkit.workers.neighbours import END, NOTHING, Neighbours, neighbours_at
from shardkit.workers.neighbours import REST as PAUSE
from shardkit.workers.pool import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = LINUX
GB = 1 << 30


@pytest.fixture
def neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Neighbours]]:
    """Makes one process after the other; in the end none of their files is left."""
    made: list[Neighbours] = []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def make() -> Neighbours:
        made.append(Neighbours("a run"))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_has_the_machine_once_the_others_have_left(neighbour: Callable[[], Neighbours]) -> None:
    a, b, c = neighbour(), neighbour(), neighbour()
    assert a.enter() and b.enter() and b.enter()
    assert not c.enter(as_first=True)
    assert c.wish(PAUSE) and c.wish(PAUSE)
    assert not c.have_all()
    assert (a.wish_of_others(), b.wish_of_others(), c.wish_of_others()) == (PAUSE, PAUSE, NOTHING)
    assert not a.wish(END), "one after the other"
    a.leave()
    b.leave()
    assert c.have_all() and c.wish(END)
    assert a.wish_of_others() == END
    assert not a.enter() and not a.takes_part
    c.give_back()
    assert a.wish_of_others() == NOTHING
    assert b.enter(as_first=True)
    assert a.enter() and not c.enter(as_first=True)


def test_nobody_waits_for_one_that_has_gone_or_for_files_that_have(neighbour: Callable[[], Neighbours]) -> None:
    a, b = neighbour(), Neighbours("a run")
    assert b.wish(END) and b.have_all() and not a.enter()
    b.close()
    assert a.wish_of_others() == NOTHING and a.enter()
    a.leave()
    Neighbours("a run").close()  # removes the files, which nobody has locked
    c = neighbour()
    assert c.enter() and not a.enter(as_first=True), "they have found the same file"


def test_what_was_left_is_removed_after_a_day(neighbour: Callable[[], Neighbours], tmp_path: Path) -> None:
    a, killed = neighbour(), Neighbours("another run")
    assert a.enter()
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (1, 1))
    new = Neighbours("a third")
    assert len(list(tmp_path.rglob("*.part"))) == 2, "that which is locked, and the new one"
    new.close()
    b = neighbour()
    assert not b.enter(as_first=True)
    assert killed.enter()
    killed.close()


def test_where_there_are_no_files_each_is_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    assert neighbours_at("a run") is None


class World:
    """A process with a gate, and workers that are made up."""

    def __init__(self, neighbours: Neighbours, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = SimpleNamespace(
            size=2,
            memory_limit=None,
            held_bytes=lambda: 0,
            idle_bytes=lambda **_: 0,
            resident_bytes=lambda: 0,
            discard_idle=lambda: self.ended.append("idle"),
        )
        self.ended: list[str] = []
        self.gate = Gate(pool, neighbours)  # type: ignore[arg-type]
        self.room = room
        monkeypatch.setattr(self.gate, "_room", lambda: self.room)
        self.wished: list[int] = []
        self.slot = SimpleNamespace(rests=False, wish=self.wished.append)
        self.worker: Any = SimpleNamespace(slot=self.slot, peak=1, resident_bytes=lambda: 1)

    def look(self) -> int:
        """What a worker is told, once its gate has looked."""
        self.gate._next_heed = 0.0
        self.gate.look()
        return self.wished[-1]


@pytest.fixture
def worlds(neighbour: Callable[[], Neighbours], monkeypatch: pytest.MonkeyPatch) -> list[World]:
    return [World(neighbour(), Room(8 * GB, 8 * GB), monkeypatch) for _ in range(2)]


@pytest.mark.parametrize(("cleared", "told"), [(False, REST), (True, GIVE_WAY)])
def test_a_record_is_alone_when_the_workers_of_both_are_idle(worlds: list[World], *, cleared: bool, told: int) -> None:
    a, b = worlds
    alone, over = threading.Event(), threading.Event()

    def prove() -> None:
        with b.gate.alone(Stop(), cleared=cleared):
            alone.set()
            over.wait(60)

    turn = a.gate.turn(Stop())
    turn.__enter__().takes(a.worker)
    proving = threading.Thread(target=prove, daemon=True)
    proving.start()
    wait_for(lambda: a.look() == told)
    assert not alone.is_set(), "its worker is still at a record"
    assert a.ended == (["idle"] if cleared else [])
    if cleared:
        turn.__exit__(None, None, None)  # it has committed what it had
    else:
        a.slot.rests = True
        a.look()
    assert alone.wait(60)
    stop = Stop()
    assert not a.gate._joins(0)
    over.set()
    proving.join(60)
    if not cleared:
        wait_for(lambda: a.look() == GO_ON)
        turn.__exit__(None, None, None)
    with a.gate.turn(stop), b.gate.turn(stop):
        pass


def test_both_may_want_to_be_alone(worlds: list[World]) -> None:
    entered: list[int] = []

    def prove(number: int) -> None:
        with worlds[number].gate.alone(Stop()):
            entered.append(number)
            assert len(entered) % 2, "the other one is there"
            entered.append(-1)

    both = [threading.Thread(target=prove, args=(number,), daemon=True) for number in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(60)
    assert sorted(entered) == [-1, -1, 0, 1]


def test_who_is_to_stop_need_not_wait_and_leaves_nothing_behind(worlds: list[World]) -> None:
    a, b = worlds
    with a.gate.turn(Stop()) as turn:
        turn.takes(a.worker)
        stop = Stop()
        stop.ask(KeyboardInterrupt(), patience_s=0.0)
        with pytest.raises(Stopped), b.gate.alone(stop):
            pass
        assert a.look() == GO_ON


def test_a_chunk_that_needs_more_than_is_left_waits_until_it_is_the_only_one(worlds: list[World]) -> None:
    a, b = worlds
    b.gate.learn(100, 6 * GB)
    b.room = Room(2 * GB, 8 * GB)
    entered = threading.Event()

    def enter() -> None:
        with b.gate.turn(Stop(), record_bytes=100):
            entered.set()

    with a.gate.turn(Stop()) as turn:
        turn.takes(a.worker)
        waiting = threading.Thread(target=enter, daemon=True)
        waiting.start()
        assert not entered.wait(0.1)
    assert entered.wait(60)
    waiting.join(60)
    b.room = Room(7 * GB, 8 * GB)
    with a.gate.turn(Stop()), b.gate.turn(Stop(), record_bytes=100):
        pass
