"""Embeddings in arrays of a thousand each: makes them, and is the function that puts them into a table.

python embeddings.py FOLDER FILES
"""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

WIDTH, ROWS = 1024, 1000


def rows(path: str | os.PathLike[str]) -> pa.Table:
    """The rows of a file: an id and an embedding each."""
    array = np.load(path)
    values = pa.array(array.reshape(-1))
    ids = pa.array(np.arange(len(array)))
    return pa.table({"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(values, array.shape[1])})


if __name__ == "__main__":
    folder, files = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(files):
        np.save(folder / f"{i:05d}.npy", random.standard_normal((ROWS, WIDTH), np.float32))
