"""What a cluster has to do: run calls on its nodes, and say who these are."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Answer: TypeAlias = Any  # a future: `concurrent.futures.Future`, or the library's own with the same methods


@dataclass(frozen=True)
class Answered:
    """What one node has answered, or why it has not."""

    node: str
    answer: Any = None
    error: BaseException | None = None


class Cluster(abc.ABC):
    """A cluster that is connected.

    Args:
        n_jobs: How many calls run at once; -1 for as many as the cluster has CPUs.
        address: Where the cluster is; None for the one that this process is connected to, or the library's default.
        backend: The joblib backend that the user has chosen, if it was chosen with `joblib.parallel_config`.
    """

    shares_code = False  # whether its nodes import the user's code from where it is here

    @abc.abstractmethod
    def __init__(self, n_jobs: int, address: str | None, backend: Any = None) -> None: ...

    size: int

    @abc.abstractmethod
    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made on some node; the future fails if the node is lost."""

    @abc.abstractmethod
    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make a call on each node that there is now."""

    def close(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of what was made for this run; a cluster that was there before stays."""

    @property
    def cure(self) -> str:
        """How to have this package on the nodes."""
        from shardkit._version import __version__

        return f"Install shardkit=={__version__} on all nodes."
