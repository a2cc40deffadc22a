"""Any file of a dataset of days, damaged in any way, before any command: rows stay, or the error names the file."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from one_database import one_database

from shardkit.cli.app import cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

pytestmark = pytest.mark.whole
WORK = """
def rows(record):
    number = int(record.path.read_text())
    return [{"n": number, "i": i} for i in range(20)]
"""
BEFORE, AFTER = (sorted((n, i) for n in range(1, end) for i in range(20)) for end in (9, 10))
DAMAGES = ("cut", "empty", "garbage", "{}", "gone", "newer", "flipped")
LOOKING = ("status", "failures", "query", "check", "clean", "plan")
WORKING = ("run", "resume", "retry", "schedule")
STATE = "_shardkit"
# Of two hundred random cases those that together take every branch of the program that all of them take.
CHOSEN = """\
current.json newer check
runs/one/contents.json newer check
runs/one/markers/00002/000000-0001.json newer check
runs/one/parts/00000/000001-0001.parquet cut check
runs/one/parts/00002/000000-0001.parquet flipped check
runs/one/plan.json cut check
runs/two/contents.json empty check
runs/two/markers/00000/000000-0001.json {} check
current.json {} clean
latest.json empty clean
runs/one/plan.json gone clean
runs/one/progress/all-0001.json newer clean
runs/one/result.json cut clean
runs/one/result.json newer clean
runs/two/plan.json empty clean
runs/two/markers/00000/000000-0001.json flipped failures
runs/two/plan.json empty failures
runs/two/records.parquet garbage failures
runs/one/records.parquet garbage plan
runs/two/markers/00000/000001-0001.json newer plan
runs/two/plan.json cut plan
runs/two/records.parquet flipped plan
runs/two/result.json newer plan
current.json gone query
runs/two/progress/all-0001.json {} resume
runs/two/result.json newer resume
runs/two/result.json gone retry
runs/two/parts/00000/000000-0001.parquet {} run
runs/two/contents.json empty schedule
runs/two/result.json flipped schedule
runs/two/plan.json gone status
runs/two/records.parquet gone status
runs/two/result.json gone status
"""


class Case(NamedTuple):
    """One file, how it is damaged, and the command that meets it."""

    name: str
    how: str
    command: str


class Days:
    """An input of four days, and a dataset that two runs have made of it; since then a record was added."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"

    @classmethod
    def make(cls, root: Path) -> Days:
        days = cls(root)
        (root / "damaged_days.py").write_text(WORK)
        days.write_pipeline()
        for first, last, run_id in ((1, 6, "one"), (7, 8, "two"), (9, 9, None)):
            for number in range(first, last + 1):
                folder = root / f"data/2020-01-{min((number + 1) // 2, 4):02}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number}.txt").write_text(str(number))
            if run_id:
                code, text = told(["run", str(days.yaml), "--run-id", run_id])
                assert code == 0, text
        return days

    @property
    def yaml(self) -> Path:
        return self.out.parent / "pipeline.yaml"

    def write_pipeline(self) -> None:
        fields = {
            "function": "damaged_days:rows",
            "source_dir": str(self.root),
            "input": str(self.root / "data"),
            "output": str(self.out),
            "shards": {"by": "date", "path": "{Y}-{m}-{d}"},
            "incremental": True,
            "schedule": "3h",
            "workers": 1,
        }
        self.yaml.write_text(json.dumps(fields))

    def copy(self, to: Path) -> Days:
        made = Days(self.root)
        made.out = to / "out"
        shutil.copytree(self.out, made.out, copy_function=os.link)  # nothing is written in place
        made.write_pipeline()
        return made

    def rows(self) -> list[tuple[int, int]]:
        """The rows that any reader of the folder finds."""
        tables = [pq.ParquetFile(path).read() for path in self.out.glob("day_partition=*/*.parquet")]
        return sorted((row["n"], row["i"]) for table in tables for row in table.to_pylist())

    def damage(self, case: Case, choice: random.Random) -> None:
        path = self.out / case.name
        data = path.read_bytes()
        path.unlink()  # the other copies have it, too
        if case.how == "gone":
            return
        if case.how == "newer":
            path.write_bytes(json.dumps(json.loads(data) | {"version": 99}).encode())
        elif case.how == "flipped":
            at = choice.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << choice.randrange(8)]) + data[at + 1 :])
        else:
            known = {"cut": data[: choice.randrange(len(data))], "empty": b"", "garbage": b"\x00\xff\x80 garbage"}
            path.write_bytes(known.get(case.how, case.how.encode()))

    def arguments(self, command: str) -> list[str]:
        out, yaml = str(self.out), str(self.yaml)
        return {
            "query": ["query", "select n, i from dataset order by all", out, "--format", "json"],
            "plan": ["plan", yaml],
            "run": ["run", yaml],
            "schedule": ["schedule", "run", yaml, "--once"],
        }.get(command, [command, out])


def told(arguments: list[str]) -> tuple[int, str]:
    """The output of a command, in which there must be no traceback."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.output
    return done.exit_code, done.output


@pytest.fixture(autouse=True, scope="module")
def _one_database() -> Iterator[None]:
    with one_database():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days.make(tmp_path_factory.mktemp("days"))


def see_that_rows_stay_in_all(finished: Days, tmp_path: Path, cases: Iterable[Case]) -> None:
    """Try the cases, and report all that go wrong."""
    wrong = []
    for number, case in enumerate(cases):
        days = finished.copy(tmp_path / str(number))
        days.damage(case, random.Random(" ".join(case)))
        try:
            see_that_rows_stay(days, case)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
        shutil.rmtree(days.out)
    assert not wrong, "\n".join(wrong)


def random_cases(finished: Days, commands: tuple[str, ...], count: int, seed: int) -> Iterator[Case]:
    """So many random cases."""
    choice = random.Random(seed)
    state = finished.out / STATE
    kinds: dict[str, list[str]] = {}  # there are more markers than plans, which are to be hit as often
    for path in sorted(state.rglob("*.json")) + sorted(state.rglob("*.parquet")):
        name = str(path.relative_to(finished.out))
        kinds.setdefault(re.sub(r"\d{4,}", "", name), []).append(name)
    for number in range(count):
        name = choice.choice(choice.choice(list(kinds.values())))
        damages = DAMAGES if name.endswith(".json") else [how for how in DAMAGES if how != "newer"]
        yield Case(name, choice.choice(damages), commands[number % len(commands)])


def see_that_rows_stay(days: Days, case: Case) -> None:
    code, text = told(days.arguments(case.command))
    made_anew = case.command in {"run", "schedule"}
    assert days.rows() == (AFTER if made_anew and code == 0 else BEFORE), f"other rows after: {text}"
    if code:
        assert code == 1 or case.command == "check", text
        assert Path(case.name).name in text or Path(case.name).stem in text, f"does not name the file: {text}"
    elif case.command == "query":
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        assert [(row["n"], row["i"]) for row in found] == BEFORE, text


@pytest.mark.whole
def test_a_damaged_file_costs_no_row(finished: Days, tmp_path: Path) -> None:
    cases = [Case(f"{STATE}/{name}", how, command) for name, how, command in map(str.split, CHOSEN.splitlines())]
    see_that_rows_stay_in_all(finished, tmp_path, cases)


@pytest.mark.whole
def test_a_file_that_is_damaged_at_random_costs_no_row(finished: Days, tmp_path: Path) -> None:
    cases = [*random_cases(finished, LOOKING, 12, seed=1), *random_cases(finished, WORKING, 4, seed=1)]
    see_that_rows_stay_in_all(finished, tmp_path, cases)
