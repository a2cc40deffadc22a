"""Increments: what earlier runs have done is not done again, and the dataset is the same as that of a first run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import shardkit as sk
from shardkit.dataset.current import current_result
from shardkit.runs.check import check
from shardkit.storage.local_folder import LocalFolder

pytestmark = pytest.mark.whole
SLOW = pytest.mark.slow
WORK = """
from pathlib import Path
import pyarrow as pa

HERE = Path(__file__).parent

def rows(record):
    with (HERE / "trace").open("a") as trace:
        trace.write(record.key + "\\n")
    text = Path(record).read_text()
    if text == "bad" and not (HERE / "mended").exists():
        raise ValueError("bad")
    return None if text == "none" else {"key": record.key, "text": text, "v": 1}

def total(batches):
    for batch in batches:
        yield batch.append_column("n", pa.array([batches.num_rows] * batch.num_rows))
"""
BY_DAY = {"by": "date", "path": "{Y}-{m}-{d}"}


class Feed:
    """An input of one folder a day, a function that notes what it is called with, and a dataset."""

    def __init__(self, root: Path, **fields: Any) -> None:
        self.root = root
        self.data, self.out = root / "data", root / "out"
        self.fields = {"shards": BY_DAY, "workers": 1, "max_failures": "100%", "name": "feed"} | fields
        self.data.mkdir(parents=True)
        self.write_work(WORK)

    def write_work(self, source: str) -> None:
        (self.root / "feed_work.py").write_text(source)

    def put(self, key: str, text: str = "x") -> None:
        path = self.data / key
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def put_days(self, days: int, each: int) -> None:
        for day in range(1, days + 1):
            for i in range(each):
                self.put(f"2020-01-{day:02d}/{i:02d}.txt", f"{day}.{i}")

    def pipeline(self, **fields: Any) -> sk.Pipeline:
        given = {"function": "feed_work:rows", "source_dir": self.root, "input": self.data, "output": self.out}
        return sk.Pipeline(**(given | self.fields | fields))

    def run(self, *, days: Any = None, run_id: str | None = None, **fields: Any) -> list[str]:
        """Run; returns the records that the function was called with."""
        (self.root / "trace").write_text("")
        self.pipeline(**fields).run(days=days, run_id=run_id, quiet=True)
        return sorted((self.root / "trace").read_text().split())

    def rows(self) -> dict[str, str]:
        """Key and text of all rows, as any reader finds them in the files; no key may be there twice."""
        found = [row for file in self.out.glob("**/*.parquet") if "_shardkit" not in file.parts for row in _rows(file)]
        assert len({row["key"] for row in found}) == len(found), "a record is there twice"
        return {row["key"]: row["text"] for row in found}

    def expected(self) -> dict[str, str]:
        found = {str(path.relative_to(self.data)): path.read_text() for path in self.data.glob("*/*")}
        return {key: text for key, text in found.items() if text not in {"bad", "none"}}

    def files(self) -> dict[str, tuple[int, int]]:
        """The dataset's files, with what changes if one is touched."""
        found = [path for path in self.out.rglob("*") if path.is_file() and "_shardkit" not in path.parts]
        return {str(p.relative_to(self.out)): (p.stat().st_mtime_ns, p.stat().st_size) for p in found}

    def days(self) -> list[str]:
        return sorted(path.name.partition("=")[2] for path in self.out.glob("day_partition=*"))

    def result(self) -> dict[str, Any]:
        result = current_result(LocalFolder(self.out))
        assert result is not None
        return result

    def check(self) -> None:
        assert self.rows() == self.expected()
        table = sk.open_run(self.out).dataset().to_table()
        assert dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)) == self.expected()
        files = {file["path"] for file in self.result()["files"]}
        assert set(self.files()) == files


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.ParquetFile(file).read().to_pylist()
    return rows


@pytest.fixture(scope="module")
def after_three_days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Feed, Path]:
    """Three days of twelve records, all of them run; and a copy of their folder."""
    feed = Feed(tmp_path_factory.mktemp("feed") / "one")
    feed.put_days(3, 12)
    assert len(feed.run()) == 36
    copy = tmp_path_factory.mktemp("copy") / "one"
    shutil.copytree(feed.root, copy)
    return feed, copy


@pytest.fixture
def feed(after_three_days: tuple[Feed, Path]) -> Feed:
    """Three days of twelve records, all of them run; in the same folder for each test, because runs note where they are."""
    feed, copy = after_three_days
    shutil.rmtree(feed.root)
    shutil.copytree(copy, feed.root)  # with the same times of change, or nothing would be unchanged
    return feed


def test_nothing_changed_is_nothing_to_do(feed: Feed) -> None:
    before = feed.files()
    assert feed.run() == []
    assert feed.files() == before
    assert "nothing has changed in 36 records" in str(feed.pipeline().plan())


def test_only_a_changed_record_is_computed_and_no_other_day_is_touched(feed: Feed) -> None:
    before = feed.files()
    feed.put("2020-01-02/02.txt", "changed")
    assert feed.run() == ["2020-01-02/02.txt"]
    feed.check()
    others = {path: stat for path, stat in before.items() if "2020-01-02" not in path}
    assert others.items() <= feed.files().items()


def test_new_and_vanished_records_are_found(feed: Feed) -> None:
    (feed.data / "2020-01-01/00.txt").unlink()
    feed.put("2020-01-02/99.txt", "new")
    feed.put("2020-01-04/00.txt", "a new day")
    plan = feed.pipeline().plan()
    changes = plan.content["partitions"]
    assert list(changes) == ["2020-01-01", "2020-01-02", "2020-01-04"]
    assert changes["2020-01-01"]["vanished"] == changes["2020-01-02"]["new"] == changes["2020-01-04"]["new"] == 1
    assert plan.content["unchanged"] == {"partitions": 1, "records": 12}
    assert "1 vanished, 11 unchanged" in str(plan)
    feed.run()
    feed.check()


def test_the_plan_tells_how_many_are_computed_again(feed: Feed) -> None:
    feed.put("2020-01-03/00.txt", "changed")
    changes = feed.pipeline().plan().content["partitions"]["2020-01-03"]
    computed = feed.run()
    assert changes["changed"] + changes["again"] == len(computed)
    assert changes["unchanged"] == 11


@pytest.mark.whole
def test_records_of_one_chunk_change_and_vanish_run_after_run(tmp_path: Path) -> None:
    """Each record has rows with its own number, so that a row cut out of a part at the wrong place is noticed."""
    feed = Feed(tmp_path / "rows", chunks="even", function="feed_work:several")
    feed.write_work(WORK + SEVERAL)
    feed.put_days(1, 40)
    feed.run()
    for turn, name in enumerate(("07", "31", "08", "07", "30")):
        feed.put(f"2020-01-01/{name}.txt", f"turn {turn}")
        (feed.data / f"2020-01-01/2{turn}.txt").unlink()
        assert feed.run() == [f"2020-01-01/{name}.txt"]
        assert several(feed) == expected_several(feed)
    assert sk.open_run(feed.out).summary().records == {"listed": 35, "done": 1, "quarantined": 0, "skipped": 34}


SEVERAL = """
def several(record):
    for i, row in enumerate([rows(record)] * (1 + sum(map(ord, record.key)) % 3)):
        yield row | {"i": i}
"""


def several(feed: Feed) -> list[tuple[str, str, int]]:
    table = sk.open_run(feed.out).dataset().to_table(columns=["key", "text", "i"])
    return sorted((row["key"], row["text"], row["i"]) for row in table.to_pylist())


def expected_several(feed: Feed) -> list[tuple[str, str, int]]:
    counts = {key: 1 + sum(map(ord, key)) % 3 for key in feed.expected()}
    return sorted((key, text, i) for key, text in feed.expected().items() for i in range(counts[key]))


@pytest.mark.whole
def test_types_that_only_a_vanished_record_gave_are_not_there_any_more(tmp_path: Path) -> None:
    values = {
        "numbers": (1, 2.5, 3),
        "texts": (None, "text", None),
        "lists": ([1], [2.5], [3]),
        "structs": ({"a": 1}, {"a": 1, "b": 2}, {"a": 3}),
    }
    output = {"uri": tmp_path / "types/out", "widen_ints": True}
    feed = Feed(tmp_path / "types", chunks="even", function="feed_work:typed", output=output)
    feed.write_work(
        WORK + f"VALUES = {values!r}\ndef typed(record):\n"
        "    return rows(record) | {name: found[int(record.stem[-2:])] for name, found in VALUES.items()}\n"
    )
    feed.put_days(1, 3)

    def types() -> list[str]:
        (file,) = (feed.out / name for name in feed.files())
        schema = pq.read_schema(file)
        return [str(schema.field(name).type) for name in values]

    feed.run()
    assert types() == ["double", "string", "list<element: double>", "struct<a: int64, b: int64>"]
    (feed.data / "2020-01-01/01.txt").unlink()
    feed.run()
    feed.check()
    assert types() == ["int64", "null", "list<element: int64>", "struct<a: int64>"]


def test_full_files_without_a_changed_row_stay_as_they_are(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "kept", output={"uri": tmp_path / "kept/out", "rows_per_file": 5})
    feed.put_days(1, 23)
    feed.run()
    before = feed.files()
    assert len(before) == 5
    feed.put("2020-01-01/07.txt", "changed")
    assert feed.run() == ["2020-01-01/07.txt"]
    feed.check()
    after = feed.files()
    assert len(after) == 5
    assert len(before.items() & after.items()) == 3  # but for the one that held the row, and the last, which is short
    assert len({path.rpartition("/")[2][:10] for path in after}) == 5, "two files have one number"
    feed.put("2020-01-01/99.txt", "new")
    feed.run()
    feed.check()
    assert len(after.items() & feed.files().items()) == 4


def test_a_file_that_somebody_removed_is_written_again(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "kept", output={"uri": tmp_path / "kept/out", "rows_per_file": 5})
    feed.put_days(1, 20)
    feed.run()
    (feed.out / next(iter(feed.files()))).unlink()
    feed.put("2020-01-01/19.txt", "changed")
    feed.run()
    feed.check()


def test_files_without_a_column_that_others_have_now_are_not_kept(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "kept", output={"uri": tmp_path / "kept/out", "rows_per_file": 5}, function="feed_work:more")
    feed.write_work(
        WORK + "def more(record):\n"
        "    found = rows(record)\n    return found | {'more': 1} if found['text'] == 'more' else found\n"
    )
    feed.put_days(1, 20)
    feed.run()
    before = feed.files()
    feed.put("2020-01-01/07.txt", "more")
    assert feed.run() == ["2020-01-01/07.txt"]
    feed.check()
    assert not before.items() & feed.files().items()
    assert all("more" in pq.read_schema(feed.out / name).names for name in feed.files())


def test_files_of_another_size_or_format_are_not_kept(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "kept", output={"uri": tmp_path / "kept/out", "rows_per_file": 5})
    feed.put_days(1, 20)
    feed.run()
    for changes in (
        {"output": {"uri": feed.out, "rows_per_file": 6}},
        {"output": {"uri": feed.out, "rows_per_file": 6, "format": "arrow"}},
    ):
        before = feed.files()
        feed.put("2020-01-01/07.txt", f"changed {len(changes['output'])}")
        feed.run(**changes)
        assert not before.items() & feed.files().items()
        assert sk.open_run(feed.out).dataset().count_rows() == 20


def test_another_function_computes_all_again(feed: Feed) -> None:
    feed.write_work(WORK.replace('"v": 1', '"v": 2'))
    assert len(feed.run(days=["2020-01-02"])) == 12
    assert len(feed.run()) == 24
    assert feed.run() == []
    feed.check()


def test_quarantined_records_are_taken_over_too(feed: Feed) -> None:
    feed.put("2020-01-02/03.txt", "bad")
    feed.run()
    assert [e["key"] for e in sk.open_run(feed.out).quarantine()] == ["2020-01-02/03.txt"]
    feed.put("2020-01-02/00.txt", "other")
    feed.put("2020-01-02/000.txt", "before it, so that all ids move")
    assert "2020-01-02/03.txt" not in feed.run()
    run = sk.open_run(feed.out)
    (entry,) = run.quarantine()
    assert entry["key"] == "2020-01-02/03.txt"
    assert run.folder.records(["key"])["key"][entry["record"]].as_py() == entry["key"]
    assert run.summary().records["quarantined"] == 1
    feed.check()


def test_a_retried_record_is_taken_over_with_its_retry(feed: Feed) -> None:
    feed.put("2020-01-02/03.txt", "bad")
    feed.run()
    (feed.root / "mended").touch()
    sk.open_run(feed.out).retry(quiet=True)
    assert feed.rows()["2020-01-02/03.txt"] == "bad"
    feed.put("2020-01-02/11.txt", "other")
    assert "2020-01-02/03.txt" not in feed.run()
    assert feed.rows() == feed.expected() | {"2020-01-02/03.txt": "bad"}
    counts = sk.open_run(feed.out).summary().records
    assert (counts["listed"], counts["quarantined"]) == (12, 0)


def test_a_retry_of_a_day_made_anew_since_is_refused_with_the_cure(feed: Feed) -> None:
    first = sk.open_run(feed.out).run_id
    for day in range(1, 4):
        feed.put(f"2020-01-0{day}/03.txt", "bad")
    feed.run()
    with pytest.raises(sk.PlanMismatch, match=r"days=\['2020-01-01'\], incremental=False"):
        sk.open_run(feed.out, first).retry(quiet=True, timeout=9)


@pytest.mark.whole
def test_chunks_are_taken_over_from_several_runs(feed: Feed) -> None:
    for i in range(4):
        feed.put("2020-01-02/05.txt", f"changed {i}")
        feed.put(f"2020-01-02/new{i}.txt", f"new {i}")
        feed.run()
        feed.check()
    last = sk.open_run(feed.out)
    runs = {part.get("run") for marker in last.folder.taken_over() for part in marker["parts"]}
    assert len(runs) >= 3


def test_a_run_folder_that_is_gone_costs_only_time(feed: Feed) -> None:
    first = sk.open_run(feed.out)
    feed.put("2020-01-02/05.txt", "changed")
    feed.run()
    shutil.rmtree(first.path)
    assert f"the folder of run {first.run_id} is gone" in str(feed.pipeline().plan())
    assert len(feed.run()) == 24  # the two days that it had made
    feed.put("2020-01-02/06.txt", "changed")
    assert len(feed.run()) == 11  # of the other only what the second run had computed is left
    feed.check()


def test_parts_that_vanish_between_plan_and_merge_are_told_with_the_cure(feed: Feed) -> None:
    feed.put("2020-01-02/05.txt", "bad")
    feed.run(run_id="second")
    shutil.rmtree(next(feed.out.glob("_shardkit/runs/2*")) / "parts")
    with pytest.raises(sk.LedgerError, match=r"of an earlier run, is missing.*incremental: false"):
        sk.open_run(feed.out).resume(quiet=True, **{"output.rows_per_file": 3})
    assert len(feed.run(incremental=False)) == 36
    feed.check()


def test_records_that_come_into_one_file_otherwise_are_computed_again(tmp_path: Path) -> None:
    """The same key and the same etags, but another object beside it: the record is not what it was."""
    feed = Feed(tmp_path / "stems", records="stem", input={"uri": tmp_path / "stems/data", "pattern": "*.hea"})
    for name in ("a.hea", "a.dat", "b.hea", "b.dat"):
        feed.put(f"2020-01-01/{name}", name)
    assert len(feed.run()) == 2
    (feed.data / "2020-01-01/a.dat").rename(feed.data / "2020-01-01/a.sig")
    assert "2020-01-01/a" in feed.run()
    assert feed.run() == []


@pytest.mark.whole
def test_what_is_not_cut_by_days_may_be_incremental_too(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "whole", shards={"by": "size", "count": 3}, incremental=True)
    feed.put_days(3, 12)
    assert len(feed.run()) == 36
    assert feed.run() == []
    feed.put("2020-01-02/05.txt", "changed, and much larger than it was before, so that all shards move")
    feed.put("2020-01-00/new.txt", "new")
    assert 2 <= len(feed.run()) < 36
    feed.check()
    (feed.data / "2020-01-03/01.txt").unlink()
    assert len(feed.run(shards={"by": "size", "count": 2})) < 36
    feed.check()
    assert len(feed.run(incremental=None)) == 36


def test_a_chunk_whose_records_part_is_computed_again(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "parted", shards={"by": "size", "count": 1}, incremental=True, chunks="even")
    feed.put_days(1, 12)
    assert len(feed.run()) == 12
    feed.put("2020-01-01/new.txt", "new")
    assert len(feed.run(shards={"by": "size", "count": 2})) == 13
    feed.check()


def test_another_function_of_the_same_module_computes_all_again(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "other")
    feed.write_work(WORK + "\ndef others(record):\n    return rows(record) | {'v': 2}\n")
    feed.put_days(2, 2)
    assert len(feed.run()) == 4
    assert len(feed.run(function="feed_work:others")) == 4
    assert sk.open_run(feed.out).dataset().to_table()["v"].to_pylist() == [2] * 4


def test_single_objects_dealt_out_may_be_incremental_too(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "dealt", shards={"by": "s3key", "instances": 2}, incremental=True)
    feed.put_days(1, 10)
    feed.run()
    feed.put("2020-01-01/000.txt", "first, so that all others change places")
    feed.run()
    feed.check()


def test_a_file_written_again_moves_to_its_new_day(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "modified", shards={"by": "date", "column": "modified"})
    noon = 1577880000  # 2020-01-01T12:00Z
    for i in range(6):
        feed.put(f"all/{i}.txt", str(i))
        os.utime(feed.data / f"all/{i}.txt", (noon + 86400 * (i // 3),) * 2)
    assert len(feed.run()) == 6
    assert feed.days() == ["2020-01-01", "2020-01-02"]
    os.utime(feed.data / "all/0.txt", (noon + 86400,) * 2)
    changes = feed.pipeline().plan().content["partitions"]
    assert {day: (c["new"], c["vanished"]) for day, c in changes.items()} == {
        "2020-01-01": (0, 1),
        "2020-01-02": (1, 0),
    }
    feed.run()
    feed.check()


def test_equal_content_on_another_day_is_not_taken_for_the_old_record(feed: Feed) -> None:
    """Where the listing gives the same etag, a record that moved is in its new day only."""
    import pyarrow as pa

    from shardkit.plan.compare import compare
    from shardkit.plan.digests import Basis
    from shardkit.plan.records import build_records

    plan = feed.pipeline().plan()
    result = feed.result()
    listing = LocalFolder(feed.data).objects()
    records = build_records(listing, shards=plan.content["pipeline"]["shards"]).table
    moved = pa.array(["2020-01-02" if i == 0 else g for i, g in enumerate(records["group"].to_pylist())])
    records = records.set_column(records.schema.get_field_index("group"), "group", moved.dictionary_encode())
    basis = Basis(by_day=True, work=plan.content["work"], merge=plan.content["merge_digest"], form=result["form"])
    found = compare(records, LocalFolder(feed.out), result, basis, all_days=True, recompute=False)
    assert found.taken[0] == -1
    assert (found.changes["2020-01-01"].vanished, found.changes["2020-01-02"].new) == (1, 1)


def test_dry_run_says_per_day_what_would_run_and_why(feed: Feed, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from shardkit.cli.app import cli

    feed.put("2020-01-02/05.txt", "changed")
    yaml = tmp_path / "p.yaml"
    yaml.write_text(json.dumps(_plain(feed)))
    said = CliRunner().invoke(cli, ["run", str(yaml), "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "1 partition to be rebuilt, 2 as they are" in said.output
    assert "2020-01-02   1 changed, 11 unchanged" in said.output
    assert "in the same chunk as one that has changed" in said.output or "computed again" not in said.output
    feed.write_work(WORK.replace('"v": 1', '"v": 2'))
    said = CliRunner().invoke(cli, ["run", str(yaml), "--dry-run", "--date", "2020-01-01"])
    assert "12 computed again: the function or what it is given has changed" in said.output


def _plain(feed: Feed) -> dict[str, Any]:
    given = {"function": "feed_work:rows", "source_dir": feed.root, "input": feed.data, "output": feed.out}
    return {name: str(v) if isinstance(v, Path) else v for name, v in (given | feed.fields).items()}


ONCE_WITHOUT_MEMORY = """
from pathlib import Path

HERE = Path(__file__).parent

def rows(record):
    if record.key.endswith("2") and not (HERE / "tried").exists():
        (HERE / "tried").touch()
        raise MemoryError("once")
    return {"key": record.key, "text": Path(record).read_text()}
"""


def test_of_a_chunk_that_was_committed_in_pieces_only_what_has_changed_is_left_out(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "pieces", shards=None, incremental=True, chunks="even")
    feed.write_work(ONCE_WITHOUT_MEMORY)
    for i in range(7):
        feed.put(f"d/{i}", f"old {i}")
    feed.run()
    for changed in ("4", "6"):
        feed.put(f"d/{changed}", f"new {changed}")
        feed.run()
        feed.check()
        assert check(feed.out).faults == []
