"""The job ads on shardkit's own backend, on a Dask and on a Ray cluster, and by the means of Dask and of Ray Data.

Both clusters are on the loopback, and begin before the first contestant and end after the last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common import contestant, generated, shardkit_ads
from servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 120


class Loopback(NamedTuple):
    """A cluster: its address, and the sessions of its processes."""

    address: str
    sessions: list[int]


def commands(
    workers: int, scale: float, stack: contextlib.ExitStack
) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """The commands of the contestants, by name, and the sessions of their clusters, which end with ``stack``."""
    data = generated("talent_jsonl", files=int(2000 * scale), ads=100, bad=0)
    dask, ray = stack.enter_context(dask_cluster(workers)), stack.enter_context(ray_cluster(workers))
    contestants = {
        "shardkit": shardkit_ads(data, workers),
        "over dask": _over("dask", dask.address, data, workers),
        "dask": contestant("ads_by_dask.py", dask.address, data, "out"),
        "over ray": _over("ray", ray.address, data, workers),
        "ray data": contestant("ads_by_ray_data.py", ray.address, data, "out"),
    }
    sessions = {who: dask.sessions if "dask" in who else ray.sessions for who in contestants if who != "shardkit"}
    return contestants, sessions


def _over(backend: str, address: str, data: Path, workers: int) -> list[str]:
    command: list[str] = shardkit_ads(data, workers)
    at = command.index("--workers")
    command[at : at + 2] = [
        "--set",
        f"parallel={json.dumps({'backend': backend, 'n_jobs': workers, 'address': address})}",
    ]
    return command


@contextlib.contextmanager
def dask_cluster(workers: int) -> Iterator[Loopback]:
    """Run a Dask scheduler and so many workers of one thread; gives the scheduler's address with it."""
    address = f"tcp://127.0.0.1:{free_port()}"
    options = ["--nthreads", "1", "--nworkers", "1", "--no-dashboard"]
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="benchmark-dask-") as folder:
        begin = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
        processes = [stack.enter_context(_running([*begin, "--host", address], folder))]
        begin = [sys.executable, "-m", "distributed.cli.dask_worker", address, *options, "--local-directory", folder]
        processes += [stack.enter_context(_running(begin, folder)) for _ in range(workers)]
        _wait_for_dask(address, workers)
        yield Loopback(address, [process.pid for process in processes])


def _wait_for_dask(address: str, workers: int) -> None:
    from distributed import Client

    with Client(address, timeout=PATIENCE_S, set_as_default=False) as client:
        client.wait_for_workers(workers, timeout=PATIENCE_S)


@contextlib.contextmanager
def ray_cluster(workers: int) -> Iterator[Loopback]:
    """Run a Ray node with so many CPUs; gives its address with it."""
    port = _port_below_those_of_rays_workers()
    options = [f"--port={port}", f"--num-cpus={workers}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short name: Ray puts sockets into it
        begin = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--temp-dir={folder}"]
        with _running(
            [*begin, *options, "--disable-usage-stats", "--object-store-memory=500000000"], folder
        ) as process:
            _wait_for_ray(process, f"127.0.0.1:{port}")
            yield Loopback(f"127.0.0.1:{port}", [process.pid])


def _port_below_those_of_rays_workers() -> int:
    """A free port; Ray keeps those from 10002 to 19999 to itself, and refuses one of them here."""
    port: int = free_port()
    while 10_000 < port < 20_000:
        port = free_port()
    return port


def _wait_for_ray(process: subprocess.Popen[bytes], address: str) -> None:
    see = [sys.executable, "-c", f"import ray; ray.init(address={address!r}, log_to_driver=False)"]
    deadline = time.monotonic() + PATIENCE_S
    while subprocess.run(see, check=False, capture_output=True).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("The Ray cluster has not begun.")


@contextlib.contextmanager
def _running(command: list[str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, whose processes end with the block, however many it has started."""
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
