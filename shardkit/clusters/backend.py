"""joblib's backend ``shardkit-cluster``: calls go to a cluster, and a lost call is a result and no error.

With joblib's own backends the first call that is lost with its node ends all others.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joblib import register_parallel_backend
from joblib.parallel import ParallelBackendBase, SequentialBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.clusters.base import Cluster

NAME = "shardkit-cluster"


@dataclass(frozen=True)
class Lost:
    """A call without an answer: its argument, and why."""

    argument: Any
    error: BaseException


class _Pending:
    """A call that is out; joblib is told of its end once."""

    def __init__(self, argument: Any, callback: Callable[[_Pending], None]) -> None:
        self.argument = argument
        self.outcome: Any = None
        self._callback = callback
        self._telling = threading.Lock()
        self._told = False

    def answered(self, future: Any) -> None:
        """The cluster's future has ended."""
        try:
            outcome = future.result()
        except BaseException as error:  # noqa: BLE001  whatever it is, there is no answer
            outcome = Lost(self.argument, error)
        self.tell(outcome)

    def tell(self, outcome: Any) -> None:
        """Tell joblib of the end."""
        with self._telling:
            if self._told:
                return
            self._told = True
        self.outcome = outcome
        self._callback(self)


class ClusterBackend(ParallelBackendBase):  # type: ignore[misc]
    """Runs calls of one argument on a `Cluster`."""

    supports_retrieve_callback = True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls are out at once: with one, joblib would make them itself."""
        return max(n_jobs or 1, 2)

    def configure(self, n_jobs: int = 1, parallel: Any = None, *, calls: Calls | None = None, **_: Any) -> int:
        """Get ready for the calls of ``parallel``."""
        if calls is None:
            raise ValueError(f"joblib's backend {NAME} is for shardkit's own calls.")
        self.parallel = parallel
        self._calls = calls
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[_Pending], None]) -> _Pending:
        """Send a call."""
        ((call, (argument,), _),) = func.items
        return self._calls.send(call, _Pending(argument, callback))

    def retrieve_result_callback(self, out: _Pending) -> Any:
        """The outcome of a call, in a list because joblib knows calls in batches."""
        return [out.outcome]

    def get_nested_backend(self) -> tuple[Any, None]:
        """Calls within a call go one after another."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002  joblib's signature
        """Wait for none of the calls that are out."""
        self._calls.give_up(None)


class Calls:
    """The calls that are out on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._out: dict[_Pending, Any] = {}  # with the cluster's future, once there is one
        self.gave_up = False  # on some, which may still run
        self._changing = threading.Lock()

    def send(self, call: Callable[[Any], Any], pending: _Pending) -> _Pending:
        """Send one."""
        with self._changing:
            self._out[pending] = None
        try:
            future = self._cluster.submit(call, pending.argument)
        except Exception as error:  # noqa: BLE001  the cluster may be back when it is sent again
            # Not here: joblib holds its lock, and would hand out the next call within this one.
            threading.Thread(target=self._end, args=(pending, Lost(pending.argument, error))).start()
        else:
            with self._changing:
                self._out[pending] = future
            future.add_done_callback(lambda future: self._answered(pending, future))
        return pending

    def _answered(self, pending: _Pending, future: Any) -> None:
        with self._changing:
            self._out.pop(pending, None)
        pending.answered(future)

    def _end(self, pending: _Pending, outcome: Any) -> None:
        with self._changing:
            self._out.pop(pending, None)
        pending.tell(outcome)

    def give_up(self, outcome: Any) -> None:
        """Wait no longer: all that is out ends with this outcome."""
        with self._changing:
            waiting, self._out = self._out, {}
            self.gave_up = self.gave_up or bool(waiting)
        for pending, future in waiting.items():
            pending.tell(outcome)
            if future is not None:
                with contextlib.suppress(Exception):  # the cluster may be gone
                    self._cluster.cancel(future)


register_parallel_backend(NAME, ClusterBackend)
