"""Job ads in S3 by hand: a process pool over s3fs, a small Parquet file each, then one compaction.

python ads_by_hand_s3.py s3://BUCKET/PREFIX TMP OUT WORKERS
"""

import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "talent_jsonl"))

_filesystem = None


class ObjectRecord:
    """What the example's function needs of a record: a key, and lines."""

    def __init__(self, key: str, path: str) -> None:
        self.key = key
        self._path = path

    def __fspath__(self) -> str:
        return self._path


def one_object(source: str, target: str) -> None:
    """Make a Parquet file of one object of ads."""
    global _filesystem  # noqa: PLW0603  one connection a process, as one would write it
    import pandas as pd
    import s3fs
    from ads import ad_features

    if _filesystem is None:
        _filesystem = s3fs.S3FileSystem()
    local = f"{target}.jsonl"
    Path(local).write_bytes(_filesystem.cat_file(source))
    pd.DataFrame(list(ad_features(ObjectRecord(source, local)))).to_parquet(target)
    Path(local).unlink()


if __name__ == "__main__":
    import pyarrow.dataset as ds
    import s3fs

    src, tmp, out, workers = sys.argv[1:]
    Path(tmp).mkdir()
    files = sorted(s3fs.S3FileSystem().find(src))
    with ProcessPoolExecutor(int(workers), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(one_object, f, f"{tmp}/{i}.parquet") for i, f in enumerate(files)]
        for job in as_completed(jobs):
            job.result()
    ds.write_dataset(ds.dataset(tmp, format="parquet"), out, format="parquet", max_rows_per_file=1 << 20)
