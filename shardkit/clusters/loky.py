"""joblib's own processes on this machine: a cluster of one node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from joblib import cpu_count
from joblib.externals.loky import get_reusable_executor

from shardkit.clusters.base import Answer, Answered, Cluster

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_S = 60


class Loky(Cluster):
    """Processes of joblib's executor."""

    shares_code = True

    def __init__(self, n_jobs: int, address: str | None, backend: Any = None) -> None:
        self._sized(n_jobs, None, otherwise=int(cpu_count()))
        self._environment = dict(os.environ)  # processes that are there already may have another

    def _processes(self) -> Any:
        return get_reusable_executor(max_workers=self.size, timeout=IDLE_S, env=self._environment)

    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made in one of the processes; when one dies, loky fails all calls, and then begins again."""
        return self._processes().submit(call, argument)

    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make the call in one of the processes: they are all alike."""
        try:
            answer = self._processes().submit(call).result()
        except Exception as error:  # noqa: BLE001  whoever asked says what it means
            return [Answered("this machine", error=error)]
        return [Answered("this machine", answer)]
