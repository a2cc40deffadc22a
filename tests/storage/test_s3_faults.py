"""S3 with faults: the dataset is the same as without."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from crashing import check_ledger, rows_of
from fault_proxy import FAULTS, FaultProxy
from test_object_store import Bucket, bucket, project, run_here  # noqa: F401  fixtures too

from shardkit.storage import objects as objectstore
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from pathlib import Path

    from job_runs import JobProject


@pytest.mark.whole
def test_the_dataset_is_that_of_a_good_day(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    s3_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 48
    texts = {f"p{i % 3}/{i:03d}.txt": f"go {i} " + "x" * 1000 for i in range(count)}
    bucket.put_all({f"in/{key}": text for key, text in texts.items()})
    proxy = FaultProxy(urlsplit(s3_url).port or 0, share=0.07, seed=1)
    with proxy.running() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        run = run_here(project, bucket, shards={"by": "directory"}, run_id="bad-day")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    made = sorted((row["key"], row["row"], row["bytes"], row["text"]) for row in rows_of(run))
    assert made == [(key, i, len(text), text[:10]) for key, text in sorted(texts.items()) for i in range(2)]
    summary = check_ledger(run)
    assert summary.records == {"listed": count, "done": count, "quarantined": 0, "skipped": 0}
    assert {"throttled", "server_error", "cut_short", "lost"} <= set(summary.repeated)
    total, throttled = sum(summary.repeated.values()), summary.repeated["throttled"]
    assert f"  requests {total} repeated ({throttled} throttled)" in str(summary)
    assert summary.to_dict()["repeated"] == summary.repeated
    assert total <= sum(proxy.seen[fault] for fault in FAULTS)  # each fault costs one repeat at most
    assert any(marker["repeated"] for marker in run.folder.markers())
    assert all(proxy.seen[fault] for fault in FAULTS)


@pytest.mark.whole
def test_large_objects_come_whole_through_faults(
    project: JobProject,  # noqa: F811
    bucket: Bucket,  # noqa: F811
    s3_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bytes(range(256)) * 40_000
    bucket.put("in/large.bin", data)
    monkeypatch.setattr(objectstore, "LARGE_BYTES", 1 << 20)
    monkeypatch.setattr(objectstore, "RANGE_BYTES", 1 << 20)
    entry = folder(f"{bucket.uri}/in").entries()[0]
    proxy = FaultProxy(urlsplit(s3_url).port or 0, share=0.04, seed=4)
    with proxy.running() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        source = folder(f"{bucket.uri}/in")
        for number, size in enumerate([None, entry.bytes]):
            path = tmp_path / str(number)
            source.get_file("large.bin", path, etag=entry.etag, size=size)
            assert path.read_bytes() == data
    assert sum(proxy.seen[fault] for fault in FAULTS)
