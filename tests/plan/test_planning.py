"""Planning: a pure function of listing and pipeline, fast, and without imports that it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import warm

import shardkit as sk

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import WriteFiles

PACKAGE = Path(sk.__file__).parent


def nothing(record: sk.Record) -> None:
    """A function for runs that are only planned."""


def python(code: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run code in a fresh interpreter; what it prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- a pure function -------------------------------------------------------------------------------------------

MODULE = """
import re
import helpers_for_planning
from package_for_planning.deep import inner

def rows(record):
    return {"key": record.key}

def other(record):
    return None
"""
CODE = {
    "functions_for_planning.py": MODULE,
    "helpers_for_planning.py": "X = 1\n",
    "package_for_planning/__init__.py": "",
    "package_for_planning/deep.py": "from . import deeper\ndef inner(): pass\n",
    "package_for_planning/deeper.py": "Y = 1\n",
    "unrelated.py": "Z = 1\n",
}


@pytest.fixture
def pipeline(files: WriteFiles, tmp_path: Path) -> sk.Pipeline:
    code = files(CODE, "code")
    folder = files({f"p{i % 3}/{i:02d}.{kind}": f"{i}" for i in range(20) for kind in ("hea", "dat")})
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    return sk.Pipeline(
        function="functions_for_planning:rows",
        source_dir=code,
        input={"uri": folder, "pattern": "*.hea"},
        records="stem",
        output=tmp_path / "out",
    )


def test_the_same_input_gives_the_same_plan(pipeline: sk.Pipeline) -> None:
    first, second = pipeline.plan(run_id="a"), pipeline.plan(run_id="a")
    assert first.digest == second.digest
    assert first.records.equals(second.records)
    assert first.content | {"created": None} == second.content | {"created": None}
    assert len({pipeline.plan().digest for _ in range(5)} | {first.digest}) == 1


@pytest.mark.whole
def test_another_process_gives_the_same_plan(pipeline: sk.Pipeline, tmp_path: Path) -> None:
    source = tmp_path / "p.yaml"
    source.write_text(
        "function: functions_for_planning:rows\nsource_dir: code\nrecords: stem\n"
        "input: {uri: data, pattern: '*.hea'}\noutput: out\n"
    )
    code = "import shardkit as sk; print(sk.Pipeline.from_yaml('p.yaml').plan().digest)"
    assert python(code, cwd=tmp_path).strip() == pipeline.plan().digest


def test_a_plan_is_plain_data_and_leaves_nothing_behind(pipeline: sk.Pipeline, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = pipeline.plan()
    assert json.loads(json.dumps(plan.content)) == plan.content
    assert plan.content["totals"]["records"] == 20
    assert plan.content["totals"]["objects_listed"] == 40
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "change",
    [
        {"function": "functions_for_planning:other"},
        {"records": "file"},
        {"chunks": "even"},
        {"shards": {"depth": 1}},
        {"input": {"pattern": "*.dat"}},
        {"input": {"exclude": "p0/**"}},
    ],
    ids=str,
)
def test_another_work_is_another_digest(pipeline: sk.Pipeline, change: dict[str, Any]) -> None:
    assert pipeline.replace(**change).plan().digest != pipeline.plan().digest


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 7},
        {"timeout": 1.5},
        {"timeout": None},
        {"max_failures": 10},
        {"combine": "functions_for_planning:other"},
        {"output": {"format": "csv", "rows_per_file": 5, "target_bytes": "1MB", "partition_by": "key"}},
        {"output": {"widen_ints": True, "schema": {"key": "string"}}},
    ],
    ids=str,
)
def test_how_fast_and_what_pass_2_does_changes_no_digest(pipeline: sk.Pipeline, change: dict[str, Any]) -> None:
    assert pipeline.replace(**change).plan().digest == pipeline.plan().digest


@pytest.mark.parametrize("name", [name for name in CODE if name != "unrelated.py"])
def test_another_source_is_another_digest(pipeline: sk.Pipeline, tmp_path: Path, name: str) -> None:
    before = pipeline.plan().digest
    with (tmp_path / "code" / name).open("a") as file:
        file.write("\nNEW = 1\n")
    assert pipeline.plan().digest != before


def test_a_module_that_is_not_imported_does_not_matter(pipeline: sk.Pipeline, tmp_path: Path) -> None:
    before = pipeline.plan().digest
    (tmp_path / "code" / "unrelated.py").write_text("Z = 2\n")
    assert pipeline.plan().digest == before


BY_VALUE = """
import functools
import shardkit as sk

LIMIT = {0}
def helper(x):
    return x + {0}
def with_helper(record):
    return {{"n": helper(1)}}
def with_limit(record):
    return {{"n": LIMIT}}
def with_argument(record, n):
    return {{"n": n}}
def around(n):
    def inner(record):
        return {{"n": n}}
    return inner
class Stateless:
    def __call__(self, record):
        return {{"n": {0}}}
class Stateful:
    def __init__(self, n):
        self.n = n
    def __call__(self, record):
        return {{"n": self.n}}
    def method(self, record):
        return {{"n": self.n}}

found = [
    lambda record: {{"n": {0}}}, with_helper, with_limit, functools.partial(with_argument, n={0}), around({0}), Stateless,
    Stateless(), Stateful({0}), Stateful({0}).method,
]
for function in found:
    print(sk.Pipeline(function=function, input="data", output="out").plan().digest)
"""


@pytest.mark.whole
def test_what_an_object_that_travels_by_value_is_made_of_matters(files: WriteFiles, tmp_path: Path) -> None:
    files(["a"])

    def digests(value: int, run: Callable[[list[str]], str]) -> list[str]:
        (tmp_path / "script.py").write_text(BY_VALUE.format(value))
        return run(["-c", "import runpy; runpy.run_path('script.py', run_name='__main__')"]).split()

    def forked(words: list[str]) -> str:
        return warm.run(words, cwd=tmp_path, env=os.environ, timeout_s=60).stdout

    one, two = digests(1, forked), digests(2, forked)
    same = digests(1, lambda words: python(words[1], cwd=tmp_path))  # whose hashes of texts are others
    assert len(one) == 9
    assert one == same
    assert not set(one) & set(two)


@pytest.mark.parametrize("change", ["content", "time", "new", "gone", "renamed"])
def test_another_input_is_another_digest(pipeline: sk.Pipeline, tmp_path: Path, change: str) -> None:
    before = pipeline.plan().digest
    path = tmp_path / "data" / "p0" / "00.dat"
    if change == "content":
        path.write_text("longer")
        os.utime(path, (1e9, 1e9))
    elif change == "time":
        os.utime(path, (1e9, 1e9 + 0.001))
    elif change == "new":
        (tmp_path / "data" / "p0" / "00.d0").touch()
    elif change == "gone":
        path.unlink()
    else:
        path.rename(path.with_suffix(".d0"))
    assert pipeline.plan().digest != before


def test_files_that_are_in_no_record_do_not_matter(pipeline: sk.Pipeline, tmp_path: Path) -> None:
    before = pipeline.plan().digest
    (tmp_path / "data" / "lost.dat").touch()
    (tmp_path / "data" / ".hidden").touch()
    assert pipeline.plan().digest == before


# ---- many files -------------------------------------------------------------------------------------------------

PLAN_MANY = """
import json, os, sys, time
import numpy as np, pyarrow as pa
from shardkit.plan.records import build_records
from shardkit.macro import make_plan

n = 150_000
number = np.arange(n)
key = pa.array([f"2024/{i // 100_000 + 1:02d}/{i // 5000 % 20 + 1:02d}/{i // 1000:04d}/3{i // 2:06d}_0001.{'hea' if i % 2 else 'dat'}" for i in number.tolist()],
               pa.large_string())
table = pa.table({"key": key, "bytes": (number * 7919) % 3_000_000, "etag": pa.array(["e"] * n, pa.large_string()),
                  "modified": pa.array(number * 90_000_000, pa.timestamp("us", "UTC"))})
del key, number
for rule, shards, chunks in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        break
    os.waitpid(child, 0)
else:
    sys.exit()
begun = time.process_time()  # what it takes while nothing else is at work
records = build_records(table, records=rule, pattern=("*.hea",) if rule == "stem" else ("*",), shards=shards)
plan = make_plan(records, pipeline={"shards": shards}, function_digest="", chunks=chunks, workers=16, run_id="r",
                 created="now")
seconds = time.process_time() - begun
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(seconds, int(peak.split()[1]) // 1024, len(plan.records), flush=True)
os._exit(0)
"""
MANY: list[tuple[str, dict[str, Any] | None, str]] = [
    ("file", None, "dynamic"),
    ("stem", None, "dynamic"),
    ("stem", {"by": "directory", "depth": 4}, "dynamic"),
    ("file", {"by": "directory", "depth": 4}, "balanced"),
    ("file", {"by": "directory", "depth": 5, "max_jobs": 100}, "dynamic"),
    ("file", {"by": "date", "path": "{Y}/{m}/{d}"}, "dynamic"),
    ("stem", {"by": "date", "column": "modified", "max_jobs": 20}, "dynamic"),
    ("file", {"by": "size", "count": 50}, "dynamic"),
    ("stem", {"by": "size", "target": 10**10}, "dynamic"),
    ("file", {"by": "s3key", "instances": 20}, "dynamic"),
]


@pytest.fixture(scope="module")
def planned() -> list[str]:
    """What planning 150,000 files took, each way in a process of its own, all of the same listing."""
    lines = python(PLAN_MANY, json.dumps(MANY)).splitlines()
    assert len(lines) == len(MANY)
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("way", range(len(MANY)), ids=lambda way: "-".join(map(str, MANY[way])))
def test_many_files_become_records_and_a_plan(planned: list[str], way: int) -> None:
    records = MANY[way][0]
    seconds, megabytes, count = map(float, planned[way].split())
    assert count == (75_000 if records == "stem" else 150_000)
    assert seconds < 0.75  # 5 for a million
    assert megabytes < 170  # of which 85 are there before; 700 for a million


@pytest.mark.slow
def test_ten_thousand_real_files(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    for i in range(10):
        (tmp_path / "data" / f"{i:02d}").mkdir(parents=True)
        for j in range(1000):
            os.link(tmp_path / "one", tmp_path / "data" / f"{i:02d}" / f"{j}.txt")  # far faster than to make a file
    code = (
        "import time; import shardkit as sk; begun = time.process_time();"
        "plan = sk.Pipeline(function='os.path:basename', input='data', output='out').plan();"
        "seconds = time.process_time() - begun;"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:'));"
        "print(seconds, int(peak.split()[1]) / 1024, len(plan.records))"
    )
    seconds, megabytes, count = map(float, python(code, cwd=tmp_path).split())
    assert count == 10_000
    assert seconds < 0.5  # 3 for a hundred thousand
    assert megabytes < 200


# ---- what is imported ------------------------------------------------------------------------------------------


def loaded_after(code: str, cwd: Path | None = None) -> set[str]:
    """The top-level packages that are loaded when some code has run."""
    names = python(f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules))", cwd=cwd).splitlines()[-1].split()
    return {name.partition(".")[0] for name in names}


def test_importing_the_package_costs_next_to_nothing() -> None:
    heavy = {"numpy", "pyarrow", "pandas", "joblib", "pydantic", "yaml", "click", "rich", "cloudpickle", "boto3"}
    heavy |= {"duckdb", "awswrangler"}
    assert not loaded_after("import shardkit") & heavy
    assert not loaded_after("import shardkit; shardkit.ShardkitError, shardkit.Record") & heavy


@pytest.mark.whole
def test_all_is_what_works() -> None:
    assert sorted(sk.__all__) == sk.__all__
    assert dir(sk) == sk.__all__
    for name in sk.__all__:
        value = getattr(sk, name)
        home = value.__name__ if name == "jobs" else getattr(value, "__module__", "")
        assert name == "__version__" or home.startswith("shardkit.")
    given: dict[str, Any] = {}
    exec("from shardkit import *", given)
    assert given.keys() - {"__builtins__"} == set(sk.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sk.nonsense  # noqa: B018


def test_all_errors_are_public() -> None:
    import shardkit.errors

    errors = {
        name for name, value in vars(shardkit.errors).items() if getattr(value, "__module__", "") == "shardkit.errors"
    }
    assert errors <= set(sk.__all__)


@pytest.mark.whole
def test_planning_needs_neither_boto3_nor_pandas(files: WriteFiles, tmp_path: Path) -> None:
    files(
        {
            "functions_for_imports.py": "import pandas\ndef rows(record):\n    return None\n",
            "data/a.hea": "",
            "data/ü.dat": "",
        },
        "",
    )
    code = (
        "import shardkit as sk; sk.Pipeline(function='functions_for_imports:rows', input='data', output='out',"
        "records='stem', shards={'depth': 1}).plan()"
    )
    assert not loaded_after(code, tmp_path) & {"boto3", "botocore", "pandas", "rich", "click", "functions_for_imports"}
