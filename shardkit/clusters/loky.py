"""joblib's own processes on this machine: a cluster of one node."""

from __future__ import annotations

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
        cpus = cpu_count()
        self.size = n_jobs if n_jobs > 0 else max(cpus + 1 + n_jobs, 1)

    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made in one of the processes; when one dies, loky fails all calls, and then begins again."""
        return get_reusable_executor(max_workers=self.size, timeout=IDLE_S).submit(call, argument)

    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make the call in one of the processes: they are all alike."""
        try:
            answer = get_reusable_executor(max_workers=self.size, timeout=IDLE_S).submit(call).result()
        except Exception as error:  # noqa: BLE001  whoever asked says what it means
            return [Answered("this machine", error=error)]
        return [Answered("this machine", answer)]
