"""The index of an archive is read once, and again only where the archive has changed."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from fault_proxy import FaultProxy
from test_archives import tar_of, zip_of

import shardkit as sk
from shardkit.inside import kept
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARCHIVE = {f"{n:03d}.{suffix}": os.urandom(30_000) for n in range(20) for suffix in ("cls", "jpg")}
MORE = {**ARCHIVE, "020.jpg": b"one more"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "LEAST_BYTES", 1000)
    return tmp_path / "cache" / "indexes"


def keys_of(tmp_path: Path, source: str, kind: str, **fields: Any) -> list[str]:
    """The records of a plan."""
    (tmp_path / "work.py").write_text("def rows(record):\n    return {'key': record.key}\n")
    given = {"function": "work:rows", "source_dir": tmp_path, "input": source, "output": tmp_path / "out"}
    keys: list[str] = sk.Pipeline(**given, records=kind, **fields).plan().records["key"].to_pylist()
    return keys


@pytest.fixture
def local_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of files of this machine were read at each time."""
    read: list[int] = []
    original = LocalFolder.read_unchanged

    def noting(folder: LocalFolder, key: str, start: int, end: int, *, etag: str | None) -> bytes:
        read.append(end - start)
        return original(folder, key, start, end, etag=etag)

    monkeypatch.setattr(LocalFolder, "read_unchanged", noting)
    return read


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_second_plan_reads_nothing(tmp_path: Path, cache: Path, local_reads: list[int], kind: str) -> None:
    packed = tar_of if kind == "tar" else zip_of
    archive = tmp_path / "in" / f"a.{kind}"
    archive.parent.mkdir()
    archive.write_bytes(packed(ARCHIVE))
    first = keys_of(tmp_path, str(tmp_path / "in"), kind)
    assert len(first) == (20 if kind == "tar" else 40)
    assert local_reads
    local_reads.clear()
    assert keys_of(tmp_path, str(tmp_path / "in"), kind) == first
    assert not local_reads

    archive.write_bytes(packed(MORE))
    assert len(keys_of(tmp_path, str(tmp_path / "in"), kind)) == len(first) + 1
    assert local_reads

    (kept_now,) = {path for path in cache.iterdir() if path.stat().st_mtime_ns == max(_times(cache))}
    kept_now.write_bytes(kept_now.read_bytes()[:-100])
    local_reads.clear()
    assert len(keys_of(tmp_path, str(tmp_path / "in"), kind)) == len(first) + 1
    assert local_reads, "what is damaged is read again"


def _times(folder: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in folder.iterdir()]


def test_another_rule_uses_the_same_index(tmp_path: Path, local_reads: list[int]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(tar_of(ARCHIVE))
    keys_of(tmp_path, str(tmp_path / "in"), "tar")
    local_reads.clear()
    rule: Any = {"inside": "tar", "by": "member", "pattern": "*.cls"}
    assert keys_of(tmp_path, str(tmp_path / "in"), rule) == [f"a.tar/{n:03d}.cls" for n in range(20)]
    assert not local_reads


def test_the_folder_does_not_grow_without_end(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, local_reads: list[int]
) -> None:
    monkeypatch.setattr(kept, "MOST", 3)
    (tmp_path / "in").mkdir()
    for n in range(5):
        (tmp_path / "in" / f"{n}.tar").write_bytes(tar_of(ARCHIVE))
    assert len(keys_of(tmp_path, str(tmp_path / "in"), "tar")) == 100
    assert len(list(cache.iterdir())) == 3


def test_without_a_cache_it_is_read_each_time(tmp_path: Path, cache: Path, local_reads: list[int]) -> None:
    cache.parent.write_text("no folder")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(tar_of(ARCHIVE))
    for _ in range(2):
        local_reads.clear()
        assert len(keys_of(tmp_path, str(tmp_path / "in"), "tar")) == 20
        assert local_reads


@pytest.fixture
def gets(s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ranges of the archive in a bucket, ``inside-index``, that were asked for."""
    asked: list[str] = []

    def noting(request: Any) -> None:
        if request.command == "GET" and urlsplit(request.path).path.endswith("a.tar"):
            asked.append(request.headers["Range"])

    with FaultProxy(urlsplit(s3_url).port or 0, gate=noting) as proxy, proxy.running() as url:
        for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("ENDPOINT_URL", url)):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield asked


def test_an_archive_in_s3_is_asked_for_its_index_once(tmp_path: Path, gets: list[str]) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket="inside-index")
    data = tar_of({f"{n:03d}.bin": os.urandom(100_000) for n in range(40)})
    client.put_object(Bucket="inside-index", Key="in/a.tar", Body=data)
    first = keys_of(tmp_path, "s3://inside-index/in", "tar")
    assert len(first) == 40
    ranges = [[int(edge) for edge in re.findall(r"\d+", each)] for each in gets]
    assert sum(end - start + 1 for start, end in ranges) < 1.01 * len(data)
    assert len(gets) <= 6 + (len(data) >> 20), "those that follow on one another are read in large windows"
    gets.clear()
    assert keys_of(tmp_path, "s3://inside-index/in", "tar") == first
    assert not gets
    client.put_object(Bucket="inside-index", Key="in/a.tar", Body=data[:-512] + b"\0" * 511 + b"\1")
    assert keys_of(tmp_path, "s3://inside-index/in", "tar") == first
    assert gets
