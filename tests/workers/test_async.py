"""Functions that wait: many calls at once in one worker, each of which fails for itself alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from crashing import LINUX, Project, dying, wait_for

import shardkit as sk
from shardkit.workers.pace import Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from conftest import WriteFiles

pytestmark = LINUX
COUNT = 18
GUILTY = "f07"


def number_of(record: sk.Record) -> int:
    return int(record.key[1:])


def row(record: sk.Record) -> dict[str, Any]:
    return {"key": record.key, "text": record.read_text()}


async def unequal(record: sk.Record) -> dict[str, Any]:
    record.count("calls")
    await asyncio.sleep(0.05 if number_of(record) % 7 == 0 else 0.001)
    return row(record)


async def several_rows(record: sk.Record) -> AsyncIterator[dict[str, Any]]:
    for turn in range(2):
        await asyncio.sleep(0)
        yield row(record) | {"turn": turn}


class Client:
    """One for each worker, made where its event loop runs."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = self.most = 0

    async def __call__(self, record: sk.Record) -> dict[str, Any]:
        assert self.loop is asyncio.get_running_loop()
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1
        return row(record) | {"most": self.most, "at": time.monotonic()}


async def raises(record: sk.Record) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    if record.key == GUILTY:
        raise ValueError("bad")
    return row(record)


async def leaves(record: sk.Record) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    if record.key == GUILTY:
        raise SystemExit
    return row(record)


async def exits(record: sk.Record) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    if record.key == GUILTY:
        os._exit(3)
    return row(record)


async def a_task_of_it_exits(record: sk.Record) -> dict[str, Any]:
    async def part() -> None:
        await asyncio.sleep(0.001)
        if record.key == GUILTY:
            os._exit(3)

    await asyncio.gather(part(), part())
    return row(record)


async def waits_for_ever(record: sk.Record) -> dict[str, Any]:
    if record.key == GUILTY:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await asyncio.sleep(600)  # and does not heed that it is cancelled
    return row(record)


async def holds_the_thread(record: sk.Record) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    if record.key == GUILTY:
        time.sleep(600)  # noqa: ASYNC251  a mistake that people make
    return row(record)


async def batches(records: list[sk.Record]) -> list[dict[str, Any]]:
    await asyncio.sleep(0.001)
    if any(record.key == GUILTY for record in records):
        raise ValueError("bad")
    return [row(record) for record in records]


@pytest.fixture
def data(files: WriteFiles) -> Path:
    return files({f"f{number:02d}": f"text {number}" for number in range(COUNT)})


def rows_of(run: sk.Run) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = run.dataset().to_table().to_pylist()
    return rows


def expected(*without: str) -> list[dict[str, Any]]:
    keys = [f"f{number:02d}" for number in range(COUNT)]
    return [{"key": key, "text": f"text {int(key[1:])}"} for key in keys if key not in without]


@pytest.mark.whole
def test_rows_are_in_order_however_calls_end(data: Path, tmp_path: Path) -> None:
    run = sk.run(unequal, data, tmp_path / "out", concurrency=8, workers=2, quiet=True)
    assert rows_of(run) == expected()
    assert run.summary().counts == {"calls": COUNT}
    times = run.timings().set_index("record")
    began, took = times["begin"], times["seconds"]
    assert took["f14"] >= 0.05 and took["f14"] > took["f15"], "each record has its own time"
    assert (began["f15"] - began["f14"]).total_seconds() < took["f14"], "they are at work together"


def test_what_an_async_generator_yields_are_its_rows(data: Path, tmp_path: Path) -> None:
    run = sk.run(several_rows, data, tmp_path / "out", concurrency=8, workers=2, quiet=True)
    assert rows_of(run) == [each | {"turn": turn} for each in expected() for turn in range(2)]


def test_an_object_is_called_many_times_at_once(data: Path, tmp_path: Path) -> None:
    run = sk.run(Client, data, tmp_path / "out", concurrency=5, workers=1, quiet=True)
    rows = rows_of(run)
    assert max(each["most"] for each in rows) == 5
    ends = [each["at"] for each in rows]
    # 18 calls of 20 ms, five at once, take 80 ms; the chunks that they are in do not add to that.
    assert max(ends) - min(ends) < 0.3 * COUNT * 0.02 + 0.4
    assert [each["key"] for each in rows] == [each["key"] for each in expected()]


@pytest.mark.whole
@pytest.mark.parametrize(
    ("function", "error"),
    [
        (raises, "ValueError"),
        (leaves, "SystemExit"),
        (exits, "WorkerDied"),
        (a_task_of_it_exits, "WorkerDied"),
        (waits_for_ever, "TimeoutError"),
        (holds_the_thread, "TimeoutError"),
    ],
)
def test_only_the_guilty_record_is_put_aside(
    data: Path, tmp_path: Path, function: Callable[..., Any], error: str
) -> None:
    timeout = 1.0 if error == "TimeoutError" else 60
    workers = 2 if error == "WorkerDied" else 1
    options: dict[str, Any] = {"concurrency": 8, "workers": workers, "max_failures": 1, "timeout": timeout}
    run = sk.run(function, data, tmp_path / "out", quiet=True, **options)
    assert [(entry["key"], entry["error"]) for entry in run.quarantine()] == [(GUILTY, error)]
    assert rows_of(run) == expected(GUILTY)


def test_batches_wait_too(data: Path, tmp_path: Path) -> None:
    run = sk.run(batches, data, tmp_path / "out", concurrency=2, batch=4, workers=1, quiet=True, max_failures=1)
    assert [entry["key"] for entry in run.quarantine()] == [GUILTY]
    assert rows_of(run) == expected(GUILTY)


def test_calls_keep_to_a_rate(data: Path, tmp_path: Path) -> None:
    run = sk.run(Client, data, tmp_path / "out", concurrency=8, rate="100/s", workers=2, quiet=True)
    begins = sorted(each["at"] for each in rows_of(run))
    assert begins[-1] - begins[0] >= (COUNT - 1) * 0.01 * 0.9


def test_a_pace_is_shared_and_has_no_bursts(tmp_path: Path) -> None:
    mine, yours = (Pace(str(tmp_path / "pace"), per_s=10.0) for _ in range(2))
    waits = [pace.reserve() for pace in (mine, yours, mine, yours)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3], abs=0.05)


def slow_api(record: sk.Record) -> dict[str, Any]:
    return row(record)


def test_waiting_for_its_turn_is_not_the_record_s_time(files: WriteFiles, tmp_path: Path) -> None:
    data = files({f"f{number:02d}": f"text {number}" for number in range(4)})
    run = sk.run(slow_api, data, tmp_path / "out", rate="1/s", timeout=0.8, workers=1, quiet=True)
    assert rows_of(run) == expected()[:4]
    times = run.timings()
    assert times["seconds"].max() < 0.8
    assert (times["begin"].max() - times["begin"].min()).total_seconds() >= 2.9


def test_concurrency_is_for_functions_that_wait(data: Path, tmp_path: Path) -> None:
    with pytest.raises(sk.PipelineError, match=r"concurrency: 4 is for a function that waits, and .*row is no async"):
        sk.run(row, data, tmp_path / "out", concurrency=4, workers=1, quiet=True)


@pytest.mark.parametrize("rate", ["fast", "50", "50/day", "0/s", "-1/s", True])
def test_a_rate_that_cannot_be(rate: Any) -> None:
    with pytest.raises(sk.PipelineError, match="expected calls and a time, such as 50/s"):
        sk.Pipeline(function=row, input="in", output="out", rate=rate)


def test_a_record_is_tried_and_replayed(data: Path, tmp_path: Path) -> None:
    pipeline = sk.Pipeline(
        function=raises, input=str(data), output=str(tmp_path / "out"), concurrency=8, workers=1, max_failures=1
    )
    tried = pipeline.try_records(["f03", GUILTY])
    assert [(each.rows, each.message) for each in tried.records] == [(1, ""), (0, "ValueError: bad")]
    run = pipeline.run(quiet=True)
    assert run.replay("f03").records[0].rows == 1

    async def in_a_notebook() -> int:  # where a loop runs already
        return pipeline.try_records(["f03"]).records[0].rows

    assert asyncio.run(in_a_notebook()) == 1
    with pytest.raises(ValueError, match="bad"):
        pipeline.try_record(GUILTY)


async def lines_of(record: sk.Record) -> list[dict[str, Any]]:
    await asyncio.sleep(0.02 if (record.range or (0, 0))[0] else 0.05)
    return [{"line": line} for line in record.read_text().splitlines()]


def test_pieces_of_a_file_wait_together(files: WriteFiles, tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(4000)]
    data = files({"large.txt": "\n".join(lines), "long.txt": "x" * 5000})  # most pieces of a long line have none
    how: dict[str, Any] = {"records": {"inside": "lines", "target_bytes": 500}, "quiet": True, "workers": 2}
    run = sk.run(lines_of, data, tmp_path / "out", concurrency=8, **how)
    assert run.dataset().to_table()["line"].to_pylist() == [*lines, "x" * 5000]


WAITS = """
import asyncio
from pathlib import Path
HERE = Path(__file__).parent
async def features(record):
    print(record.key, file=(HERE / "asked").open("a"), flush=True)
    if record.key > "r005.txt" and not (HERE / "sign").exists():
        await asyncio.sleep(600)
    return {"key": record.key}
"""


def test_a_run_that_is_interrupted_keeps_what_has_ended(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write_records(["x"] * COUNT)
    project.write_function(WAITS)
    arguments = project.run_arguments(concurrency=8, workers=1)
    with dying(project.start(*arguments)) as command:
        wait_for(lambda: (tmp_path / "asked").exists() and len((tmp_path / "asked").read_text().splitlines()) >= 14)
        command.signal_group(signal.SIGINT)
        assert command.wait().code == 130
    assert sk.open_run(project.out).summary().records["done"] == 6
    (tmp_path / "sign").touch()
    run = sk.open_run(project.out).resume(quiet=True)
    assert [row["key"] for row in rows_of(run)] == [f"r{number:03d}.txt" for number in range(COUNT)]
    assert (tmp_path / "asked").read_text().count("r000.txt") == 1, "nobody is asked again for what has ended"
