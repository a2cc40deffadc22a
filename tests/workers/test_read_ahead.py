"""What a worker fetches ahead stays within its limits, however small or large the objects are."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from shardkit.storage.open import folder
from shardkit.storage.places import Places
from shardkit.workers import inputs
from shardkit.workers.inputs import RemoteInputs, Wanted

BOUND = 1 << 20


class Watch:
    """Looks again and again at what is in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most_bytes = self.most_files = 0

    def _look(self) -> None:
        while not self._end.wait(0.001):
            self.look()

    def look(self) -> None:
        sizes = []
        for top, _, names in os.walk(self._root):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(os.path.getsize(os.path.join(top, name)))
        self.most_bytes, self.most_files = max(self.most_bytes, sum(sizes)), max(self.most_files, len(sizes))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.whole
@pytest.mark.parametrize(
    ("size", "count", "most"),
    [
        (1_000, 300, (inputs.READ_AHEAD_RECORDS * 1_000, inputs.READ_AHEAD_RECORDS)),
        (300_000, 12, (BOUND, 3)),
        (3 << 20, 3, (3 << 20, 1)),  # each larger than the limit, and held alone
    ],
    ids=["small", "middling", "large"],
)
def test_what_is_held_is_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    count: int,
    most: tuple[int, int],
) -> None:
    monkeypatch.setattr(inputs, "READ_AHEAD_BYTES", BOUND)
    source = folder(f"memory://ahead-{size}")
    for i in range(count):
        source.write(f"{i:05d}", bytes(size))
    etags = {entry.key: entry.etag for entry in source.entries()}
    ahead = RemoteInputs(Places.one(source.uri), tmp_path / "scratch")
    with Watch(tmp_path / "scratch") as watch:
        ahead.expect(((0, 0, i), Wanted([f"{i:05d}"], [etags[f"{i:05d}"]], size)) for i in range(count))
        for i in range(count):
            root = ahead.fetch((0, 0, i)).root
            assert os.path.getsize(os.path.join(root, f"{i:05d}")) == size
            if i % 16 == 0:
                watch.look()
            ahead.release((0, 0, i))
    assert 0 < watch.most_bytes <= most[0]
    assert watch.most_files <= most[1]
    assert not any((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("mess", ["nothing", "a file", "a folder", "all is gone", "another file instead"])
def test_a_record_sees_its_own_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mess: str, at_once: int
) -> None:
    monkeypatch.setattr(inputs, "READ_AHEAD_RECORDS", at_once)
    source = folder(f"memory://alone-{mess}-{at_once}")
    # Some have the name of the folder that others are in.
    records = [["b/c"], ["b/e"], ["b"], ["a"], ["b/d"], ["b/d/f", "b/d/g", "b/h"], ["b/d"], ["b/c"], ["b/d/f/i/j"]] * 3
    for key in {key for keys in records for key in keys}:
        source.write(key, key.encode())
    ahead = RemoteInputs(Places.one(source.uri), tmp_path / "scratch")
    ahead.expect(((0, 0, i), Wanted(keys, None, 5)) for i, keys in enumerate(records))
    for i, keys in enumerate(records):
        root = Path(ahead.fetch((0, 0, i)).root)
        there = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
        assert there == {key: key for key in keys}
        home = (root / keys[0]).parent
        assert sorted(path.name for path in home.iterdir() if path.is_file()) == sorted(
            key.rpartition("/")[2] for key in keys if (root / key).parent == home
        )
        if mess == "a file":
            (home / "left").write_text("behind")
        elif mess == "a folder":
            (home / "left" / "behind").mkdir(parents=True)
        elif mess == "all is gone":
            shutil.rmtree(root)
        elif mess == "another file instead":
            (root / keys[0]).rename(home / "moved")
        ahead.release((0, 0, i))
    assert not any((tmp_path / "scratch").iterdir())
