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
) -> Iterator[Workers]:
    """The workers of a pipeline, in a ``job`` of that name if in any.

    ``source`` is where its input is now, ``begun`` how many workers start at once; with ``leaves`` they leave records
    that need more memory than there is to a larger machine.
    """
    from shardkit.workers.local_work import LocalWorkers

    settings = dataclasses.replace(worker_settings(folder, pipeline, ref, source=source, job=job), leaves=leaves)
    with LocalWorkers(settings, pipeline.worker_count(), begun=begun) as pool:
        yield pool


def worker_settings(
    folder: RunFolder, pipeline: Spec, ref: FunctionRef, *, source: str | None = None, job: str | None = None
) -> WorkerSettings:
    """What stays the same for all chunks of a run; ``source`` is where its input is now."""
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
        memory_bytes=None if pipeline.memory == "auto" else pipeline.memory,
    )
