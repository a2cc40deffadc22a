"""Workers share the memory that there is: what fits alone is done, what does not is quarantined, neighbours never are."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from crashing import LINUX, Done, Project

import shardkit as sk
from shardkit.workers.memory import allocated_bytes
from shardkit.workers.needs import REMEMBERED, Needs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.whole, LINUX]

GROUPS = Path("/sys/fs/cgroup/memory")  # version 1, which root may divide further
MB = 1_000_000

# Each record says how many MB it needs; it takes them step by step, and notes from when to when it held them all.
HOLDS = """
import json, os, time
def features(record):
    held, needed = [], int(open(record).read())
    for _ in range(needed // 5):
        held.append(b"x" * 5_000_000)
        time.sleep(0.002)
    begun = time.time()
    time.sleep(0.02)
    with open("held.jsonl", "a") as log:
        log.write(json.dumps([record.key, needed, begun, time.time()]) + "\\n")
    return {"key": record.key}
"""


def at_once(project: Project) -> int:
    """The most MB that records have held at the same time."""
    held = [json.loads(line) for line in (project.root / "held.jsonl").read_text().splitlines()]
    return max(sum(mb for _, mb, begin, end in held if begin <= at < end) for _, _, at, _ in held)


def project_of(root: Path, needs: list[int]) -> Project:
    project = Project(root)
    project.write_records(map(str, needs))
    project.write_function(HOLDS)
    return project


def test_records_that_need_most_of_a_limit_run_one_at_a_time_and_only_what_does_not_fit_alone_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = [10] * 14
    needs[3] = needs[4] = needs[8] = 120  # of 250, of which each of two workers takes some 50 for itself
    needs[11] = 350
    project = project_of(tmp_path, needs)
    project.write_function(HOLDS.replace("0.02", "0.2"))  # longer than it may be between two looks at the memory
    monkeypatch.chdir(tmp_path)
    run = project.run(workers=2, memory="250MB", max_failures=1)
    (entry,) = run.quarantine()
    assert (entry["key"], entry["of_memory"], entry["signal"]) == ("r011.txt", True, "SIGKILL")
    assert entry["peak_memory_bytes"] > 90 * MB
    assert "needs more memory than the 250 MB that there are (peak: " in entry["message"]
    assert "retry with more memory" in entry["message"]
    assert sorted(row["key"] for row in project.rows()) == [f"r{i:03d}.txt" for i in range(14) if i != 11]
    assert at_once(project) < 160


def test_chunks_that_are_known_to_need_much_wait_and_smaller_ones_go_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their needs are learnt by the size of their records, from the first one of each size."""
    project = project_of(tmp_path, [])
    project.write_records({f"a{i}.txt": f"150{' ' * 5000}" for i in range(4)})
    project.write_records({f"b{i:02d}.txt": "10" for i in range(20)})
    monkeypatch.chdir(tmp_path)
    run = project.run(workers=3, memory="400MB", max_failures=0)
    assert run.summary().records["done"] == 24
    held = [json.loads(line) for line in (project.root / "held.jsonl").read_text().splitlines()]
    small = [(begin, end) for key, _, begin, end in held if key.startswith("b")]
    assert any(begin < at < end for at, _ in small for begin, end in small)
    assert at_once(project) <= 320


def test_what_is_expected_goes_by_size_and_is_forgotten() -> None:
    needs = Needs()
    assert needs.expected(1000) == 0
    needs.learn(1_000_000, 900)
    assert needs.expected(1000) == needs.expected(50_000_000) == 900
    needs.learn(1000, 100)
    assert (needs.expected(1020), needs.expected(900_000), needs.expected(20)) == (100, 900, 100)
    for _ in range(REMEMBERED):
        needs.learn(1_000_000, 300)
    assert needs.expected(1_000_000) == 300


def test_a_job_of_slurm_has_what_slurm_has_given_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert allocated_bytes() is None
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    of_cpus = allocated_bytes()
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4000")
    of_node = allocated_bytes()
    assert of_cpus is not None
    assert of_node is not None
    assert 5000 << 20 < of_cpus < 6000 << 20
    assert 3000 << 20 < of_node < 4000 << 20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all that the node has
    assert allocated_bytes() is None


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with 200 MB."""
    folder = GROUPS / f"shardkit-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(200 * MB))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    yield folder
    for _ in range(100):
        if not (folder / "cgroup.procs").read_text():
            break
        time.sleep(0.05)
    folder.rmdir()


def kills(group: Path) -> int:
    return int((group / "memory.oom_control").read_text().split()[-1])


# Enters a control group, with the process that will start the workers. It leaves it to the kernel to end processes:
# without a margin nobody makes room. What they have from the process that they are forks of does not count.
IN_GROUP = """
import os, sys
from pathlib import Path
for pid in [os.getpid(), *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]:
    Path(sys.argv[1], "cgroup.procs").write_text(str(pid))
from shardkit.workers import gate
gate.MARGIN = -1
from shardkit.cli.app import main
main(sys.argv[2:])
"""


def run_in(group: Path, project: Project, *arguments: str) -> Done:
    """Run in a control group."""
    return project.start(group, *project.run_arguments(max_failures="100%"), *arguments, code=IN_GROUP).wait()


def test_what_the_kernel_kills_beside_others_is_done_in_the_end(tmp_path: Path, group: Path) -> None:
    needs = [15, 110, 110, 15, 15, 250]
    project = project_of(tmp_path, needs)
    project.write_function(HOLDS.replace("0.02", "0.2"))
    done = run_in(group, project, "--workers", "3", "--quiet")
    assert kills(group) >= 2, done.stderr
    (entry,) = sk.open_run(project.out).quarantine()
    assert (entry["key"], entry["of_memory"]) == ("r005.txt", True), done.stderr
    assert "more memory than the 200 MB" in entry["message"]
    assert len(project.rows()) == 5


def test_processes_that_share_a_machine_pause_for_each_others_records(tmp_path: Path, group: Path) -> None:
    """Each is a node of its own: what the kernel kills in one, because of the others, is done alone among them all."""
    (group / "memory.limit_in_bytes").write_text(str(470 * MB))
    project = project_of(tmp_path, [180] * 4)
    project.write_function(HOLDS.replace("0.02", "0.2"))
    done = run_in(group, project, "--quiet", "--chunks", "even", "--set", "parallel={backend: loky, n_jobs: 2}")
    assert sk.open_run(project.out).quarantine() == [], done.stderr
    assert len(project.rows()) == 4
