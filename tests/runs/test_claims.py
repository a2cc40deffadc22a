"""Two jobs at one chunk: in every order of their steps, and wherever one of them dies, the chunk counts once."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from job_runs import JobProject
from test_object_store import bucket  # noqa: F401  a fixture

from shardkit.runfolder import claims
from shardkit.runfolder.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from test_object_store import Bucket

    from shardkit.runfolder.document_types import Marker
    from shardkit.runfolder.folder import RunFolder
    from shardkit.storage.base import Folder

OWNER, THIEF = "1-0001", "0-0001"
STEPS = 4  # of each: its part, its marker, a look at the other's marker, the removal of its part
PLACES = [set(places) for places in itertools.combinations(range(2 * STEPS), STEPS)]
ORDERS = ["".join("o" if place in places else "t" for place in range(2 * STEPS)) for places in PLACES]


class Killed(BaseException):
    """The process is gone."""


class Turns:
    """Runs two programs, each in a thread, whose calls of the store come one by one in a given order.

    ``deaths`` says after how many calls a program dies.
    """

    def __init__(self, folder: Folder, monkeypatch: pytest.MonkeyPatch, deaths: dict[str, int] | None = None) -> None:
        self._mine = threading.local()
        self._may = {name: threading.Semaphore(0) for name in "ot"}
        self._stands = {name: threading.Semaphore(0) for name in "ot"}
        self._deaths = deaths or {}
        self.calls = dict.fromkeys("ot", 0)
        for name in ("write", "write_if", "read_many", "remove"):
            monkeypatch.setattr(type(folder), name, self._in_turn(getattr(type(folder), name)))

    def _in_turn(self, do: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            who = getattr(self._mine, "who", None)
            if who is None:  # within another call, or none of the two
                return do(*arguments, **options)
            self._stands[who].release()
            self._may[who].acquire()
            if self.calls[who] == self._deaths.get(who):
                raise Killed
            self.calls[who] += 1
            self._mine.who = None
            try:
                return do(*arguments, **options)
            finally:
                self._mine.who = who

        return instead

    def run(self, programs: dict[str, Callable[[], bool]], order: Iterable[str]) -> dict[str, bool]:
        """Let the programs make their calls in this order; returns what they have returned."""
        outcomes: dict[str, bool] = {}

        def work(who: str) -> None:
            self._mine.who = who
            try:
                outcomes[who] = programs[who]()
            except Killed:
                pass
            finally:
                self._stands[who].release()

        threads = {who: threading.Thread(target=work, args=(who,)) for who in programs}
        for who, thread in threads.items():
            thread.start()
            self._stands[who].acquire()
        for who in order:
            self._may[who].release()
            self._stands[who].acquire()
            if not threads[who].is_alive() or who in outcomes:
                self._stands[who].release()  # there is nothing to wait for any more
        for who, thread in threads.items():
            for _ in range(10):
                self._may[who].release()
            thread.join(10)
            assert not thread.is_alive()
        return outcomes


@pytest.fixture(params=["disk", pytest.param("S3", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    """The folder of a planned run with four records, of which those of shard 1 are one chunk."""
    project = JobProject(tmp_path / "the user's")
    project.write_groups("go", groups="a")
    project.write_groups("go", "go", "go", groups="b")
    there: Bucket | None = request.getfixturevalue("bucket") if request.param == "S3" else None
    fields = {"output": f"{there.uri}/out"} if there is not None else {}
    yield project.run_jobs(wait=False, chunks="even", workers=1, **fields).folder
    project.end()


def marker_of(folder: RunFolder, by: str, ids: list[int] | None = None, *, attempt: int = 1, piece: int = 0) -> Marker:
    """The marker of shard 1's only chunk, or of some of its records, with one part."""
    execution = "" if by.startswith("1-") else f"x{by}"
    part = f"000000-{attempt:04d}{f'p{piece}' if piece else ''}{execution}.parquet"
    count = 3 if ids is None else len(ids)
    return {
        "shard": 1,
        "chunk": 0,
        "attempt": attempt,
        "piece": piece,
        "records": {"listed": count, "done": count, "quarantined": 0},
        "ids": ids,
        "rows": count,
        "bytes_in": count,
        "bytes_out": len(by),
        "parts": [{"name": part, "rows": count, "bytes": len(by)}],
        "quarantine": [],
        "by": by,
    }


def doing(folder: RunFolder, marker: Marker) -> Callable[[], bool]:
    """What a job does at the end of a chunk: it writes the part, and then the marker."""

    def do() -> bool:
        for part in marker["parts"]:
            folder.files.write(f"parts/00001/{part['name']}", marker["by"].encode())
        return claims.commit(folder, marker)

    return do


def clear(folder: RunFolder) -> None:
    for home in ("markers", "parts", "claims"):
        for entry in folder.files.entries(home):
            folder.files.remove(entry.key)


def counts_once(folder: RunFolder) -> Marker:
    """Check that shard 1's records are done once; returns the marker that counts."""
    ledger = Ledger(folder, [1])
    assert (ledger.done, ledger.open, ledger.listed) == (3, 0, 3)
    ledger.check()
    (marker,) = ledger.markers
    return marker


def parts_in(folder: RunFolder) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in folder.files.entries("parts")]


@pytest.mark.whole
def test_in_every_order_the_first_marker_counts(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = ORDERS if "s3" not in folder.uri else ORDERS[::9]
    winners = set()
    for order in orders:
        clear(folder)
        with monkeypatch.context() as patched:
            programs = {"o": doing(folder, marker_of(folder, OWNER)), "t": doing(folder, marker_of(folder, THIEF))}
            outcomes = Turns(folder.files, patched).run(programs, order)
        marker = counts_once(folder)
        assert sorted(outcomes.values()) == [False, True], order
        assert marker["by"] == (OWNER if outcomes["o"] else THIEF)
        assert parts_in(folder) == [marker["parts"][0]["name"]], order
        winners.add(marker["by"])
    assert winners == {OWNER, THIEF}


@pytest.mark.parametrize("victim", ["o", "t"])
def test_wherever_one_dies_the_other_ends_it(folder: RunFolder, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = "ot".replace(victim, "")
    on_disk = itertools.product(range(STEPS), range(STEPS))
    for steps, before in on_disk if "s3" not in folder.uri else zip(range(STEPS), range(STEPS), strict=True):
        clear(folder)
        with monkeypatch.context() as patched:
            programs = {"o": doing(folder, marker_of(folder, OWNER)), "t": doing(folder, marker_of(folder, THIEF))}
            order = alive * before + victim * (steps + 1) + alive * STEPS
            outcomes = Turns(folder.files, patched, {victim: steps}).run(programs, order)
        marker = counts_once(folder)
        assert alive in outcomes
        assert marker["parts"][0]["name"] in parts_in(folder)


@pytest.mark.parametrize("first", [OWNER, THIEF])
def test_of_a_whole_chunk_and_a_part_of_it_the_whole_counts(folder: RunFolder, first: str) -> None:
    ids = Ledger(folder).planned_chunks(1)[0].tolist()
    for whole in (OWNER, THIEF):
        clear(folder)
        part = THIEF if whole == OWNER else OWNER
        markers = {whole: marker_of(folder, whole), part: marker_of(folder, part, ids[:2])}  # as of a job that is ended
        for by in (first, part if first == whole else whole):
            doing(folder, markers[by])()
        assert counts_once(folder)["by"] == whole


@pytest.mark.parametrize("first", [OWNER, THIEF])
def test_a_late_job_changes_nothing_once_a_later_attempt_has_done_the_chunk(folder: RunFolder, first: str) -> None:
    for by in (first, OWNER.replace("1-0001", "1-0002")):
        doing(folder, marker_of(folder, by, attempt=int(by.rpartition("-")[2])))()
    assert counts_once(folder)["by"] == "1-0002"
    for late in (OWNER, THIEF):
        doing(folder, marker_of(folder, late))()
        assert counts_once(folder)["by"] == "1-0002"


def test_a_worker_that_died_after_its_marker_does_the_chunk_again(folder: RunFolder) -> None:
    doing(folder, marker_of(folder, OWNER))()
    again: Marker = {**marker_of(folder, OWNER), "rows": 7}
    assert doing(folder, again)()
    assert counts_once(folder)["rows"] == 7


def test_one_of_many_has_a_claim(folder: RunFolder) -> None:
    names = [f"{shard}-0001" for shard in range(2, 10)]
    won: list[str] = []

    def try_it(by: str) -> None:
        if claims.claim(folder, 1, 0, by):
            won.append(by)

    threads = [threading.Thread(target=try_it, args=(by,)) for by in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (holder,) = won
    assert claims.holder(folder, 1, 0) == holder
    assert claims.claimed(folder, 1) == {0}
    assert not claims.take_over(folder, 1, 0, "0-0001", instead_of="99-0001")
    assert claims.take_over(folder, 1, 0, "0-0001", instead_of=holder)
    assert claims.holder(folder, 1, 0) == "0-0001"
