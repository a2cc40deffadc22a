"""How well a forecast foresees runs: shapes of work that sleep, on the local engine, predicted first and then run.

    python benchmarks/forecast.py [SHAPE ...] [--record tests/runs/recorded_runs.json]

Functions sleep, so that a busy machine matters little. The time that a job needs to start here is measured by a run of
its own before. With --record, what the sample said and how the run went is written to a file: `tests/runs/
test_forecast.py` predicts those runs again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shardkit as sk
from shardkit.engines.faults import FaultyEngine
from shardkit.engines.local import LocalEngine
from shardkit.jobs.wording import seconds_at
from shardkit.runs.estimate import take_sample
from shardkit.runs.forecast.forecast import Asked, make_forecast

# A record's size says how long it takes, a millisecond for each byte, give or take: some twice as long as others.
WORK = """
import hashlib, time

def work(record):
    size = len(record.read_text())
    deviation = 0.6 + 0.8 * int(hashlib.md5(record.key.encode()).hexdigest(), 16) % 100 / 100
    time.sleep(size / 1000 * deviation)
    return {"size": size}
"""
TYPE = "ml.m5.xlarge"
RECORDS = 12  # of a folder


@dataclass(frozen=True)
class Shape:
    """Folders of records, by the size of each folder's records; and the service's limits."""

    folders: list[int]
    quota: int
    capacity_errors: float = 0.0


SHAPES = {
    "equal": Shape([300] * 12, quota=4),
    "few heavy": Shape([1500, 1000, *[150] * 10], quota=4),
    "queueing": Shape([250] * 12, quota=2),
    "capacity errors": Shape([300] * 12, quota=4, capacity_errors=0.3),
}
PROBE = Shape([20] * 4, quota=4)


def pipeline_of(shape: Shape, folder: Path) -> sk.Pipeline:
    """The pipeline of a shape, on an engine that says by itself what its quota is."""
    for number, size in enumerate(shape.folders):
        (folder / "data" / f"{number:02d}").mkdir(parents=True)
        for record in range(RECORDS):
            (folder / "data" / f"{number:02d}" / f"{record}.txt").write_text("x" * size)
    (folder / "work.py").write_text(WORK)
    real = LocalEngine(folder / "engine", max_instances=shape.quota)
    client: Any = FaultyEngine(real, capacity_errors=shape.capacity_errors, seed=3) if shape.capacity_errors else real
    engine = sk.Local(client=client, root=folder / "engine", max_instances=20)  # the queue has to find out the quota
    return sk.Pipeline(
        name="work",
        function="work:work",
        source_dir=folder,
        input=folder / "data",
        output=folder / "out",
        shards={"by": "directory"},
        workers=2,
        requirements_mode="none",
        engine=engine,
    )


def times_of(run: sk.Run) -> tuple[float, list[float], float]:
    """Seconds from the first launch to the end of the last job; what jobs took to start; and instance hours."""
    jobs, timings = run.jobs(refresh=False), run.timings()
    attempts = [entry for job in jobs for entry in job["attempts"]]
    begun = min(seconds_at(entry["launched_at"]) or 0.0 for entry in attempts)
    ended = max(seconds_at(entry["ended_at"]) or 0.0 for entry in attempts)
    first = timings.groupby("job", observed=True)["begin"].min()
    created = {entry["name"]: seconds_at(entry["created_at"]) or 0.0 for entry in attempts if entry.get("created_at")}
    starts = [at.timestamp() - created[name] for name, at in first.items()]
    used = sum(
        (seconds_at(entry["ended_at"]) or 0.0) - created[entry["name"]]
        for entry in attempts
        if entry["name"] in created
    )
    return ended - begun, starts, used / 3600


def predicted_and_run(shape: Shape, startup_s: float) -> dict[str, Any]:
    """What a forecast says, and how long the run takes then."""
    with tempfile.TemporaryDirectory() as name:
        pipeline = pipeline_of(shape, Path(name))
        sample = take_sample(pipeline, 20, quiet=True)
        asked = Asked(quotas={"": shape.quota}, startup_s=startup_s, capacity_errors=shape.capacity_errors)
        option = make_forecast(pipeline, pipeline.plan(), sample, asked).as_planned
        end_s, starts, hours = times_of(pipeline.run(quiet=True))
    return {
        "folders": shape.folders,
        "records": RECORDS,
        "quota": shape.quota,
        "capacity_errors": shape.capacity_errors,
        "startup_s": startup_s,
        "sample": {"seconds": sample.seconds.tolist(), "bytes": sample.bytes.tolist(), "chunk_s": sample.chunk_s},
        "predicted": {"end_s": option.end_s._asdict(), "instance_hours": option.instance_hours},
        "run": {"end_s": end_s, "startup_s": statistics.median(starts), "instance_hours": hours},
    }


def main() -> None:
    """Predict and run the shapes, and print how well they were foreseen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", choices=[[], *SHAPES], default=[])
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        _, starts, _ = times_of(pipeline_of(PROBE, Path(name)).run(quiet=True))
    startup_s = statistics.median(starts)
    print(f"a job starts within {startup_s:.1f} s here")
    results = {}
    for shape in given.shapes or SHAPES:
        results[shape] = result = predicted_and_run(SHAPES[shape], startup_s)
        end, hours = (result["run"][each] for each in ("end_s", "instance_hours"))
        foreseen = result["predicted"]
        print(
            f"{shape:16} end {end:6.1f} s, foreseen p50 {foreseen['end_s']['p50']:6.1f} "
            f"({foreseen['end_s']['p50'] / end - 1:+.0%}) p95 {foreseen['end_s']['p95']:6.1f}; instances "
            f"{hours * 3600:6.1f} s, foreseen {foreseen['instance_hours'] / hours - 1:+.0%}; "
            f"jobs started within {result['run']['startup_s']:.1f} s",
            flush=True,
        )
        if given.record is not None:
            given.record.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
