"""Job ads by Ray Data's own means: batches of files become Arrow tables, and these files of a million rows.

`flat_map`, a call for each file, takes more. What a run of shardkit has and this has not: a file that raises ends it, a
function that exits costs its whole batch, and what was done is done again.

python ads_by_ray_data.py ADDRESS SRC OUT
"""

import sys
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "talent_jsonl"
FILES_A_BATCH = 20
ROWS_A_FILE = 1 << 20


def tables_of(batch: pa.Table) -> pa.Table:
    """The ads of some files."""
    from ads import ad_features
    from ads_by_hand import FileRecord

    return pa.Table.from_pylist([row for file in batch["file"].to_pylist() for row in ad_features(FileRecord(file))])


if __name__ == "__main__":
    address, src, out = sys.argv[1], sys.argv[2], str(Path(sys.argv[3]).resolve())
    modules = {"env_vars": {"PYTHONPATH": f"{HERE}:{EXAMPLE}"}}
    ray.init(address=address, runtime_env=modules, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    files = [{"file": str(path)} for path in sorted(Path(src).rglob("*.jsonl"))]
    batches = ray.data.from_items(files, override_num_blocks=max(len(files) // FILES_A_BATCH, 1))
    tables = batches.map_batches(tables_of, batch_size=FILES_A_BATCH, batch_format="pyarrow")
    tables.write_parquet(out, min_rows_per_file=ROWS_A_FILE)
