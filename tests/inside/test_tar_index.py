"""The members of a tar are those that the standard library finds, whoever has written it."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inside_files import file_in

from shardkit.inside import tar_index
from shardkit.inside.source import Source
from shardkit.inside.tar_index import Found, found_in
from shardkit.storage.open import folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardkit.storage.base import Folder

PARTS = st.text(alphabet="ab.é", min_size=1, max_size=5)
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
LONG = st.integers(80, 300).map(lambda size: "deep/" * (size // 5) + "x.jpg")
KINDS = [tarfile.REGTYPE] * 6 + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE]
MEMBERS = st.lists(
    st.tuples(
        st.one_of(NAMES, NAMES, LONG), st.sampled_from(KINDS), st.integers(0, 3000), st.sampled_from([0, 1700000000.5])
    ),
    min_size=1,
    max_size=12,
)


def tar_of(members: Sequence[tuple[str, bytes, int, float]], **options: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as archive:
        for name, kind, size, mtime in members:
            info = tarfile.TarInfo(name)
            is_old = kind == tarfile.AREGTYPE and len(name) > 80  # the library may take that for a folder
            info.type, info.mtime, info.linkname = tarfile.REGTYPE if is_old else kind, mtime, members[0][0]
            info.size = size if info.isreg() else 0
            archive.addfile(info, io.BytesIO(b"\0" * size))
    return out.getvalue()


def expected(data: bytes) -> list[Found]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [
            Found(info.name, 0, 0, info.linkname) if info.islnk() else Found(info.name, info.offset_data, info.size)
            for info in archive
            if info.islnk() or info.isreg()
        ]


def source_of(home: Folder, data: bytes) -> Source:
    home.write("a.tar", data)
    return Source(home, "a.tar", None, len(data))


@settings(max_examples=40, deadline=None)
@given(
    members=MEMBERS,
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    headers=st.sampled_from([{}, {}, {"comment": "all of it"}]),
    window=st.sampled_from([1024, 4096, 1 << 20]),
)
def test_members_are_found_as_by_the_standard_library(
    members: Any, form: int, headers: dict[str, str], window: int
) -> None:
    if form == tarfile.USTAR_FORMAT:
        members = [each for each in members if len(each[0]) < 80] or [("a", tarfile.REGTYPE, 1, 0)]
    data = tar_of(members, format=form, pax_headers=headers)
    source = source_of(folder("memory://tar-index"), data)
    with pytest.MonkeyPatch.context() as patch:  # windows of a store are read ahead, and jumped over
        patch.setattr(tar_index, "WINDOW", window)
        patch.setattr(tar_index, "LEAST_BLOCK", 512)
        patch.setattr(tar_index, "PASSED_REMOTE", window)
        assert list(found_in(source)) == expected(data)


def test_numbers_that_octal_digits_cannot_hold_are_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("large.bin")
    info.size = 9 << 30
    head = info.tobuf(tarfile.GNU_FORMAT)
    home = file_in(tmp_path / "in", "a.tar", head)
    with pytest.raises(ValueError, match=r"ends in the midst of large\.bin"):
        list(found_in(Source(home, "a.tar", None, len(head))))
    (found,) = found_in(Source(home, "a.tar", None, 10 << 30))
    assert found == Found("large.bin", 512, 9 << 30)


def test_a_damaged_header_is_told_wherever_it_is(tmp_path: Path) -> None:
    """The standard library takes it for the end of the archive, as if the members behind it were not there."""
    whole = tar_of([(f"{n}.bin", tarfile.REGTYPE, 600, 0) for n in range(20)])
    for at in (0, 5, 130, 156):
        data = bytearray(whole)
        data[10 * 1536 + at] ^= 0x41
        with pytest.raises(ValueError, match=r"damaged|invalid literal|no header|midst"):
            list(found_in(source_of(folder(str(tmp_path)), bytes(data))))
    with pytest.raises(ValueError, match="in the midst of a header"):
        list(found_in(source_of(folder(str(tmp_path)), whole[: 10 * 1536 + 100])))
    without_end = whole[: 20 * 1536]
    assert len(list(found_in(source_of(folder(str(tmp_path)), without_end)))) == 20


def test_what_lies_between_headers_is_not_read_if_it_is_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tar_of([(f"{n}.bin", tarfile.REGTYPE, 300_000, 0) for n in range(20)])
    source = source_of(folder(str(tmp_path)), data)
    read: list[int] = []
    original = Source.read

    def noting(source: Source, start: int, end: int) -> bytes:
        read.append(end - start)
        return original(source, start, end)

    monkeypatch.setattr(Source, "read", noting)
    assert len(list(found_in(source))) == 20
    assert sum(read) < 20 * 40_000
