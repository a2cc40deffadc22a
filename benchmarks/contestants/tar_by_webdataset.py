"""The samples of a tar by webdataset's reader, one after the other in one process, as one Parquet file.

python tar_by_webdataset.py TAR OUT
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

if __name__ == "__main__":
    tar, out = sys.argv[1:]
    samples = webdataset.WebDataset(tar, shardshuffle=False)
    rows = [{"key": s["__key__"], "label": int(s["cls"]), "bytes": len(s["jpg"])} for s in samples]
    Path(out).mkdir()
    pq.write_table(pa.Table.from_pylist(rows), f"{out}/part.parquet")
