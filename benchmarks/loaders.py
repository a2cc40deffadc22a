"""One epoch of training over embeddings in Parquet: run.torch() and Hugging Face's datasets, each with a DataLoader.

It takes PyTorch and datasets, as the environment of scripts/test-training has them.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from typing import TYPE_CHECKING

from common import DATA, HERE, SHARDKIT, contestant

if TYPE_CHECKING:
    from pathlib import Path

CAN_RUN = all(importlib.util.find_spec(name) for name in ("torch", "datasets"))


def batches(arrays: Path, workers: int) -> dict[str, list[str]]:
    """The commands of the contestants, over a run's dataset that is made of ``arrays`` once."""
    folder: Path = DATA / f"batches-of-{arrays.name}"
    if not folder.exists():
        making = folder.with_name(f".{folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        function = ["--function", "embeddings:rows", "--source-dir", str(HERE / "contestants")]
        where = ["--input", str(arrays), "--output", str(making), "--pattern", "*.npy", "--quiet"]
        subprocess.run([*SHARDKIT, "run", *function, *where, "--set", "output.target_bytes=64MB"], check=True)
        making.rename(folder)
    by_datasets = "batches_by_datasets.py"
    return {
        "shardkit": contestant("batches_by_shardkit.py", folder, workers),
        "datasets": contestant(by_datasets, folder, workers, "by-dataset"),
        "its loader": contestant(by_datasets, folder, workers, "by-loader"),
        "shuffled": contestant("batches_by_shardkit.py", folder, workers, "shuffle"),
        "its shuffle": contestant(by_datasets, folder, workers, "by-dataset", "shuffle"),
    }
