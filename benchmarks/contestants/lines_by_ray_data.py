"""Job ads in one file by Ray Data's own means: lines in batches, which become Arrow tables.

python lines_by_ray_data.py ADDRESS FILE OUT
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import ray
import ray.data

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "talent_jsonl"
LINES_A_BATCH = 2000
ROWS_A_FILE = 1 << 20


def table_of(batch: pa.Table) -> pa.Table:
    """The ads of some lines."""
    from ads import _features

    return pa.Table.from_pylist([_features(json.loads(line), None) for line in batch["text"].to_pylist()])


if __name__ == "__main__":
    address, file, out = sys.argv[1], sys.argv[2], str(Path(sys.argv[3]).resolve())
    modules = {"env_vars": {"PYTHONPATH": f"{HERE}:{EXAMPLE}"}}
    ray.init(address=address, runtime_env=modules, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tables = ray.data.read_text(file).map_batches(table_of, batch_size=LINES_A_BATCH, batch_format="pyarrow")
    tables.write_parquet(out, min_rows_per_file=ROWS_A_FILE)
