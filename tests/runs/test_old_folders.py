"""Run folders of earlier versions can be looked at, resumed and built upon; those of later versions are refused."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from old_folders import BAD, FOLDERS, KINDS, MENDED, bring, write_text

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.dataset.day_notes import day_merges
from shardkit.runfolder import documents
from shardkit.runfolder.document_types import Heartbeat, Marker, PlanDocument, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = sorted(path.name for path in FOLDERS.iterdir())
ALL = [(version, kind) for version in VERSIONS for kind in KINDS]


# Records that a run on top of a folder need not compute again; the first folders do not say what they were made with.
TAKEN_OVER = {("0.1", "days"): 2, ("0.2", "days"): 2, ("0.2", "done"): 6, ("0.2", "quarantine"): 5}


def rows_of(kind: str, *, without: str | None = None) -> list[tuple[str, str]]:
    return sorted(item for item in KINDS[kind].items() if item[0] != without)


def rows_in(output: Path) -> list[tuple[str, str]]:
    rows = sk.open_run(output).dataset().to_table().to_pylist()
    return sorted((row["key"], row["text"]) for row in rows)


def command(*words: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def answer(*words: str | Path, code: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(command(*words, "--json", code=code).splitlines()[-1])
    return content


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- earlier ones


@pytest.mark.parametrize(("version", "kind"), ALL)
def test_an_old_folder_is_looked_at(version: str, kind: str, here: Path) -> None:
    bring(version, kind, here)
    before = files_below(here / "out")
    status = answer("status", "out")
    done = len(KINDS[kind]) - (kind in {"quarantine", "interrupted"})
    assert status["status"] == ("interrupted" if kind == "interrupted" else "done")
    assert status["records"] == {"listed": 6, "done": done, "quarantined": int(kind == "quarantine"), "skipped": 0}
    assert status["rows"] == done
    failures = sk.open_run("out").quarantine()
    assert [(entry["key"], entry["error"], entry["message"]) for entry in failures] == (
        [(BAD, "ValueError", "bad text")] if kind == "quarantine" else []
    )
    timings = sk.open_run("out").timings()
    assert len(timings) == done + len(failures) and timings["begin"].isna().all()  # of which these say nothing
    assert f"{len(failures)} record" in command("failures", "out")
    assert "nothing to remove" in command("clean", "out", "--dry-run")
    if kind != "interrupted":
        wanted = rows_of(kind, without=BAD if kind == "quarantine" else None)
        assert rows_in(here / "out") == wanted
        table = sk.read_sql("SELECT key, text FROM dataset", "out")
        assert sorted(table.itertuples(index=False, name=None)) == wanted
        assert answer("check", "out")["ok"]
    after = files_below(here / "out")
    added = {name for name in after.keys() - before.keys() if not name.endswith("lock")}
    assert added <= {"_shardkit/current.json"}  # which the first version had not
    assert after.items() >= before.items()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_run_is_resumed_where_it_ended(version: str, here: Path) -> None:
    bring(version, "interrupted", here)
    markers = files_below(here / "out/_shardkit/runs/old-interrupted/markers")
    assert answer("resume", "out", "--quiet")["records"]["done"] == 6
    after = files_below(here / "out/_shardkit/runs/old-interrupted/markers")
    assert after.items() > markers.items()  # what was done is not done again
    assert len(after) == 6
    assert rows_in(here / "out") == rows_of("interrupted")
    assert answer("check", "out")["ok"]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_quarantine_is_retried(version: str, here: Path) -> None:
    bring(version, "quarantine", here)
    (here / "work.py").write_text(MENDED)
    assert answer("retry", "out", "--quiet")["records"]["quarantined"] == 0
    assert rows_in(here / "out") == sorted([*rows_of("quarantine", without=BAD), (BAD, "mended")])
    assert answer("check", "out")["ok"]


@pytest.mark.parametrize(("version", "kind"), ALL)
def test_a_run_on_top_of_an_old_one(version: str, kind: str, here: Path) -> None:
    pipeline = bring(version, kind, here)
    new = "2020/01/03/c" if kind == "days" else "new.txt"
    write_text(here / "data" / new, "new")
    summary = answer("run", pipeline, "--quiet", "--set", "incremental=true")
    assert summary["records"]["skipped"] == TAKEN_OVER.get((version, kind), 0)
    assert rows_in(here / "out") == sorted(
        [*rows_of(kind, without=BAD if kind == "quarantine" else None), (new, "new")]
    )
    assert answer("check", "out")["ok"]
    command("clean", "out")
    assert answer("check", "out")["ok"]


KIND_OF = {"plan.json": PlanDocument, "result.json": Result, "000002-0001.json": Marker, "all-0001.json": Heartbeat}


def changed(value: Any) -> Iterator[Any]:
    """Data with one value, anywhere in it, gone or of another type."""
    if isinstance(value, dict | list):
        for name in list(value) if isinstance(value, dict) else range(len(value)):
            for other in (*changed(value[name]), None, 1.5, "text", [], {}, [None], {"a": {}}):
                some = value.copy()
                some[name] = other
                yield some
            less = value.copy()
            del less[name]
            yield less


@pytest.mark.parametrize(("name", "kind"), KIND_OF.items())
@pytest.mark.parametrize("folder", ["0.1/quarantine", "0.1/days", "0.2/days"])
def test_an_old_document_is_whole_or_damaged(folder: str, name: str, kind: type[Any]) -> None:
    for path in (FOLDERS / folder).rglob(name):
        content = json.loads(path.read_bytes())
        content.pop("crc32", None)
        whole = documents.parse(json.dumps(content).encode(), kind, "it")
        for other in changed(content):
            with contextlib.suppress(sk.Damaged, sk.WrittenByNewer):  # and nothing else
                read = documents.parse(json.dumps(other).encode(), kind, "it")
                assert kind.__required_keys__ <= read.keys() <= whole.keys() | other.keys()


# ---- later ones


def of_later_version(path: Path) -> None:
    """Give a document the version after this one's."""
    content = json.loads(path.read_bytes())
    path.write_bytes(documents.dump({**content, "version": documents.FORMAT + 1}))


RUN = "out/_shardkit/runs/old-quarantine"
REFUSED = r"was written by a newer shardkit \(format 3; this one knows 2\)\.\s+Use a version of shardkit"
STATUS, FAILURES, CHECK = ["status", "out"], ["failures", "out"], ["check", "out"]
QUERY = ["query", "SELECT * FROM dataset", "--output", "out"]
RESUME, RETRY = ["resume", "out", "--quiet"], ["retry", "out", "--quiet"]
ANEW = ["run", "pipeline.yaml", "--quiet", "--set", "incremental=true"]
# The commands that need a document; the others answer as usual.
NEEDED_BY = {
    f"{RUN}/plan.json": (STATUS, FAILURES, CHECK, RESUME, RETRY),
    f"{RUN}/markers/00000/000000-0001.json": (STATUS, FAILURES, CHECK, RESUME, RETRY, ANEW),
    f"{RUN}/progress/all-0001.json": (STATUS, RESUME),
    f"{RUN}/result.json": (STATUS, RESUME, RETRY),
    f"{RUN}/contents.json": (CHECK, RETRY, ANEW),
    f"{RUN}/taken_over.json": (STATUS, FAILURES, CHECK, RESUME, RETRY, ANEW),
    "out/_shardkit/current.json": (STATUS, CHECK, QUERY, RESUME, RETRY, ANEW),
    "out/_shardkit/commit.json": (STATUS, FAILURES, CHECK, QUERY, RESUME, RETRY, ANEW),
    "out/_shardkit/latest.json": (STATUS, FAILURES, RESUME, RETRY),
}


@pytest.mark.parametrize("name", NEEDED_BY)
def test_a_document_of_a_later_version_is_refused(name: str, here: Path) -> None:
    bring("0.2", "quarantine", here)
    write_text(here / "data/new.txt", "new")
    path = here / name
    if path.name == "taken_over.json":
        path.write_bytes(documents.dump({"markers": []}))
    if path.name == "commit.json":
        path.write_bytes(documents.dump({"result": json.loads(Path(RUN, "result.json").read_bytes()), "gone": []}))
    of_later_version(path)
    before = files_below(here / "out")
    for words in NEEDED_BY[name]:
        told = command(*words, code=1)
        assert re.search(f"{path.name}: it {REFUSED}", told), (words, told)
    command("clean", "out", code=0 if "/runs/" in name else 1)
    after = files_below(here / "out")
    assert {key: after.get(key) for key in before if not re.search(r"lock|progress|latest", key)} == {
        key: data for key, data in before.items() if not re.search(r"lock|progress|latest", key)
    }


def test_a_days_note_of_a_later_version_is_refused(here: Path) -> None:
    bring("0.2", "days", here)
    note = here / "out/_shardkit/runs/old-days/merged/2020-01-01.json"
    note.parent.mkdir()
    note.write_bytes(documents.dump({"day": "2020-01-01"}))
    folder = sk.open_run("out").folder
    assert day_merges(folder) == {}  # which is damaged, so that pass 2 will merge the day
    of_later_version(note)
    with pytest.raises(sk.WrittenByNewer, match=f"{note.name}: it {REFUSED}"):
        day_merges(folder)
