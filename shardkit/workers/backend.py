"""joblib's backend ``shardkit``: each worker has a lane, a thread that watches over it and takes call after call.

joblib hands out calls as lanes come free, a few ahead of them. Where a chunk's objects must be fetched, a lane claims
its next call while it is at one, so that its worker can fetch for both.
"""

from __future__ import annotations

import queue
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joblib import register_parallel_backend
from joblib.parallel import ParallelBackendBase

from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.runfolder.stop import Stop
    from shardkit.workers.tasks import ChunkTask

NAME = "shardkit"
FIRST_S = 0.02  # how long a lane's first call waits for the next one, which is handed out just after it


@dataclass
class _Call:
    """A call that joblib has handed out, and later its outcome."""

    function: Any  # joblib's batch of one call
    callback: Callable[[_Call], None]
    result: Any = None
    error: BaseException | None = None

    @property
    def task(self) -> ChunkTask:
        """The only argument of the call."""
        ((_, (task,), _),) = self.function.items
        return task  # type: ignore[no-any-return]

    def run(self, stop: Stop) -> None:
        """Run it, and tell joblib of its end."""
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001  joblib raises it where the results are taken
            self.error = error
            stop.ask(error, patience_s=0.0)  # or the other lanes would go on
        self.callback(self)


class LaneBackend(ParallelBackendBase):  # type: ignore[misc]
    """Runs calls in lanes, as many as there are workers; each call takes one `ChunkTask`."""

    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at once: with one, joblib would do without the backend, and so without its lanes."""
        return max(n_jobs or 1, 2)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        *,
        stop: Stop | None = None,
        claims_next: bool = False,
        **_: Any,
    ) -> int:
        """Get ready for the calls of ``parallel``; with ``claims_next`` a lane knows its next call.

        Raises:
            PipelineError: the calls are not chunks of a run.
        """
        if stop is None:
            raise PipelineError(
                "joblib's backend shardkit runs the chunks of shardkit's own runs only.",
                hint="For other calls choose another backend, such as loky.",
            )
        self.parallel = parallel
        self._stop = stop
        self._size = n_jobs
        self._claims_next = claims_next
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lanes: list[threading.Thread] = []
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Any, callback: Callable[[_Call], None]) -> _Call:
        """Have a call run as soon as a lane is free."""
        call = _Call(func, callback)
        self._calls.put(call)
        if len(self._lanes) < self._size:
            lane = threading.Thread(target=self._lane, name=f"shardkit-lane-{len(self._lanes)}")
            lane.start()
            self._lanes.append(lane)
        return call

    def retrieve_result_callback(self, out: _Call) -> Any:
        """The outcome of a call."""
        if out.error is not None:
            raise out.error
        return out.result

    def terminate(self) -> None:
        """Wait for all lanes: a thread that is in the middle of Arrow when the interpreter ends takes it down."""
        for _ in self._lanes:
            self._calls.put(None)
        for lane in self._lanes:
            lane.join()
        self._lanes = []

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002  joblib's signature
        """End the lanes; calls that nobody has begun are dropped."""
        self._stop.ask(sys.exc_info()[1] or KeyboardInterrupt(), patience_s=0.0)
        while not self._calls.empty():
            self._calls.get()
        self.terminate()

    def _lane(self) -> None:
        call = self._calls.get()
        patience_s = FIRST_S
        while call is not None:
            following = self._claim(patience_s) if self._claims_next else None
            patience_s = 0.0
            call.task.ahead = following.task if following is not None else None
            call.run(self._stop)
            call = following or self._calls.get()

    def _claim(self, patience_s: float) -> _Call | None:
        try:
            call = self._calls.get(timeout=patience_s) if patience_s else self._calls.get_nowait()
        except queue.Empty:
            return None
        if call is None:  # the end, which this lane will look for again
            self._calls.put(None)
        return call


register_parallel_backend(NAME, LaneBackend)
