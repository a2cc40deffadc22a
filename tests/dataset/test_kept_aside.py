"""New files that have failed a check and are kept aside: what later runs make of them, and who may accept them."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, Any

import jobs_here
import pytest
import warm
from crashing import environment
from in_process import InProcess

import shardkit as sk
from shardkit.runs.again import start_or_go_on
from shardkit.runs.prepare import prepare
from shardkit.runs.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORK = """
from pathlib import Path

def rows(record):
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write(record.key + "\\n")
    return {"key": record.key, "size": int(Path(record).read_text())}
"""
SMALL = {"sql": {"small": "SELECT * FROM new WHERE size > 9"}}
DAYS = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "incremental": None}


class World:
    """Records with a number each, which a check wants to be small, and a function that notes its calls."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        (root / "data").mkdir()
        (root / "sizes.py").write_text(WORK)

    def put(self, **sizes: int) -> None:
        for name, size in sizes.items():
            (self.root / "data" / f"{name.replace('day', '2026-01-0')}.txt").write_text(str(size))

    def pipeline(self, **fields: Any) -> sk.Pipeline:
        given = {"name": "sizes", "checks": SMALL, "workers": 1, "source_dir": self.root, "incremental": True} | fields
        return sk.Pipeline(function="sizes:rows", input=self.root / "data", output=self.out, **given)

    def run(self, **fields: Any) -> list[str]:
        """Run; returns the records that were computed."""
        (self.root / "calls").write_text("")
        self.pipeline(**fields).run(quiet=True)
        return self.calls()

    def failing(self, message: str = "The dataset stays as it was", **fields: Any) -> list[str]:
        with pytest.raises(sk.errors.ChecksFailed, match=message):
            self.run(**fields)
        return self.calls()

    def calls(self) -> list[str]:
        return sorted(line.removesuffix(".txt") for line in (self.root / "calls").read_text().splitlines())

    def runs(self) -> list[str]:
        return sorted(path.name for path in (self.out / "_shardkit" / "runs").iterdir())

    def sizes(self) -> dict[str, int]:
        """The rows of the dataset; all is as it was written."""
        assert sk.check(self.out).ok
        rows = sk.read_sql("SELECT key, size FROM dataset", self.out)
        return {key.removesuffix(".txt"): size for key, size in zip(rows["key"], rows["size"], strict=True)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


WAITS = r"Nothing has changed in \d records? since, so nothing was computed again, and the dataset waits"


def test_files_that_would_be_made_again_are_found_and_nothing_is_computed(world: World) -> None:
    world.put(a=1, b=20)
    assert world.failing() == ["a", "b"], "the first run has nothing before"
    assert world.failing(WAITS) == []
    world.put(b=2)
    assert world.run() == ["b"]
    world.put(c=30)
    assert world.failing() == ["c"]
    made, waits = world.runs(), "the new files of run .* have failed a check, and wait to be accepted"
    assert world.failing(f"1 of 1 check failed: sql: small .*{WAITS}.*accept") == []
    assert world.runs() == made, "no run begins"
    assert re.search(waits, str(world.pipeline().plan()))
    assert sk.open_run(world.out).accept(quiet=True).summary().status == "done"
    assert world.run() == [] and world.runs() == made, "they are the dataset now"
    assert world.sizes() == {"a": 1, "b": 2, "c": 30}


def test_of_an_input_that_has_changed_meanwhile_only_the_changes_are_computed(world: World) -> None:
    world.put(a=1, b=2, c=3)
    world.run()
    world.put(b=20, d=4)
    assert world.failing() == ["b", "d"]
    first = sk.open_run(world.out)
    world.put(e=5)
    assert f"the new files of run {first.run_id} have failed a check" in str(world.pipeline().plan())
    assert world.failing() == ["e"], "and they are checked again, with the rest"
    world.put(b=2)
    (world.root / "data" / "d.txt").unlink()
    assert world.run() == ["b"], "which is as it was in the dataset, but not by the time of its file"
    assert world.sizes() == {"a": 1, "b": 2, "c": 3, "e": 5}
    with pytest.raises(sk.PlanMismatch, match="was switched by run"):
        first.accept(quiet=True)


def test_an_input_that_is_again_as_the_dataset_has_it_needs_nothing(world: World) -> None:
    world.put(a=1)
    world.run()
    made = world.runs()
    world.put(b=20)
    world.failing()
    (world.root / "data" / "b.txt").unlink()
    assert world.run() == []
    assert len(world.runs()) == len(made) + 1, "only the one that has failed"
    assert world.sizes() == {"a": 1}


def test_other_checks_are_made_of_what_is_computed(world: World) -> None:
    world.put(a=1)
    world.run()
    world.put(b=20)
    assert world.failing() == ["b"]
    assert world.failing(checks={"sql": {"none": "SELECT * FROM new"}}) == [], "they fail by themselves"
    assert world.run(checks={"unique": "key"}) == []
    assert world.sizes() == {"a": 1, "b": 20}
    world.put(c=30)
    assert world.failing() == ["c"]
    assert world.run(checks=None) == []
    assert world.sizes() == {"a": 1, "b": 20, "c": 30}


def test_another_function_computes_all(world: World) -> None:
    world.put(a=1, b=20)
    world.failing()
    (world.root / "sizes.py").write_text(WORK.replace("int(", "2 * int("))
    assert world.failing() == ["a", "b"]


def test_a_run_that_was_killed_does_not_part_the_next_from_what_is_kept_aside(world: World) -> None:
    world.put(a=1, b=20)
    world.failing()
    held = sk.open_run(world.out)
    world.put(c=3)
    assert world.failing() == ["c"]
    killed = sk.open_run(world.out)
    (killed.path / "checks.json").unlink()  # as if it had been killed before
    assert world.failing() == ["c"]
    assert held.summary().checks["held"]
    (held.path / "plan.json").unlink()
    (sk.open_run(world.out).path / "checks.json").unlink()
    assert world.failing() == ["a", "b", "c"], "of a run that is gone nothing is taken over"


def test_days_that_are_kept_aside_wait_and_go_with_the_next(world: World) -> None:
    world.put(day1=1, day2=2)
    world.run(**DAYS)
    world.put(day2=20)
    assert world.failing(**DAYS) == ["2026-01-02"]
    assert world.failing(WAITS, **DAYS) == []
    world.put(day3=3)
    assert world.failing(**DAYS) == ["2026-01-03"], "and day 2 is part of what is checked"
    assert world.failing(WAITS, **DAYS) == []
    (world.root / "calls").write_text("")
    world.pipeline(**DAYS).run(days=["2026-01-03"], quiet=True)
    assert world.calls() == [], "asked for by itself, it is made of what is computed"
    assert world.failing(**DAYS) == [], "as the dataset is another, day 2 is checked again"
    assert world.failing(WAITS, **DAYS) == []
    sk.open_run(world.out).accept(quiet=True)
    assert world.sizes() == {"2026-01-01": 1, "2026-01-02": 20, "2026-01-03": 3}


class Ticks:
    """A clock that shows the next hour whenever it is waited for, ``count`` times."""

    def __init__(self, count: int, between: Callable[[int], None]) -> None:
        self.time = datetime.datetime(2026, 1, 1, 0, 30, tzinfo=datetime.timezone.utc)
        self.left, self.between = count, between

    def now(self) -> datetime.datetime:
        return self.time

    def wait(self, until: datetime.datetime, look: Callable[[], object]) -> None:
        look()
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.time = until
        self.between(self.left)


def test_a_schedule_says_that_the_dataset_waits(world: World) -> None:
    def change(left: int) -> None:
        if left == 0:
            world.put(c=3)

    world.put(a=1, b=20)
    (world.root / "calls").write_text("")
    said: list[str] = []
    with pytest.raises(sk.RunInterrupted):
        Scheduler(world.pipeline(schedule="0 * * * *"), say=said.append, clock=Ticks(3, change)).run()
    failed = [line for line in said if "the run failed" in line]
    assert len(failed) == 3 and len(world.runs()) == 2
    assert ["the dataset waits" in line for line in failed] == [False, True, False]
    last = sk.open_run(world.out).run_id
    (first,) = set(world.runs()) - {last}
    assert [line.splitlines()[2].split()[-2] for line in failed] == [first, first, last]
    assert all(line.splitlines()[2].endswith("--accept") for line in failed)
    assert world.calls() == ["a", "b", "c"]


def test_a_run_that_is_asked_for_by_its_id_again_goes_on_with_what_it_has(world: World) -> None:
    """As a step of a workflow is, whose pipeline has other checks by then."""

    def again(**fields: Any) -> list[str]:
        (world.root / "calls").write_text("")
        start_or_go_on(world.pipeline(**fields), "step", quiet=True)
        return world.calls()

    world.put(a=1, b=20)
    world.failing()
    world.put(c=3)
    with pytest.raises(sk.errors.ChecksFailed):
        again()
    assert world.calls() == ["c"]
    with pytest.raises(sk.errors.ChecksFailed, match=r"The dataset stays as it was"):
        again()
    assert world.calls() == []
    assert again(checks={"unique": "key"}) == []
    assert len(world.runs()) == 2
    assert world.sizes() == {"a": 1, "b": 20, "c": 3}


# ---- exit codes and acceptance


@pytest.mark.whole
def test_every_command_says_by_the_same_code_that_a_check_has_failed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = InProcess(monkeypatch)
    world.put(a=20)
    prepared = prepare(world.pipeline(), "nightly", quiet=True)
    home = str(world.out / "_shardkit" / "runs" / "nightly")
    assert prepared.jobs == [0]
    with jobs_here.as_a_guest(tmp_path / "ml"):
        command(tmp_path, "pass1", "--run", home, "--job", "0")
        command(tmp_path, "pass2", "--run", home, code=3)
    jobs_here.use(monkeypatch)
    with pytest.raises(sk.errors.ChecksFailed, match=WAITS) as caught:
        prepare(world.pipeline(), "nightly-2", quiet=True)
    assert caught.value.exit_code == 3
    world.put(b=1)
    with pytest.raises(sk.errors.ChecksFailed):
        world.pipeline(engine="local", requirements_mode="none").run(quiet=True)
    assert world.failing(WAITS) == []


@pytest.mark.whole
def test_what_a_resumed_run_has_made_is_what_is_accepted(world: World) -> None:
    world.put(a=1, b=20)
    world.failing()
    run = sk.open_run(world.out)
    with pytest.raises(sk.errors.ChecksFailed, match="sql: none"):
        run.resume(quiet=True, checks={"sql": {"none": "SELECT * FROM new"}}, **{"output.rows_per_file": 1})
    assert world.failing() == [], "its checks were others, so these are made"
    with pytest.raises(sk.errors.ChecksFailed):
        run.resume(quiet=True)
    run.accept(quiet=True)
    assert world.sizes() == {"a": 1, "b": 20}
    run.resume(quiet=True)
    assert world.sizes() == {"a": 1, "b": 20}
    assert not list((run.path / "dataset").rglob("*.parquet"))


def start(root: Path, number: int, *words: object) -> tuple[Any, Path]:
    """Start a command of the program; what it says goes to a file."""
    with (root / f"said-{number}").open("wb") as said:
        command = warm.start(["-m", "shardkit", *words], env=environment(), stdout=said, stderr=said)
    return command, root / f"said-{number}"


def test_of_two_who_accept_at_once_one_does(world: World) -> None:
    world.put(a=1, b=20)
    world.failing()
    run = sk.open_run(world.out)
    with run.folder.lock(), pytest.raises(sk.RunBusy):
        run.accept(quiet=True)

    commands = [start(world.root, number, "checks", world.out, "--accept") for number in range(2)]
    (first, _), (second, said) = sorted((command.wait(60), output.read_text()) for command, output in commands)
    assert first == 0
    assert (second == 1 and "Another process" in said) or (second == 2 and "nothing is kept aside" in said)
    assert run.summary().checks["accepted"] and not run.summary().checks["held"]
    assert world.sizes() == {"a": 1, "b": 20}
