"""A cluster whose package is not installed here is refused with the cure."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import shardkit as sk
from shardkit.clusters.kinds import CLUSTERS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(("backend", "package"), [("dask", "distributed"), ("ray", "ray"), ("spark", "pyspark")])
def test_what_to_install_is_said(
    files: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, package: str
) -> None:
    monkeypatch.setattr(CLUSTERS, "_loaded", {})
    monkeypatch.delitem(sys.modules, f"shardkit.clusters.{backend}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        sk.PipelineError, match=rf"{backend} needs a package .*{package}.*pip install 'shardkit\[{backend}\]'"
    ):
        sk.run(len, files(["a.txt"]), tmp_path / "out", parallel=backend, quiet=True)
    assert not (tmp_path / "out").exists()
