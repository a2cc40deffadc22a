"""Which run is making which days of a dataset: one claim for all of a run's days, however many they are."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

import shardkit as sk
from shardkit.dataset.day_claims import holding_days
from shardkit.runfolder.folder import RunFolder
from shardkit.storage import lease
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from pathlib import Path

    from shardkit.storage.base import Folder

DAYS = [str(datetime.date(2020, 1, 1) + datetime.timedelta(days)) for days in range(1000)]


@pytest.fixture(params=["disk", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "LEASE_RENEWAL_S", 0.1)
    return folder(str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}/out")


@contextlib.contextmanager
def making(output: Folder, run_id: str, days: list[str]) -> Any:
    run, plan = RunFolder(output, run_id), {"by_day": True, "partitions": days, "based_on": {}, "dropped": []}
    with run.lock(), holding_days(run, plan):
        yield


def claims(output: Folder) -> list[str]:
    return [entry.key.rpartition("/")[2] for entry in output.entries("_shardkit/days") if entry.key.endswith(".json")]


def test_a_thousand_days_take_one_lock(output: Folder) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with making(output, "one", DAYS):
        assert threading.active_count() <= threads + 1
        assert len(os.listdir("/proc/self/fd")) <= files + 10
        assert claims(output) == ["one.json"]
    assert claims(output) == []


def test_other_days_go_side_by_side_and_the_same_are_refused_by_name(output: Folder) -> None:
    with making(output, "one", DAYS[:10]), making(output, "two", DAYS[10:]):
        assert claims(output) == ["one.json", "two.json"]
        with pytest.raises(sk.RunBusy, match=r"making 2020-01-08 and 2 more of the same days of .*: one"):  # noqa: SIM117
            with making(output, "three", ["2021-01-01", *DAYS[7:10]]):
                pass
        with pytest.raises(sk.RunBusy, match="making 2020-01-11 of .*: two"), making(output, "three", [DAYS[10]]):
            pass
        assert claims(output) == ["one.json", "two.json"]
        assert "three" not in output.children("_shardkit/runs")  # it was refused before it was anything
    with making(output, "three", DAYS):
        pass


def test_of_many_that_want_a_day_one_has_it(output: Folder) -> None:
    won: list[str] = []
    refused: list[str] = []
    over = threading.Event()

    def make(run_id: str) -> None:
        try:
            with making(output, run_id, DAYS[:3]):
                won.append(run_id)
                over.wait(30)
        except sk.RunBusy:
            refused.append(run_id)
        if len(refused) == 4:
            over.set()

    threads = [threading.Thread(target=make, args=(f"run{number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 4)


@pytest.mark.parametrize("left", ['{"run_id": "dead", "days": ["2020-01-01"]}', '{"run_id": "dea', "[]"])
def test_what_a_dead_or_damaged_run_has_left_is_in_nobodys_way(output: Folder, left: str) -> None:
    output.write("_shardkit/days/dead.json", left.encode())
    if "days" in left:
        told = {"holder": "x", "host": "gone", "until": 4e9}  # as an earlier version wrote it
        output.write("_shardkit/runs/dead/lock", json.dumps(told).encode())
    with making(output, "one", DAYS):
        assert "one.json" in claims(output)
