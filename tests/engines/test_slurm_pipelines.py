"""Pipelines of a user on a Slurm cluster: waveform records, and days through a queue that another process serves."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from engine_jobs import until

import shardkit as sk
from shardkit.jobs import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import RunCommand
    from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
WFDB = Path(os.environ.get("SHARDKIT_SHARED_DATA", ROOT.parent / "shared" / "data")) / "wfdb" / "cinc2020"
GROUPS = [f"p{i:02d}" for i in range(10)]


@pytest.fixture
def cluster(slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.configuration))
    yield slurm_cluster
    slurm_cluster.run("scancel", f"--user={os.getuid()}")


# ---- waveforms -----------------------------------------------------------------------------------------------------


def write_waveforms(data: Path) -> int:
    """Two records for each of ten groups: real ones where they are, else made-up ones; returns how many there are."""
    if WFDB.is_dir():
        headers = [path for path in sorted(WFDB.rglob("*.hea")) if path.with_suffix(".mat").exists()][:20]
        files = [(path, path.with_suffix(".mat")) for path in headers]
    else:
        words = ["--records", "20", "--seconds", "5", "--bad", "0"]
        made = data.parent / "made"
        subprocess.run([sys.executable, data.parent / "generate.py", made, *words], check=True)
        files = [(path, *path.parent.glob(f"{path.stem}.d*")) for path in sorted(made.glob("*/*/*.hea"))]
    for i, record in enumerate(files):
        group = data / GROUPS[i % len(GROUPS)]
        group.mkdir(parents=True, exist_ok=True)
        for path in record:
            shutil.copy(path, group)
    return len(files)


def test_waveforms_of_ten_groups(cluster: Cluster, tmp_path: Path) -> None:
    """The same rows as in the processes of one machine."""
    pytest.importorskip("wfdb")
    example = tmp_path / "waveforms"
    shutil.copytree(ROOT / "examples" / "mimic_waveforms", example, ignore=shutil.ignore_patterns("__pycache__"))
    count = write_waveforms(example / "data")
    assert count >= len(GROUPS)
    pipeline = sk.Pipeline.from_yaml(example / "pipeline.yaml").replace(requirements_mode="none", max_failures="100%")
    here = pipeline.replace(output=tmp_path / "here", workers=1).run(quiet=True)
    engine = sk.Slurm(root=tmp_path / "jobs", memory_gb=2, poll_s=0.5)
    packed = {"by": "directory", "depth": 1, "max_jobs": 2}  # each job loads wfdb, which takes seconds
    run = pipeline.replace(output=tmp_path / "out", shards=packed).run(engine, quiet=True)
    assert (run.summary().status, run.summary().records) == ("done", here.summary().records)
    assert sorted(name for shard in run.folder.plan()["shards"] for name in shard["group_names"] or ()) == GROUPS
    assert [job["status"] for job in run.jobs()] == ["Completed"] * 3
    assert rows_of(run) == rows_of(here)


# ---- records inside files ------------------------------------------------------------------------------------------

PIECES = """
import json

def lines(record):
    with open(record) as lines:
        for line in lines:
            yield {"key": record.key, "n": json.loads(line)["n"]}

def samples(record):
    if record.key.endswith("03"):
        raise ValueError("bad")
    return {"key": record.key, "n": int(record.files["cls"].read_text()), "bytes": len(record.read_bytes())}
"""


@pytest.mark.parametrize("kind", ["lines", "samples"])
def test_jobs_share_one_file(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    """The pieces of one file, and the samples of one tar, are worked on by two jobs, as by one process here."""
    (tmp_path / "pieces.py").write_text(PIECES)
    (tmp_path / "data").mkdir()
    if kind == "lines":
        (tmp_path / "data" / "a.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(300)))
    else:
        with tarfile.open(tmp_path / "data" / "a.tar", "w") as archive:
            for name, text in ((f"{n:02d}.{suffix}", str(n)) for n in range(40) for suffix in ("cls", "txt")):
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
    pipeline = sk.Pipeline(
        function=f"pieces:{kind}",
        source_dir=tmp_path,
        input=tmp_path / "data",
        output=tmp_path / "here",
        records={"inside": "lines", "target_bytes": 300} if kind == "lines" else {"inside": "tar", "pattern": "*.txt"},
        shards={"by": "size", "count": 2},
        requirements_mode="none",
        max_failures="100%",
        workers=1,
    )
    here = pipeline.run(quiet=True)
    engine = sk.Slurm(root=tmp_path / "jobs", memory_gb=2, poll_s=0.5)
    run = pipeline.replace(output=tmp_path / "out").run(engine, quiet=True)
    assert [job["status"] for job in run.jobs()] == ["Completed"] * 3
    assert (run.summary().status, run.summary().records) == ("done", here.summary().records)
    assert run.summary().records["quarantined"] == (0 if kind == "lines" else 1)
    assert len(rows_of(run)) == (300 if kind == "lines" else 39)
    assert rows_of(run) == rows_of(here)


def rows_of(run: sk.Run) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in run.dataset().to_table().to_pylist())


# ---- days, a queue that another serves, retry ----------------------------------------------------------------------

COUNTING = """
from pathlib import Path
HERE = Path({here!r})

def rows(record):
    day, number = open(record).read().split()
    if number == "13" and not (HERE / "mended").exists():
        raise ValueError("13 is no number")
    return {{"key": record.key, "number": int(number)}}
"""


def test_days_in_a_queue_that_another_serves(cluster: Cluster, tmp_path: Path, shardkit: RunCommand) -> None:
    for day, numbers in (("2020/01/01", "1 2"), ("2020/01/02", "3 13")):
        for number in numbers.split():
            path = tmp_path / "feed" / day / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{day[-2:]} {number}")
    (tmp_path / "counting.py").write_text(COUNTING.format(here=str(tmp_path)))
    store, root = str(tmp_path / "queue.sqlite"), tmp_path / "jobs"
    content = {
        "input": "feed/",
        "function": "counting:rows",
        "shards": {"by": "date", "path": "{Y}/{m}/{d}"},
        "output": "out/",
        "max_failures": 1,
        "engine": {"kind": "slurm", "root": str(root), "memory_gb": 1},
        "queue": {"place": store, "owner": "ana"},
    }
    (tmp_path / "feed.yaml").write_text(json.dumps(content))
    run = sk.Pipeline.from_yaml(tmp_path / "feed.yaml").run(wait=False, quiet=True)
    assert [job["status"] for job in run.jobs()] == ["New"] * 3
    serve(shardkit, store, root)
    assert run.summary().status == "done"
    assert run.summary().records == {"listed": 4, "done": 3, "quarantined": 1, "skipped": 0}
    assert sorted(path.name for path in (tmp_path / "out").glob("day*")) == [
        "day_partition=2020-01-01",
        "day_partition=2020-01-02",
    ]
    assert "13 is no number" in shardkit("failures", "out/").stdout
    (tmp_path / "mended").touch()
    with serving(store, root):
        shardkit("retry", "out/", "--quiet")
    assert sk.open_run(tmp_path / "out").summary().records["done"] == 4
    listed = shardkit("jobs", "list", "--store", store).stdout.splitlines()
    assert sum(" Completed " in line and " ana " in line for line in listed) == 5


def serve(shardkit: RunCommand, store: str, root: Path) -> None:
    """Serve a queue until its jobs have ended."""
    shardkit("jobs", "policy", "--store", store, "--set", "poll_s=0.3", "--set", "settle_s=0.1")
    shardkit("jobs", "serve", "--store", store, "--engine", "slurm", "--root", root, "--until-ended")


def serving(store: str, root: Path) -> Any:
    """A process that serves a queue."""
    words = ["jobs", "serve", "--store", store, "--engine", "slurm", "--root", str(root)]
    return Ending(subprocess.Popen([sys.executable, "-m", "shardkit", *words], stderr=subprocess.DEVNULL))


class Ending:
    """Ends a process at the end of a block."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> None:
        assert self.process.poll() is None

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


def test_a_job_of_the_queue_alone(cluster: Cluster, tmp_path: Path, shardkit: RunCommand) -> None:
    """Without a pipeline: it needs no role, no image and no instance type."""
    request = {"AppSpecification": {"ContainerEntrypoint": ["sh", "-c", "echo $SLURM_CPUS_PER_TASK CPUs"]}}
    (tmp_path / "request.json").write_text(json.dumps(request | {"Resources": {"cpus": 3, "partition": "main"}}))
    store, root = str(tmp_path / "queue.sqlite"), tmp_path / "jobs"
    name = shardkit("jobs", "submit", "--store", store, "--request", "request.json", "--id", "one").stdout.strip()
    serve(shardkit, store, root)
    (job,) = SQLiteStore(store).jobs()
    assert (name, job.status, job.instance_type) == ("one", "Completed", "main")
    client = sk.Slurm(root=root).client()
    assert until(lambda: list(client.log_lines("one-1"))) == ["3 CPUs"]
