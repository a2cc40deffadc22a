"""The index that readers of some formats begin with: a switch replaces it as a whole, whenever a process dies."""

from __future__ import annotations

import json
import shutil
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import shardkit as sk
from shardkit.dataset import switch as switching
from shardkit.dataset import switch_steps
from shardkit.dataset.formats.json_lines import JsonLines
from shardkit.dataset.formats.kinds import FORMATS
from shardkit.dataset.index_file import write_index
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shardkit.runfolder.document_types import ResultFile
    from shardkit.storage.base import Folder

CODE = """
def rows(record):
    for i in range(3):
        yield {"key": record.key, "text": record.read_text(), "half": i % 2}
"""


class Listed(JsonLines):
    """JSON Lines whose readers find the files in a list."""

    suffix: ClassVar[str] = ".listed.jsonl"
    index: ClassVar[str] = "files.json"

    def index_of(self, output: Folder, files: Sequence[ResultFile], present: bytes | None) -> bytes:
        for file in files:
            assert output.size(file["path"]) == file["bytes"]
        return json.dumps([file["path"] for file in files]).encode()


@pytest.fixture(autouse=True)
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS._loaded, "listed", Listed)


class World:
    """A dataset of two records in files of two rows, the rows of which hold a version."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"
        (root / "data").mkdir(parents=True, exist_ok=True)
        (root / "functions_for_indexes.py").write_text(CODE)

    def run(self, version: str, **output: Any) -> sk.Run:
        for name in ("a.txt", "b.txt"):
            (self.root / "data" / name).write_text(version)
        return self.pipeline(**output).run(quiet=True)

    def pipeline(self, **output: Any) -> sk.Pipeline:
        return sk.Pipeline(
            name="listed",
            function="functions_for_indexes:rows",
            source_dir=self.root,
            input=self.root / "data",
            output={"uri": self.out, "format": "listed", "rows_per_file": 2} | output,
            workers=1,
        )

    def read(self) -> list[str]:
        """The versions in the rows of the files that the index names."""
        lines = [line for path in self.index() for line in (self.out / path).read_text().splitlines()]
        return [json.loads(line)["text"] for line in lines]

    def index(self) -> list[str]:
        names: list[str] = json.loads((self.out / "files.json").read_text())
        return names


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def copying(monkeypatch: pytest.MonkeyPatch, root: Path, copies: Path) -> list[str]:
    """Copy the world before each step of a switch, as it were if the process ended there; returns the steps' names."""
    steps: list[str] = []
    one_at_a_time = threading.Lock()

    def counted(owner: Any, name: str) -> None:
        do: Callable[..., Any] = getattr(owner, name)

        def instead(*arguments: Any, **options: Any) -> Any:
            with one_at_a_time:
                steps.append(name)
                shutil.copytree(root, copies / f"{len(steps)}")
                return do(*arguments, **options)

        monkeypatch.setattr(owner, name, instead)

    for owner, name in (
        (switching, "note"),
        (switch_steps, "note"),
        (switch_steps, "_publish"),
        (switch_steps.Switch, "_write_result"),
        (switch_steps, "write_index"),
        (switch_steps, "remove"),
        (switch_steps, "_tidy"),
        (switch_steps.Switch, "forget"),
    ):
        counted(owner, name)
    return steps


# The old files and what was staged go side by side.
STEPS = ["note", *["_publish"] * 3, "_write_result", "note", "write_index", "_tidy", *["remove"] * 3, "forget"]


@pytest.mark.whole
def test_wherever_a_switch_ends_the_index_is_that_of_the_old_or_the_new_dataset(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run("old")
    assert world.read() == ["old"] * 6
    with monkeypatch.context() as patch:
        steps = copying(patch, world.root, tmp_path / "before")
        world.run("new")
    assert world.read() == ["new"] * 6
    seen = []
    for step in range(1, len(steps) + 1):
        copy = World(tmp_path / "before" / f"{step}")
        versions = copy.read()
        assert versions in (["old"] * 6, ["new"] * 6)
        seen.append(versions[0])
        run = sk.open_run(copy.out)  # which finishes what had begun
        begun = "_publish" in steps[:step]
        assert copy.read() == ["new" if begun else "old"] * 6
        run.resume(quiet=True)
        assert copy.read() == ["new"] * 6
        assert len(list(copy.out.glob("part-*"))) == len(copy.index()) == 3
        assert sk.check(copy.out).ok
    assert [*steps[:7], *sorted(steps[7:11]), *steps[11:]] == STEPS
    assert seen == sorted(seen, reverse=True)
    assert seen.count("new") == len(STEPS) - STEPS.index("write_index") - 1


@pytest.mark.whole
def test_the_index_names_files_in_partitions_and_goes_with_its_format(world: World) -> None:
    world.run("first", partition_by="half")
    assert [path.split("/")[0] for path in world.index()] == ["half=0", "half=0", "half=1"]
    assert world.read() == ["first"] * 6
    world.run("second", format="jsonl")
    assert not (world.out / "files.json").exists()
    (world.out / "files.json").write_text("the user's")
    with pytest.raises(sk.PipelineError, match=r"files\.json is there, and no run has written it"):
        world.run("third")
    assert (world.out / "files.json").read_text() == "the user's"
    (world.out / "files.json").unlink()
    sk.open_run(world.out).resume(quiet=True)
    assert world.read() == ["third"] * 6


@pytest.mark.whole
def test_an_index_that_is_lost_or_changed_is_found_and_written_again(world: World) -> None:
    run = world.run("first")
    right = (world.out / "files.json").read_bytes()
    for damaged in (b"[]", None):
        if damaged is None:
            (world.out / "files.json").unlink()
        else:
            (world.out / "files.json").write_bytes(damaged)
        checked = sk.check(world.out)
        assert [
            fault.what.endswith("files.json does not list the files of the dataset") for fault in checked.faults
        ] == [True]
        if damaged is None:
            run.resume(quiet=True)
        else:
            world.pipeline().replace(incremental=True).run(quiet=True)  # nothing has changed, and no record is computed
        assert (world.out / "files.json").read_bytes() == right
        assert sk.check(world.out).ok


def test_who_was_paused_leaves_the_index_of_a_later_switch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run("first")
    output, result = LocalFolder(world.out), json.loads((world.out / "_shardkit" / "current.json").read_text())
    monkeypatch.setattr(Listed, "index_of", lambda *_: b"earlier")
    assert not write_index(output, result, lambda: False)

    def pausing(*_: Any) -> bytes:
        output.write("files.json", b"later")
        return b"earlier"

    monkeypatch.setattr(Listed, "index_of", pausing)
    assert not write_index(output, result, lambda: True)
    assert (world.out / "files.json").read_bytes() == b"later"
    assert run.summary().status == "done"
