"""Checks before the switch: what they find, what stays aside, and what becomes of it whoever dies."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import warm
from crashing import TESTS, environment
from in_process import InProcess

import shardkit as sk
from shardkit.dataset.current import current_result
from shardkit.dataset.read import open_dataset
from shardkit.runs.checked import results_of_checks
from shardkit.runs.clean import HELD
from shardkit.storage.local_folder import LocalFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

WORK = """
import json
from pathlib import Path

def features(record):
    version = Path(__file__).with_name("version")
    return {"key": record.key, "version": version.read_text() if version.exists() else ""}

def rows(record):
    return json.loads(Path(record).read_text())
"""


class World:
    """An input whose files are the rows themselves, and a pipeline with checks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        (root / "data").mkdir(parents=True, exist_ok=True)
        (root / "work.py").write_text(WORK)

    def put(self, **rows: list[dict[str, Any]]) -> None:
        for name, content in rows.items():
            path = self.root / "data" / f"{name.replace('day', '2026-01-0')}.json"
            path.write_text(json.dumps(content))

    def pipeline(self, checks: Any, **fields: Any) -> sk.Pipeline:
        defaults = {"name": "checked", "workers": 1, "source_dir": self.root, "output": self.out}
        return sk.Pipeline(function="work:rows", input=self.root / "data", checks=checks, **(defaults | fields))

    def run(self, checks: Any, **fields: Any) -> sk.Run:
        return self.pipeline(checks, **fields).run(quiet=True)

    def failing(self, checks: Any, **fields: Any) -> sk.Run:
        with pytest.raises(sk.errors.ChecksFailed) as caught:
            self.run(checks, **fields)
        assert caught.value.exit_code == 3
        assert caught.value.run is not None
        return caught.value.run

    def dataset(self) -> list[dict[str, Any]]:
        """The rows that a mere reader finds; opening a run would finish a switch that is under way."""
        folder = LocalFolder(self.out)
        result = current_result(folder)
        return open_dataset(folder, result).to_table().to_pylist() if result else []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def shardkit(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process."""
    return functools.partial(InProcess(monkeypatch), world.root)


def many(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"t{n}", **more} for n in range(count)]


@pytest.mark.whole
def test_the_checks_by_name_pass_and_fail_as_they_say(world: World) -> None:
    checks = {"rows_within": "20%", "no_new_nulls": ["id", "text"], "unique": ["id", "text"], "same_types": True}
    world.put(a=many(10), b=[{"id": None, "text": "x"}])
    named = "  checks   rows_within 20%; no_new_nulls id, text; unique id, text; same_types"
    assert named in str(world.pipeline(checks).plan()).splitlines()
    run = world.failing(checks)
    assert run.checks().query("not passed")["name"].tolist() == ["no_new_nulls: id"], "the first run has nothing before"
    world.run({"rows_within": "20%"})
    assert world.run(checks).checks()["passed"].all(), "as many rows, and no more nulls"
    world.put(b=[*many(3), {"id": None, "text": None}, {"id": None, "text": "y"}])
    found = {row["name"]: row for row in world.failing(checks).checks().to_dict("records")}
    assert found["rows_within"]["sample"] == [{"rows": 15, "rows_before": 11}]
    assert found["no_new_nulls: id"]["message"] == "2 nulls in id, and 1 before"
    assert found["no_new_nulls: text"]["sample"] == [{"id": None, "text": None}]
    assert (found["unique: id, text"]["offending"], found["unique: id, text"]["passed"]) == (3, False), "not the nulls"
    assert found["same_types"]["passed"]
    world.put(a=[{"id": str(n)} for n in range(12)], b=[])
    run = world.failing({"same_types": True, "unique": "text"})
    assert run.checks()["sample"].tolist()[0] == [
        {"column": "id", "type": "string", "type_before": "int64"},
        {"column": "text", "type": None, "type_before": "string"},
    ]
    assert run.checks()["message"].tolist()[1] == "there is no column text"


def test_a_query_returns_offending_rows_or_a_single_verdict(world: World) -> None:
    world.put(a=many(8))
    world.run({"sql": {"nothing before": "SELECT count(*) = 0 FROM old"}})
    world.put(a=many(9, note="n" * 300))
    queries = {
        "rows": "SELECT id, note FROM new WHERE id >= 2",
        "none": "SELECT * FROM new WHERE id < 0",
        "yes": "SELECT (SELECT count(*) FROM new) > (SELECT count(*) FROM old)",
        "no": "SELECT count(*) > 100 FROM new",
        "null": "SELECT NULL::BOOLEAN",
        "joined": "SELECT id FROM new ANTI JOIN old USING (id)",
        "wrong": "SELECT nowhere FROM new",
        "outside": f"SELECT * FROM '{world.out}/*.parquet'",
    }
    found = {row["name"]: row for row in world.failing({"sql": queries}).checks().to_dict("records")}
    assert {name.removeprefix("sql: ") for name, row in found.items() if row["passed"]} == {"none", "yes"}
    assert found["sql: rows"]["offending"] == 7 and len(found["sql: rows"]["sample"]) == 5
    assert (
        found["sql: rows"]["sample"][0]["note"].endswith("n...") and len(found["sql: rows"]["sample"][0]["note"]) == 203
    )
    assert found["sql: joined"]["sample"] == [{"id": 8}]
    assert "nowhere" in found["sql: wrong"]["message"] and "cannot be answered" in found["sql: outside"]["message"]
    assert len(world.dataset()) == 8


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({}, "checks: there is no check in it; known are rows_within"),
        ({"rows_within": 0.2}, r"checks\.rows_within: expected a share such as 20%"),
        ({"uniqe": "id"}, "did you mean unique"),
        ({"sql": {"a": "SELEC 1"}}, r"checks\.sql\.a is no SQL: Parser Error"),
        ({"sql": {"a": "SELECT 1; SELECT 2"}}, r"checks\.sql\.a: a check is one SELECT"),
        ({"sql": {"a": "DROP TABLE new"}}, r"checks\.sql\.a: a check is one SELECT"),
        (
            {"unique": "id", "format": "webdataset"},
            r"checks: unique needs files that are read as a table; output\.format is webdataset",
        ),
    ],
)
def test_checks_that_are_none_are_refused_before_anything_runs(world: World, checks: Any, message: str) -> None:
    world.put(a=many(1))
    form = checks.pop("format", "parquet") if isinstance(checks, dict) else "parquet"
    with pytest.raises(sk.PipelineError, match=message):
        world.pipeline(checks, output={"uri": world.out, "format": form}).plan()
    assert not world.out.exists()


@pytest.mark.whole
def test_files_kept_aside_are_accepted_or_replaced_by_a_later_run(
    world: World, shardkit: Callable[..., Result]
) -> None:
    checks = {"sql": {"small": "SELECT * FROM new WHERE id > 4"}}
    world.put(a=many(5))
    world.run(checks)
    world.put(a=many(6))
    run = world.failing(checks)
    assert len(world.dataset()) == 5
    shown = shardkit("checks", "out", code=3).stdout
    assert "1 failed: sql: small; the new files are kept aside" in shown and 'id=5, text="t5"' in shown
    status = json.loads(shardkit("status", "out", "--json").stdout)
    assert status["checks"] == {"passed": 0, "failed": ["sql: small"], "accepted": None, "held": True}
    assert status["status"] == "failed"
    assert HELD in shardkit("clean", "out").stdout, "clean keeps what may be accepted"
    run.report(world.root / "page.html")
    assert "Checks of the new files" in (world.root / "page.html").read_text()
    shardkit("checks", "out", "--accept", "--quiet")
    assert len(world.dataset()) == 6
    assert sk.check(world.out).ok
    assert shardkit("checks", "out").stdout.startswith(
        f"Checks of run {run.run_id}: 0 passed, 1 failed: sql: small; accepted"
    )
    assert "nothing is kept aside" in shardkit("checks", "out", "--accept", code=2).stderr
    assert not list((world.out / "_shardkit" / "runs" / run.run_id / "dataset").rglob("*.parquet"))


def test_a_later_run_overtakes_what_is_kept_aside(world: World, shardkit: Callable[..., Result]) -> None:
    checks = {"sql": {"small": "SELECT * FROM new WHERE id > 4"}}
    world.put(a=many(6))
    held = world.failing(checks)
    world.put(a=many(3))
    world.run(checks)
    with pytest.raises(sk.PlanMismatch, match=r"was switched by run .* since these files were checked"):
        held.accept(quiet=True)
    assert len(world.dataset()) == 3
    assert "1 run" in shardkit("clean", "out").stdout
    assert not (world.out / "_shardkit" / "runs" / held.run_id / "plan.json").exists()


def test_files_kept_aside_that_are_gone_are_made_again(world: World) -> None:
    checks = {"sql": {"small": "SELECT * FROM new WHERE id > 4"}}
    world.put(a=many(5))
    world.run(checks)
    world.put(a=many(6))
    held = world.failing(checks)
    next((world.out / "_shardkit" / "runs" / held.run_id / "dataset").rglob("*.parquet")).unlink()
    with pytest.raises(sk.errors.Damaged, match=r"no longer among the files that are kept aside\. Merge and check"):
        held.accept(quiet=True)
    assert len(world.dataset()) == 5
    with pytest.raises(sk.errors.ChecksFailed):
        held.resume(quiet=True)
    held.accept(quiet=True)
    assert len(world.dataset()) == 6


def test_a_resumed_run_checks_again(world: World) -> None:
    world.put(a=many(6))
    run = world.failing({"unique": "id", "sql": {"small": "SELECT * FROM new WHERE id > 4"}})
    with pytest.raises(sk.errors.ChecksFailed):
        run.resume(quiet=True)
    assert [row["passed"] for row in results_of_checks(run.folder)] == [True, False]
    run.resume(quiet=True, checks={"unique": "id"})
    assert len(world.dataset()) == 6 and run.checks()["passed"].all()


DAYS = {"shards": {"by": "date", "path": "{Y}-{m}-{d}"}, "name": "feed"}


@pytest.mark.whole
def test_days_are_checked_and_accepted_by_themselves(world: World) -> None:
    checks = {"rows_within": "50%", "unique": "id", "sql": {"small": "SELECT * FROM new WHERE id > 90"}}
    world.put(day1=many(10), day2=many(12))
    world.run(None, **DAYS)
    world.put(day3=many(11))
    assert world.run({"rows_within": "50%", "unique": "id"}, **DAYS).checks()["passed"].all(), "as day 2 has"
    world.put(day2=many(2), day4=[{"id": 91, "text": "x", "extra": 1}])
    held = world.failing(checks, **DAYS)
    found = {row["name"]: row for row in held.checks().to_dict("records")}
    assert found["rows_within"]["sample"] == [
        {"day": "2026-01-02", "compared_with": "2026-01-02", "rows": 2, "rows_before": 12},
        {"day": "2026-01-04", "compared_with": "2026-01-03", "rows": 1, "rows_before": 11},
    ]
    assert found["unique: id"]["passed"], "days that stay are not new"
    assert len(world.dataset()) == 33
    world.put(day1=many(9))
    world.pipeline(None, **DAYS).run(days=["2026-01-01"], quiet=True)
    held.accept(quiet=True)  # another run has switched another day meanwhile
    rows = world.dataset()
    assert len(rows) == 9 + 2 + 11 + 1
    assert {row["extra"] for row in rows} == {None, 1}, "files of other days have the new column"
    assert sk.check(world.out).ok
    world.put(day4=many(2, extra=2))
    held = world.failing({"sql": {"never": "SELECT false"}}, **DAYS)
    world.put(day4=many(3, extra=2))
    world.run(None, **DAYS)
    with pytest.raises(sk.PlanMismatch, match="2026-01-04 has been rebuilt by run"):
        held.accept(quiet=True)


@pytest.mark.whole
def test_jobs_check_and_their_driver_says_so(world: World) -> None:
    world.put(a=many(3))
    held = world.failing({"sql": {"never": "SELECT * FROM new"}}, engine="local", requirements_mode="none")
    assert held.checks()["offending"].tolist() == [3]
    assert held.summary().status == "failed" and not world.dataset()
    merge = next(job for job in held.jobs() if "merge" in job["job"])
    assert (merge["status"], len(merge["attempts"])) == ("Failed", 1), "another attempt would find the same"
    assert "1 of 1 check failed: sql: never" in merge["reason"], "which notices repeat"
    assert held.accept(quiet=True).summary().status == "done"
    assert len(world.dataset()) == 3


@pytest.mark.parametrize("format", ["csv", "jsonl", "arrow"])
def test_partitions_of_other_formats(world: World, format: str) -> None:
    output = {"uri": world.out, "format": format, "partition_by": "kind"}
    checks = {"unique": ["kind", "id"], "no_new_nulls": "id", "sql": {"kinds": "SELECT * FROM new WHERE kind = 'b'"}}
    world.put(a=many(3, kind="a"), b=many(2, kind="c"))
    assert world.run(checks, output=output).checks()["passed"].all()
    world.put(b=[*many(2, kind="b"), {"id": None, "text": None, "kind": "c"}])
    held = world.failing(checks, output=output)
    assert held.checks()["passed"].tolist() == [False, True, False]
    assert [row["id"] for row in held.checks()["sample"].tolist()[2]] == [0, 1]
    held.accept(quiet=True)
    assert len(world.dataset()) == 6
    assert sk.check(world.out).ok


def test_a_dataset_without_rows(world: World) -> None:
    world.put(a=[])
    checks = {"rows_within": "5%", "same_types": True, "sql": {"rows": "SELECT count(*) = 0 FROM new"}}
    assert world.run(checks, allow_empty=True).checks()["passed"].all()
    world.put(a=many(2))
    assert world.failing(checks).checks()["passed"].tolist() == [False, True, False]
    assert world.dataset() == []


def test_in_a_bucket(world: World, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": s3_url}
    for name, value in known.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"checks-{os.getpid()}"
    client = boto3.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket=bucket)
    output = f"s3://{bucket}/out"
    world.put(day1=many(2), day2=many(3))
    world.run(None, output=output, **DAYS)
    world.put(day2=many(1), day3=many(1))
    held = world.failing({"rows_within": "10%"}, output=output, **DAYS)
    assert held.checks()["offending"].tolist() == [2]
    assert sk.open_run(output).summary().checks["held"]
    held.accept(quiet=True)
    assert sk.read_sql("SELECT count(*) AS n FROM dataset", output)["n"].tolist() == [4]
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert not [key for key in keys if "/generation-" in key]
    assert sk.check(output).ok


# ---- whoever dies


@pytest.fixture(scope="module")
def after_first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world whose dataset has passed its checks, and whose next version will not."""
    world = World(tmp_path_factory.mktemp("held") / "world")
    world.put(a=many(1), b=many(1))
    (world.root / "version").write_text("first")
    assert steps(world.root, 0, "checked", "first") == (0, ["checks", *SWITCH[:4], "tidy", "unlink"])
    (world.root / "version").write_text("second")
    return world.root


@pytest.fixture(scope="module")
def with_held(after_first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same world after its next version has failed its checks."""
    root = tmp_path_factory.mktemp("held") / "world"
    shutil.copytree(after_first, root)
    code, _ = steps(root, 0, "checked", "second")
    assert code != 0 and [row["version"] for row in World(root).dataset()] == ["first", "first"]
    return root


@pytest.fixture(scope="module")
def before(with_held: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """What is left where a process is killed before a step of accepting these files, by the step's number."""
    root = tmp_path_factory.mktemp("accepted") / "world"
    shutil.copytree(with_held, root)
    code, made = steps(root, 0, "accept", "second", how="copy")
    # The old file and what was staged go side by side.
    assert (code, [*made[:4], *sorted(made[4:6]), *made[6:]]) == (0, [*SWITCH, "checks"])
    return lambda step: root.with_name(f"world-before-{step}")


SWITCH = ["note", "publish", "write", "note", "remove", "tidy", "unlink"]


def steps(root: Path, step: int, action: str, version: str, *, how: str = "kill") -> tuple[int, list[str]]:
    arguments = [str(step), how, action, str(root), version]
    done = warm.run([TESTS / "switch_steps.py", *arguments], env=environment(), timeout_s=60)
    return done.returncode, done.stdout.split()


@pytest.mark.whole
@pytest.mark.parametrize("step", range(1, len(SWITCH) + 2))
def test_killed_while_files_are_accepted_the_dataset_is_the_old_or_the_new(
    before: Callable[[int], Path], tmp_path: Path, step: int
) -> None:
    shutil.copytree(before(step), tmp_path / "world")
    world = World(tmp_path / "world")
    switched = step > SWITCH.index("note", 1) + 1
    assert {row["version"] for row in world.dataset()} == {"second" if switched else "first"}
    run = sk.open_run(world.out, "second")  # a switch that had begun is finished
    noted = step > len(SWITCH) + 1
    with pytest.raises(sk.RunNotFound) if noted else contextlib.nullcontext():
        run.accept(quiet=True)
    assert {row["version"] for row in world.dataset()} == {"second"}
    assert run.summary().status == "done" and run.summary().checks["accepted"] and not run.summary().checks["held"]
    assert sk.check(world.out).ok


@pytest.mark.whole
def test_killed_before_the_checks_are_noted_the_run_is_merged_and_checked_again(
    after_first: Path, tmp_path: Path
) -> None:
    shutil.copytree(after_first, tmp_path / "world")
    world = World(tmp_path / "world")
    assert steps(world.root, 1, "checked", "second")[0] == -signal.SIGKILL
    run = sk.open_run(world.out, "second")
    with pytest.raises(sk.RunNotFound, match="nothing is kept aside"):
        run.accept(quiet=True)
    assert run.summary().status == "interrupted"
    with pytest.raises(sk.errors.ChecksFailed):
        run.resume(quiet=True)
    assert {row["version"] for row in world.dataset()} == {"first"}
    run.accept(quiet=True)
    assert {row["version"] for row in world.dataset()} == {"second"}
