"""Random small pipelines, and a plain loop in Python that says what their datasets must hold.

    python tests/random_pipelines.py --count 500            # seeds 0 to 499
    python tests/random_pipelines.py --first 17 --count 1   # one of them again, step by step

A seed decides everything about a pipeline: its records, what the function returns, how the dataset is cut into files,
and how the input changes from run to run. After each step the dataset's files, read one by one without shardkit, must
hold exactly the rows of the plain loop, and the notes about them must be true.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

import shardkit as sk
from shardkit.errors import NothingMade

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WORK = Path(__file__).resolve().parent / "random_work.py"
DAYS = ("2020-01-01", "2020-01-02", "2020-01-03")
SIMPLE = ("int", "float", "mixed", "text", "bool", "date", "late")
NESTED = ("list", "struct")
TYPES = {"int": "int64", "float": "float64", "mixed": "float64", "text": "string", "bool": "bool", "date": "date32"}
TYPES |= {"late": "int64", "list": "list<int64>", "struct": "struct<a: int64, b: string>", "group": "string"}
TYPES |= {"key": "string", "row": "int64", "beside": "int64"}
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
Row = dict[str, Any]


# ---- what is random -------------------------------------------------------------------------------------------------


class Pick(random.Random):
    """Random choices."""

    def chance(self, share: float) -> bool:
        return self.random() < share


@dataclass
class Content:
    """The content of a record's files."""

    id: str
    rows: list[Row]
    fails: bool
    how: str
    beside: int


class Shape:
    """The settings of a pipeline that stay the same from run to run."""

    def __init__(self, pick: Pick) -> None:
        self.kind = pick.choice(["file", "file", "stem", "directory"])
        self.by_day = pick.chance(0.6)
        self.format = pick.choice(["parquet", "parquet", "csv", "jsonl", "arrow"])
        self.formats = ["parquet", "arrow", "jsonl", "csv"] if pick.chance(0.5) else ["parquet", "arrow", "jsonl"]
        self.format = self.format if self.format in self.formats else "parquet"
        kinds = [*SIMPLE, *(NESTED if "csv" not in self.formats else ())]
        self.columns = sorted(pick.sample(kinds, pick.randint(1, 4)))
        self.partition_by = pick.chance(0.15)
        self.fails = pick.choice([0.0, 0.0, 0.1, 0.3])
        self.most_rows = pick.choice([1, 2, 4])
        self.is_incremental = True if self.by_day else pick.choice([True, True, None])
        self.schema = pick.chance(0.2)
        self.can_clean = pick.chance(0.3)
        self.has_tables = pick.chance(0.1)  # which cost a worker a second, because it imports pandas

    def fields(self) -> Row:
        fields: Row = {"name": "random", "records": self.kind, "max_failures": "100%"}
        if self.kind != "file":
            fields["input"] = {"pattern": "*.json"}
        if self.by_day:
            fields["shards"] = {"by": "date", "path": "{Y}-{m}-{d}"}
        elif self.is_incremental:
            fields["incremental"] = True
        if "allow_empty" in sk.Pipeline.model_fields:
            fields["allow_empty"] = True
        return fields

    def output(self) -> Row:
        fields: Row = {"widen_ints": True}
        if self.partition_by:
            fields["partition_by"] = ["group"]
        if self.schema:
            fields["schema"] = {name: TYPES[name] for name in ("key", "beside", "row", "group", *self.columns)}
        return fields

    def content(self, pick: Pick) -> Content:
        late = pick.chance(0.3)
        rows = [self._row(pick, number, late=late) for number in range(pick.randint(0, self.most_rows))]
        how = pick.choice(["rows", "generator", *(["table", "frame"] if self.has_tables else [])])
        return Content(f"{pick.getrandbits(48):012x}", rows, pick.chance(self.fails), how, pick.randint(0, 9))

    def _row(self, pick: Pick, number: int, *, late: bool) -> Row:
        values: dict[str, Callable[[], Any]] = {
            "int": lambda: pick.randint(-100, 100),
            "float": lambda: pick.randint(-9, 9) / 4,
            "mixed": lambda: pick.choice([1, 2, 3, 0.5, 1.25]),
            "text": lambda: pick.choice(["a", "b,c", 'd"e', "f g", "é\u2028"]),
            "bool": lambda: pick.chance(0.5),
            "date": lambda: pick.choice(DAYS),
            "late": lambda: pick.randint(0, 9),
            "list": lambda: [pick.randint(0, 9) for _ in range(pick.randint(1, 3))],
            "struct": lambda: {"a": pick.randint(0, 9)} | ({"b": "x"} if pick.chance(0.5) else {}),
        }
        row: Row = {"row": number, "group": pick.choice(["a", "b c", "x/y", "é", None] if self.partition_by else ["a"])}
        for name in self.columns:
            if name != "late" or late:
                row[name] = None if pick.chance(0.15) else values[name]()
        return row


@dataclass
class How:
    """The settings that may change from run to run, because a record's rows do not depend on them."""

    format: str
    rows_per_file: int
    target_bytes: int | None
    combine: str | None
    chunks: str
    workers: int

    @classmethod
    def random(cls, pick: Pick, format: str) -> How:
        combine = pick.choice([None] * 10 + ["counted", "filtered", "framed", "nothing", "emptied"])
        return cls(
            format,
            pick.choice([1, 2, 3, 4, 4, 6, 1000]),
            pick.choice([None] * 6 + [600]),
            combine,
            pick.choice(["even", "even", "dynamic", "balanced"]),
            pick.choice([1, 1, 1, 2]),
        )

    def output(self) -> Row:
        return {"format": self.format, "rows_per_file": self.rows_per_file, "target_bytes": self.target_bytes}


# ---- the plain loop -------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """The records of the input, and the rows that the dataset must hold: those of each day as it was last made."""

    shape: Shape
    records: dict[str, Content] = field(default_factory=dict)
    mended: set[str] = field(default_factory=set)
    dataset: dict[str, list[Row]] = field(default_factory=dict)

    def day_of(self, key: str) -> str:
        return key.partition("/")[0] if self.shape.by_day else ""

    def days(self) -> list[str]:
        return sorted({self.day_of(key) for key in self.records})

    def failing(self, days: Iterable[str]) -> set[str]:
        mine = {key: c for key, c in self.records.items() if self.day_of(key) in set(days)}
        return {key for key, content in mine.items() if content.fails and content.id not in self.mended}

    def make(self, days: Iterable[str], how: How, *, drop_others: bool = False) -> None:
        made = {day: self._combined(self._rows(day), how.combine) for day in days}
        self.dataset = made if drop_others else self.dataset | made

    def _rows(self, day: str) -> list[Row]:
        failing = self.failing([day])
        return [
            {"key": key, "beside": content.beside if self.shape.kind != "file" else 0} | row
            for key, content in self.records.items()
            if self.day_of(key) == day and key not in failing
            for row in content.rows
        ]

    @staticmethod
    def _combined(rows: list[Row], combine: str | None) -> list[Row]:
        if combine == "counted":
            return [row | {"n": len(rows)} for row in rows]
        if combine == "filtered":
            return [row for row in rows if row["row"] % 2 == 0]
        if combine == "framed":
            return [{"key": row["key"], "row": row["row"], "group": "all"} for row in rows]
        return [] if combine in {"nothing", "emptied"} else rows

    def rows(self) -> Counter[str]:
        days = {"day_partition": ""} if self.shape.by_day else {}
        return Counter(plain(row | dict.fromkeys(days, day)) for day, rows in self.dataset.items() for row in rows)


def plain(row: Row) -> str:
    """A row in a form that does not depend on the format: without nulls, sorted, with values of the columns' types."""
    return json.dumps({name: _plain(name, value) for name, value in sorted(row.items()) if value is not None})


def _plain(name: str, value: Any) -> Any:
    if name in {"key", "text", "group", "day_partition"}:
        return str(value)
    if name == "bool":
        return str(value).lower()
    if name == "date":
        return value.isoformat() if isinstance(value, datetime.date) else value
    if isinstance(value, dict):
        return {k: v for k, v in sorted(value.items()) if v is not None}
    return value if isinstance(value, list) else float(value)


# ---- the files, read without shardkit -------------------------------------------------------------------------------


def files_of(out: Path) -> dict[str, list[Row]]:
    """The rows of each file that a reader of the folder finds, with the columns that the folders' names hold."""
    rows_by_file = {}
    for path in sorted(out.rglob("*")):
        relative = path.relative_to(out)
        if path.is_file() and relative.parts[0] != "_shardkit":
            named = dict(part.split("=", 1) for part in relative.parts[:-1])
            columns = {name: None if text == HIVE_NULL else unquote(text) for name, text in named.items()}
            rows_by_file[str(relative)] = [row | columns for row in rows_in(path)]
    return rows_by_file


def rows_in(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        return list(pq.ParquetFile(path).read(use_threads=False).to_pylist())
    if path.suffix == ".arrow":
        with pa.OSFile(str(path)) as file:
            return list(pa.ipc.open_file(file).read_all().to_pylist())
    with path.open(newline="") as text:
        if path.suffix == ".csv":
            return [{name: value or None for name, value in row.items()} for row in csv.DictReader(text)]
        return [json.loads(line) for line in text.read().split("\n") if line]


# ---- a pipeline, step by step ---------------------------------------------------------------------------------------


class Difference(Exception):
    """The dataset is not as the plain loop says."""


class Story:
    """A pipeline in a folder of its own, from its first run to its last; ``say`` is called with each step."""

    def __init__(self, seed: int, root: Path, say: Callable[[str], None]) -> None:
        self.pick = Pick(seed)
        self.shape = Shape(self.pick)
        self.how = How.random(self.pick, self.shape.format)
        self.model = Model(self.shape)
        self.root, self.data, self.out = root, root / "data", root / "out"
        self._runs = 0
        self._say = say
        self.data.mkdir(parents=True)
        (root / "mended").mkdir()
        shutil.copy(WORK, root / WORK.name)

    def tell(self) -> None:
        """Run from the beginning to the end.

        Raises:
            Difference: a dataset is not what it should be.
        """
        for _ in range(self.pick.randint(1, 12)):
            self._add()
        self._say(f"{vars(self.shape)}")
        self._step()
        for _ in range(self.pick.randint(2, 5)):
            for _ in range(self.pick.choice([1, 1, 2, 3])):
                self.pick.choice([self._add, self._change, self._remove])()
            if self.pick.chance(0.15):
                other = self.pick.choice(self.shape.formats) if self.pick.chance(0.3) else self.how.format
                self.how = How.random(self.pick, other)
            self._step()

    # ---- the input

    def _add(self) -> None:
        day = f"{self.pick.choice(DAYS)}/" if self.shape.by_day or self.pick.chance(0.5) else ""
        key = f"{day}{self.pick.choice('abcdefghijklmnopqrstuvwxyz')}{self.pick.randint(0, 9)}"
        key += ".json" if self.shape.kind == "file" else ""
        self._write(key, self.shape.content(self.pick))

    def _change(self) -> None:
        self._write(self.pick.choice(sorted(self.model.records)), self.shape.content(self.pick))

    def _remove(self) -> None:
        if len(self.model.records) > 1:
            key = self.pick.choice(sorted(self.model.records))
            self._say(f"  remove {key}")
            del self.model.records[key]
            for path in self._paths(key):
                path.unlink()

    def _write(self, key: str, content: Content) -> None:
        self._say(f"  write {key}: {content}")
        self.model.records[key] = content
        main, *beside = self._paths(key)
        main.parent.mkdir(parents=True, exist_ok=True)
        main.write_text(
            json.dumps({"id": content.id, "rows": content.rows, "fails": content.fails, "how": content.how})
        )
        for path in beside:
            path.write_text(str(content.beside))

    def _paths(self, key: str) -> list[Path]:
        path = self.data / key
        if self.shape.kind == "file":
            return [path]
        if self.shape.kind == "stem":
            return [path.with_name(path.name + ".json"), path.with_name(path.name + ".side")]
        return [path / "main.json", path / "x.side"]

    # ---- the runs

    def _pipeline(self, **changes: Any) -> sk.Pipeline:
        fields = self.shape.fields()
        source = {"function": "random_work:rows", "source_dir": self.root, "workers": self.how.workers}
        source["combine"] = f"random_work:{self.how.combine}" if self.how.combine else None
        places = {
            "input": {"uri": self.data} | fields.pop("input", {}),
            "output": {"uri": self.out} | self.shape.output() | self.how.output(),
        }
        return sk.Pipeline(**(fields | source | places | {"chunks": self.how.chunks} | changes))

    def _step(self) -> None:
        days, before = self.model.days(), self.dataset_format
        some = sorted(self.pick.sample(days, self.pick.randint(1, len(days)))) if self.pick.chance(0.4) else None
        chosen = some if self.shape.by_day and before == self.how.format else None
        from_nothing = self.pick.chance(0.1)
        self._say(f"run {chosen or 'all'}{' from nothing' if from_nothing else ''}: {self.how}")
        run = self._run(chosen, {"incremental": False} if from_nothing else {})
        if run is None:
            return
        self.model.make(
            chosen or days, self.how, drop_others=not chosen and (from_nothing or before != self.how.format)
        )
        self._check("run")
        if run.run_id == self._run_id():  # otherwise there was nothing to do
            self._afterwards(run)
        if self.shape.can_clean and self.pick.chance(0.5):
            self._say("clean")
            sk.clean(self.out, unfinished=self.pick.chance(0.5))
            self._check("clean")

    @property
    def dataset_format(self) -> str | None:
        """The format of the present dataset; None if there is none."""
        current = self.out / "_shardkit" / "current.json"
        return json.loads(current.read_text())["format"] if current.exists() else None

    def _run(self, days: list[str] | None, changes: Row) -> sk.Run | None:
        """Run, perhaps with a failure and a second attempt; None if the run was given up after the failure."""
        self._runs += 1
        broken, fails = self.root / "broken", self.pick.choice(["", "", "", "combine", "budget"])
        if fails == "combine":
            broken.touch()
        if fails == "budget":
            changes = changes | {"max_failures": 0}
        try:
            return self._pipeline(**changes).run(days=days, run_id=self._run_id(), quiet=True)
        except (sk.CombineError, sk.BudgetExceeded, NothingMade) as error:
            self._say(f"  failed: {type(error).__name__}")
        finally:
            broken.unlink(missing_ok=True)
        self._check("a failed run")
        if self.pick.chance(0.3):
            self._say("  given up")
            return None
        self._say("  resume")
        try:
            return sk.open_run(self.out).resume(quiet=True, max_failures="100%")
        except NothingMade as error:
            self._say(f"  failed: {error}")
            return None

    def _run_id(self) -> str:
        return f"run-{self._runs}"

    def _afterwards(self, run: sk.Run) -> None:
        """Retry the quarantine of a run that has made the dataset, and resume it with other settings."""
        run = sk.open_run(self.out, run.run_id)  # by its id, so that only its own quarantine is listed
        days = list(run.folder.plan()["partitions"]) if self.shape.by_day else [""]
        failing = self.model.failing(days)
        if (quarantined := {entry["key"] for entry in run.quarantine()}) != failing:
            raise Difference(f"In quarantine are {sorted(quarantined)}, not {sorted(failing)}.")
        if failing and self.pick.chance(0.5):
            some = sorted(self.pick.sample(sorted(failing), self.pick.randint(1, len(failing))))
            self._say(f"retry, mended are {some}")
            for key in some:
                self.model.mended.add(self.model.records[key].id)
                (self.root / "mended" / self.model.records[key].id).touch()
            run.retry(quiet=True, max_failures="100%")
            self.model.make(days, self.how)
            self._check("retry")
        if self.pick.chance(0.15):
            other = self.how.format if self.shape.by_day else self.pick.choice(self.shape.formats)
            self.how = replace(self.how, format=other, rows_per_file=self.pick.choice([1, 2, 5]), target_bytes=None)
            self._say(f"resume with {self.how.rows_per_file} rows a file of {other}")
            changes = {f"output.{name}": value for name, value in self.how.output().items()}
            run.resume(quiet=True, max_failures="100%", **changes)
            self._check("resume")

    def _check(self, what: str) -> None:
        """Compare the dataset with the plain loop and with the notes about its files.

        Raises:
            Difference: it differs.
        """
        files = files_of(self.out)
        rows, wanted = Counter(plain(row) for found in files.values() for row in found), self.model.rows()
        if rows != wanted:
            more, less = list((rows - wanted).elements()), list((wanted - rows).elements())
            raise Difference(f"After {what}: {len(more)} rows too many, {len(less)} missing: {more[:3]} {less[:3]}")
        current = self.out / "_shardkit" / "current.json"
        listed = json.loads(current.read_text())["files"] if current.exists() else []
        if {file["path"]: file["rows"] for file in listed} != {path: len(found) for path, found in files.items()}:
            raise Difference(f"After {what}: the files are {sorted(files)}, and those listed are {listed}.")
        if listed and not (checked := sk.check(self.out)).ok:
            raise Difference(f"After {what} the dataset is right, but: {checked}")


# ---- many of them ---------------------------------------------------------------------------------------------------


def try_seed(seed: int, say: Callable[[str], None] = lambda text: None, *, folder: Path | None = None) -> str | None:
    """What is wrong with the pipeline of a seed, which has its files below ``folder``; None if nothing is."""
    with tempfile.TemporaryDirectory(prefix="random-pipeline-", dir=folder) as root:
        try:
            Story(seed, Path(root) / "pipeline", say).tell()
        except (Difference, sk.ShardkitError) as error:
            return f"{type(error).__name__}: {error}"
        except Exception:
            return traceback.format_exc()
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Random small pipelines beside a plain loop.")
    parser.add_argument("--count", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed (default 0)")
    given = parser.parse_args()
    begun, failed, say = time.monotonic(), 0, lambda text: sys.stdout.write(f"{text}\n")
    for seed in range(given.first, given.first + given.count):
        fault = try_seed(seed, say if given.count == 1 else lambda text: None)
        if fault is not None:
            failed += 1
            say(f"seed {seed}: {fault}\n  again: python {sys.argv[0]} --count 1 --first {seed}")
    say(f"{given.count} pipelines, {failed} with a difference, in {time.monotonic() - begun:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
