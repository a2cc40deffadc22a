"""A record is the path of its main file, for everything that takes a path."""

from __future__ import annotations

import copy
import io
import mmap
import os
import pickle
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import shardkit as sk
from shardkit.held import Held

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["made", "held"])
def record(request: pytest.FixtureRequest, tmp_path: Path) -> sk.Record:
    """A record whose files are there, and one whose files are in memory until a path is asked for."""
    array = io.BytesIO()
    np.save(array, np.arange(3))
    contents = {"a b/x.y.npy": array.getvalue(), "a b/x.y.txt": b"text"}

    def make(contents: dict[str, bytes]) -> None:
        (tmp_path / "a b").mkdir()
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)

    held = Held(contents, make)
    if request.param == "made":
        held.make()
    return sk.Record("a b/x.y", tuple(contents), main=1, root=str(tmp_path), bytes=4, by_stem=True, held=held)


def is_made(record: sk.Record) -> bool:
    return os.path.exists(f"{record._folder}/a b/x.y.txt")


def test_a_record_is_a_path_like_any_other(record: sk.Record, tmp_path: Path) -> None:
    path = tmp_path / "a b" / "x.y.txt"
    assert isinstance(record, Path)
    assert str(record) == os.fspath(record) == str(path)
    assert (record.name, record.suffix, record.suffixes, record.parts) == (
        "x.y.txt",
        ".txt",
        [".y", ".txt"],
        path.parts,
    )
    assert record == path
    assert hash(record) == hash(path)
    with open(record) as file, record.open() as same:
        assert file.read() == same.read() == record.read_text() == "text"
    assert record.exists()
    assert record.stat().st_size == 4


def test_what_is_made_of_a_records_path_is_a_path(record: sk.Record, tmp_path: Path) -> None:
    path = tmp_path / "a b" / "x.y.txt"
    made = {
        "parent": (record.parent, path.parent),
        "joined": (record.parent / "z", path.parent / "z"),
        "name": (record.with_name("z"), path.with_name("z")),
        "suffix": (record.with_suffix(".npy"), path.with_suffix(".npy")),
        "resolved": (record.resolve(), path.resolve()),
        "absolute": (record.absolute(), path),
        "relative": (record.relative_to(tmp_path), Path("a b/x.y.txt")),
        "Path": (Path(record), path),
    }
    for how, (found, expected) in made.items():
        assert found == expected, how
        assert not isinstance(found, sk.Record) or how == "absolute", how
    assert np.load(record.with_suffix(".npy")).tolist() == [0, 1, 2]


def test_a_record_keeps_what_it_is_more_than_a_path(record: sk.Record, tmp_path: Path) -> None:
    for same in (record, copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
        assert (same.key, same.bytes, len(same.objects)) == ("a b/x.y", 4, 2)
        assert same.stem == f"{tmp_path}/a b/x.y"
        assert [path.name for path in same.paths] == ["x.y.npy", "x.y.txt"]
        assert repr(same) == "Record('a b/x.y', 2 objects, 4 bytes)"
    assert not hasattr(record, "nothing")


def test_what_asks_for_a_path_of_pathlib_opens_a_record(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    assert np.load(sk.Record("a.npy", ("a.npy",), root=str(tmp_path)), mmap_mode="r").tolist() == [0, 1, 2]


def test_what_is_only_read_is_not_made(record: sk.Record, request: pytest.FixtureRequest) -> None:
    made = request.node.callspec.params["record"] == "made"
    with record.open() as text, record.open("rb") as data:
        assert (text.read(), data.read()) == ("text", b"text")
    assert (record.read_text(encoding="utf-8"), record.read_bytes()) == ("text", b"text")
    assert (record.name, record.suffix) == ("x.y.txt", ".txt")
    assert sorted(record.files) == ["npy", "txt"]
    assert record.files["txt"].read_text() == record.path.read_text() == record.paths[1].read_text() == "text"
    with record.files["npy"].open("rb") as file:
        assert np.load(file).tolist() == [0, 1, 2]
    assert is_made(record) == made
    with pytest.raises(io.UnsupportedOperation), record.open("rb") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "asking",
    [
        os.fspath,
        str,
        hash,
        pickle.dumps,
        os.path.getsize,
        lambda record: record.stem,
        lambda record: record.parent,
        lambda record: record / "x",
        lambda record: record.stat(),
        lambda record: pickle.dumps(record.files["npy"]),
        lambda record: record.open("rb").fileno(),
        lambda record: record.open().name,
        lambda record: record.open("r+").close(),
    ],
)
def test_whoever_asks_for_a_path_finds_the_files(record: sk.Record, asking: Callable[[sk.Record], Any]) -> None:
    asking(record)
    assert is_made(record)
    with record.open("a") as file:
        file.write(" more")
    assert record.read_text() == record.files["txt"].read_text() == Path(record).read_text() == "text more"


def test_what_takes_a_descriptor_gets_one(record: sk.Record) -> None:
    with record.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == b"text"
    with record.open("rb") as file:
        assert file.read(1) == b"t"
        assert np.fromfile(file, "S1").tolist() == [b"e", b"x", b"t"]
    with record.open("rb") as file:
        assert subprocess.run(["cat"], stdin=file, capture_output=True, check=True).stdout == b"text"
