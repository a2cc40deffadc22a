"""The driver of a run as the program of a Processing job: it plans the run, makes the jobs and watches them.

The service brings the pipeline, as ``shardkit.runs.driver_job`` has written it. The run's id comes from whatever has
started the job: a second job with the same id goes on with the run where the first one has left it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING

from shardkit.errors import RunFailed
from shardkit.runs.bundle import Sent
from shardkit.runs.container.job import run_program
from shardkit.storage.interruption import heeding_interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from shardkit.runs.container.job import Container
    from shardkit.runs.handle import Run
    from shardkit.spec.spec import Spec

DRIVER_FOLDER = "processing/input/driver"
DRIVER_FILE = "driver.json"
LONGEST_ID = 63


def main(arguments: Sequence[str]) -> int:
    """Run the pipeline, or go on with its run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="shardkit.driver")
    parser.add_argument("program", choices=["run"])
    parser.add_argument("--run-id")
    parser.add_argument("--since")
    parser.add_argument("--date", action="append", default=[])

    def work(container: Container) -> None:
        given = parser.parse_args(arguments)
        run_id = run_id_of(given.run_id or container.job_name)
        run = _driven(*_sent(container.root), run_id, dates=given.date, since=given.since)
        container.leave_message(str(run.summary()))

    return run_program(work)


def _sent(root: Path) -> tuple[Spec, Sent]:
    """The pipeline that the service has brought, and where its code is."""
    from shardkit.spec.spec import Spec

    file = root / DRIVER_FOLDER / DRIVER_FILE
    if not file.is_file():
        raise RunFailed(f"There is no {file}.", hint="Make the request with shardkit deploy job.")
    about = json.loads(file.read_text("utf-8"))
    here = os.environ["SHARDKIT_SOURCE_DIR"]
    sent = Sent(about["code"], here, about["pipeline"]["source_dir"])
    return Spec(**about["pipeline"] | {"source_dir": here}), sent


@heeding_interrupts()
def _driven(pipeline: Spec, sent: Sent, run_id: str, *, dates: list[str], since: str | None) -> Run:
    from shardkit.runfolder.display import make_progress
    from shardkit.runfolder.find import run_folder
    from shardkit.runs.going_on import GoingOn, go_on_with
    from shardkit.runs.handle import Run, naming
    from shardkit.runs.on_engine import start_jobs
    from shardkit.times import days_since, zone_of

    folder = run_folder(pipeline.output_folder(), run_id)
    progress = make_progress(quiet=False)
    with naming(Run(folder)):
        if folder.exists():
            progress.note(f"Run {run_id} exists; going on where it ended.")
            go_on_with(folder, GoingOn("resume", {}, None, sent=sent), progress)
            return Run(folder)
        zone = zone_of(pipeline.shards.zone if pipeline.shards is not None else None)
        days = pipeline.chosen_days([*dates, *(days_since(since, zone=zone) if since else ())] or None)
        return Run(start_jobs(pipeline, folder, days=days, may_exist=True, quiet=False, wait=True, sent=sent))


def run_id_of(text: str) -> str:
    """A run's id made of any text, such as a time or the name of an execution; the same text gives the same id."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-") or "run"
    if len(words) > LONGEST_ID:
        words = f"{words[: LONGEST_ID - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return words


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
