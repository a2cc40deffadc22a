"""Benchmarks: whole commands with their start-up, side by side, as ratios of medians.

    python benchmarks/run.py [NAME ...] [--runs 3] [--workers 2] [--scale 1.0]

The contestants of a benchmark take turns (A B A B ...), so that a slow minute of the machine hits all of them; after
each run its wall time, its CPU time and the peak memory of its largest process come from the operating system. Input is
generated once under benchmarks/data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import clusters
import days
import inventories
import large_files
import lists
import loaders
import servers
import stealing
from common import DATA, HERE, PYTHON, SHARDKIT, Measure, contestant, generated, measure, shardkit_ads

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = HERE / "results"


@dataclass(frozen=True)
class Benchmark:
    """Commands by name, the first of which is shardkit's; the ratios to reach; and how many files they handle.

    ``goals`` says what shardkit may take of each, ``between`` what the first of two others may take of the second.
    ``sessions`` are those of the clusters that work for a contestant. ``cpu_goals`` are goals for seconds of CPU.
    """

    commands: dict[str, list[str]]
    goals: dict[str, float]
    files: int = 0
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    between: dict[tuple[str, str], float] = field(default_factory=dict)
    sessions: dict[str, list[int]] = field(default_factory=dict)
    cpu_goals: dict[str, float] = field(default_factory=dict)


def run_benchmark(name: str, benchmark: Benchmark, *, runs: int) -> dict[str, object]:
    """Run all contestants in turn; print and return their measurements."""
    measures: dict[str, list[Measure]] = {who: [] for who in benchmark.commands}
    for turn in range(runs + 1):
        for who, command in benchmark.commands.items():
            sessions = benchmark.sessions.get(who, ())
            taken = measure(command, DATA / "scratch", benchmark.environments.get(who), sessions=sessions)
            if turn:  # the first turn only warms the file cache
                measures[who].append(taken)
    print(f"\n{name}")
    medians = {who: statistics.median(m.wall_s for m in taken_by) for who, taken_by in measures.items()}
    cpus = {who: statistics.median(m.cpu_s for m in taken_by) for who, taken_by in measures.items()}
    first, first_cpu = next(iter(medians.values())), next(iter(cpus.values()))
    report: dict[str, object] = {}
    for who, taken_by in measures.items():
        walls = sorted(m.wall_s for m in taken_by)
        wall = medians[who]
        peak = max(m.peak_bytes for m in taken_by) / 1e6
        cpu = cpus[who]
        goal, cpu_goal = benchmark.goals.get(who), benchmark.cpu_goals.get(who)
        ratio = f"shardkit takes {first / wall:.2f} of it" if who != "shardkit" else ""
        verdict = f" ({_verdict(first / wall, goal)})" if goal else ""
        verdict += f", {first_cpu / cpu:.2f} of its CPU ({_verdict(first_cpu / cpu, cpu_goal)})" if cpu_goal else ""
        print(
            f"  {who:<12} {wall:7.2f} s [{walls[0]:.2f} .. {walls[-1]:.2f}]  cpu {cpu:6.2f} s  "
            f"peak {peak:5.0f} MB  {ratio}{verdict}"
        )
        measured = {"wall_s": walls, "cpu_s": cpu, "peak_mb": peak, "ratio": first / wall, "goal": goal}
        report[who] = measured | {"cpu_ratio": first_cpu / cpu, "cpu_goal": cpu_goal}
    for (who, other), goal in benchmark.between.items():
        ratio_of_two = medians[who] / medians[other]
        print(f"  {who} takes {ratio_of_two:.2f} of {other} ({_verdict(ratio_of_two, goal)})")
        report[f"{who} / {other}"] = {"ratio": ratio_of_two, "goal": goal}
    if benchmark.files:
        print(f"  {first / benchmark.files * 1000:.3f} ms of wall time a file")
    return report


def _verdict(ratio: float, goal: float) -> str:
    return f"goal {goal}: {'reached' if ratio <= goal else 'MISSED'}"


def tiny_files(count: int) -> Path:
    """Make files of one short line, a thousand in each folder."""
    folder: Path = DATA / f"tiny{count}"
    if not folder.exists():
        making = folder.with_name(f".tiny{count}")
        for i in range(count):
            path = making / f"{i // 1000:03d}" / f"{i:06d}.txt"
            if i % 1000 == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"line {i}\n")
        making.rename(folder)
    return folder


def parts(count: int, rows: int) -> Path:
    """Make Parquet files like the parts of pass 1."""
    folder: Path = DATA / f"parts{count}x{rows}"
    if not folder.exists():
        subprocess.run(
            [PYTHON, str(HERE / "contestants" / "make_parts.py"), str(folder), str(count), str(rows)], check=True
        )
    return folder


def ads(workers: int, scale: float, *, skew: bool) -> Benchmark:
    """2,000 files of 100 job ads."""
    options: dict[str, object] = {"files": int(2000 * scale), "ads": 100, "bad": 0}
    if skew:
        options["skew"] = True
    data = generated("talent_jsonl", **options)
    return Benchmark(
        {
            "shardkit": shardkit_ads(data, workers),
            "by hand": contestant("ads_by_hand.py", data, "tmp", "out", workers),
            "floor": contestant("ads_floor.py", data, "out", workers),
        },
        {"by hand": 0.75, "floor": 1.15},
    )


def ads_s3(workers: int, scale: float, stack: contextlib.ExitStack) -> Benchmark:
    """The same 2,000 objects in S3 on loopback, without a delay and with 30 ms on each request."""
    data = generated("talent_jsonl", files=int(2000 * scale), ads=100, bad=0)
    port = stack.enter_context(servers.s3_server())
    far = stack.enter_context(servers.delayed(port, 0.03))
    servers.upload(data, "ads", port)
    command = shardkit_ads(Path("s3:"), workers)
    source = f"s3://{servers.BUCKET}/ads"
    command[command.index("--input") + 1] = source
    by_hand = contestant("ads_by_hand_s3.py", source, "tmp", "out", workers)
    far_away, near = servers.environment(far), servers.environment(port)
    return Benchmark(
        {"shardkit": command, "by hand": by_hand, "shardkit near": command, "by hand near": by_hand},
        {"by hand": 0.2, "shardkit near": 1.15},
        environments={"shardkit": far_away, "by hand": far_away, "shardkit near": near, "by hand near": near},
    )


def ads_clusters(workers: int, scale: float, stack: contextlib.ExitStack) -> Benchmark:
    """The same on clusters of as many workers, and by the clusters' own means."""
    between = {("over dask", "shardkit"): 1.15, ("over dask", "dask"): 1.0, ("over ray", "ray data"): 1.0}
    commands, sessions = clusters.commands(workers, scale, stack)
    return Benchmark(commands, {}, between=between, sessions=sessions)


def large_file(workers: int, scale: float, stack: contextlib.ExitStack) -> Benchmark:
    """One JSON Lines file of 200 MB; --scale 10 makes it 2 GB."""
    commands, sessions = large_files.lines(workers, scale, stack)
    goals = {"split": 1.0, "ray data": 1.0}
    return Benchmark(commands, goals, sessions=sessions, cpu_goals=goals)


def jobs(workers: int, scale: float) -> Benchmark:
    """Ten groups as ten jobs on the local engine and one for pass 2, and in one process."""
    folder = DATA / f"groups-{scale}"
    if not folder.exists():
        making = folder.with_name(f".{folder.name}")
        for group in range(10):
            shutil.copytree(generated("talent_jsonl", files=int(100 * scale), ads=100, bad=0), making / f"g{group}")
        making.rename(folder)
    command = [*shardkit_ads(folder, workers), "--set", "shards.by=directory"]
    return Benchmark({"shardkit": [*command, "--engine", "local"], "one process": command}, {})


def tiny(workers: int, scale: float) -> Benchmark:
    """50,000 files of one line, and a function that returns one dict."""
    count = int(50_000 * scale)
    return Benchmark({"shardkit": _one_line(str(tiny_files(count)), workers)}, {}, files=count)


def tiny_s3(workers: int, scale: float, stack: contextlib.ExitStack) -> Benchmark:
    """The same as objects in S3 on loopback, with 30 ms on each request and without a delay."""
    count = int(50_000 * scale)
    port = stack.enter_context(servers.s3_server())
    far = stack.enter_context(servers.delayed(port, 0.03))
    servers.fill(port, ((f"tiny/{i // 1000:03d}/{i:06d}.txt", f"line {i}\n".encode()) for i in range(count)))
    command = _one_line(f"s3://{servers.BUCKET}/tiny", workers)
    environments = {"shardkit": servers.environment(far), "shardkit near": servers.environment(port)}
    return Benchmark(dict.fromkeys(environments, command), {}, files=count, environments=environments)


def _one_line(source: str, workers: int) -> list[str]:
    where = ["--input", source, "--output", "out", "--workers", str(workers), "--quiet"]
    return [*SHARDKIT, "run", "--function", "one_line:one_row", "--source-dir", str(HERE / "contestants"), *where]


def waits(workers: int, scale: float) -> Benchmark:
    """2,000 files, and a function that waits 50 ms for each; 32 calls at once."""
    data, calls = tiny_files(int(2000 * scale)), 32
    function = ["--function", "waits:answer", "--source-dir", str(HERE / "contestants")]
    where = ["--input", str(data), "--output", "out", "--quiet"]
    command = [*SHARDKIT, "run", *function, *where]
    return Benchmark(
        {
            "shardkit": [*command, "--workers", "1", "--concurrency", str(calls)],
            "by hand": contestant("waits.py", data, "out", calls),
            "all workers": [*command, "--workers", str(workers), "--concurrency", str(calls // workers)],
        },
        {"by hand": 1.1},
    )


def model(workers: int, scale: float) -> Benchmark:
    """The same files, and a network of six layers for batches of 64 and for one record at a time."""
    where = ["--input", str(tiny_files(int(2000 * scale))), "--output", "out", "--workers", str(workers), "--quiet"]
    command = [*SHARDKIT, "run", "--source-dir", str(HERE / "contestants"), *where]
    one_by_one = [*command, "--function", "model:OneByOne"]
    return Benchmark(
        {"shardkit": [*command, "--function", "model:Batches", "--batch", "64"], "one by one": one_by_one}, {}
    )


def memory(workers: int, scale: float) -> Benchmark:
    """Ten times as many files must take the same peak memory."""
    small = generated("talent_jsonl", files=int(2000 * scale), ads=20, bad=0)
    large = generated("talent_jsonl", files=int(20_000 * scale), ads=20, bad=0)
    return Benchmark({"shardkit": shardkit_ads(small, workers), "10 x files": shardkit_ads(large, workers)}, {})


def waveforms_anywhere(scale: float) -> Path:
    """1,000 WFDB records whose sizes have a heavy tail; the long ones lie anywhere."""
    folder: Path = generated("mimic_waveforms", records=int(1000 * scale), seconds=240, bad=0, skew=True)
    return folder


def waveforms_by_patient(scale: float) -> Path:
    """900 short WFDB records and then 100 long ones, as of patients who were monitored for long."""
    short = generated("mimic_waveforms", records=int(900 * scale), seconds=60, bad=0)
    long = generated("mimic_waveforms", records=int(100 * scale), seconds=3600, bad=0, seed=8)
    folder: Path = DATA / f"waveforms-by-patient-{scale}"
    if not folder.exists():
        making = folder.with_name(f".{folder.name}")
        shutil.copytree(short, making / "p0", copy_function=os.link)
        shutil.copytree(long, making / "p1", copy_function=os.link)
        making.rename(folder)
    return folder


def waveforms(data: Path, workers: int) -> Benchmark:
    """WFDB records of uneven sizes."""
    where = [
        "--input",
        str(data),
        "--output",
        "out",
        "--pattern",
        "*.dat",
        "--records",
        "stem",
        "--workers",
        str(workers),
    ]
    function = ["--function", "signals:signal_rows", "--source-dir", str(HERE / "contestants")]
    return Benchmark(
        {
            "shardkit": [*SHARDKIT, "run", *function, *where, "--quiet"],
            "by hand": contestant("waveforms_by_hand.py", data, "out.json"),
        },
        {"by hand": 0.8},
    )


def merge(count: int, rows: int, goal: float) -> Benchmark:
    """Pass 2 alone."""
    data = parts(count, rows)
    return Benchmark(
        {
            "shardkit": [*SHARDKIT, "pass2", "--input", str(data), "--output", "out", "--quiet"],
            "pyarrow": contestant("merge_by_pyarrow.py", data, "out"),
        },
        {"pyarrow": goal},
    )


def arrays(scale: float) -> Path:
    """100,000 embeddings of 1,024 numbers of 32 bits."""
    count = max(int(100 * scale), 1)
    data: Path = DATA / f"embeddings{count}"
    if not data.exists():
        making = data.with_name(f".{data.name}")
        shutil.rmtree(making, ignore_errors=True)
        subprocess.run(contestant("embeddings.py", making, count), check=True)
        making.rename(data)
    return data


def batches(workers: int, scale: float) -> Benchmark:
    """One epoch over them, with as many workers of a DataLoader."""
    return Benchmark(
        loaders.batches(arrays(scale), workers), {"datasets": 1.0}, between={("shuffled", "its shuffle"): 1.0}
    )


def embeddings(workers: int, scale: float) -> Benchmark:
    """The same as plain Parquet and as an Iceberg table too."""
    data = arrays(scale)
    where = ["--input", str(data), "--output", "out", "--pattern", "*.npy", "--workers", str(workers)]
    function = ["--function", "embeddings:rows", "--source-dir", str(HERE / "contestants")]
    command = [*SHARDKIT, "run", *function, *where, "--quiet"]
    return Benchmark(
        {
            "shardkit": command,
            "pyarrow": contestant("embeddings_by_pyarrow.py", data, "out", workers),
            "in Iceberg": [*command, "--set", "catalog={iceberg: {table: vectors.all}}"],
        },
        {"pyarrow": 1.2},
        between={("in Iceberg", "pyarrow"): 1.2},
    )


BENCHMARKS: dict[str, Callable[[int, float], Benchmark]] = {
    "jobs": jobs,
    "ads": lambda workers, scale: ads(workers, scale, skew=False),
    "ads-skew": lambda workers, scale: ads(workers, scale, skew=True),
    "tiny": tiny,
    "tar": lambda workers, scale: Benchmark(large_files.members(workers, scale), {}, cpu_goals={"webdataset": 1.5}),
    "waits": waits,
    "model": model,
    "memory": memory,
    "waveforms": lambda workers, scale: waveforms(waveforms_anywhere(scale), workers),
    "waveforms-by-patient": lambda workers, scale: waveforms(waveforms_by_patient(scale), workers),
    "embeddings": embeddings,
    **({"batches": batches} if loaders.CAN_RUN else {}),
    "merge-small": lambda _, scale: merge(int(2000 * scale), 100, 1.0),
    "merge-large": lambda _, scale: merge(max(int(20 * scale), 1), 100_000, 1.1),
}


WITH_SERVERS: dict[str, Callable[[int, float, contextlib.ExitStack], Benchmark]] = {
    "ads-clusters": ads_clusters,
    "large-file": large_file,
    "ads-s3": ads_s3,
    "tiny-s3": tiny_s3,
}

# These run and print by themselves; their arguments are workers, scale and runs.
MEASUREMENTS: dict[str, Callable[[int, float, int], dict[str, object]]] = {
    "ads-day": days.ads_day,
    "list-s3": lists.list_s3,
    "inventory": inventories.inventory,
    "ninety-days": days.ninety_days,
    "stealing": stealing.stealing,
}


def main() -> None:
    """Run the benchmarks named, or all."""
    names = [*BENCHMARKS, *WITH_SERVERS, *MEASUREMENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(names)}; all by default")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contestant that count (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the input's size (default 1.0)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    DATA.mkdir(exist_ok=True)
    results: dict[str, object] = {}
    for name in arguments.names or names:
        if name in MEASUREMENTS:
            results[name] = MEASUREMENTS[name](arguments.workers, arguments.scale, arguments.runs)
            continue
        with contextlib.ExitStack() as stack:
            if name in WITH_SERVERS:
                benchmark = WITH_SERVERS[name](arguments.workers, arguments.scale, stack)
            else:
                benchmark = BENCHMARKS[name](arguments.workers, arguments.scale)
            results[name] = run_benchmark(name, benchmark, runs=arguments.runs)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
