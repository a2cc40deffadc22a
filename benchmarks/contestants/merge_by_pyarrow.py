"""Merges parts to a dataset with pyarrow only.

python merge_by_pyarrow.py SRC OUT
"""

import sys

import pyarrow.dataset as ds

if __name__ == "__main__":
    src, out = sys.argv[1:]
    ds.write_dataset(ds.dataset(src), out, format="parquet", max_rows_per_file=1 << 20)
