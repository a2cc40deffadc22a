"""Arrays of embeddings to Parquet with pyarrow only: processes that share the files, and write one file each.

python embeddings_by_pyarrow.py SRC OUT WORKERS
"""

import sys
from multiprocessing import get_context
from pathlib import Path


def share(files: list[str], target: str) -> None:
    """Make one Parquet file of every n-th file."""
    import pyarrow.parquet as pq
    from embeddings import rows

    writer = None
    for file in files:
        table = rows(file)
        writer = writer or pq.ParquetWriter(target, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


if __name__ == "__main__":
    src, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    Path(out).mkdir()
    files = sorted(map(str, Path(src).rglob("*.npy")))
    with get_context("spawn").Pool(workers) as pool:
        pool.starmap(share, [(files[i::workers], f"{out}/{i}.parquet") for i in range(workers)])
