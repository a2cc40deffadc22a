"""Shared by the benchmarks: commands are measured from outside, and input is made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
EXAMPLES = HERE.parent / "examples"
PYTHON = sys.executable
SHARDKIT = [PYTHON, "-m", "shardkit"]


@dataclass(frozen=True)
class Measure:
    """One run of a command: seconds, bytes, and its output."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stdout: bytes


def measure(
    command: list[str],
    scratch: Path,
    more: dict[str, str] | None = None,
    *,
    again: bool = False,
    sessions: Iterable[int] = (),
) -> Measure:
    """Run a command in an empty folder, or ``again`` in the same one, with ``more`` environment variables.

    What the processes of some ``sessions`` take meanwhile, those of a cluster, counts as the command's own.
    """
    if not again:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    os.sync()
    with tempfile.TemporaryFile() as answer:
        elsewhere = session_cpu_s(sessions)
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=scratch, stdout=answer, stderr=subprocess.PIPE, env=os.environ | (more or {})
        )
        assert process.stderr is not None
        stderr = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} exited with {process.returncode}:\n{stderr.decode()[-2000:]}")
        answer.seek(0)
        cpu = usage.ru_utime + usage.ru_stime + session_cpu_s(sessions) - elsewhere
        return Measure(wall, cpu, usage.ru_maxrss * 1024, answer.read())


def session_cpu_s(sessions: Iterable[int]) -> float:
    """The seconds of CPU that the processes of some sessions have taken, with their children that have ended."""
    wanted, ticks = set(sessions), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) in wanted:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def generated(kind: str, **options: object) -> Path:
    """Generated input of an example, made once."""
    name = "-".join([kind, *(f"{k}{v}" for k, v in options.items())])
    folder = DATA / name
    if not folder.exists():
        print(f"generating {name} ...", file=sys.stderr)
        arguments = [a for k, v in options.items() for a in ([f"--{k}"] if v is True else [f"--{k}", str(v)])]
        making = folder.with_name(f".{name}")
        shutil.rmtree(making, ignore_errors=True)
        subprocess.run([PYTHON, str(EXAMPLES / kind / "generate.py"), str(making), *arguments], check=True, stdout=2)
        making.rename(folder)
    return folder


def contestant(script: str, *arguments: object) -> list[str]:
    """The command that runs a script of ``contestants/``."""
    return [PYTHON, str(HERE / "contestants" / script), *map(str, arguments)]


def shardkit_ads(data: Path, workers: int) -> list[str]:
    """The command that does the job ads."""
    where = ["--input", str(data), "--output", "out", "--pattern", "*.jsonl", "--workers", str(workers)]
    return [
        *SHARDKIT,
        "run",
        "--function",
        "ads:ad_features",
        "--source-dir",
        str(EXAMPLES / "talent_jsonl"),
        *where,
        "--quiet",
    ]
