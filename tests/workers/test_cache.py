"""The folder of a machine for what is expensive to get: made once, whoever asks and however a maker ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, shardkit
def make(path):
    path.mkdir()
    (path / "half").write_text("half")
    os.kill(os.getpid(), 9)
shardkit.Cache().once("weights", make)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_a_folder_and_a_path(home: Path) -> None:
    for cache in (sk.Cache(), sk.Record("a", ("a",)).cache):
        assert cache.path == home and home.is_dir()
        assert os.fspath(cache) == str(home) and cache / "name" == home / "name"


def test_by_default_it_is_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARDKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sk.Cache().path == tmp_path / "xdg" / "shardkit"


def test_what_many_ask_for_is_made_once(home: Path) -> None:
    made: list[Path] = []
    begin = threading.Barrier(8)

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("weights")

    def ask() -> None:
        begin.wait()
        assert sk.Cache().once("models/one.bin", make).read_text() == "weights"

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sk.Cache().once("models/one.bin", make) == home / "models" / "one.bin"
    assert len(made) == 1, "it is kept"


def test_what_was_made_by_half_is_made_again(home: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    assert not (home / "weights").exists()

    def fails(path: Path) -> None:
        path.mkdir()
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        sk.Cache().once("weights", fails)

    def make(path: Path) -> None:
        path.mkdir()
        (path / "whole").write_text("whole")

    folder = sk.Cache().once("weights", make)
    assert [each.name for each in folder.iterdir()] == ["whole"]
    assert {each.name for each in home.iterdir()} == {"weights", ".weights.lock"}


def test_a_maker_that_makes_nothing_is_told(home: Path) -> None:
    with pytest.raises(sk.StorageError, match=r"weights is not in the cache .* wrote no file\. It is called with"):
        sk.Cache().once("weights", lambda path: None)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../other", "a/../../b"])
def test_a_name_stays_in_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is no name in the cache"):
        sk.Cache().once(name, lambda path: path.write_text("x"))
