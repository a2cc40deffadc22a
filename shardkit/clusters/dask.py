"""A Dask cluster, by its distributed client."""

from __future__ import annotations

import pickle
import uuid
from typing import TYPE_CHECKING, Any

from distributed import Client, get_client, get_worker, secede
from joblib import cpu_count

from shardkit.clusters.base import Answer, Answered, Cluster
from shardkit.clusters.lanes import ROOM, Room
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECT_S = 30


class _Made:
    """A call that is made when its pickle is read, and is its outcome."""

    def __init__(self, call: Callable[[Any], Any], argument: Any) -> None:
        self._call = call
        self._argument = argument

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _make, (self._call, self._argument)


def _make(call: Callable[[Any], Any], argument: Any) -> Any:
    """Make a call on a node; a call that secedes leaves its thread's place to the next."""
    before = ROOM.set(Room(get_worker().state.nthreads, secede))
    try:
        return call(argument)
    finally:
        ROOM.reset(before)


def _client_of_default(n_jobs: int) -> Client:
    """A client of the scheduler that Dask's configuration names; without one, of threads of this process.

    Threads will do, because the chunks have processes of their own; and processes of Dask would need a script with a
    ``__main__`` guard.
    """
    threads = n_jobs if n_jobs > 0 else int(cpu_count())
    return Client(
        set_as_default=False, processes=False, n_workers=1, threads_per_worker=threads, dashboard_address=":0"
    )


class Dask(Cluster):
    """The cluster of the current client, of ``address``, or of Dask's own default; else workers on this machine."""

    def __init__(self, n_jobs: int, address: str | None, backend: Any = None) -> None:
        self._own: Client | None = None
        self._client = getattr(backend, "client", None) or self._find(n_jobs, address)
        if self._client.asynchronous:
            raise PipelineError(
                "parallel: the present Dask client is asynchronous.", hint="Name its scheduler as parallel.address."
            )
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except (TimeoutError, OSError) as error:
            where = self._client.scheduler_info(n_workers=0).get("address", "the scheduler")
            self.close()
            raise PipelineError(
                f"parallel: the Dask cluster at {where} has had no worker for {CONNECT_S} s.",
                hint="Start workers, or let an adaptive cluster keep one: cluster.adapt(minimum=1).",
            ) from error
        self._sized(n_jobs, sum(self._client.ncores().values()))

    def _find(self, n_jobs: int, address: str | None) -> Client:
        try:
            if address is None:
                try:
                    return get_client()
                except ValueError:  # there is none
                    self._own = _client_of_default(n_jobs)
            else:
                self._own = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise PipelineError(
                f"parallel: there is no Dask scheduler at {address or 'the default address'}: {error}.",
                hint="Check parallel.address, for instance tcp://HOST:8786.",
            ) from error
        return self._own

    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made; Dask makes it again where a worker dies, and fails it when several have."""
        # The scheduler reads what is submitted, and may know neither this package nor what the call needs.
        data = pickle.dumps(_Made(call, argument))
        return self._client.submit(pickle.loads, data, key=f"shardkit-{uuid.uuid4().hex}", pure=False)

    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make the call in each worker process."""
        answers = self._client.run(call, on_error="return")
        return [
            Answered(node, error=answer) if isinstance(answer, BaseException) else Answered(node, answer)
            for node, answer in answers.items()
        ]

    def close(self) -> None:
        """Close the client, if it is this run's own."""
        if self._own is not None:
            self._own.close()
