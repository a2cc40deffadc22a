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
    most_out: int

    def _sized(self, n_jobs: int, cpus: int | None, *, otherwise: int | None = None) -> None:
        """Note how many calls run at once, ``n_jobs`` or as many as there are ``cpus``, and how many may be out.

        Calls that wait on the cluster begin as soon as others end; but where it has more CPUs than are to be used, none
        would wait. ``cpus`` is None if the cluster is as large as it is asked to be, and by default ``otherwise``.
        """
        self.size = n_jobs if n_jobs > 0 else max(cpus or otherwise or 1, 1)
        self.most_out = self.size if cpus is not None and cpus > self.size else 2 * self.size

    @abc.abstractmethod
    def submit(self, call: Callable[[Any], Any], argument: Any) -> Answer:
        """Have a call made on some node; the future fails if the node is lost."""

    @abc.abstractmethod
    def on_each_node(self, call: Callable[[], Any]) -> list[Answered]:
        """Make a call on each node that there is now."""

    def cancel(self, answer: Answer) -> None:
        """Do without an answer: a call that has not begun need not begin."""
        answer.cancel()

    def close(self) -> None:  # noqa: B027  most have nothing to let go of
        """Let go of what was made for this run; a cluster that was there before stays."""

    @property
    def cure(self) -> str:
        """How to have this package on the nodes."""
        from shardkit._version import __version__

        return f"Install shardkit=={__version__} on all nodes."
