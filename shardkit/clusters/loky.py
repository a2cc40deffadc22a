"""joblib's own processes on this machine: a cluster of one node."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError

from shardkit.clusters.base import Answer, Answered, Cluster

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_S = 60
_choosing = threading.Lock()
_current: tuple[ProcessPoolExecutor, tuple[int, dict[str, str]]] | None = None


class Loky(Cluster):
    """Processes of an executor like joblib's, which stay for the next run with the same environment.

    joblib's own, which loky keeps for the whole program, is left to joblib: with another in its place it fails.
    """

    shares_code = True

    def __init__(self, n_jobs: int, address: str | None, backend: Any = None) -> None:
        self._sized(n_jobs, None, otherwise=int(cpu_count()))
        self._environment = dict(os.environ)  # processes that are there already may have another

    def _processes(self, *, instead_of: ProcessPoolExecutor | None = None) -> ProcessPoolExecutor:
        """The executor of this program; a new one if it was made for another size or environment, or has failed."""
        global _current  # noqa: PLW0603
        wanted = self.size, self._environment
        with _choosing:
            if _current is not None and (_current[0] is instead_of or _current[1] != wanted):
                _current[0].shutdown(wait=False)
                _current = None
            if _current is None:
                _current = ProcessPoolExecutor(self.size, timeout=IDLE_S, env=self._environment), wanted
            return _current[0]

    def _sent(self, call: Callable[..., Any], *arguments: Any) -> Answer:
        executor = self._processes()
        try:
            return executor.submit(call, *arguments)
        except (BrokenProcessPool, ShutdownExecutorError):
            return self._processes(instead_of=executor).submit(call, *arguments)

    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made in one of the processes; when one dies, loky fails all calls, and then begins again."""
        return self._sent(call, argument)

    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make the call in one of the processes: they are all alike."""
        try:
            answer = self._sent(call).result()
        except Exception as error:  # noqa: BLE001  whoever asked says what it means
            return [Answered("this machine", error=error)]
        return [Answered("this machine", answer)]
