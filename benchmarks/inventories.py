"""Planning over a report of S3 Inventory instead of listing: the same objects, in both of its formats."""

from __future__ import annotations

import gzip
import json
import shutil
from typing import TYPE_CHECKING

import servers
from common import DATA, Measure, contestant, measure
from lists import FOLDER, stub

if TYPE_CHECKING:
    from pathlib import Path

ROWS_A_FILE = 1_000_000
URI = f"s3://{servers.BUCKET}/feed"


def inventory(workers: int, scale: float, runs: int) -> dict[str, object]:  # noqa: ARG001  a listing has no workers
    """Ten million objects from a report in Parquet and in CSV, and from LIST requests to a stub on this machine."""
    count = int(10_000_000 * scale)
    report: dict[str, object] = {}
    print(f"\ninventory: {count:,} objects; whole commands")
    for form in ("Parquet", "CSV"):
        manifest = _report(form, count)
        taken = measure(contestant("list_by_inventory.py", URI, str(manifest)), DATA / "scratch")
        report[form] = _shown(f"{form} report", taken)
    with stub(count) as port:
        taken = measure(contestant("list_by_shardkit.py", URI), DATA / "scratch", servers.environment(port))
    report["LIST"] = _shown("LIST", taken)
    return report


def _shown(what: str, taken: Measure) -> dict[str, float]:
    print(f"  {what:<16} {taken.wall_s:7.1f} s  {taken.cpu_s:7.1f} s of CPU  peak {taken.peak_bytes / 1e6:6.0f} MB")
    return {"wall_s": taken.wall_s, "cpu_s": taken.cpu_s, "peak_mb": taken.peak_bytes / 1e6}


def _report(form: str, count: int) -> Path:
    """The manifest of a report of so many objects, generated once."""
    home = DATA / f"inventory-{form.lower()}-{count}"
    manifest: Path = home / "2026-01-01T01-00Z" / "manifest.json"
    if manifest.exists():
        return manifest
    shutil.rmtree(home, ignore_errors=True)
    (home / "data").mkdir(parents=True)
    manifest.parent.mkdir()
    files = []
    for number, begin in enumerate(range(0, count, ROWS_A_FILE)):
        path = home / "data" / f"{number:05d}.{'parquet' if form == 'Parquet' else 'csv.gz'}"
        (_write_parquet if form == "Parquet" else _write_csv)(path, range(begin, min(begin + ROWS_A_FILE, count)))
        files.append({"key": f"b/all/data/{path.name}", "size": path.stat().st_size})
    content = {
        "sourceBucket": servers.BUCKET,
        "destinationBucket": "arn:aws:s3:::reports",
        "version": "2016-11-30",
        "fileFormat": form,
        "fileSchema": "Bucket, Key, Size, LastModifiedDate, ETag",
        "files": files,
    }
    manifest.write_text(json.dumps(content))
    return manifest


def _key(i: int) -> str:
    return f"feed/{i // FOLDER:04d}/part-{i:07d}.jsonl"


def _write_csv(path: Path, rows: range) -> None:
    with gzip.open(path, "wt", compresslevel=1) as file:
        for i in rows:
            file.write(f'"{servers.BUCKET}","{_key(i)}","1","2020-01-01T00:00:00.000Z","{i:032x}"\n')


def _write_parquet(path: Path, rows: range) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "bucket": pa.array([servers.BUCKET] * len(rows)),
        "key": pa.array(map(_key, rows)),
        "size": pa.array([1] * len(rows), pa.int64()),
        "last_modified_date": pa.array([1577836800000] * len(rows), pa.timestamp("ms", "UTC")),
        "e_tag": pa.array([f"{i:032x}" for i in rows]),
    }
    pq.write_table(pa.table(columns), path, compression="snappy")
