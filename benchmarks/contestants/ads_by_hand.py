"""Job ads by hand: a process pool over files, a small Parquet file each, then one compaction.

python ads_by_hand.py SRC TMP OUT WORKERS
"""

import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "talent_jsonl"))


class FileRecord(str):
    """A path that is its own key."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """The path."""
        return str(self)


def one_file(source: str, target: str) -> None:
    """Make a Parquet file of one file of ads."""
    import pandas as pd
    from ads import ad_features

    pd.DataFrame(list(ad_features(FileRecord(source)))).to_parquet(target)


if __name__ == "__main__":
    import pyarrow.dataset as ds

    src, tmp, out, workers = sys.argv[1:]
    Path(tmp).mkdir()
    files = sorted(Path(src).rglob("*.jsonl"))
    with ProcessPoolExecutor(int(workers), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(one_file, str(f), f"{tmp}/{i}.parquet") for i, f in enumerate(files)]
        for job in as_completed(jobs):
            job.result()
    ds.write_dataset(ds.dataset(tmp), out, format="parquet", max_rows_per_file=1 << 20)
