"""A folder of the input that is a dataset of shardkit is left out, unless it is named itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from crashing import rows_of
from test_listing import bucket_of

import shardkit as sk
from shardkit.cli.app import cli
from shardkit.storage.list_files import datasets_in
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteFiles

FILES = [
    "a.txt",
    "b/c.txt",
    "b/out/_shardkit/current.json",
    "b/out/part.txt",
    "b/out/day=1/part.txt",
    "b/out-not/d.txt",
]
FILES += ["b/out0.txt", "own/_shardkit/latest.json", "own/part.txt", "_old/_shardkit/x.txt", "z/_shardkit/deep/x"]


@pytest.mark.parametrize("store", ["disk", "bucket"])
def test_what_lies_in_a_dataset_is_no_input(files: WriteFiles, store: str) -> None:
    root = str(files(FILES)) if store == "disk" else bucket_of(dict.fromkeys(FILES, b"x"))
    listed = folder(root).objects(leave_out=folder(f"{root}/own"))
    assert listed["key"].to_pylist() == ["a.txt", "b/c.txt", "b/out-not/d.txt", "b/out0.txt"]
    assert datasets_in(listed) == ["b/out", "z"]
    named = folder(f"{root}/b/out").objects()
    assert (named["key"].to_pylist(), datasets_in(named)) == (["day=1/part.txt", "part.txt"], [])


def test_a_linked_dataset_is_none_either(files: WriteFiles, tmp_path: Path) -> None:
    files(["out/_shardkit/current.json", "out/part.txt"], "elsewhere")
    root = files(["a.txt"])
    os.symlink(tmp_path / "elsewhere" / "out", root / "linked")
    assert folder(root).objects()["key"].to_pylist() == ["a.txt"]


def test_the_next_pipeline_over_the_same_folder_reads_its_files_alone(files: WriteFiles, tmp_path: Path) -> None:
    data = files(["a.txt", "b.txt"])
    for name in ("first", "second"):
        sk.run(lambda record: {"key": record.key}, data, data / name, name=name, workers=1, quiet=True)
    assert [row["key"] for row in rows_of(sk.open_run(data / "second"))] == ["a.txt", "b.txt"]
    options = ["--function", "json:loads", "--input", str(data), "--output", str(tmp_path / "third")]
    planned = CliRunner().invoke(cli, ["plan", *options])
    assert "  left out first, second: datasets of shardkit" in planned.stdout
    (data / "a.txt").unlink()
    (data / "b.txt").unlink()
    refused = CliRunner().invoke(cli, ["plan", *options])
    assert refused.exit_code == 2
    assert "What lies in first and 1 more was left out" in refused.stderr
    around = CliRunner().invoke(cli, ["plan", *options[:-1], str(tmp_path)])
    assert "Choose an output beside the input." in around.stderr
