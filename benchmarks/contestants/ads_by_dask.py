"""Job ads by Dask's own means: a data frame of all files, with 20 files in a partition, and files of a million rows.

A bag of files, `dask.bag`, takes nearly twice the CPU time for the same. What a run of shardkit has and this has not: a
file that raises ends it, a function that exits takes Dask's worker with it, and what was done is done again.

python ads_by_dask.py ADDRESS SRC OUT
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "talent_jsonl"
FILES_A_PARTITION = 20
ADS_A_FILE = 100
ROWS_A_FILE = 1 << 20


def frame_of(files: list[str]) -> "pd.DataFrame":
    """The ads of some files."""
    import pandas as pd
    from ads import ad_features
    from ads_by_hand import FileRecord

    return pd.DataFrame([row for file in files for row in ad_features(FileRecord(file))])


def find_modules(folders: list[str]) -> None:
    """Let a worker import what the function needs."""
    sys.path += [folder for folder in folders if folder not in sys.path]


if __name__ == "__main__":
    import dask.dataframe as dd
    from distributed import Client

    address, src, out = sys.argv[1], sys.argv[2], str(Path(sys.argv[3]).resolve())
    folders = [str(HERE), str(EXAMPLE)]
    find_modules(folders)
    files = sorted(map(str, Path(src).rglob("*.jsonl")))
    batches = [files[i : i + FILES_A_PARTITION] for i in range(0, len(files), FILES_A_PARTITION)]
    with Client(address) as client:
        client.run(find_modules, folders)
        frame = dd.from_map(frame_of, batches, meta=frame_of(files[:5]).iloc[:0])
        count = math.ceil(len(files) * ADS_A_FILE / ROWS_A_FILE)
        frame.repartition(npartitions=count).to_parquet(out, write_index=False)
