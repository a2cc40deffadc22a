"""The worker processes of this machine for a run, or for a job of one."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from shardkit.storage.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.functions import FunctionRef
    from shardkit.runfolder.folder import RunFolder
    from shardkit.spec.spec import Spec
    from shardkit.workers.tasks import WorkerSettings
    from shardkit.workers.work import Workers


@contextlib.contextmanager
def worker_pool(
    folder: RunFolder,
    pipeline: Spec,
    ref: FunctionRef,
    *,
    source: str | None = None,
    begun: int | None = None,
    job: str | None = None,
    leaves: bool = False,
    machines: int = 1,
) -> Iterator[Workers]:
    """The workers of a pipeline, in a ``job`` of that name if in any.

    ``source`` is where its input is now, ``begun`` how many workers start at once; with ``leaves`` they leave records
    that need more memory than there is to a larger machine. The rate of calls is shared by so many ``machines``.
    """
    from shardkit.workers.local_work import LocalWorkers

    settings = worker_settings(folder, pipeline, ref, source=source, job=job)
    settings = dataclasses.replace(settings, leaves=leaves, calling=settings.calling.slower(machines))
    with LocalWorkers(settings, _worker_count(pipeline), begun=begun) as pool:
        yield pool


def _worker_count(pipeline: Spec) -> int:
    """How many workers there are here: if each has GPUs of its own, no more than these allow.

    Raises:
        RunFailed: there are not enough GPUs for one.
    """
    if pipeline.gpus is None:
        return pipeline.worker_count()
    from shardkit.workers.devices import devices_for

    places = devices_for(pipeline.gpus).places(pipeline.gpus)
    return places if pipeline.workers == "auto" else min(int(pipeline.workers), places)


def worker_settings(
    folder: RunFolder, pipeline: Spec, ref: FunctionRef, *, source: str | None = None, job: str | None = None
) -> WorkerSettings:
    """What stays the same for all chunks of a run; ``source`` is where its input is now."""
    from shardkit.workers.memory import allocated_bytes
    from shardkit.workers.tasks import WorkerSettings

    return WorkerSettings(
        function=ref,
        places=Places.one(source) if source is not None else pipeline.places(),
        output=folder.output.uri,
        run_id=folder.run_id,
        scratch=None,
        by_stem=pipeline.by_stem,
        schema=pipeline.output.columns,
        inside=pipeline.inside,
        job=job,
        origin=pipeline.output.origin,
        memory_bytes=allocated_bytes() if pipeline.memory == "auto" else pipeline.memory,
        calling=pipeline.calling(ref),
        gpus=pipeline.gpus,
    )
