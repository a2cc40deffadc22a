"""Chunks on the nodes of a cluster: which cluster, and what its nodes are sent."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from shardkit.clusters.kinds import HERE, connect
from shardkit.errors import PipelineError
from shardkit.runs.crew import worker_pool, worker_settings
from shardkit.workers.process_limit import check_room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.clusters.base import Cluster
    from shardkit.functions import FunctionRef
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.spec import Spec
    from shardkit.workers.work import Workers

# joblib's backends by the module that has them; and those that say nothing of where chunks shall run.
BACKENDS = {"joblib._dask": "dask", "ray.util.joblib.ray_backend": "ray", "joblibspark.backend": "spark"}
NO_CHOICE = {"SequentialBackend", "ThreadingBackend", "MultiprocessingBackend", "LaneBackend", "ClusterBackend"}


def check_room_for(pipeline: Spec) -> None:
    """See that the system allows the workers of a pipeline on this machine, before anything starts a thread.

    Raises:
        RunFailed: it does not.
    """
    if pipeline.engine is None and _chosen(pipeline) is None:
        check_room(pipeline.worker_count())


@contextlib.contextmanager
def cluster_of(pipeline: Spec) -> Iterator[Cluster | None]:
    """The cluster on which a pipeline's chunks run; None if they run on this machine.

    Raises:
        PipelineError: it cannot be reached.
    """
    chosen = _chosen(pipeline)
    if chosen is None:
        yield None
        return
    cluster = connect(*chosen)
    try:
        yield cluster
    finally:
        cluster.close()


def _chosen(pipeline: Spec) -> tuple[str, int, str | None, Any] | None:
    """Backend, number of jobs, address and joblib's backend: the pipeline's, or those of `joblib.parallel_config`."""
    parallel = pipeline.parallel
    if parallel is not None:
        return None if parallel.backend == HERE else (parallel.backend, parallel.n_jobs, parallel.address, None)
    if "joblib" not in sys.modules:  # so that nobody can have chosen anything
        return None
    from joblib.parallel import get_active_backend

    (backend, n_jobs), (otherwise, _) = get_active_backend(prefer="threads"), get_active_backend(prefer="processes")
    # A backend that was chosen does not heed what is preferred.
    if type(backend) is not type(otherwise) or type(backend).__name__ in NO_CHOICE:
        return None
    name = "loky" if type(backend).__name__ == "LokyBackend" else BACKENDS.get(type(backend).__module__)
    if name is None:
        raise PipelineError(
            f"joblib's backend {type(backend).__name__} is none that shardkit knows.",
            hint="Leave the block of joblib.parallel_config, or set parallel: in the pipeline.",
        )
    return name, n_jobs if n_jobs is not None else -1, None, backend


@contextlib.contextmanager
def workers_of(
    folder: RunFolder, pipeline: Spec, ref: FunctionRef, cluster: Cluster | None, *, begun: int | None = None
) -> Iterator[Workers]:
    """The cluster's nodes or, without one, worker processes of this machine, of which ``begun`` start at once."""
    if cluster is None:
        with worker_pool(folder, pipeline, ref, begun=begun) as pool:
            yield pool
        return
    from shardkit.clusters.work import ClusterWorkers

    if pipeline.gpus is not None:
        raise PipelineError(
            "gpus are dealt to workers of this machine, or of an engine's jobs, and the chunks go to a cluster.",
            hint="Leave out gpus; the cluster's own scheduler says what its processes see.",
        )
    settings = worker_settings(folder, pipeline, ref)
    # At most so many workers have a chunk at once, wherever they are.
    settings = replace(settings, calling=settings.calling.slower(cluster.size, own_rate=True))
    if pipeline.memory == "auto":
        settings = replace(settings, memory_bytes=None)  # each node finds out what it has itself
    yield ClusterWorkers(cluster, settings, code=_code(folder, pipeline, ref, cluster))


def _code(folder: RunFolder, pipeline: Spec, ref: FunctionRef, cluster: Cluster) -> str | None:
    """The name of the folder with the user's code, under the output; it is uploaded, if nodes cannot see it here."""
    if cluster.shares_code or ref.pickled is not None:
        return None
    from shardkit.runs.bundle import upload_code

    return PurePosixPath(upload_code(folder.output, pipeline, ref, mode="none")).name
