"""Small pieces of files are in memory, and become files where the function asks for a path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from crashing import wait_for
from inside_files import cut, file_in
from test_archives import tar_of, zip_of

import shardkit as sk
from shardkit.inside import blocks
from shardkit.inside.piece import pieces_of
from shardkit.inside.rule import Inside
from shardkit.plan.inside import Cutter
from shardkit.plan.records import build_records
from shardkit.storage.objects import ObjectFolder
from shardkit.storage.open import folder
from shardkit.storage.places import Places
from shardkit.workers.inputs import RemoteInputs, Wanted, record_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLES = {f"{'ab'[n % 2]}/{n:02d}.{suffix}": f"{suffix} {n}".encode() for n in range(8) for suffix in ("cls", "txt")}


def files_under(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def records_in(tmp_path: Path, rule: dict[str, Any], *, store: str = "disk") -> Iterator[sk.Record]:
    """The records of an archive one after the other, as a worker has them."""
    inside = Inside.of(rule)
    assert inside is not None
    home = folder(str(tmp_path / "in") if store == "disk" else f"memory://{tmp_path.name}")
    home.write("x", (tar_of if rule["inside"] == "tar" else zip_of)(SAMPLES))
    places = Places.one(home.uri)
    table = build_records(home.objects(), records=Cutter(inside, places), pattern=["*"]).table
    inputs = RemoteInputs(places, tmp_path / "scratch")
    rows = list(zip(table.to_pylist(), pieces_of(table, inside), strict=True))
    inputs.expect(((0, 0, i), Wanted(["x"], row["etags"], row["bytes"], piece)) for i, (row, piece) in enumerate(rows))
    for i, (row, piece) in enumerate(rows):
        arrived = inputs.fetch((0, 0, i))
        record = record_at(arrived, piece, key=row["key"], objects=("x",), main=0, by_stem=inside.by == "stem")
        assert record is not None
        yield record
        inputs.release((0, 0, i))


def leaves_nothing(record: sk.Record) -> None:
    pass


def opens_it(record: sk.Record) -> None:
    with open(record) as file:
        assert file.read() == record.read_text()


def leaves_a_file(record: sk.Record) -> None:
    (record.parent / "left").write_text("behind")


def has_a_child_that_opens_it(record: sk.Record) -> None:
    child = os.fork()
    if child == 0:
        os._exit(Path(os.fspath(record)).read_bytes() != record.read_bytes())
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize("rule", [{"inside": "tar", "by": "stem"}, {"inside": "zip", "by": "member"}])
@pytest.mark.parametrize("does", [leaves_nothing, opens_it, leaves_a_file, has_a_child_that_opens_it])
def test_a_record_has_its_own_files_and_no_others(
    tmp_path: Path, rule: dict[str, Any], does: Callable[[sk.Record], None], store: str
) -> None:
    seen: dict[str, bytes] = {}
    for number, record in enumerate(records_in(tmp_path, rule, store=store)):
        held = {member: path.read_bytes() for member, path in zip(record.members, record.paths, strict=True)}
        assert files_under(tmp_path / "scratch") == {}, "what is only read needs no file"
        if number % 3 != 1:
            does(record)
        if does is opens_it and number % 3 != 1:
            assert files_under(Path(record._folder)) == held
        seen |= held
    assert seen == SAMPLES
    assert not list((tmp_path / "scratch").glob("*"))


def test_blocks_of_a_store_are_read_ahead_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1024)
    rule = {"inside": "tar", "by": "stem"}
    expected = [record.read_bytes() for record in records_in(tmp_path, rule)]
    read: list[int] = []
    original = ObjectFolder.read_unchanged

    def noting(self: Any, key: str, start: int, end: int, *, etag: str | None) -> Any:
        read.append(start)
        return original(self, key, start, end, etag=etag)

    found = []
    for record in records_in(tmp_path, rule, store="memory"):
        if not found:
            monkeypatch.setattr(ObjectFolder, "read_unchanged", noting)
        found.append(record.read_bytes())
        if len(found) == 2:
            wait_for(lambda: max(read, default=0) >= 8 * 1024)
    assert found == expected
    assert len(read) == len(set(read)) >= 8


def test_a_record_that_is_done_makes_no_files(tmp_path: Path) -> None:
    kept = list(records_in(tmp_path, {"inside": "tar"}))
    with pytest.raises(FileNotFoundError):
        kept[0].stat()
    with pytest.raises(FileNotFoundError):
        kept[0].read_bytes()
    assert files_under(tmp_path / "scratch") == {}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_large_is_a_file(tmp_path: Path, kind: str) -> None:
    """Of a zip also what becomes large when it is decompressed."""
    members = {"small.txt": b"x" * 900, "large.txt": b"x" * 400_000}
    home = file_in(tmp_path / "in", "x", (tar_of if kind == "tar" else zip_of)(members))
    found = {each.key: each.record for each in cut(home, tmp_path, {"inside": kind, "by": "member"})}
    assert set(found) == {"x/small.txt", "x/large.txt"}
    made = files_under(tmp_path)
    assert [data for name, data in made.items() if name.endswith(".txt")] == [members["large.txt"]]
    assert {key: record.read_bytes() for key, record in found.items() if record} == {
        f"x/{name}": data for name, data in members.items()
    }


FULL = """
import errno, os
from shardkit.workers import inputs

def full(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def rows(record):
    inputs.open_new = full
    try:
        with open(record) as file:
            return {"text": file.read()}
    except Exception:
        return None
"""


@pytest.mark.whole
def test_a_full_disk_is_no_records_fault(tmp_path: Path) -> None:
    (tmp_path / "full.py").write_text(FULL)
    file_in(tmp_path / "in", "x.tar", tar_of(SAMPLES))
    pipeline = sk.Pipeline(
        function="full:rows",
        source_dir=tmp_path,
        input=tmp_path / "in",
        output=tmp_path / "out",
        records="tar",
        workers=1,
        max_failures="100%",
    )
    with pytest.raises(sk.StorageError, match="No space left on device"):
        pipeline.run(quiet=True)
    assert len(sk.open_run(tmp_path / "out").failures()) == 0
