"""Lists of files and reports of S3 Inventory become what a listing of the folder would be."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import orc

import shardkit as sk
from shardkit.storage.base import Access
from shardkit.storage.inventory import url_decoded
from shardkit.storage.listed import Listed, list_from
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["a/x.txt", "a/y é.txt", "b/z%41+.txt"]


def made(root: Path, names: list[str] = NAMES) -> Path:
    for name in names:
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root / "data"


def read(manifest: Path, root: Path | str, *, need: tuple[str, ...] = (), all_inside: bool = True) -> Listed:
    output = LocalFolder(manifest.parent / "out")
    return list_from(str(manifest), str(root), Access(), leave_out=output, need=need, all_inside=all_inside)


def rows_of(result: Listed) -> list[dict[str, Any]]:
    return result.objects.to_pylist()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a list of whatever kind the path's name says."""
    names = list(rows[0])
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    lines = {
        ".csv": [",".join(names), *(",".join(f'"{row[name]}"' for name in names) for row in rows)],
        ".jsonl": [json.dumps(row) for row in rows],
        ".txt": [str(row[names[0]]) for row in rows],
    }[next(end for end in (".csv", ".jsonl", ".txt") if end in path.name)]
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["l.csv", "l.csv.gz", "l.jsonl", "l.jsonl.gz", "l.parquet", "l.txt"])
@pytest.mark.parametrize("column", ["key", "uri"])
def test_a_list_of_each_kind_is_what_the_listing_is(name: str, column: str, tmp_path: Path) -> None:
    data = made(tmp_path)
    start = "" if column == "key" else f"file://{data}/" if name == "l.txt" else f"{data}/"
    encoded = [text.replace("%", "%25") for text in NAMES] if start.startswith("file:") else NAMES
    result = read(write(tmp_path / name, [{column: start + each} for each in reversed(encoded)]), data)
    columns = ["key", "bytes", "etag"]
    assert result.objects.select(columns).to_pylist() == LocalFolder(data).objects().select(columns).to_pylist()
    assert (result.facts.rows, result.facts.outside, result.facts.missing) == (3, 0, 0)


def test_what_else_a_list_says_keeps_its_types(tmp_path: Path) -> None:
    data = made(tmp_path)
    rows = [{"key": name, "label": f"00{n}", "weight": n / 2, "boxes": [n, n]} for n, name in enumerate(NAMES)]
    for name, wanted in (
        ("l.parquet", {"label": "001", "weight": 0.5, "boxes": [1, 1]}),
        ("l.jsonl", {"label": "001", "weight": 0.5, "boxes": [1, 1]}),
        ("l.csv", {"label": "001", "weight": "0.5", "boxes": "[1, 1]"}),
    ):
        assert rows_of(read(write(tmp_path / name, rows), data))[1]["meta"] == wanted


def test_a_sagemaker_manifest_is_a_list(tmp_path: Path) -> None:
    data = made(tmp_path)
    (tmp_path / "m.json").write_text(json.dumps([{"prefix": f"{data}/a/"}, "x.txt"]))
    assert [row["key"] for row in rows_of(read(tmp_path / "m.json", data))] == ["a/x.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key\na/x.txt\na/x.txt\n", "names a/x.txt more than once. Each file is one row."),
        ("key\na/../x.txt\n", r"names 'a/../x.txt', which is no file's key"),
        ("key,bytes\na/x.txt,many\n", r"cannot be read: .*many"),
        ("name\na/x.txt\n", r"has no column uri and no column key; its columns are name\."),
        ("key,label\n", "names no input: it has no rows"),
        ("uri\n/elsewhere/x.txt\ndata/a/x.txt\n", r"1 of 2 rows of .* name files outside of .*data\. Give input\.uri"),
        ("key\nno.txt\n", r"l\.csv names 1 file, and none of them is there: .*data/no\.txt\."),
    ],
)
def test_lists_that_cannot_be_input(text: str, message: str, tmp_path: Path) -> None:
    data = made(tmp_path)
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(sk.InputError, match=message):
        read(tmp_path / "l.csv", data)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    for name, message in (("l.csv", "does not exist"), ("l.xlsx", "is no list by its name"), ("l.json", "not exist")):
        with pytest.raises(sk.InputError, match=message):
            read(tmp_path / name, tmp_path)


def test_files_that_are_gone_have_no_bytes_and_are_named(tmp_path: Path) -> None:
    data = made(tmp_path)
    rows = [{"key": name} for name in [*NAMES, *(f"gone-{n}" for n in range(5))]]
    result = read(write(tmp_path / "l.csv", rows), data)
    assert (result.facts.missing, result.facts.missing_sample) == (5, ["gone-0", "gone-1", "gone-2"])
    assert {row["key"]: row["bytes"] for row in rows_of(result)}["gone-3"] == 0


def test_several_inputs_take_their_own_rows_of_one_list(tmp_path: Path) -> None:
    made(tmp_path)
    manifest = write(
        tmp_path / "l.txt", [{"key": f"file://{tmp_path}/data/{name.replace('%', '%25')}"} for name in NAMES]
    )
    result = read(manifest, tmp_path / "data" / "b", all_inside=False)
    assert [row["key"] for row in rows_of(result)] == ["z%41+.txt"]
    assert (result.facts.rows, result.facts.outside) == (3, 2)


def test_lists_in_pieces_larger_than_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardkit.tables.spill.BUDGET_BYTES", 1 << 16)
    monkeypatch.setattr("shardkit.tables.spill.SAMPLE_ROWS", 16)  # ranges of about a thousand keys
    names = [f"k/{n * 7919 % 30_000:06d}" for n in range(30_000)]
    table = pa.table(
        {"uri": [f"s3://b/{name}" for name in names], "bytes": list(range(30_000)), "etag": ["e"] * 30_000}
    )
    table = table.append_column("label", pa.array([f"label {name}" for name in names]))
    pq.write_table(table, tmp_path / "l.parquet", row_group_size=5000)
    result = read(tmp_path / "l.parquet", "s3://b", need=("etag",))
    assert result.objects["key"].to_pylist() == sorted(names)
    row = result.objects.slice(12_345, 1).to_pylist()[0]
    assert row["bytes"] == names.index(row["key"]) and row["meta"] == {"label": f"label {row['key']}"}


# ---- S3 Inventory

OBJECTS = [
    "in/a b.txt",
    "in/é+%.txt",
    "in/y=1/z.txt",
    "other/o.txt",
    "in/",
    "in/_hidden/h.txt",
    "in/set/_shardkit/x",
    "in/set/f",
]
SCHEMA = [
    "Bucket",
    "Key",
    "VersionId",
    "IsLatest",
    "IsDeleteMarker",
    "Size",
    "LastModifiedDate",
    "ETag",
    "StorageClass",
]
SNAKE = [
    "bucket",
    "key",
    "version_id",
    "is_latest",
    "is_delete_marker",
    "size",
    "last_modified_date",
    "e_tag",
    "storage_class",
]


def report(home: Path, form: str, *, rows: list[list[Any]] | None = None) -> Path:
    """A report as the service writes it, copied to this machine; with an old version and a delete marker."""
    moment = "2026-01-02T03:04:05.000Z"
    rows = rows or [["b", key, "v2", True, False, n, moment, f"{n:032x}", "STANDARD"] for n, key in enumerate(OBJECTS)]
    rows = [*rows, ["b", "in/a b.txt", "v1", False, False, 99, moment, "old", "STANDARD"]]
    rows = [*rows, ["b", "in/deleted.txt", "v3", True, True, None, moment, None, "STANDARD"]]
    (home / "data").mkdir(parents=True)
    (home / "2026-01-03T01-00Z").mkdir()
    files = []
    for part, some in enumerate((rows[::2], rows[1::2])):
        path = home / "data" / f"{part}.{'csv.gz' if form == 'CSV' else form.lower()}"
        if form == "CSV":
            texts = [[row[0], quote_plus(row[1], safe="/"), *row[2:]] for row in some]
            lines = [
                ",".join(f'"{str(v).lower() if isinstance(v, bool) else "" if v is None else v}"' for v in row)
                for row in texts
            ]
            path.write_bytes(gzip.compress("\n".join(lines).encode()))
        else:
            table = pa.Table.from_pylist([dict(zip(SNAKE, row, strict=True)) for row in some])
            times = (
                table["last_modified_date"].cast(pa.timestamp("ms", "UTC"))
                if form == "PARQUET"
                else table["last_modified_date"]
            )
            table = table.set_column(6, "last_modified_date", times)
            pq.write_table(table, path) if form == "PARQUET" else orc.write_table(table, path)
        files.append({"key": f"prefix/b/all/data/{path.name}", "size": path.stat().st_size, "MD5checksum": "-"})
    content = {
        "sourceBucket": "b",
        "destinationBucket": "arn:aws:s3:::reports",
        "fileFormat": {"PARQUET": "Parquet"}.get(form, form),
        "fileSchema": ", ".join(SCHEMA),
        "files": files,
    }
    (home / "2026-01-03T01-00Z" / "manifest.json").write_text(json.dumps(content))
    return home / "2026-01-03T01-00Z" / "manifest.json"


@pytest.mark.parametrize("form", ["CSV", "PARQUET", "ORC"])
def test_a_report_stands_for_a_listing(form: str, tmp_path: Path) -> None:
    result = read(report(tmp_path, form), "s3://b/in", need=("etag", "modified"))
    assert [(row["key"], row["bytes"], row["etag"]) for row in rows_of(result)] == [
        ("a b.txt", 0, f"{0:032x}"),
        ("y=1/z.txt", 2, f"{2:032x}"),
        ("é+%.txt", 1, f"{1:032x}"),
    ]
    assert {row["modified"].isoformat() for row in rows_of(result)} == {"2026-01-02T03:04:05+00:00"}
    assert result.facts.asked == 0, "a report says all that is needed"
    assert json.loads(result.objects.schema.metadata[b"datasets"]) == ["set"]


def test_a_report_of_another_bucket_or_with_a_file_that_is_not_whole(tmp_path: Path) -> None:
    manifest = report(tmp_path, "CSV")
    with pytest.raises(sk.InputError, match=r"is of s3://b, and input\.uri is s3://c/in"):
        read(manifest, "s3://c/in")
    (tmp_path / "data" / "0.csv.gz").write_bytes(b"")
    with pytest.raises(sk.InputError, match=r"0\.csv\.gz has 0 bytes, and should have"):
        read(manifest, "s3://b/in")
    (tmp_path / "data" / "0.csv.gz").unlink()
    with pytest.raises(sk.InputError, match=r"0\.csv\.gz is not there"):
        read(manifest, "s3://b/in")


def test_url_encoded_keys() -> None:
    keys = ["plain", "a b", "50%", "é/ü=1&2", "%41", "a+b", "%2541", "日本%E6", "\x01"]
    assert url_decoded(pa.array([quote_plus(key, safe="/") for key in keys])).to_pylist() == keys
    assert url_decoded(pa.array([], pa.string())).to_pylist() == []
    assert url_decoded(pa.array(["x", "%C3%A9"]).slice(1)).to_pylist() == ["é"]
