"""Clusters on the loopback, of real processes that tests may kill: Dask with two workers, Ray with two nodes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from crashing import environment, is_alive, wait_for
from emulators import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crashing import Project

JOBS = 2
# After a second Ray counts a node as dead, and not after a quarter of a minute.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@dataclass
class System:
    """What chunks are handed to: the pipeline's ``parallel``, and the processes of its nodes, if tests know them."""

    parallel: dict[str, Any]
    pids: Callable[[], list[int]] = field(default=list)

    def arguments(self, project: Project, **options: Any) -> list[str]:
        """The command line that runs a project's pipeline there."""
        return [*project.run_arguments(**options), "--set", f"parallel={json.dumps(self.parallel)}"]


class DaskCluster:
    """A scheduler and worker processes."""

    def __init__(self, home: Path, s3_url: str, env: dict[str, str] | None = None) -> None:
        self._home = home
        self._environment = environment(**environment_of_nodes(s3_url))
        self._number = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        file = home / "scheduler.json"
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), env=env)
        self.address = wait_for(lambda: _address_in(file), what="Dask's scheduler")

    def _start(
        self, kind: str, *arguments: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        self._number += 1
        words = [*before, sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]
        with (self._home / f"{kind}-{self._number}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                cwd=self._home,
                env=self._environment | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def add(
        self, *, nanny: bool = True, before: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a worker of one thread; with a nanny, a process that starts it again when it has died."""
        options = ["--nthreads", "1", "--nworkers", "1", "--local-directory", str(self._home)]
        return self._start(
            "worker", self.address, *options, "--nanny" if nanny else "--no-nanny", before=before, env=env
        )

    def workers(self) -> list[int]:
        """The process ids of the workers that there are now."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            return sorted(pid for pid in client.run(os.getpid, on_error="return").values() if isinstance(pid, int))

    def wait_for(self, count: int) -> list[int]:
        """Wait until there are so many workers; returns their process ids."""
        wait_for(lambda: len(self.workers()) == count, every_s=0.1, what=f"{count} Dask workers")
        return self.workers()

    def fill(self, count: int, *, nanny: bool = True) -> list[int]:
        """See that so many workers live; returns their process ids."""
        for _ in range(count - len(self.living())):
            self.add(nanny=nanny)
        return self.wait_for(count)

    def living(self) -> list[int]:
        """The process ids of the workers, or their nannies, that have been started and have not ended."""
        return [process.pid for process in self._processes[1:] if process.poll() is None]

    def end_all(self) -> None:
        """Kill all workers."""
        for process in self._processes[1:]:
            self.end(process)
        self.wait_for(0)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker, with its nanny."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Kill all."""
        for process in self._processes:
            self.end(process)


class RayCluster:
    """A head node and another, with one CPU each.

    This process stays connected, so that all runs in it have the same worker processes; commands connect by the address.
    """

    def __init__(self, s3_url: str) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._environment = environment_of_nodes(s3_url)
        self._node = {"num_cpus": 1, "object_store_memory": 80 << 20}
        with self._around():
            settings = {"include_dashboard": False, "_system_config": SOON}
            self._cluster = Cluster(initialize_head=True, head_node_args={**self._node, **settings})
            self._others = [self._cluster.add_node(**self._node)]
            ray.init(self._cluster.address, log_to_driver=False)
        self.address = self._cluster.address

    @contextlib.contextmanager
    def _around(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in self._environment.items():
                patched.setenv(name, value)
            yield

    def pids(self) -> list[int]:
        """The process ids of the nodes."""
        nodes = (self._cluster.head_node, *self._others)
        return [process.process.pid for node in nodes for process in node.all_processes["raylet"]]

    def kill(self) -> None:
        """Kill the node that is not the head; what it has started ends with it."""
        (node,) = self._others
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(raylet.process.pid))

    def replace(self) -> None:
        """Have another node in the place of the one that was killed."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)
        with self._around():
            self._others = [self._cluster.add_node(**self._node)]

    def close(self) -> None:
        """Stop all."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def _address_in(file: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        address: str = json.loads(file.read_text())["address"]
        return address
    return None


def environment_of_nodes(s3_url: str) -> dict[str, str]:
    """What nodes need in their environment to reach S3 at this URL."""
    return CREDENTIALS | {"AWS_ENDPOINT_URL": s3_url, "RAY_USAGE_STATS_ENABLED": "0"}


def is_installed(name: str) -> bool:
    """Whether there is a package of that name."""
    return importlib.util.find_spec(name) is not None
