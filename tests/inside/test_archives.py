"""Members of archives, as tarfile and zipfile write them, and row groups of Parquet files."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inside_files import cut, file_in

import shardkit as sk
from shardkit.inside import archives, blocks, row_groups, source
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = {
    f"train/{n:03d}.{suffix}": f"{suffix} of {n}".encode() * (1 + 400 * n)
    for n in range(5)
    for suffix in ("seg.png", "jpg", "json")
}
LONG = "deep/" * 40 + "name.jpg"


def tar_of(members: dict[str, bytes], **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(members: dict[str, bytes], **options: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("store", ["disk", "memory"])
def test_members_with_one_stem_are_a_record(tmp_path: Path, form: int, store: str) -> None:
    long = {} if form == tarfile.USTAR_FORMAT else {LONG: b"long"}
    data = tar_of({**SAMPLES, "._junk": b"x", "__meta/x.json": b"x", **long}, format=form)
    home = folder(str(tmp_path / "in") if store == "disk" else f"memory://{tmp_path.name}-tar")
    home.write("d/a.tar", data)
    found = list(cut(home, tmp_path, {"inside": "tar", "by": "stem", "pattern": ["*.jpg"]}))
    keys = [f"d/a.tar/train/{n:03d}" for n in range(5)] + [f"d/a.tar/{name[:-4]}" for name in long]
    assert [each.key for each in found] == keys
    record = found[3].record
    assert record is not None
    assert record.member == "train/003.jpg"
    assert record.members == ("train/003.jpg", "train/003.json", "train/003.seg.png")
    assert {path.name: path.read_bytes() for path in record.paths} == {
        name.rpartition("/")[2]: content for name, content in SAMPLES.items() if "003" in name
    }
    assert (record.objects, record.stem) == (("d/a.tar",), str(record.path)[:-4])
    assert record.bytes == sum(len(content) for name, content in SAMPLES.items() if "003" in name)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]),
    streamed=st.sampled_from(["", "streamed"]),
)
def test_members_of_zip(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], method: int, streamed: str) -> None:
    tmp_path = tmp_path_factory.mktemp("zip")
    members = {f"d{n % 3}/{n}.bin": os.urandom(size // 2) * 2 for n, size in enumerate(sizes)}
    if streamed:  # sizes and checksums stand behind the members
        out = io.BytesIO()
        with zipfile.ZipFile(Unseekable(out), "w", method) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        packed = out.getvalue()
    else:
        packed = zip_of(members, compression=method)
    found = cut(file_in(tmp_path / "in", "a.zip", packed), tmp_path, {"inside": "zip"})
    assert {each.key.removeprefix("a.zip/"): each.text for each in found} == members


class Unseekable(io.RawIOBase):
    def __init__(self, out: io.BytesIO) -> None:
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._out.write(data)


def test_large_members_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "COPIED_AT_ONCE", 1000)
    monkeypatch.setattr(archives, "COPIED_AT_ONCE", 1000)
    monkeypatch.setattr(archives, "SMALL_BYTES", 5000)
    monkeypatch.setattr(archives, "HELD_BYTES", 5000)
    monkeypatch.setattr(archives, "AT_FIRST", 700)
    data = os.urandom(20_000)
    out = io.BytesIO(tar_of({"a.bin": b"old", "b.bin": data}))
    with tarfile.open(fileobj=out, mode="a") as archive:
        for name, kind in (("hard.bin", tarfile.LNKTYPE), ("soft.bin", tarfile.SYMTYPE), ("dir", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "b.bin"
            archive.addfile(info)
        info = tarfile.TarInfo("a.bin")  # written anew
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    home = file_in(tmp_path / "in", "a.tar", out.getvalue())
    found = {each.key: each.text for each in cut(home, tmp_path, {"inside": "tar", "by": "member"})}
    assert found == {"a.tar/b.bin": data, "a.tar/hard.bin": data, "a.tar/a.bin": b"new"}
    home = file_in(tmp_path / "zip", "a.zip", zip_of({"b.bin": data}, compression=zipfile.ZIP_DEFLATED))
    assert [each.text for each in cut(home, tmp_path / "z", {"inside": "zip"})] == [data]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_small_neighbours_share_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(blocks, "SMALL_BYTES", 3000)
    members = {f"{n:03d}.bin": os.urandom(10 * n) for n in range(400)}
    home = folder(f"memory://{tmp_path.name}-{kind}")
    home.write("a", tar_of(members) if kind == "tar" else zip_of(members))
    records = cut(home, tmp_path, {"inside": kind})
    first = next(records)
    asked: list[int] = []
    original = type(home).read_unchanged

    def noting(self: Any, key: str, start: int, end: int, *, etag: str | None) -> Any:
        asked.append(end - start)
        return original(self, key, start, end, etag=etag)

    monkeypatch.setattr(type(home), "read_unchanged", noting)
    found = {each.key.removeprefix("a/"): each.text for each in [first, *records]}
    assert found == members
    large = sum(len(data) > 3000 for data in members.values())
    assert len(asked) < 2 * large + 100


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        ("tar", b"no archive" * 100, "cannot be read as a tar archive"),
        ("tar", tar_of(SAMPLES)[:5000], "cannot be read as a tar archive"),
        ("tar", tar_of({"../x": b"x"}), "../x would lie outside of it"),
        ("zip", zip_of(SAMPLES)[:5000], "cannot be read as a zip archive"),
        ("parquet", b"no table" * 100, "it does not end as a Parquet file does"),
    ],
)
def test_an_archive_that_cannot_be_read_is_a_record_that_fails(
    tmp_path: Path, kind: str, data: bytes, why: str
) -> None:
    home = file_in(tmp_path / "in", "bad", data)
    with pytest.raises(sk.InputError, match=why):
        list(cut(home, tmp_path, {"inside": kind, "target_bytes": 100}))


def test_a_damaged_member_is_told(tmp_path: Path) -> None:
    data = bytearray(zip_of({"a.txt": b"12345" * 100}))
    data[200] ^= 1
    home = file_in(tmp_path / "in", "a.zip", bytes(data))
    with pytest.raises(sk.InputError, match=r"a\.txt does not match its checksum"):
        list(cut(home, tmp_path, {"inside": "zip"}))


def test_no_member_that_can_be_a_record(tmp_path: Path) -> None:
    home = file_in(tmp_path / "in", "a.tar", tar_of({"a.txt": b"x"}))
    with pytest.raises(sk.InputError, match="None of the 1 files holds a member"):
        list(cut(home, tmp_path, {"inside": "tar", "pattern": ["*.jpg"]}))


# ---- Parquet ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize("options", [{}, {"compression": "none", "write_page_index": True}, {"use_dictionary": False}])
def test_row_groups_are_files_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], store: str
) -> None:
    monkeypatch.setattr(row_groups, "FOOTER_GUESS", 64)
    frame = pd.DataFrame({"n": range(1000), "text": [f"é{n % 7}" for n in range(1000)], "x": np.linspace(0, 1, 1000)})
    frame["list"] = [[n, n + 1] for n in range(1000)]
    frame["day"] = pd.to_datetime("2020-01-01") + pd.to_timedelta(frame["n"], "D")
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame), out, row_group_size=90, **options)
    home = folder(str(tmp_path / "in") if store == "disk" else f"memory://{tmp_path.name}-parquet")
    home.write("a.parquet", out.getvalue())
    found = list(cut(home, tmp_path, {"inside": "parquet", "target_bytes": len(out.getvalue()) // 4}))
    assert len(found) > 3
    assert found[0].key.startswith("a.parquet:0-")
    records = [each.record for each in found if each.record is not None]
    edges = [record.range or (0, 0) for record in records]
    assert [start for start, _ in edges] == [0, *[end for _, end in edges[:-1]]]
    assert edges[-1][1] == 12
    read = pd.concat([pd.read_parquet(record) for record in records], ignore_index=True)
    pd.testing.assert_frame_equal(read, frame)
    tables = [record.table(columns=["text", "x"]) for record in records]
    assert pa.concat_tables(tables).equals(pq.read_table(io.BytesIO(out.getvalue()), columns=["text", "x"]))
    assert pq.read_table(records[1], filters=[("text", "==", "é3")]).num_rows > 0
    (whole,) = cut(home, tmp_path / "whole", {"inside": "parquet"})
    assert whole.key == "a.parquet"
