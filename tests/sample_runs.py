"""Runs that make datasets for loaders of training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shardkit as sk

if TYPE_CHECKING:
    from pathlib import Path


class World:
    """Records in a few files, and pipelines with functions of ``code``; ``output`` is what all of them have."""

    def __init__(self, root: Path, code: str, *, files: int, **output: Any) -> None:
        self.root, self._output = root, output
        (root / "functions_for_training.py").write_text(code)
        (root / "data").mkdir()
        for number in range(files):
            (root / "data" / f"{number}.txt").write_text("x")

    def run(self, name: str = "out", function: str = "samples", workers: int = 1, **output: Any) -> sk.Run:
        """Run one of the functions over all records."""
        return sk.Pipeline(
            name=name,
            function=f"functions_for_training:{function}",
            source_dir=self.root,
            input=self.root / "data",
            output={"uri": self.root / name, **self._output, **output},
            workers=workers,
        ).run(quiet=True)
