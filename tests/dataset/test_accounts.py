"""If the new files do not hold the rows that the ledger accounts for, there is no switch, and the old dataset stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from random_pipelines import files_of
from test_kept_rows import BY_DAY, Project

import shardkit as sk
from shardkit.dataset import kept_files as keeping
from shardkit.dataset import writer as dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa

    from shardkit.tables.spans import Spans


@pytest.fixture(params=["csv", "parquet"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """A day in a full file and another one; the next run has to fail, and leave it as it is."""
    project = Project(tmp_path, **BY_DAY, output={"format": request.param, "rows_per_file": 4})
    project.put("abcde")
    project.run()
    before = files_of(project.out)
    project.put("f")
    yield project
    assert files_of(project.out) == before
    assert sk.check(project.out).ok


def refuse(project: Project) -> str:
    with pytest.raises(sk.LedgerError) as refusal:
        project.run()
    assert "stays as it was" in refusal.value.message and "incremental: false" in refusal.value.hint
    return refusal.value.message


def test_rows_of_a_file_that_stays_written_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping._Rows, "take", lambda self, pieces: ())
    assert "has 10 rows in its files, and its records have given 6" in refuse(project)


def test_rows_that_are_lost_on_the_way(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    append = dataset._Building.append

    def lossy(self: dataset._Building, table: pa.Table) -> pa.Table:
        return append(self, table.slice(1))

    monkeypatch.setattr(dataset._Building, "append", lossy)
    assert "its records have given 6" in refuse(project)


def test_as_many_rows_but_not_those(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    held = keeping._held

    def shifted(pieces: keeping.Pieces, spans: Spans) -> Any:
        for part, some in held(pieces, spans):
            yield part, tuple((0, stop - start) for start, stop in some)

    monkeypatch.setattr(keeping, "_held", shifted)
    assert "hold the rows 0 to" in refuse(project)


def test_a_part_that_has_other_rows_than_its_marker_tells(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit.runfolder import ledger

    part = ledger.Ledger._part

    def more(self: ledger.Ledger, shard: int, told: dict[str, Any]) -> Any:
        return part(self, shard, told | {"rows": told["rows"] + 1})

    monkeypatch.setattr(ledger.Ledger, "_part", more)
    assert "its marker says" in refuse(project)
