"""Whatever chunks are handed to, a run is what it is on this machine."""

from __future__ import annotations

import io
import re
import signal
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import zoo
from crashing import LINUX, Project, check_ledger, dying, rows_of, wait_for

import shardkit as sk

if TYPE_CHECKING:
    from loopback_clusters import System

pytestmark = LINUX
HERE = {"backend": "shardkit", "n_jobs": 2}
TIMEOUT_S = 8  # more than any record but the one that sleeps takes, on a busy machine too
BAD = ("raises", "exits", "leaves", "segfaults", "is_killed", "sleeps", "runs_out_of_memory", "returns_unusable")
ZOO = Path(zoo.__file__).read_text()
STRICT = """
import time
from pathlib import Path

def features(record):
    text = Path(record).read_text()
    if text.startswith("slow"):
        time.sleep(0.05)
    if text.startswith("bad"):
        raise ValueError(f"{record.key} is bad")
    return [{"key": record.key, "row": i} for i in range(2)]
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write_function(STRICT)
    return made


def zoo_run(root: Path, parallel: dict[str, Any]) -> sk.Run:
    """A run over good records, between which there are such as end their worker's process, or worse."""
    project = Project(root)
    project.write_function(ZOO)
    project.write_records(zoo.content(BAD[i // 4] if i % 4 == 1 else "good") for i in range(4 * len(BAD)))
    return project.run(parallel=parallel, max_failures="100%", timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def zoo_here(tmp_path_factory: pytest.TempPathFactory) -> sk.Run:
    """The run on this machine."""
    return zoo_run(tmp_path_factory.mktemp("zoo-here"), HERE)


@pytest.fixture(scope="module")
def zoo_there(system: System, zoo_here: sk.Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[sk.Run, bool]:
    """The same run elsewhere, and whether the nodes have lived through it."""
    if system.parallel == HERE:
        return zoo_here, True
    before = system.pids()
    return zoo_run(tmp_path_factory.mktemp("zoo-there"), system.parallel), system.pids() == before


@pytest.mark.slow
def test_bad_records_cost_neither_others_nor_a_node(zoo_there: tuple[sk.Run, bool], zoo_here: sk.Run) -> None:
    run, nodes_live = zoo_there
    assert nodes_live
    rows = rows_of(run)
    assert rows == rows_of(zoo_here)
    assert {row["key"] for row in rows} == {f"r{i:03d}.txt" for i in range(4 * len(BAD)) if i % 4 > 1}
    summary = check_ledger(run)
    assert summary.records == {"listed": 32, "done": 24, "quarantined": 8, "skipped": 0}


@pytest.mark.slow
def test_the_quarantine_is_that_of_one_machine(zoo_there: tuple[sk.Run, bool], zoo_here: sk.Run) -> None:
    entries, expected = zoo_there[0].quarantine(), zoo_here.quarantine()
    assert list(map(told, entries)) == list(map(told, expected))
    assert len(entries) == len(BAD)


def told(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What a quarantine entry says, but for measurements and paths."""
    message = re.sub(r"[\d,]+ MB", "N MB", entry["message"])
    return entry["record"], entry["key"], entry["error"], entry["signal"], message, entry["bytes"], entry["attempt"]


@pytest.mark.slow
def test_a_run_over_budget_stops_and_goes_on_with_more(system: System, project: Project) -> None:
    project.write_records(["bad", "slow"] * 80)
    with pytest.raises(sk.BudgetExceeded, match="records are quarantined"):
        project.run(parallel=system.parallel, max_failures=2)
    run = sk.open_run(project.out)
    assert run.summary().status == "failed"
    assert project.data_files() == []
    assert len(run.quarantine()) > 2
    done = len(project.markers())
    run.resume(max_failures="100%", quiet=True)
    assert len(project.markers()) >= done
    assert check_ledger(run).records == {"listed": 160, "done": 80, "quarantined": 80, "skipped": 0}
    assert [row["key"] for row in project.rows()][::2] == [f"r{i:03d}.txt" for i in range(1, 160, 2)]


@pytest.mark.slow
def test_an_interrupted_run_stops_soon_and_is_resumed(system: System, project: Project) -> None:
    project.write_records(["slow"] * 160)
    with dying(project.start(*system.arguments(project, run_id="x"))) as command:
        wait_for(lambda: list(project.out.glob("_shardkit/runs/*/markers/*/*")))
        assert sk.open_run(project.out).summary().status == "running"
        begun = time.monotonic()
        command.process.send_signal(signal.SIGINT)
        ended = command.wait()
    assert time.monotonic() - begun < 12, "it waits for the records in flight alone"
    assert ended.code == sk.RunInterrupted.exit_code, ended.stderr
    assert "Traceback" not in ended.stderr
    summary = sk.open_run(project.out).summary()
    assert summary.status == "interrupted"
    assert 0 < summary.records["done"] < 160, "what is done is committed"
    done_before = {path.name: path.read_bytes() for path in project.markers()}
    run = sk.open_run(project.out)
    run.resume(quiet=True)
    assert check_ledger(run).records == {"listed": 160, "done": 160, "quarantined": 0, "skipped": 0}
    assert {name: (project.markers()[0].parent / name).read_bytes() for name in done_before} == done_before
    assert project.rows() == [{"key": f"r{i:03d}.txt", "row": n} for i in range(160) for n in range(2)]


@pytest.mark.slow
def test_quarantined_records_are_retried_by_name_and_by_value(system: System, project: Project) -> None:
    project.write_records(["good", "bad", "good", "bad by name"] * 3)
    run = project.run(parallel=system.parallel, max_failures="100%")
    assert len(run.quarantine()) == 6
    project.write_function(STRICT.replace('startswith("bad")', 'endswith("bad")'))
    run.retry(quiet=True)
    assert [entry["key"] for entry in run.quarantine()] == ["r001.txt", "r005.txt", "r009.txt"]

    def features(record: sk.Record) -> list[dict[str, Any]]:
        return [{"key": record.key, "row": i} for i in range(2)]

    run.retry(function=features, quiet=True)
    assert check_ledger(run).records["done"] == 12
    assert sorted(row["key"] for row in project.rows()) == sorted(f"r{i:03d}.txt" for i in range(12) for _ in range(2))


@pytest.mark.slow
def test_what_has_not_changed_is_taken_over(system: System, project: Project) -> None:
    project.write_records(["good"] * 12)
    shards = {"by": "size", "count": 3}
    project.run(parallel=system.parallel, incremental=True, shards=shards)
    (project.data / "r012.txt").write_text("good")
    run = project.run(parallel=system.parallel, incremental=True, shards=shards)
    assert check_ledger(run).records == {"listed": 13, "done": 1, "quarantined": 0, "skipped": 12}
    assert sorted(row["key"] for row in project.rows()) == [f"r{i:03d}.txt" for i in range(13) for _ in range(2)]


@pytest.mark.slow
def test_input_and_output_may_be_in_a_bucket(system: System, project: Project) -> None:
    bucket = f"clusters-{system.parallel['backend']}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for i in range(20):
        client.put_object(Bucket=bucket, Key=f"in/{i:02d}.txt", Body="bad" if i == 7 else "good")
    run = sk.run(
        "work:features",
        f"s3://{bucket}/in/",
        f"s3://{bucket}/out/",
        source_dir=project.root,
        parallel=system.parallel,
        max_failures=1,
        quiet=True,
    )
    assert rows_of(run) == [{"key": f"{i:02d}.txt", "row": n} for i in range(20) if i != 7 for n in range(2)]
    assert [entry["key"] for entry in run.quarantine()] == ["07.txt"]


PIECES = """
import json, os, signal

def lines(record):
    with open(record) as lines:
        for line in lines:
            n = json.loads(line)["n"]
            if n == 150:
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"key": record.key, "n": n, "at": record.range[0]}

def samples(record):
    if record.member.startswith("03"):
        raise ValueError("bad")
    return {"key": record.key, "n": int(record.files["cls"].read_text()), "at": os.path.getsize(record)}
"""
RULES = {
    "lines": {"inside": "lines", "target_bytes": 300},
    "samples": {"inside": "tar", "pattern": "*.txt"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(RULES))
def test_records_inside_files_are_those_of_one_machine(system: System, project: Project, kind: str) -> None:
    project.write_function(PIECES)
    if kind == "lines":
        (project.data / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(300)))
    else:
        with tarfile.open(project.data / "a.tar", "w") as archive:
            for n in range(40):
                for suffix, text in (("cls", f"{n}"), ("txt", "x" * n)):
                    info = tarfile.TarInfo(f"{n:02d}.{suffix}")
                    info.size = len(text)
                    archive.addfile(info, io.BytesIO(text.encode()))
    runs = []
    for parallel, out in ((system.parallel, "there"), (HERE, "here")):
        project.out = project.root / out
        fields: dict[str, Any] = {"function": f"work:{kind}", "records": RULES[kind], "parallel": parallel}
        runs.append(project.run(**fields, max_failures="100%"))
    there, here = runs
    assert len({row["key"] for row in rows_of(there)}) == check_ledger(there).records["done"] > 8
    assert rows_of(there) == rows_of(here)
    assert list(map(told, there.quarantine())) == list(map(told, here.quarantine()))
    assert len(here.quarantine()) == 1
