"""Lines inside files: whatever the size of pieces, they put together are the file, and each is whole lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inside_files import bgzip, cut, file_in, seekable_zstd

import shardkit as sk
from shardkit.inside import blocks, csv_rows, lines
from shardkit.storage.open import folder

LINE = st.text(alphabet="ab\r\0é,\"'", max_size=12).map(str.encode)
TEXT = st.tuples(st.lists(LINE, max_size=30), st.booleans()).map(
    lambda given: b"\n".join(given[0]) + b"\n" * (given[1] and bool(given[0]))
)


@pytest.fixture(autouse=True)
def small_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few bytes, whose edges fall anywhere."""
    monkeypatch.setattr(lines, "LEAST_LOOK", 2)
    monkeypatch.setattr(lines, "FIRST_LOOK", 3)
    monkeypatch.setattr(lines, "LONGEST_LOOK", 8)
    monkeypatch.setattr(lines, "READ_BYTES", 5)
    monkeypatch.setattr(csv_rows, "WINDOW_BYTES", 7)
    monkeypatch.setattr(csv_rows, "_SLICE", 3)


def pieces(name: str, data: bytes, **rule: Any) -> list[bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        source = file_in(Path(scratch, "in"), name, data)
        return [found.text for found in cut(source, Path(scratch), rule)]


def check_lines(whole: bytes, parts: list[bytes]) -> None:
    assert b"".join(parts) == whole
    assert all(part.endswith(b"\n") for part in filter(None, parts[:-1])) or not whole.endswith(b"\n")
    ends = [part for part in parts if part]
    assert all(part.endswith(b"\n") for part in ends[:-1])


@pytest.mark.whole
@settings(max_examples=40, deadline=None)
@given(text=TEXT, target=st.integers(1, 60))
def test_pieces_are_the_file(text: bytes, target: int) -> None:
    check_lines(text, pieces("a.txt", text, inside="lines", target_bytes=target))


@pytest.mark.whole
@settings(max_examples=20, deadline=None)
@given(text=TEXT, target=st.integers(1, 200), block=st.integers(1, 40), level=st.sampled_from([0, 6]))
def test_pieces_of_bgzip_are_the_file(text: bytes, target: int, block: int, level: int) -> None:
    check_lines(text, pieces("a.txt.gz", bgzip(text, block, level), inside="lines", target_bytes=target))


@settings(max_examples=40, deadline=None)
@given(text=TEXT, target=st.integers(1, 200), frame=st.integers(1, 40))
def test_pieces_of_seekable_zstd_are_the_file(text: bytes, target: int, frame: int) -> None:
    frames = [text[at : at + frame] for at in range(0, len(text), frame)]
    check_lines(text, pieces("a.jsonl.zst", seekable_zstd(frames), inside="lines", target_bytes=target))


def test_blocks_in_the_bytes_of_a_block_are_not_taken_for_blocks() -> None:
    inner = b"".join(bgzip(b"%d\n" % n * 9, 50, 0)[:-28] for n in range(4000))  # blocks, none the last of a file
    text = b"\n".join([inner[at : at + 3000] for at in range(0, len(inner), 3000)])
    parts = pieces("a.txt.gz", bgzip(text, 60_000, 0), inside="lines", target_bytes=20_000)
    check_lines(text, parts)
    assert sum(map(bool, parts)) > 4


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt.gz", gzip.compress),
        ("a.txt.gz", lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:])),
        ("a.txt.bz2", bz2.compress),
        ("a.txt.xz", lzma.compress),
        ("a.txt.zst", lambda text: pa.Codec("zstd").compress(text, asbytes=True)),
    ],
    ids=["gzip", "gzip of two members", "bz2", "xz", "zstd"],
)
def test_what_cannot_be_cut_is_one_piece_decompressed(tmp_path: Path, name: str, pack: Any) -> None:
    text = b"one\ntwo\n" * 100
    (found,) = cut(file_in(tmp_path / "in", name, pack(text)), tmp_path, {"inside": "lines", "target_bytes": 3})
    assert found.text == text
    assert found.record is not None
    assert (found.key, found.record.range, found.record.name) == (name, None, "a.txt")


# ---- CSV ------------------------------------------------------------------------------------------------------------

VALUE = st.text(alphabet='ab,"\n\r ;', max_size=6)
ROWS = st.lists(st.tuples(VALUE, VALUE), max_size=25)


def csv_text(rows: list[tuple[str, str]], quoting: Any, end: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    writer.writerow(["first\nname", "second"])
    writer.writerows(rows)
    return out.getvalue()


def parsed(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode("utf-8-sig"), newline="")))


@pytest.mark.whole
@settings(max_examples=50, deadline=None)
@given(
    rows=ROWS,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    target=st.integers(1, 80),
)
def test_no_row_is_cut_or_doubled(rows: list[tuple[str, str]], quoting: Any, end: str, bom: bytes, target: int) -> None:
    text = bom + csv_text(rows, quoting, end).encode()
    header, *expected = parsed(text)
    found = []
    for part in pieces("a.csv", text, inside="lines", target_bytes=target):
        head, *some = parsed(part)
        assert head == header
        found += some
    assert found == expected


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.text(alphabet='ab,"', max_size=9), max_size=25), target=st.integers(1, 80))
def test_if_no_value_holds_a_newline_quotes_mean_nothing(rows: list[str], target: int) -> None:
    """As in files with inches in unquoted values; the plan reads nothing then."""
    text = "".join(f"{row}\n" for row in ["head", *rows]).encode()
    parts = pieces("a", text, inside="csv", target_bytes=target, quoted_newlines=False)
    assert all(part.startswith(b"head\n") for part in parts if part)
    assert b"head\n" + b"".join(part.removeprefix(b"head\n") for part in parts) == text
    check_lines(text, pieces("a", text, inside="csv", target_bytes=target, quoted_newlines=False, header=False))


def test_compressed_csv_is_cut_only_if_no_value_holds_a_newline() -> None:
    text = csv_text([(str(n), "x" * 20) for n in range(50)], csv.QUOTE_ALL, "\n").replace("first\nname", "a").encode()
    packed = bgzip(text, 100)
    assert pieces("a.csv.gz", packed, inside="lines", target_bytes=200) == [text]
    parts = pieces("a.csv.gz", packed, inside="lines", target_bytes=200, quoted_newlines=False)
    assert len(parts) > 3
    assert [row for part in parts if part for row in parsed(part)[1:]] == parsed(text)[1:]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('a,b\n5" pipe,x\n6" pipe,y\n', "the quote at byte 5 neither"),
        ('a,b\n"x"y,1\n"z",2\n', "the quote at byte 6 neither"),
        ('a,b\n"x,1\nz,2\n', "its last quoted value does not end"),
        ('a,b\nx,\'"\'\ny,"2"\n', "the quote at byte 7 neither"),
    ],
)
def test_csv_whose_quotes_mean_nothing_known_is_refused(tmp_path: Path, text: str, why: str) -> None:
    source = file_in(tmp_path / "in", "a.csv", text.encode())
    with pytest.raises(sk.InputError, match=why) as raised:
        list(cut(source, tmp_path, {"inside": "lines", "target_bytes": 4}))
    assert "quoted_newlines: false" in str(raised.value)


# ---- what the function is told, and stores ----------------------------------------------------------------------------


def test_a_record_knows_its_range(tmp_path: Path) -> None:
    source = file_in(tmp_path / "in", "a.txt", b"first\nsecond\nthird\n")
    found = list(cut(source, tmp_path, {"inside": "lines", "target_bytes": 10}))
    assert [(each.key, each.text) for each in found] == [("a.txt:0-9", b"first\nsecond\n"), ("a.txt:9-19", b"third\n")]
    assert [each.record.range for each in found if each.record] == [(0, 9), (9, 19)]
    (whole,) = cut(source, tmp_path, {"inside": "lines"})
    assert whole.record is not None
    assert (whole.record.key, whole.record.range, whole.record.path) == ("a.txt", None, tmp_path / "in" / "a.txt")


def test_a_store_is_asked_for_ranges(tmp_path: Path) -> None:
    source = folder(f"memory://{tmp_path.name}-ranges")
    text = b"".join(b'{"n": %d}\n' % n for n in range(5000))
    source.write("a.jsonl", text)
    asked: list[int] = []
    original = type(source).read_unchanged

    def noting(self: Any, key: str, start: int, end: int, *, etag: str | None) -> Any:
        asked.append(end - start)
        return original(self, key, start, end, etag=etag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(source), "read_unchanged", noting)
        patch.setattr(lines, "FIRST_LOOK", 64)
        found = list(cut(source, tmp_path, {"inside": "lines", "target_bytes": 10_000}))
    check_lines(text, [each.text for each in found])
    assert sum(asked) < len(text) + 200 * len(found)


def test_a_changed_object_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2)  # more of the object has to be read
    for source in (folder(str(tmp_path / "in")), folder(f"memory://{tmp_path.name}-changed")):
        source.write("a.txt", b"1\n2\n3\n4\n")
        found = cut(source, tmp_path / source.uri.partition(":")[0], {"inside": "lines", "target_bytes": 4})
        next(found)
        source.write("a.txt", b"1\n2\n3\n4\n5\n")
        with pytest.raises(sk.InputError, match=r"a\.txt has changed since it was listed"):
            next(found)


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_text_with_wide_newlines_is_refused(tmp_path: Path, name: str) -> None:
    source = file_in(tmp_path / "in", name, "a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(sk.InputError, match="is UTF-16 or UTF-32 text"):
        list(cut(source, tmp_path, {"inside": "lines", "target_bytes": 6}))


def test_a_name_that_looks_like_a_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sk.InputError, match="has a name as a piece of a file"):
        list(cut(file_in(tmp_path / "in", "a.txt:0-9", b"x"), tmp_path, {"inside": "lines"}))
