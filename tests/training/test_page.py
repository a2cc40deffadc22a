"""The page about training data, whose blocks read what they write with the libraries of this environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_docs import ROOT, run_page

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.usefixtures("streaming")
def test_blocks_run(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    page: Path = ROOT / "docs" / "training.md"
    run_page(page, tmp_path_factory, monkeypatch)
