"""The least that the job ads can take: processes that only read, compute and write one Parquet file each.

python ads_floor.py SRC OUT WORKERS
"""

import sys
from multiprocessing import get_context
from pathlib import Path


def share(files: list[str], target: str) -> None:
    """Make one Parquet file of every n-th file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from ads_by_hand import FileRecord  # puts the example on the path
    from ads import ad_features  # isort: skip

    writer, rows = None, []
    for i, file in enumerate(files, 1):
        rows += ad_features(FileRecord(file))
        if len(rows) >= 20_000 or i == len(files):
            table = pa.Table.from_pylist(rows)
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
            rows = []
    if writer:
        writer.close()


if __name__ == "__main__":
    src, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    Path(out).mkdir()
    files = sorted(map(str, Path(src).rglob("*.jsonl")))
    with get_context("spawn").Pool(workers) as pool:
        pool.starmap(share, [(files[i::workers], f"{out}/{i}.parquet") for i in range(workers)])
