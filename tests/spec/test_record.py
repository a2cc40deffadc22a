"""A record is the path of its main file, for everything that takes a path."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import shardkit as sk


@pytest.fixture
def record(tmp_path: Path) -> sk.Record:
    folder = tmp_path / "a b"
    folder.mkdir()
    np.save(folder / "x.y.npy", np.arange(3))
    (folder / "x.y.txt").write_text("text")
    keys = ("a b/x.y.npy", "a b/x.y.txt")
    return sk.Record("a b/x.y", keys, main=1, root=str(tmp_path), bytes=4, by_stem=True)


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
