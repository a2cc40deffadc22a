"""Both passes of a pipeline as the program of one Processing job: a run that is planned when the job begins.

Its arguments are the URI of a pipeline as plain data, and the run's id. A later attempt of the job goes on where the
markers of an earlier one end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from shardkit.runs.container.job import run_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shardkit.runs.container.job import Container


def main(arguments: Sequence[str]) -> int:
    """Run the pipeline, or go on with its run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="shardkit.whole")
    parser.add_argument("program", choices=["whole"])
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--run-id", required=True)

    def work(container: Container) -> None:
        from shardkit.runs.again import start_or_go_on
        from shardkit.spec.spec import Spec
        from shardkit.storage.open import folder

        given = parser.parse_args(arguments)
        place, _, name = given.pipeline.rpartition("/")
        content = json.loads(folder(place).read(name))
        run = start_or_go_on(Spec(**content | {"source_dir": os.environ["SHARDKIT_SOURCE_DIR"]}), given.run_id)
        container.leave_message(str(run.summary()))

    return run_program(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
