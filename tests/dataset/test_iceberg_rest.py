"""A dataset as a table of a REST catalogue, by pyiceberg's client over loopback; and what was in a table before."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pyiceberg")

import pyiceberg.catalog
from iceberg_rest import RestCatalog, rest_catalog
from in_process import InProcess
from pyiceberg.catalog import load_catalog
from pyiceberg.utils.config import Config
from test_iceberg import DAYS, ROWS, TABLE, World, days, values_by_day

import shardkit as sk
from shardkit.dataset.iceberg.snapshots import run_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "one-of-the-configuration"


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "world").mkdir()
    return World(tmp_path / "world")


def configure(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Give the token in pyiceberg's own configuration, which this process has read already."""
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__TOKEN", token)
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())


@pytest.fixture
def rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestCatalog]:
    configure(monkeypatch, TOKEN)
    with rest_catalog(tmp_path / "catalog", TOKEN) as running:
        yield running


def fields(rest: RestCatalog, **more: Any) -> dict[str, Any]:
    return {
        "catalog": {
            "iceberg": {"table": TABLE, "name": "lake", "properties": {"type": "rest", "uri": rest.uri}, **more}
        }
    }


def seen(rest: RestCatalog) -> dict[str, list[Any]]:
    table = load_catalog("lake", type="rest", uri=rest.uri).load_table(TABLE)
    return values_by_day(table.scan().to_arrow().to_pylist())


@pytest.mark.whole
def test_runs_redo_days_and_read_back_through_a_rest_catalogue(
    world: World, rest: RestCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.run(**fields(rest))
    assert seen(rest) == days(1, 1)
    world.write(DAYS[1], 2, late="x")
    world.write(DAYS[2], 3)
    second = world.run(**fields(rest))
    assert seen(rest) == world.dataset() == days(1, 2, 3)
    before = len(rest.asked)
    world.run(**fields(rest))  # nothing has changed
    assert not [asked for asked in rest.asked[before:] if asked.startswith("POST")]

    # Each of the runs can be read.
    query = "SELECT sum(v)::INT AS v FROM dataset"
    assert second.sql(query, as_of=first.run_id)["v"][0] == 2 * ROWS
    assert values_by_day(second.dataset(as_of=first.run_id).to_table().to_pylist()) == days(1, 1)
    assert values_by_day(second.dataset(as_of=second.run_id).to_table().to_pylist()) == days(1, 2, 3)
    with pytest.raises(sk.RunNotFound, match="no snapshot of run never"):
        second.dataset(as_of="never")
    listed = second.snapshots()
    assert listed["run_id"].tolist() == [second.run_id, first.run_id]
    assert listed[["rows", "files", "is_present"]].to_numpy().tolist() == [[3 * ROWS, 3, True], [2 * ROWS, 2, False]]
    command = functools.partial(InProcess(monkeypatch), world.root)
    lines = command("snapshots", world.out).stdout.splitlines()
    assert lines[0].split() == ["made", "run", "rows", "files", "snapshot", "table"]
    assert [line.split()[2] for line in lines[1:]] == listed["run_id"].tolist()
    assert lines[1].endswith(f"{TABLE} (present)")
    told = [json.loads(line) for line in command("snapshots", world.out, "--json").stdout.splitlines()]
    assert [one["snapshot_id"] for one in told] == listed["snapshot_id"].tolist()

    # What was replaced goes, and with it the earlier run.
    world.run(**fields(rest, keep="0m"), incremental=False)
    done = sk.clean(world.out)
    assert done.snapshots is not None and done.snapshots.expired == {TABLE: 2}
    assert len(sk.open_run(world.out).snapshots()) == 1
    assert seen(rest) == days(1, 2, 3)


@pytest.mark.whole
def test_a_commit_whose_answer_is_lost_is_not_made_twice(world: World, rest: RestCatalog) -> None:
    world.run(**fields(rest))

    def lost(asked: str) -> None:
        if asked.startswith("POST") and asked.endswith("/ads"):
            rest.after = lambda _: None
            raise RuntimeError("the answer is lost")

    rest.after = lost
    world.write(DAYS[1], 2)
    with pytest.raises(sk.CatalogError, match=r"is complete, but the Iceberg table .* is not up to date.*lost"):
        world.run(**fields(rest))
    assert world.dataset() == seen(rest) == days(1, 2), "the catalogue has carried it out"
    run = sk.open_run(world.out).resume(quiet=True)
    assert run.summary().status == "done"
    assert [run_of(one) for one in rest.catalog.load_table(TABLE).snapshots()].count(run.run_id) == 1


@pytest.mark.whole
def test_commits_of_others_come_between(world: World, rest: RestCatalog) -> None:
    world.run(**fields(rest))

    def between(asked: str) -> None:
        if asked == "GET /v1/namespaces/features/tables/ads" and len(loads) < 3:
            loads.append(asked)
            if len(loads) == 3:  # the one that the commit is based on
                table = rest.catalog.load_table(TABLE)
                table.overwrite(table.scan().to_arrow())

    loads: list[str] = []
    rest.after = between
    world.write(DAYS[1], 2)
    run = world.run(**fields(rest))
    assert len(loads) == 3
    assert seen(rest) == days(1, 2)
    made = [run_of(one) for one in rest.catalog.load_table(TABLE).snapshots()]
    assert made.count(run.run_id) == 1 and "" in made
    assert "" in run.snapshots()["run_id"].tolist()


def test_without_the_token_nothing_is_switched(
    world: World, rest: RestCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, "another")
    with pytest.raises(sk.CatalogError, match="stays as it was.*no token"):
        world.run(**fields(rest))
    assert not world.files()
    with pytest.raises(sk.PipelineError, match="is in no Iceberg table"):
        sk.open_run(world.out).snapshots()
