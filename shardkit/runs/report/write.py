"""Writes the report of a run to a file, once or until the run ends."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError
from shardkit.runs.report.page import report_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shardkit.jobs.history import Prices
    from shardkit.jobs.job import Job
    from shardkit.runfolder.folder import RunFolder


def write_report(
    folder: RunFolder,
    path: str | os.PathLike[str] | None = None,
    *,
    jobs: Callable[[], Sequence[Job]] = tuple,
    prices: Prices | None = None,
    watch_s: float | None = None,
    written: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write a run's report; returns the file.

    Args:
        folder: The run's.
        path: The file; by default ``report-<run id>.html`` in the present folder.
        jobs: Gives the jobs of a run on an engine.
        prices: What instances cost, for a run on an engine.
        watch_s: Write it again after so many seconds, until nobody works on the run any more.
        written: Called when the file is there for the first time.

    Raises:
        PipelineError: The file cannot be written, or the libraries that draw pages are not installed.
        Damaged: The plan or the records cannot be read.
    """
    file = Path(path) if path is not None else Path(f"report-{folder.run_id}.html")
    first = True
    while True:
        page, is_live = report_page(
            folder,
            jobs=jobs(),
            prices=prices,
            refresh_s=max(round(watch_s), 1) if watch_s is not None else 0,
        )
        _replace(file, page)
        if first:
            written(file)
            first = False
        if watch_s is None or not is_live:
            return file
        time.sleep(watch_s)


def _replace(file: Path, text: str) -> None:
    """Write a file so that a browser that loads it meanwhile never sees half of it."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_text(text, "utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PipelineError(f"{file} cannot be written: {error.strerror}.", hint="Choose another file.") from None
