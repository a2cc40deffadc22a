"""Makes Parquet files like the parts of pass 1.

python make_parts.py OUT COUNT ROWS
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TEXT = "engineer nurse python sales driver remote hybrid team customer care junior school cloud rust"
WORDS = np.array(TEXT.split())

if __name__ == "__main__":
    out, count, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    making = out.with_name(f".{out.name}")
    making.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for i in range(count):
        texts = [" ".join(words) for words in WORDS[rng.integers(0, len(WORDS), (rows, 28))]]
        table = pa.table(
            {
                "id": [f"{i}-{r}" for r in range(rows)],
                "n_tokens": rng.integers(100, 200, rows),
                "country": np.array(["US", "CA", "FR", "DE", "JP"])[rng.integers(0, 5, rows)],
                "salary_mid": np.where(rng.random(rows) < 0.4, np.nan, rng.integers(30_000, 130_000, rows) / 2),
                "title_hash": rng.integers(0, 1 << 32, rows),
                "n_tags": rng.integers(0, 9, rows),
                "remote": rng.random(rows) < 0.1,
                "hour": rng.integers(0, 24, rows),
                "lead": texts,
            }
        )
        pq.write_table(table, making / f"part-{i:06d}.parquet", compression="zstd", compression_level=1)
    making.rename(out)
