"""Rows that run after run reuses, in files that stay and in parts of earlier runs: none twice, none lost."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from random_pipelines import files_of

import shardkit as sk
from shardkit.plan.digests import work_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORK = """
def rows(record):
    return {"key": record.path.stem, "group": "a"}

def others(record):
    return {"key": record.path.stem, "group": "b"}

def whole(batches):
    yield from batches

def small(batches):
    for batch in batches:
        yield batch.slice(0, 1)
"""


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change a document by hand."""
    content = json.loads(path.read_text())
    content.pop("crc32", None)
    change(content)
    path.write_text(json.dumps(content))


class Project:
    def __init__(self, root: Path, **fields: Any) -> None:
        self.root, self.data, self.out = root, root / "data", root / "out"
        self.fields = {"function": "kept_work:rows", "name": "kept", "workers": 1, "chunks": "even"} | fields
        (root / "kept_work.py").write_text(WORK)

    def put(self, names: str, day: str = "2020-01-01") -> None:
        (self.data / day).mkdir(parents=True, exist_ok=True)
        for name in names:
            (self.data / day / f"{name}.txt").write_text("x")

    def remove(self, name: str, day: str = "2020-01-01") -> None:
        (self.data / day / f"{name}.txt").unlink()

    def run(self, *, output: Any = None, run_id: str | None = None, **fields: Any) -> sk.Run:
        chosen = output or fields.pop("output", self.fields.get("output", {}))
        given = {"output": {"uri": self.out} | chosen, "input": self.data, "source_dir": self.root}
        return sk.Pipeline(**(self.fields | given | fields)).run(run_id=run_id, quiet=True)

    def keys(self) -> str:
        return "".join(sorted(row["key"] for rows in files_of(self.out).values() for row in rows))


BY_DAY = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}}


@pytest.mark.whole
@pytest.mark.parametrize(
    ("format", "fields"),  # which have nothing to do with each other
    [("csv", BY_DAY), ("jsonl", {"incremental": True}), ("arrow", {"incremental": True}), ("parquet", BY_DAY)],
    ids=["csv-days", "jsonl-whole", "arrow-whole", "parquet-days"],
)
def test_a_full_file_that_stays_holds_the_rows_that_are_noted(
    tmp_path: Path, format: str, fields: dict[str, Any]
) -> None:
    project, output = Project(tmp_path, **fields), {"format": format, "rows_per_file": 4}
    project.put("abcde")
    project.run(output=output)
    project.remove("b")
    project.run(output=output)
    kept = {path for path, rows in files_of(project.out).items() if len(rows) == 4}
    project.put("f")
    project.run(output=output)
    assert project.keys() == "acdef"
    assert kept <= set(files_of(project.out))


def test_what_an_earlier_version_has_noted_wrongly_is_not_built_upon(tmp_path: Path) -> None:
    project, output = Project(tmp_path, **BY_DAY), {"format": "csv", "rows_per_file": 4}
    project.put("abcde")
    project.run(output=output)
    project.remove("b")
    noted = project.run(output=output).path / "contents.json"

    def shorten(content: Any) -> None:
        content["files"] = {path: [[part, [[0, 1], [2, 4]]] for part, _ in at] for path, at in content["files"].items()}

    edit(noted, shorten)
    project.put("f")
    project.run(output=output)
    assert project.keys() == "acdef"


def test_another_function_of_the_same_module_is_another_function(tmp_path: Path) -> None:
    project = Project(tmp_path, **BY_DAY)
    project.put("ab")
    project.run()
    project.run(function="kept_work:others")
    assert {row["group"] for rows in files_of(project.out).values() for row in rows} == {"b"}


def test_another_combine_of_the_same_module_is_another_combine(tmp_path: Path) -> None:
    project = Project(tmp_path, **BY_DAY, combine="kept_work:whole")
    project.put("ab")
    project.run()
    project.run(combine="kept_work:small")
    assert project.keys() == "a"


def test_a_dataset_of_before_functions_names_were_noted_is_not_computed_again(tmp_path: Path) -> None:
    project = Project(tmp_path, **BY_DAY)
    project.put("ab")
    before = project.run()
    plan = before.folder.plan()
    old = work_digest(plan["pipeline"], plan["function_digest"], named=False)
    assert old != plan["work"]
    edit(project.out / "_shardkit" / "current.json", lambda c: c["partitions"]["2020-01-01"].update(work=old))
    assert project.run().run_id == before.run_id
    project.put("c")
    assert project.run().summary().records == {"listed": 3, "done": 1, "quarantined": 0, "skipped": 2}


# ---- combine gives nothing ------------------------------------------------------------------------------------------

EMPTY = """
import pyarrow as pa

def rows(record):
    return {"key": record.path.stem, "group": "a", "text": "x", "number": 1}

def first(batches):
    for batch in batches:
        yield batch.slice(0, 0)
        yield batch

def untyped(batches):
    import pandas as pd

    yield pd.DataFrame({name: [] for name in batches.schema.names})
    yield pa.table({})
    yield from batches
    yield pa.table({})

def alone(batches):
    for batch in batches:
        yield batch.slice(0, 0)

def bare(batches):
    yield pa.table({})

def none(batches):
    yield from ()
"""
FORMATS = ["parquet", "csv", "jsonl", "arrow"]
LAYOUTS: list[dict[str, Any]] = [{}, {"partition_by": ["group"]}, {"target_bytes": 1000}]
COMBINES = ["first", "untyped", "alone", "bare", "none"]


@pytest.fixture(scope="module")
def merged_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("empty"))
    (project.root / "kept_work.py").write_text(EMPTY)
    project.put("abc")
    project.run(run_id="r", allow_empty=True)
    return project


@pytest.mark.whole
@pytest.mark.parametrize("combine", COMBINES)
def test_a_combine_may_give_tables_without_rows(merged_once: Project, combine: str) -> None:
    """In each format, with each layout, and in each format with each layout."""
    wanted = Counter("abc" if combine in {"first", "untyped"} else "")
    for number, kind in enumerate(FORMATS, COMBINES.index(combine)):
        settings = {"partition_by": [], "target_bytes": None} | LAYOUTS[number % len(LAYOUTS)] | {"format": kind}
        changes = {f"output.{name}": value for name, value in settings.items()}
        run = sk.open_run(merged_once.out).resume(quiet=True, combine=f"kept_work:{combine}", **changes)
        files = files_of(merged_once.out)
        assert Counter(row["key"] for rows in files.values() for row in rows) == wanted
        assert run.summary().rows == sum(wanted.values()) and run.dataset().to_table().num_rows == sum(wanted.values())
