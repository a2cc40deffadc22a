"""The command line: a group of commands that parse, call the library and print.

Messages for people go to stderr, results to stdout. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
from typing import TYPE_CHECKING

import click

from shardkit._version import __version__
from shardkit.cli.checks import checks
from shardkit.cli.commands import Group
from shardkit.cli.deploy_job import deploy
from shardkit.cli.engine import engine
from shardkit.cli.jobs import jobs
from shardkit.cli.keep import clean, init
from shardkit.cli.look import check, failures, logs, query, report, status
from shardkit.cli.passes import pass1, pass2
from shardkit.cli.provenance import diff, origin, verify
from shardkit.cli.run import plan, resume, retry, run, stop
from shardkit.cli.schedule import schedule
from shardkit.cli.trying import replay, try_
from shardkit.cli.workflow import workflow
from shardkit.cli.workflow_deploy import ON_KUBERNETES

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shardkit")
def cli() -> None:
    """Preprocess huge file collections with your own Python function.

    A folder of files and one function become one dataset: planned, run on all CPUs, safe against crashes, merged.
    """


# In the order in which users need them.
for command in (
    *(try_, run, plan, status, report, logs, stop, failures, checks, replay, query, retry, resume, clean, check),
    *(origin, verify, diff),
    *(pass1, pass2, init, schedule, workflow, deploy, jobs, engine),
):
    cli.add_command(command)
for command in ON_KUBERNETES:
    workflow.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """The program."""
    # Arrow's own allocator keeps freed memory for a while: here that is a third of the peak, and no faster.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    atexit.register(gc.freeze)  # else the garbage collector takes 0.2 s at the end
    try:
        cli.main(args=args, prog_name="shardkit")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would print a traceback of the tidying up


if __name__ == "__main__":
    main()
