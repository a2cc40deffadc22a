"""Long listings: sorted in whatever order they arrive, and kept in a file, so that memory does not grow with them."""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pytest
import warm

import shardkit as sk
from shardkit.macro import make_plan
from shardkit.plan import join as joining
from shardkit.plan.records import build_records
from shardkit.storage import list_files as listing
from shardkit.storage import list_objects as objectlist
from shardkit.storage.base import Access
from shardkit.storage.buckets import open_bucket
from shardkit.storage.list_objects import list_objects
from shardkit.storage.open import folder
from shardkit.tables import spill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUMBERS = itertools.count()


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put all but the smallest pieces in a file, as those of a much longer listing."""
    monkeypatch.setattr(spill, "BUDGET_BYTES", 0)
    for module in (spill, objectlist):
        monkeypatch.setattr(module, "PIECE_ROWS", 8)
    for module in (spill, objectlist, joining):
        monkeypatch.setattr(module, "BATCH_ROWS", 32)
    monkeypatch.setattr(spill, "LET_GO_ROWS", 64)
    monkeypatch.setattr(listing, "LISTED_AT_ONCE", 32)
    monkeypatch.setattr(objectlist, "PAGE", 20)


def made_up(count: int, seed: int) -> list[str]:
    """Keys of folders of all depths, with files beside folders, and with names that are no input."""
    chance = random.Random(seed)
    names = ["a", "a-b", "a.b", "b", "é", "z", "_x", ".y"]
    weights = [9, 9, 9, 9, 9, 9, 1, 1]
    folders = ["/".join(chance.choices(names, weights, k=chance.randint(0, 3))) for _ in range(30)]
    found = {
        f"{chance.choice(folders)}/{chance.choice(names)}{chance.randint(0, 999)}".lstrip("/") for _ in range(count)
    }
    return sorted(found, key=lambda key: key.encode())


def shown(keys: list[str]) -> list[str]:
    return [key for key in keys if not any(part[0] in "._" for part in key.split("/"))]


def bucket_of(texts: dict[str, bytes]) -> str:
    """The URI of a bucket that holds these objects."""
    store = open_bucket("memory", name := f"listed-{next(NUMBERS)}", Access()).store
    for key, text in texts.items():
        obstore.put(store, key, text)
    return f"memory://{name}"


def of_pages(pages: list[list[str]]) -> Any:
    """A store without folders that lists these keys, page by page."""

    class Store:
        def list(self, prefix: str | None, **_: Any) -> Iterator[pa.RecordBatch]:
            assert prefix is None
            return map(page, pages)

    return Store()


def page(keys: list[str]) -> pa.RecordBatch:
    moments = pa.array([0] * len(keys), pa.timestamp("us", "UTC"))
    columns = {"path": keys, "size": [len(key) for key in keys], "e_tag": [f'"e-{key}"' for key in keys]}
    return pa.record_batch(columns | {"last_modified": moments})


def listed(store: Any, ask: Callable[[Callable[[], Any]], Any] = lambda request: request()) -> pa.Table:
    return list_objects(store, "", ask, lambda keys: pa.array([True] * len(keys)))


def check(table: pa.Table, keys: list[str]) -> None:
    assert table["key"].to_pylist() == keys
    assert table["etag"].to_pylist() == [f"e-{key}" for key in keys]
    assert table["bytes"].to_pylist() == [len(key) for key in keys]


# ---- in order, whole, once -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 60, 3000])
@pytest.mark.usefixtures("in_files")
def test_all_objects_are_listed_in_order(count: int) -> None:
    keys = ["a", *made_up(count, seed=count)]
    uri = bucket_of({f"in/{key}": key.encode() for key in keys} | {"in-not/a": b""})
    table = folder(f"{uri}/in").objects(leave_out=folder(f"{uri}/in/a/b"))
    expected = sorted({key for key in shown(keys) if not key.startswith("a/b/")}, key=lambda key: key.encode())
    assert table["key"].to_pylist() == expected
    assert table["bytes"].to_pylist() == [len(key.encode()) for key in expected]


@pytest.mark.usefixtures("in_files")
def test_folders_that_show_up_late_among_many_objects() -> None:
    keys = [f"a{i:03d}" for i in range(100)] + [f"b/{i % 3}/{i:03d}" for i in range(100)] + ["c"]
    uri = bucket_of(dict.fromkeys(keys, b"x"))
    assert folder(uri).objects()["key"].to_pylist() == sorted(keys)


@pytest.mark.parametrize("pages", [1, 40])
@pytest.mark.usefixtures("in_files")
def test_a_store_that_lists_in_no_order(pages: int) -> None:
    keys = [f"{i:05d}" for i in range(4000)]
    random.Random(1).shuffle(keys)
    size = len(keys) // pages
    check(listed(of_pages([keys[i : i + size] for i in range(0, len(keys), size)])), sorted(keys))


@pytest.mark.usefixtures("in_files")
def test_pages_that_lie_in_among_each_other() -> None:
    pages = [[f"{i:05d}" for i in range(first, 2000, 100) for i in range(i, i + 20)] for first in range(0, 100, 20)]
    check(listed(of_pages(pages)), sorted(itertools.chain(*pages)))


@pytest.mark.usefixtures("in_files")
def test_what_an_answer_that_was_cut_short_told_is_not_told_twice() -> None:
    class Failing:
        def __init__(self) -> None:
            self.calls = 0

        def list(self, prefix: str | None, **_: Any) -> Iterator[pa.RecordBatch]:
            self.calls += 1
            for i in range(5):
                if self.calls == 1 and i == 3:
                    raise ConnectionError
                yield page([f"{j:03d}" for j in range(20 * i, 20 * i + 20)])

    def ask(request: Callable[[], Any]) -> Any:
        try:
            return request()
        except ConnectionError:
            return request()

    check(listed(Failing(), ask), [f"{j:03d}" for j in range(100)])


@pytest.mark.usefixtures("in_files")
def test_all_files_of_a_folder_are_listed_in_order(tmp_path: Path) -> None:
    keys = made_up(600, seed=3)
    for key in keys:
        path = tmp_path / "in" / f"{key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert folder(str(tmp_path / "in")).objects()["key"].to_pylist() == sorted(f"{key}.txt" for key in shown(keys))


# ---- what it costs ---------------------------------------------------------------------------------------------


class Counting:
    """A store that notes its requests in order."""

    def __init__(self, keys: list[str]) -> None:
        self.store = open_bucket("memory", f"listed-{next(NUMBERS)}", Access()).store
        for key in keys:
            obstore.put(self.store, key, key.encode())
        self.asked: list[str] = []

    def list(self, prefix: str | None, **options: Any) -> Any:
        self.asked.append(f"what follows in {prefix or 'all'}" if options.get("offset") else prefix or "")
        return self.store.list(prefix, **options)

    def list_with_delimiter(self, prefix: str | None, **options: Any) -> Any:
        self.asked.append(f"folders of {prefix or ''}")
        return self.store.list_with_delimiter(prefix, **options)


def test_a_listing_of_one_page_is_one_request_and_one_for_its_end() -> None:
    keys = [f"{day}/{i}" for day in ("a", "b/c", "d") for i in range(100)]
    store = Counting(keys)
    assert sorted(listed(store)["key"].to_pylist()) == sorted(keys)
    assert store.asked == ["", "what follows in all"]


FOLDERS = ["folders of ", "folders of 2020/", "folders of 2020/01/"]


def test_folders_on_the_way_are_asked_for_at_once_and_a_few_pages_are_listed_once() -> None:
    keys = [f"2020/01/01/{i:04d}" for i in range(4500)]
    store = Counting(keys)
    assert listed(store)["key"].to_pylist() == keys
    assert sorted(store.asked) == ["", *FOLDERS, "what follows in all"]


def test_more_than_a_few_pages_are_listed_folder_by_folder() -> None:
    keys = [f"2020/01/0{day}/{i:04d}" for day in (1, 2, 3) for i in range(1900)]
    store = Counting(keys)
    assert listed(store)["key"].to_pylist() == keys
    assert {f"2020/01/0{day}/" for day in (1, 2, 3)} < set(store.asked)


def test_pages_may_be_shorter_than_was_asked_for() -> None:
    class Short(Counting):
        def list(self, prefix: str | None, **options: Any) -> Any:
            return super().list(prefix, **options | {"chunk_size": 700})

    keys = [f"2020/01/01/{i:04d}" for i in range(1900)]
    store = Short(keys)
    assert listed(store)["key"].to_pylist() == keys
    assert sorted(store.asked) == ["", *FOLDERS, "what follows in all"]


def test_a_page_that_fails_while_folders_are_looked_for_is_made_good() -> None:
    class FailingOnce(Counting):
        def list(self, prefix: str | None, **options: Any) -> Iterator[Any]:
            for number, found in enumerate(super().list(prefix, **options)):
                if prefix is None and number == 1:
                    raise ConnectionError
                yield found

    keys = [f"2020/01/01/{i:04d}" for i in range(2500)]
    store = FailingOnce(keys)
    assert listed(store)["key"].to_pylist() == keys
    assert "2020/01/01/" in store.asked


def test_no_folder_with_objects_in_it_is_asked_for_ahead() -> None:
    keys = [f"a/{name}" for name in ("!b/x", *(f"{i:04d}" for i in range(1500)))] + [f"c{i}/x" for i in range(20)]
    store = Counting(keys)
    assert listed(store)["key"].to_pylist() == sorted(keys)
    assert "folders of a/" not in store.asked


def test_a_short_listing_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    check(listed(of_pages([[f"{i:05d}" for i in range(5000)]])), [f"{i:05d}" for i in range(5000)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.usefixtures("in_files")
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = bucket_of({f"{i:03d}": b"x" for i in range(100)})
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(sk.StorageError, match=r"temporary folder .*No space left on device.* Free some space .*TMPDIR"):
        folder(uri).objects()


@pytest.mark.usefixtures("in_files")
def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(sk.StorageError, match=r"/nowhere/at/all: No such file.* Set TMPDIR to a folder"):
        listed(of_pages([[f"{i:05d}" for i in range(100)]]))


MANY = """
import sys
import numpy as np, pyarrow as pa
from shardkit.macro import make_plan
from shardkit.plan import join
from shardkit.plan.records import build_records
from shardkit.storage import list_objects as listing
from shardkit.tables import spill

COUNT, FOLDER, PAGE = int(sys.argv[1]), int(sys.argv[2]), 1000
SCALE = 8  # what may be in memory is smaller, so that a listing is long that is as many times shorter
listing.LISTED_AT_ONCE //= SCALE
listing.FOLDERS_AHEAD //= SCALE
spill.BUDGET_BYTES //= SCALE
spill.LET_GO_ROWS //= SCALE
for module in (spill, listing, join):
    module.BATCH_ROWS //= SCALE

def texts(before, numbers):
    digits = (numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10 + 48).astype(np.uint8)
    data = np.hstack([np.tile(np.frombuffer(before, np.uint8), (len(numbers), 1)), digits])
    return pa.StringArray.from_buffers(len(data), pa.py_buffer(np.arange(0, data.size + 1, data.shape[1], np.int32)),
                                       pa.py_buffer(data.tobytes()))

def page(folder, numbers):
    return pa.record_batch({"path": texts(folder.encode(), numbers), "size": numbers, "e_tag": texts(b"e" * 24, numbers),
                            "last_modified": pa.array(numbers).cast(pa.timestamp("us", "UTC"))})

class Store:
    def list_with_delimiter(self, prefix, **_):
        names = [f"folder-{i:04d}/" for i in range(COUNT // FOLDER)]
        return {"common_prefixes": names, "objects": page("", np.arange(1))[:0]}

    def list(self, prefix, **_):
        begin, end, name = (int(prefix[7:11]) * FOLDER, FOLDER, prefix) if prefix else (0, COUNT, "")
        if FOLDER < COUNT and not prefix:
            name = "folder-0000/"
        for i in range(begin, begin + end, PAGE):
            yield page(name, np.arange(i, min(i + PAGE, begin + end)))

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024

objects = listing.list_objects(Store(), "", lambda request: request(), lambda keys: pa.array(np.ones(len(keys), bool)))
assert len(objects) == COUNT
listed = peak()
records = build_records(objects)
del objects
plan = make_plan(records, pipeline={"shards": None}, function_digest="", chunks="dynamic", workers=16, run_id="r",
                 created="now")
assert len(plan.records) == COUNT
print(listed, peak())
"""


@pytest.mark.whole
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("by_folder", [True, False], ids=["by folder", "flat"])
def test_memory_hardly_grows_with_the_listing(*, by_folder: bool) -> None:
    def peaks(count: int) -> list[int]:
        done = warm.run(["-c", MANY, count, 5000 if by_folder else count], env=os.environ, timeout_s=60)
        assert done.returncode == 0, done.stderr
        return [int(peak) for peak in done.stdout.split()]

    few, many = 100_000, 300_000
    to_list, to_plan = ((m - f) / (many - few) for f, m in zip(peaks(few), peaks(many), strict=True))
    assert to_list < 20  # bytes an object: of its 90, next to nothing
    assert to_plan < 60


# ---- records and plans of it -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize("rule", ["file", "stem", "directory"])
@pytest.mark.parametrize("pattern", ["**", "*1"])
def test_a_listing_in_pieces_has_the_same_plan(rule: str, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{i // 90:02d}/{i:04d}.{kind}" for i in range(900) for kind in ("d1", "dat")]
    pieces = folder(bucket_of({key: key.encode() for key in keys})).objects()
    assert pieces["key"].num_chunks > 20

    def plan(objects: pa.Table) -> Any:
        records = build_records(
            objects, records=rule, pattern=(pattern,), exclude=("0001.*",), shards={"by": "directory", "depth": 1}
        )
        return records, make_plan(
            records,
            pipeline={"shards": {"by": "directory", "depth": 1}},
            function_digest="",
            chunks="dynamic",
            workers=3,
            run_id="r",
            created="now",
        )

    records, planned = plan(pieces)
    monkeypatch.undo()
    whole_records, whole = plan(pieces.combine_chunks())
    assert planned.content == whole.content
    assert planned.records.to_pylist() == whole.records.to_pylist()
    assert (records.objects_left_out, records.left_out_sample) == (
        whole_records.objects_left_out,
        whole_records.left_out_sample,
    )
