"""Eight jobs of which one is slow: how long the run takes with and without work stealing, and what stealing costs."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING

from common import DATA, HERE, SHARDKIT, Measure, measure

if TYPE_CHECKING:
    from pathlib import Path

JOBS = 8
RECORDS = 120  # of each job
SECONDS = 0.25  # that each takes, as in contestants/slow_job.py
SLOWER = 10
GOAL = 1.3


def stealing(_: int, scale: float, runs: int) -> dict[str, object]:
    """Print and return the wall times beside the ideal one: all work, divided by the speed of all jobs together."""
    records = max(int(RECORDS * scale), 16)
    data = _records(records)
    work_s = JOBS * records * SECONDS
    report: dict[str, object] = {}
    print("\nstealing")
    for name, slow, steal, times in (
        ("one slow job", True, True, runs),
        ("the same without stealing", True, False, 1),
        ("no slow job", False, True, runs),
        ("the same without stealing", False, False, runs),
    ):
        ideal_s = work_s / (JOBS - 1 + 1 / SLOWER if slow else JOBS)
        walls = sorted(_run(data, slow=slow, steal=steal).wall_s for _ in range(times))
        ratio = statistics.median(walls) / ideal_s
        verdict = f" (goal {GOAL}: {'reached' if ratio <= GOAL else 'MISSED'})" if slow and steal else ""
        print(
            f"  {name:<26} {statistics.median(walls):7.2f} s [{walls[0]:.2f} .. {walls[-1]:.2f}]  {ratio:5.2f} of the "
            f"ideal {ideal_s:.1f} s{verdict}"
        )
        report[f"{name}{'' if slow else ' of none'}"] = {"wall_s": walls, "ratio": ratio}
    return report


def _run(data: Path, *, slow: bool, steal: bool) -> Measure:
    fields = {
        "shards": f"{{by: directory, steal: {str(steal).lower()}}}",
        "engine": f"{{kind: local, max_instances: {JOBS}, env: {{SLOW_JOB: '{3 if slow else -1}'}}}}",
        "requirements_mode": "none",
    }
    source = ["--function", "slow_job:Waiting", "--source-dir", str(HERE / "contestants")]
    settings = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    where = ["--input", str(data), "--output", "out", "--workers", "1", "--json", "--quiet"]
    taken = measure([*SHARDKIT, "run", *source, *where, *settings], DATA / "scratch")
    records = json.loads(taken.stdout)["records"]
    assert records["done"] == records["listed"], records
    return taken


def _records(count: int) -> Path:
    """A folder for each job, with as many records."""
    folder: Path = DATA / f"stealing{count}"
    if not folder.exists():
        making = folder.with_name(f".{folder.name}")
        for job in range(JOBS):
            (making / f"{job}").mkdir(parents=True)
            for i in range(count):
                (making / f"{job}" / f"{i:04d}.txt").write_text("x")
        making.rename(folder)
    return folder
