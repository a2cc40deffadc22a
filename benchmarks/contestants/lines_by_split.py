"""Job ads in one file, by hand: `split`, a process pool over the pieces, a Parquet file each, then one compaction.

python lines_by_split.py FILE TMP OUT WORKERS PIECE
"""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from ads_by_hand import one_file

if __name__ == "__main__":
    import pyarrow.dataset as ds

    file, tmp, out, workers, piece = sys.argv[1:]
    Path(tmp, "pieces").mkdir(parents=True)
    Path(tmp, "parts").mkdir()
    subprocess.run(["split", f"--line-bytes={piece}", file, f"{tmp}/pieces/"], check=True)
    pieces = sorted(Path(tmp, "pieces").iterdir())
    with ProcessPoolExecutor(int(workers), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(one_file, str(p), f"{tmp}/parts/{i}.parquet") for i, p in enumerate(pieces)]
        for job in as_completed(jobs):
            job.result()
    ds.write_dataset(ds.dataset(f"{tmp}/parts"), out, format="parquet", max_rows_per_file=1 << 20)
