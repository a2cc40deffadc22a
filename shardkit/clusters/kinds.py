"""The kinds of clusters.

A further one is a subclass of `Cluster` in a module of its own, and a line here; one of another package is an entry
point in the group ``shardkit.clusters``, by the name that `parallel: {backend: NAME}` has.
"""

from __future__ import annotations

from shardkit.clusters.base import Cluster
from shardkit.errors import PipelineError
from shardkit.plugins import Registry

CLUSTERS: Registry[type[Cluster]] = Registry(
    "shardkit.clusters",
    {
        "loky": "shardkit.clusters.loky:Loky",
        "dask": "shardkit.clusters.dask:Dask",
        "ray": "shardkit.clusters.ray:Ray",
        "spark": "shardkit.clusters.spark:Spark",
    },
    error=PipelineError,
    fits=lambda kind: isinstance(kind, type) and issubclass(kind, Cluster),
    wanted="a subclass of shardkit.clusters.base.Cluster",
)
HERE = "shardkit"  # the backend of this machine, which is no cluster


def known_backend(name: str) -> str:
    """The name, if it is that of a backend.

    Raises:
        ValueError: it is not.
    """
    if name != HERE and name not in CLUSTERS:
        expected = ", ".join((HERE, *CLUSTERS.names()))
        raise ValueError(f"expected one of {expected}, not {name!r}{CLUSTERS.near(name) or '.'}")
    return name


def connect(backend: str, n_jobs: int, address: str | None, chosen: object = None) -> Cluster:
    """Connect to a cluster; ``chosen`` is the joblib backend that the user has chosen, if it is one.

    Raises:
        PipelineError: its library is missing, or it cannot be reached.
    """
    try:
        kind = CLUSTERS.find(backend)
        if kind is None:
            raise PipelineError(f"parallel: there is no backend {backend!r}.")
        return kind(n_jobs, address, chosen)
    except ImportError as error:
        raise PipelineError(
            f"parallel: {backend} needs a package that is missing here: {error}.",
            hint=f"pip install 'shardkit[{backend}]'",
        ) from error
