"""Kinds from other packages: a toy package adds an engine, a format, a storage and a job store, and runs use them."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shardkit as sk
from shardkit import plugins
from shardkit.dataset.formats.kinds import FORMATS, format_of
from shardkit.engines.kinds import ENGINES
from shardkit.jobs import JobError
from shardkit.jobs.open import JOB_STORES, open_store
from shardkit.storage.open import folder
from shardkit.storage.schemes import STORAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunCommand, WriteFiles

    from shardkit.plugins import Registry

TABLES: list[Registry[Any]] = [ENGINES, FORMATS, STORAGES, JOB_STORES]
DOCS = Path(__file__).resolve().parents[2] / "docs"
ENTRY_POINTS = """\
[shardkit.engines]
toy = toy_kinds:Engine
broken = toy_nonesuch:Engine
strange = toy_kinds:rows

[shardkit.formats]
tsv = toy_kinds:Tsv

[shardkit.storages]
toy = toy_kinds:open_folder

[shardkit.job_stores]
toy = toy_kinds:open_jobs
"""
MODULE = """
import dataclasses
import os
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow.dataset as pads
from pyarrow import csv

from shardkit import Local
from shardkit.dataset.formats.base import Format, PlainWriter
from shardkit.jobs import SQLiteStore
from shardkit.storage import LocalFolder


class Engine(Local):
    title: ClassVar[str] = "the toy"
    kind: Literal["toy"] = "toy"
    greeting: str = "hello"

    def job_environment(self):
        return {"TOY_GREETING": self.greeting}


class Tsv(Format):
    suffix: ClassVar[str] = ".tsv"

    def writer(self, path, schema, *, threads):
        return _Writer(path, schema)

    def reader(self, columns):
        return pads.CsvFileFormat(
            parse_options=csv.ParseOptions(delimiter="\\t"), convert_options=csv.ConvertOptions(column_types=columns)
        )

    def count_rows(self, file):
        return file.read().count(b"\\n") - 1


class _Writer(PlainWriter):
    def __init__(self, path, schema):
        super().__init__(path)
        self._writer = csv.CSVWriter(self._file, schema, write_options=csv.WriteOptions(delimiter="\\t"))

    def write(self, table):
        self._writer.write_table(table)

    def _end(self):
        self._writer.close()


@dataclasses.dataclass(frozen=True)
class Folder(LocalFolder):
    def __post_init__(self):
        object.__setattr__(self, "uri", f"toy:/{self.root}")

    def child(self, name):
        return Folder(self.root / name)


def open_folder(uri, access):
    return Folder(Path(uri.removeprefix("toy:/")))


def open_jobs(place, *, session, clock):
    return SQLiteStore(os.path.join(os.environ["TOY_JOBS"], place.removeprefix("toy://")), clock=clock)


def rows(record):
    return {"key": record.key, "size": record.bytes, "greeting": os.environ.get("TOY_GREETING", "none")}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the toy package, as pip would, for this process and those that it starts."""
    site = tmp_path / "site"
    about = site / "toy-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "toy_kinds.py").write_text(MODULE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("TOY_JOBS", str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "toy_kinds", raising=False)
    loaded = [dict(table._loaded) for table in TABLES]
    yield site
    for table, before in zip(TABLES, loaded, strict=True):
        table._loaded = before
    format_of.cache_clear()


def pipeline(tmp_path: Path, files: WriteFiles, **more: Any) -> dict[str, Any]:
    """The fields of a pipeline that uses the toy's engine and format."""
    return {
        "input": str(files({f"{name}.txt": name for name in "abcd"})),
        "function": "toy_kinds:rows",
        "output": {"uri": str(tmp_path / "out"), "format": "tsv"},
        "shards": {"by": "size", "count": 2},
        "engine": {"kind": "toy", "greeting": "hi", "root": str(tmp_path / "engine"), "isolation": "none"},
        "workers": 1,
    } | more


@pytest.mark.whole
def test_a_run_by_an_engine_to_files_of_another_package(
    tmp_path: Path, files: WriteFiles, toy: Path, shardkit: RunCommand
) -> None:
    run = sk.Pipeline(**pipeline(tmp_path, files)).run(quiet=True)
    table = run.dataset().to_table().to_pydict()
    assert sorted(zip(table["key"], table["size"], table["greeting"], strict=True)) == [
        (f"{name}.txt", 1, "hi") for name in "abcd"
    ]
    assert [job["status"] for job in run.jobs()] == ["Completed"] * 3
    assert [path.suffix for path in (tmp_path / "out").glob("part-*")] == [".tsv"]
    assert sk.check(tmp_path / "out").ok
    (tmp_path / "out" / "part-00007-left.tsv").write_text("key\n")
    assert "is no file of the dataset" in str(sk.check(tmp_path / "out"))
    # What other processes find, which know of the toy by its name alone.
    assert "jobs     3: 3 Completed" in shardkit("status", "out").stdout
    answer = json.loads(
        shardkit("query", "SELECT sum(size) AS n FROM dataset", "--output", "out", "--format", "json").stdout
    )
    assert int(answer["n"]) == 4
    done = shardkit("resume", "out", "--set", "output.rows_per_file=2", "--set", "engine.greeting=ho", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "done"
    assert len(sk.open_run(tmp_path / "out").dataset().files) == 2


@pytest.mark.whole
def test_the_command_line_takes_the_names_of_other_packages(
    tmp_path: Path, files: WriteFiles, toy: Path, shardkit: RunCommand
) -> None:
    files({"a.txt": "a", "b.txt": "b"})
    output = f"toy:/{tmp_path}/out"
    words = ("--function", "toy_kinds:rows", "--input", "data", "--output", output, "--format", "tsv", "--workers", "1")
    assert json.loads(shardkit("run", *words, "--json").stdout)["status"] == "done"
    assert sorted(sk.open_run(output).dataset().to_table()["key"].to_pylist()) == ["a.txt", "b.txt"]
    with pytest.raises(sk.PipelineError, match=r"'arrow' or 'tsv', not \"tvs\"; did you mean tsv\?"):
        sk.Pipeline(function="toy_kinds:rows", input="x", output={"uri": "y", "format": "tvs"})


@pytest.mark.whole
def test_a_storage_of_another_package(tmp_path: Path, files: WriteFiles, toy: Path) -> None:
    files({"a.txt": "a", "b.txt": "b"})
    run = sk.run("toy_kinds:rows", f"toy:/{tmp_path}/data", f"toy:/{tmp_path}/out", workers=1, quiet=True)
    assert sorted(run.dataset().to_table()["key"].to_pylist()) == ["a.txt", "b.txt"]
    assert folder(f"toy:/{tmp_path}").child("data").read("a.txt") == b"a"
    with pytest.raises(sk.PipelineError, match=r"knows no storage of kind tow:// here; did you mean toy\?"):
        folder("tow://x")
    with pytest.raises(sk.PipelineError, match="in a store that jobs of an engine cannot use"):
        sk.Pipeline(function="toy_kinds:rows", input=f"toy:/{tmp_path}/data", output="x").run("local", quiet=True)


def test_a_store_of_jobs_of_another_package(tmp_path: Path, toy: Path, shardkit: RunCommand) -> None:
    store = open_store("toy://jobs.sqlite")
    store.submit("a-job", {"RoleArn": "x"})
    assert (tmp_path / "jobs.sqlite").exists()
    assert "a-job" in shardkit("jobs", "list", "--store", "toy://jobs.sqlite").stdout
    queued = sk.Pipeline(function="toy_kinds:rows", input="x", output="y", queue="toy://jobs.sqlite")
    assert queued.queue.place == "toy://jobs.sqlite"
    with pytest.raises(sk.PipelineError, match="queue.place: expected dynamodb"):
        sk.Pipeline(function="toy_kinds:rows", input="x", output="y", queue="tou://jobs")
    with pytest.raises(JobError, match="'tou://jobs' is no place for jobs"):
        open_store("tou://jobs")


def test_kinds_that_cannot_be_used(toy: Path) -> None:
    cases = [
        ("broken", "the package toy 1.0 offers toy_nonesuch:Engine as 'broken' of shardkit.engines, which cannot be"),
        ("broken", "cannot be loaded: ModuleNotFoundError: No module named 'toy_nonesuch'"),
        ("strange", "which is not a subclass of shardkit.engines.settings.Settings"),
        ("toi", "engine: expected local, sagemaker, .*toy.* or none, or a mapping with its kind; did you mean toy?"),
    ]
    for kind, message in cases:
        with pytest.raises(sk.PipelineError, match=message):
            sk.Pipeline(function="toy_kinds:rows", input="x", output="y", engine=kind)
    with pytest.raises(sk.PipelineError, match=r"engine\.greting: unknown field; did you mean greeting\?"):
        sk.Pipeline(function="toy_kinds:rows", input="x", output="y", engine={"kind": "toy", "greting": "x"})


@pytest.mark.whole
def test_an_output_whose_format_is_not_there_any_more(tmp_path: Path, files: WriteFiles, toy: Path) -> None:
    (tmp_path / "toy_rows.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    source = str(files({"a.txt": "a"}))
    run = sk.run(
        "toy_rows:rows", source, tmp_path / "out", source_dir=str(tmp_path), format="tsv", workers=1, quiet=True
    )
    (toy / "toy-1.0.dist-info" / "entry_points.txt").write_text("")
    FORMATS._loaded.pop("tsv")
    format_of.cache_clear()
    with pytest.raises(
        sk.PipelineError, match="no format 'tsv' is known here.*Is the package with another one installed"
    ):
        run.dataset()


def test_nothing_installed_is_looked_at_for_what_the_tables_have(
    tmp_path: Path, files: WriteFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("looked up")

    monkeypatch.setattr(plugins, "_offered", refuse)
    files({"a.txt": "a"})
    for given in ({"format": "csv"}, {"engine": "local"}, {"queue": "jobs.sqlite"}, {"queue": "dynamodb"}):
        sk.Pipeline.flat(lambda record: None, str(tmp_path / "data"), str(tmp_path / "out"), **given)
    for uri in ("memory://x/y", "file:///tmp", str(tmp_path)):
        folder(uri)
    open_store(str(tmp_path / "jobs.sqlite"))


# ---- what every kind keeps to ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.group)
def test_every_kind_of_the_package_can_be_used_and_is_documented(table: Registry[Any]) -> None:
    pages = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    for name in table.own:
        kind = table.find(name)
        assert table._fits(kind), name
        assert not inspect.isabstract(kind), name
        assert not name or re.search(rf"`{name}`|\b{name}://", pages), f"{name} is in no page"
    assert f"`{table.group}`" in (DOCS / "extending.md").read_text()


def test_every_format_has_a_suffix_of_its_own_and_every_engine_its_name() -> None:
    suffixes = [format_of(name).suffix for name in FORMATS.own]
    assert len(set(suffixes)) == len(suffixes)
    assert {name: ENGINES.find(name).model_fields["kind"].default for name in ENGINES.own} == {
        name: name for name in ENGINES.own
    }
