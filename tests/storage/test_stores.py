"""What every kind of storage must do, tried on each of them.

S3 is moto's server here, Google's store a stand-in of our own, and Azure's is azurite if that is installed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import os
import shutil
import subprocess
import threading
import urllib.request
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import boto3
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from crashing import check_ledger, rows_of, wait_for
from fake_google import google
from test_object_store import REGION, project  # noqa: F401  fixtures too

import shardkit as sk
from shardkit.storage import objects as objectstore
from shardkit.storage.base import File
from shardkit.storage.local_folder import LocalFolder
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from job_runs import JobProject

    from shardkit.storage.base import Folder

NUMBERS = itertools.count()
AZURITE = shutil.which("azurite-blob")
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ODD_KEY = "a b%20c+d/ü 日本…/x..y .jsonl"


def in_amazon(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    known = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": REGION}
    for name, value in (known | {"AWS_ENDPOINT_URL": url}).items():
        monkeypatch.setenv(name, value)
    bucket = f"stores-{next(NUMBERS)}-{os.getpid()}"
    where = {"LocationConstraint": REGION}
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
    return f"s3://{bucket}"


def in_google(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    monkeypatch.setenv("GOOGLE_BASE_URL", url)
    return f"gs://stores-{next(NUMBERS)}"


def in_azure(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    known = {"ACCOUNT_NAME": ACCOUNT, "ACCOUNT_KEY": ACCOUNT_KEY, "ENDPOINT": f"{url}/{ACCOUNT}"}
    for name, value in known.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    container = f"stores-{next(NUMBERS)}"
    headers = {
        "x-ms-date": datetime.now(timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT"),
        "x-ms-version": "2021-08-06",
    }
    signed = "\n".join(
        [
            *("PUT", *[""] * 11),
            *(f"{name}:{value}" for name, value in headers.items()),
            *(f"/{ACCOUNT}/{ACCOUNT}/{container}", "restype:container"),
        ]
    )
    mac = hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256).digest()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}", "Content-Type": ""}
    address = f"{url}/{ACCOUNT}/{container}?restype=container"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT", data=b"", headers=headers)).close()
    return f"az://{container}"


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if AZURITE is None:
        pytest.skip("azurite is not installed")
    log = tmp_path_factory.mktemp("azurite") / "log"
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck"]
    with log.open("w") as out, subprocess.Popen([AZURITE, *options, "--disableTelemetry"], stdout=out) as process:
        told = wait_for(lambda: "successfully listens on" in (text := log.read_text()) and text, what="azurite")
        yield told.split("successfully listens on ")[1].split()[0]
        process.kill()


@pytest.fixture(params=["local", "memory", "s3", "gs", "az"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty folder of each kind."""
    kind = request.param
    if kind == "local":
        yield str(tmp_path / "place")
    elif kind == "memory":
        yield f"memory://{next(NUMBERS)}"
    elif kind == "s3":
        yield in_amazon(request.getfixturevalue("s3_url"), monkeypatch)
    elif kind == "az":
        yield in_azure(request.getfixturevalue("azurite"), monkeypatch)
    else:
        with google() as url:
            yield in_google(url, monkeypatch)


def test_a_file_is_written_only_if_it_is_in_the_state_that_its_writer_knows(uri: str) -> None:
    place: Folder = folder(f"{uri}/out")
    assert (place.state("a"), place.read_state("a")) == ({}, (None, {}))
    first = place.write_if("a", b"first", {})
    assert first and place.read_state("a") == (b"first", first)
    assert place.write_if("a", b"beside", {}) is None
    second = place.write_if("a", b"second", first)
    assert second and second != first
    assert place.write_if("a", b"late", first) is None
    assert place.write_if("a", b"second", first) == second  # whose answer was lost
    assert place.read("a") == b"second"


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("four")
    (entry,) = folder(str(tmp_path)).entries()
    read = os.pread

    def changing(*arguments: Any) -> bytes:
        (tmp_path / "a").write_text("FOURS")
        return read(*arguments)

    assert folder(str(tmp_path)).read_unchanged("a", 1, 3, etag=entry.etag) == b"ou"
    monkeypatch.setattr(os, "pread", changing)
    with pytest.raises(sk.ObjectChanged):
        folder(str(tmp_path)).read_unchanged("a", 0, 4, etag=entry.etag)


def test_files_are_written_read_listed_and_removed(uri: str, tmp_path: Path) -> None:
    place: Folder = folder(f"{uri}/out")
    assert place.entries() == []
    assert (place.size("a"), place.exists("a"), place.children("")) == (None, False, [])
    keys = ["b/c/x.txt", "b/y.txt", ODD_KEY, "empty"]
    for key in keys:
        place.write(key, b"" if key == "empty" else key.encode())
    place.write("b/y.txt", b"again")
    assert [(entry.key, entry.bytes) for entry in place.entries()] == sorted(
        (key, {"empty": 0, "b/y.txt": 5}.get(key, len(key.encode()))) for key in keys
    )
    assert place.read(ODD_KEY) == ODD_KEY.encode()
    assert place.read_many(["b/y.txt", "empty"]) == [b"again", b""]
    assert place.children("b") == ["c"]
    assert [entry.key for entry in place.entries("b")] == ["b/c/x.txt", "b/y.txt"]
    assert place.child("b").read("y.txt") == b"again"
    assert place.child("b").uri == f"{place.uri}/b"
    with pytest.raises(FileNotFoundError):
        place.read("nothing")
    place.copy_to("b/y.txt", File(folder(f"{uri}/other"), "copy"))
    assert folder(f"{uri}/other").read("copy") == b"again"
    path = place.begin("made/new.bin")
    path.write_bytes(b"new")
    place.finish("made/new.bin", path)
    (tmp_path / "here").write_bytes(b"here")
    place.put_file(tmp_path / "here", "made/here.bin")
    assert place.read_many(["made/new.bin", "made/here.bin"]) == [b"new", b"here"]
    place.remove("made/new.bin")
    place.remove("made/new.bin")
    place.remove_all("b")
    place.remove_all("b")
    assert sorted(entry.key for entry in place.entries()) == sorted([ODD_KEY, "empty", "made/here.bin"])
    assert folder(f"{uri}/other").exists("copy")


@pytest.mark.whole
def test_objects_come_as_they_were_listed(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore, "LARGE_BYTES", 1 << 20)
    monkeypatch.setattr(objectstore, "RANGE_BYTES", 1 << 20)
    place = folder(f"{uri}/in")
    large = os.urandom(6 << 20)  # which also goes up in several parts
    (tmp_path / "large").write_bytes(large)
    place.put_file(tmp_path / "large", "large.bin")
    place.write(ODD_KEY, b"odd")
    place.write("_hidden/x", b"no")
    place.write("out/x", b"not this either")
    table = place.objects(leave_out=folder(f"{uri}/in/out"))
    assert table["key"].to_pylist() == [ODD_KEY, "large.bin"]
    for key, etag, size in zip(*(table[name].to_pylist() for name in ("key", "etag", "bytes")), strict=True):
        for number, known in enumerate((size, None)):
            path = tmp_path / "got" / str(number) / key
            place.get_file(key, path, etag=etag, size=known)
            assert path.read_bytes() == (large if key == "large.bin" else b"odd")
    if isinstance(place, LocalFolder):  # which reads a file as it is
        return
    place.write(ODD_KEY, b"changed")
    (tmp_path / "large").write_bytes(large[1:])
    place.put_file(tmp_path / "large", "large.bin")
    for key, etag, size in zip(*(table[name].to_pylist() for name in ("key", "etag", "bytes")), strict=True):
        with pytest.raises(sk.InputError, match="has changed since it was listed"):
            place.get_file(key, tmp_path / "changed", etag=etag, size=size)


def test_arrow_reads_from_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectstore, "WHOLE_BYTES", 1000)
    place = folder(f"{uri}/dataset")
    table = pa.table({"number": list(range(5000)), "text": [f"row {i}" for i in range(5000)]})
    for name in ("a", "b"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=1000)
        place.write(f"{name}.parquet", sink.getvalue().to_pybytes())
    with File(place, "a.parquet").open() as file:
        assert pq.ParquetFile(file).read(columns=["text"]) == table.select(["text"])
    filesystem, base = place.arrow()
    found = pads.dataset([f"{base}/{name}.parquet" for name in "ab"], filesystem=filesystem, format="parquet")
    assert found.to_table(filter=pads.field("number") >= 4999)["text"].to_pylist() == ["row 4999"] * 2


def test_one_of_several_gets_the_lock(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(f"{uri}/out")
    won, refused, done = [], [], threading.Event()

    def take() -> None:
        try:
            with place.lock("lock", "busy."):
                won.append(1)
                done.wait(30)
        except sk.RunBusy:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(won) + len(refused) == 4, what="all to try")
    assert place.is_locked("lock")
    done.set()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 3)
    assert not place.is_locked("lock")
    if isinstance(place, LocalFolder):  # where the lock goes with its process
        return
    monkeypatch.setattr("shardkit.storage.lease.LEASE_S", 0.5)
    place.write("lock", json.dumps({"host": "gone", "until": 1.0}).encode())  # whose holder has died
    with place.lock("lock", "busy."):
        assert place.is_locked("lock")


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["gs", "az"])
def test_a_run_in_another_store_than_amazon_s(
    request: pytest.FixtureRequest,
    project: JobProject,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    if kind == "az":
        root = in_azure(request.getfixturevalue("azurite"), monkeypatch)
        check_run(root, project)
        return
    with google() as url:
        check_run(in_google(url, monkeypatch), project)


def check_run(root: str, project: JobProject) -> None:  # noqa: F811
    source = folder(f"{root}/in")
    for key in (ODD_KEY, "a/r.txt", "b/r.txt"):
        source.write(key, b"go")
    fields = {"source_dir": project.code, "workers": 2, "name": "work", "quiet": True}
    for _ in range(2):  # the second replaces the dataset of the first
        run = sk.run("work:features", f"{root}/in", f"{root}/out", **fields)
        assert check_ledger(run).records["done"] == 3
        assert {row["key"] for row in rows_of(run)} == {ODD_KEY, "a/r.txt", "b/r.txt"}
    assert sk.read_sql("SELECT count(*) AS n FROM work", f"{root}/out")["n"][0] == 6
    (found,) = [entry.key for entry in folder(f"{root}/out").entries() if "_shardkit" not in entry.key]
    assert found.endswith(".parquet")


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sk.PipelineError, match="output.uri: memory:// is the memory of one process"):
        sk.Pipeline(function="work:features", input="in", output="memory://here/out")
    with pytest.raises(sk.PipelineError, match="knows no storage of kind ftp://"):
        folder("ftp://host/path")
    pipeline = sk.Pipeline(function="work:features", input="gs://bucket/in", output=tmp_path, engine="local")
    with pytest.raises(sk.PipelineError, match=r"input.uri: gs://bucket/in .* jobs of an engine cannot use"):
        pipeline.run(quiet=True)
