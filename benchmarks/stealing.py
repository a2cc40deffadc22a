"""Eight jobs of which one is slow: how long the run takes with and without work stealing, and what stealing costs."""

from __future__ import annotations

import json
import statistics
from datetime import datetime
from pathlib import Path

from common import DATA, HERE, SHARDKIT, measure

JOBS = 8
RECORDS = 240  # of each job
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
        taken = [_run(data, slow=slow, steal=steal) for _ in range(times)]
        wall_s, jobs_s = (statistics.median(seconds) for seconds in zip(*taken, strict=True))
        ratio = jobs_s / ideal_s
        verdict = f" (goal {GOAL}: {'reached' if ratio <= GOAL else 'MISSED'})" if slow and steal else ""
        print(
            f"  {name:<26} {wall_s:7.2f} s, of which the jobs {jobs_s:7.2f} s: {ratio:5.2f} of the "
            f"ideal {ideal_s:.1f} s{verdict}"
        )
        report[f"{name}, {'slow' if slow else 'none'}"] = {"wall_s": wall_s, "jobs_s": jobs_s, "ratio": ratio}
    return report


def _run(data: Path, *, slow: bool, steal: bool) -> tuple[float, float]:
    """Seconds that a run takes, and those between the start of its first job and the end of pass 1's last one."""
    fields = {
        "shards": f"{{by: directory, steal: {str(steal).lower()}}}",
        "engine": f"{{kind: local, max_instances: {JOBS}, env: {{SLOW_JOB: '{3 if slow else -1}'}}}}",
        "requirements_mode": "none",
    }
    source = ["--function", "slow_job:Waiting", "--source-dir", str(HERE / "contestants")]
    settings = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    where = ["--input", str(data), "--output", "out", "--workers", "1", "--json", "--quiet"]
    taken = measure([*SHARDKIT, "run", *source, *where, *settings], DATA / "scratch")
    answer = json.loads(taken.stdout)
    assert answer["records"]["done"] == answer["records"]["listed"], answer
    beats = [json.loads(path.read_text()) for path in Path(answer["run_folder"], "progress").glob("[0-9]*.json")]
    begun = min(datetime.fromisoformat(beat["started"]) for beat in beats)
    return taken.wall_s, (max(datetime.fromisoformat(beat["at"]) for beat in beats) - begun).total_seconds()


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
