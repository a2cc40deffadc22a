"""Any file of a dataset of days, damaged in any way, before any command: rows stay, or the error names the file."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from shardkit.cli.app import cli

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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Days:
    return Days.make(tmp_path_factory.mktemp("days"))


def try_all(finished: Days, tmp_path: Path, commands: tuple[str, ...], count: int, seed: int) -> None:
    """Try so many random cases, and report all that go wrong."""
    choice = random.Random(seed)
    state = finished.out / STATE
    kinds: dict[str, list[str]] = {}  # there are more markers than plans, which are to be hit as often
    for path in sorted(state.rglob("*.json")) + sorted(state.rglob("*.parquet")):
        name = str(path.relative_to(finished.out))
        kinds.setdefault(re.sub(r"\d{4,}", "", name), []).append(name)
    wrong = []
    for number in range(count):
        name = choice.choice(choice.choice(list(kinds.values())))
        damages = DAMAGES if name.endswith(".json") else [how for how in DAMAGES if how != "newer"]
        case = Case(name, choice.choice(damages), commands[number % len(commands)])
        days = finished.copy(tmp_path / str(number))
        days.damage(case, choice)
        try:
            see_that_rows_stay(days, case)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
        shutil.rmtree(days.out)
    told_of = "\n".join(wrong)
    assert not wrong, f"seed {seed}:\n{told_of}"


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


A_FEW = pytest.param(24, 4, 1, id="a few")
MANY = pytest.param(150, 24, 2, id="many", marks=pytest.mark.slow)


@pytest.mark.whole
@pytest.mark.parametrize(("looks", "works", "seed"), [A_FEW, MANY])
def test_a_damaged_file_costs_no_row(finished: Days, tmp_path: Path, looks: int, works: int, seed: int) -> None:
    try_all(finished, tmp_path, LOOKING, count=looks, seed=seed)
    try_all(finished, tmp_path, WORKING, count=works, seed=seed)
