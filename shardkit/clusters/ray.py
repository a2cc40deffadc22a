"""A Ray cluster, by tasks of its own: Ray's joblib backend cannot give results one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shardkit.clusters.base import Answer, Answered, Cluster
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable


def _make(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def _connect(address: str | None) -> None:
    try:
        ray.init(address=address, log_to_driver=True, include_dashboard=False if address is None else None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PipelineError(
            f"parallel: there is no Ray cluster at {address or 'the default address'}: {error}.",
            hint="Check parallel.address: auto, or ray://HOST:10001.",
        ) from error


class Ray(Cluster):
    """The cluster that this process is connected to, or that of ``address``; else one on this machine."""

    def __init__(self, n_jobs: int, address: str | None, backend: Any = None) -> None:
        self._own = not ray.is_initialized()
        if self._own:
            _connect(address)
        # A lost call goes out again under the next attempt number, which only the driver can give.
        self._call = ray.remote(max_retries=0, num_cpus=1)(_make)
        self._sized(n_jobs, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made as a task of one CPU."""
        return self._call.remote(call, argument).future()

    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make the call on each living node."""
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        calls = {
            node: self._call.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(call)
            for node in nodes
        }
        answers = []
        for node, answer in calls.items():
            name = f"{nodes[node]} (Ray node {node[:8]})"
            try:
                answers.append(Answered(name, ray.get(answer)))
            except Exception as error:  # noqa: BLE001  whoever asked says what it means
                answers.append(Answered(name, error=error))
        return answers

    def cancel(self, answer: Answer) -> None:
        """Nothing: Ray gives its future the answer all the same; a node that has to stop answers at once."""

    def close(self) -> None:
        """Let go of the cluster, if it is this run that has connected to it."""
        if self._own:
            ray.shutdown()

    @property
    def cure(self) -> str:
        """How to have this package on the nodes."""
        from shardkit._version import __version__

        return (
            f'Call ray.init(address="auto", runtime_env={{"pip": ["shardkit=={__version__}"]}}) before the run, or '
            "install it on all nodes."
        )
