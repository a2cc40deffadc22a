"""A day of job ads, made and redone; and an estimate of how long ninety days take on SageMaker."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import servers
from common import DATA, SHARDKIT, Measure, contestant, generated, measure, shardkit_ads

DELAY_S = 0.03
BY_DAY = ["--set", 'shards={by: date, path: "{Y}/{m}/{d}"}']
REDO_GOAL = 0.05
REDONE_IN_SESSION = 5


def _client(port: int) -> Any:
    import boto3

    keys = servers.KEYS
    session = boto3.Session(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    return session.client("s3", endpoint_url=f"http://127.0.0.1:{port}")


def _change_one(client: Any, keys: list[str], turn: int) -> None:
    """Move the first line of an object to its end, so that its etag changes."""
    key = keys[(turn * 787 + 13) % len(keys)]
    lines = client.get_object(Bucket=servers.BUCKET, Key=key)["Body"].read().splitlines(keepends=True)
    client.put_object(Bucket=servers.BUCKET, Key=key, Body=b"".join(lines[1:] + lines[:1]))


def _command(prefix: str, output: str, workers: int) -> list[str]:
    command = shardkit_ads(Path("s3:"), workers)
    command[command.index("--input") + 1] = f"s3://{servers.BUCKET}/{prefix}"
    command[command.index("--output") + 1] = output
    return [*command, *BY_DAY, "--json"]


def ads_day(workers: int, scale: float, runs: int) -> dict[str, object]:
    """A day of 2,000 objects of 100 ads, and the same again after one of them has changed."""
    data = generated("talent_jsonl", files=int(2000 * scale), ads=100, bad=0)
    keys = [f"ads/{path.relative_to(data)}" for path in sorted(data.rglob("*.jsonl"))]
    report: dict[str, object] = {}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(servers.s3_server())
        far = stack.enter_context(servers.delayed(port, DELAY_S))
        servers.upload(data, "ads", port)
        client = _client(port)
        print(f"\nads-day: {len(keys):,} objects of 100 ads, then one of them changed; {workers} workers")
        for where, at in (("near", port), ("30 ms", far)):
            more = servers.environment(at)
            for kind in ("local", "s3"):
                full, redone = [], []
                for turn in range(runs):
                    output = f"s3://{servers.BUCKET}/{uuid.uuid4().hex}" if kind == "s3" else "out"
                    command = _command("ads", output, workers)
                    full.append(measure(command, DATA / "scratch", more))
                    _change_one(client, keys, turn)
                    redone.append(measure(command, DATA / "scratch", more, again=True))
                report[f"{where}, output {kind}"] = _tell_day(f"{where}, output {kind}", full, redone)
            report[f"{where}, one session"] = _in_session(where, at, keys, workers)
    return report


def _tell_day(name: str, full: list[Measure], redone: list[Measure]) -> dict[str, float]:
    """Print both times: of the whole commands, and as the runs measure them, once all is imported.

    The latter is how the script by hand measures itself.
    """
    report: dict[str, float] = {}
    for how, clock in (("command", _wall), ("run", _own)):
        whole, again = (statistics.median(map(clock, taken)) for taken in (full, redone))
        verdict = "reached" if again / whole < REDO_GOAL else "MISSED"
        print(
            f"  {name:<22} the {how:<7}  full {whole:6.2f} s  redone {again:5.2f} s  "
            f"{again / whole:.1%} of it (goal {REDO_GOAL:.0%}: {verdict})"
        )
        report |= {f"{how}_full_s": whole, f"{how}_redone_s": again}
    return report


def _wall(measured: Measure) -> float:
    return float(measured.wall_s)


def _own(measured: Measure) -> float:
    answer: dict[str, float] = json.loads(measured.stdout)
    return answer["seconds"]


def _in_session(where: str, port: int, keys: list[str], workers: int) -> dict[str, float]:
    """The same in one Python process, as a schedule or a notebook does it; the median of some redone days."""
    changed = keys[7 :: max(len(keys) // REDONE_IN_SESSION, 1)][:REDONE_IN_SESSION]
    source, output = f"s3://{servers.BUCKET}/ads", DATA / "scratch" / "out"
    script = contestant("day_in_session.py", source, output, workers, *changed)
    measure(["true"], DATA / "scratch")
    done = subprocess.run(script, env=os.environ | servers.environment(port), check=True, capture_output=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    share = seconds["redone_s"] / seconds["full_s"]
    verdict = "reached" if share < REDO_GOAL else "MISSED"
    print(
        f"  {where + ', one session':<22} the run      full {seconds['full_s']:6.2f} s  "
        f"redone {seconds['redone_s']:5.2f} s  {share:.1%} of it (goal {REDO_GOAL:.0%}: {verdict})"
    )
    return seconds


OBJECTS_A_DAY, RECORDS_AN_OBJECT, DAYS, KNOWN_MINUTES = 50_000, 100, 90, 60
WORKERS, JOBS_AT_ONCE, START_MINUTES, NETWORK_BYTES_S = 8, 20, 4, 10e9 / 8
FETCHED_AT_ONCE = 16  # by each worker


@dataclass(frozen=True)
class Day:
    """The seconds that a day of some size took: the whole command by its number of workers, and pass 2 by itself."""

    objects: int
    bytes: int
    walls: dict[int, float]
    merge_s: float


def ninety_days(workers: int, scale: float, runs: int) -> dict[str, object]:
    """Measure days of two sizes here, from S3 to S3, and estimate from them ninety days on SageMaker."""
    sizes = [int(1000 * scale), int(4000 * scale)]
    print(f"\nninety-days: days of {sizes[0]:,} and {sizes[1]:,} objects of 100 records, S3 on loopback, {runs} runs")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(servers.s3_server())
        more = servers.environment(stack.enter_context(servers.delayed(port, DELAY_S)))
        small, large = (_day(size, port, more, sorted({1, workers}), runs) for size in sizes)
    return _extrapolate(small, large, workers)


def _day(size: int, port: int, more: dict[str, str], counts: list[int], runs: int) -> Day:
    data = generated("talent_jsonl", files=size, ads=RECORDS_AN_OBJECT, bad=0)
    servers.upload(data, f"day{size}", port)
    walls, output = {}, ""
    for count in counts:
        taken = []
        for _ in range(runs):
            output = f"s3://{servers.BUCKET}/{uuid.uuid4().hex}"
            taken.append(measure(_command(f"day{size}", output, count), DATA / "scratch", more))
        wall = walls[count] = statistics.median(m.wall_s for m in taken)
        rate = size / wall / count
        print(
            f"  {size:>6,} objects, {count} worker{'s' if count > 1 else ' '}  {wall:6.2f} s "
            f"(cpu {statistics.median(m.cpu_s for m in taken):6.2f})  {rate:,.0f} objects and "
            f"{rate * RECORDS_AN_OBJECT:,.0f} records a second and worker"
        )
    merge = [*SHARDKIT, "pass2", "--input", output, "--output", f"{output}-merged", "--quiet"]
    merge_s = statistics.median(measure(merge, DATA / "scratch", more).wall_s for _ in range(runs))
    print(f"  {size:>6,} objects, pass 2 alone  {merge_s:6.2f} s")
    return Day(size, sum(path.stat().st_size for path in data.rglob("*.jsonl")), walls, merge_s)


def _extrapolate(small: Day, large: Day, workers: int) -> dict[str, object]:
    """The difference of both days gives the time of an object; the rest of a day's time is counted once a day."""
    more = large.objects - small.objects
    alone, each = ((large.walls[count] - small.walls[count]) / more for count in (1, workers))
    merge_each = max((large.merge_s - small.merge_s) / more, 0.0)
    fixed = max(small.walls[workers] - each * small.objects, 0.0)
    efficiency = alone / (each * workers)
    compute = OBJECTS_A_DAY * (each - merge_each) * workers / WORKERS
    latency = OBJECTS_A_DAY * DELAY_S / (WORKERS * FETCHED_AT_ONCE)
    network = OBJECTS_A_DAY * large.bytes / large.objects / NETWORK_BYTES_S
    merge = OBJECTS_A_DAY * merge_each
    day_minutes = (fixed + max(compute, latency, network) + merge) / 60
    rounds = -(-DAYS // JOBS_AT_ONCE)
    total_minutes = rounds * (START_MINUTES + day_minutes) + START_MINUTES  # of the job that puts all days in place
    print(
        f"  {workers} workers: {each * 1000:.2f} ms an object, {merge_each * 1000:.2f} ms of it pass 2, {fixed:.1f} s "
        f"beside; efficiency {efficiency:.0%} (one worker: {alone * 1000:.2f} ms)\n"
        f"  a day of {OBJECTS_A_DAY:,} objects and {OBJECTS_A_DAY * RECORDS_AN_OBJECT:,} records on ml.r5.4xlarge, "
        f"{WORKERS} workers:\n"
        f"    pass 1 {compute:.0f} s, S3's latency {latency:.0f} s, network {network:.0f} s (the longest counts), "
        f"pass 2 {merge:.0f} s, beside {fixed:.0f} s: {day_minutes:.1f} min (known: {KNOWN_MINUTES} min)\n"
        f"  {DAYS} days, a job each, {JOBS_AT_ONCE} at once: {rounds} rounds of {START_MINUTES} + {day_minutes:.1f} "
        f"min, and {START_MINUTES} min for the last job: {total_minutes:.0f} min (known, one after the other: "
        f"{DAYS * KNOWN_MINUTES / 60:.0f} h)\n"
        f"  measured: from S3 to S3, with the upload of parts and dataset; {DELAY_S * 1000:.0f} ms a request; the S3 "
        "server and its proxy take their CPU from the same cores as the workers\n"
        f"  assumed: a core there is as fast as one here, and 16 vCPUs are 8 cores, one a worker; {WORKERS} workers "
        f"are as efficient as {workers}; pass 2 is no faster with more cores; {FETCHED_AT_ONCE} requests at once a "
        f"worker; 10 Gbit/s; {START_MINUTES} min until a job works; a quota of {JOBS_AT_ONCE} instances"
    )
    return {
        "ms_an_object": each * 1000,
        "merge_ms_an_object": merge_each * 1000,
        "efficiency": efficiency,
        "day_minutes": day_minutes,
        "total_minutes": total_minutes,
    }
