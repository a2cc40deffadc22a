"""Old runs of a workflow removed: their folders, with the logs and with the outputs that have no other place."""

from __future__ import annotations

import datetime
import shutil
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError, RunBusy
from shardkit.times import interval
from shardkit.workflows.run_files import runs_in

if TYPE_CHECKING:
    from pathlib import Path


def clean(state: Path, older_than: str, *, dry_run: bool = False) -> list[str]:
    """Remove the runs under a folder that ended so long ago, such as ``30d``; the latest run stays.

    Returns:
        The ids of the runs that were removed, or with ``dry_run`` would be.

    Raises:
        PipelineError: it is no such time.
    """
    age = interval(older_than)
    if not age:
        raise PipelineError(f"--older-than {older_than}: expected a time such as 12h, 30d or 8w.")
    limit = datetime.datetime.now(datetime.timezone.utc) - age
    removed = []
    for files in runs_in(state)[:-1]:
        ended = files.ended()
        if ended is None or ended > limit:
            continue
        if not dry_run:
            try:
                with files.lock():
                    shutil.rmtree(files.path)
            except RunBusy:
                continue
        removed.append(files.run_id)
    return removed
