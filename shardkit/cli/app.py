"""The command line: a group of commands that parse, call the library and print.

Messages for people go to stderr, results to stdout. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import click

from shardkit._version import __version__
from shardkit.cli.commands import Group, Later

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shardkit")
def cli() -> None:
    """Preprocess huge file collections with your own Python function.

    A folder of files and one function become one dataset: planned, run on all CPUs, safe against crashes, merged.
    """


# In the order in which users need them: what is called, where it is, and the first sentence of its help. A command is
# imported when it is called, for the options of all of them take longer to make than the rest of `--help`.
for name, place, sentence in (
    (
        "try",
        "trying:try_",
        "Run some records here, in this process, and show what the function gives; nothing is written.",
    ),
    ("run", "run:run", "Run both passes: records to parts, parts to the dataset."),
    ("plan", "run:plan", "Say what a run would do, without doing it."),
    ("status", "look:status", "Show how far a run is, or how it ended; on an engine, also how its jobs are."),
    (
        "report",
        "look:report",
        "Write a page about a run: how it went, what failed, what came out; one file, for any browser.",
    ),
    ("logs", "look:logs", "Print the logs of a run's jobs: of those that failed or, if none did, of all."),
    (
        "stop",
        "run:stop",
        "Stop the jobs of a run; what they have committed is kept, and `resume` continues from there.",
    ),
    ("failures", "look:failures", "List the records in quarantine, and why they failed."),
    ("checks", "checks:checks", "Show how the checks of a run's new files ended, and what offends."),
    (
        "replay",
        "trying:replay",
        "Run one record of a run again, here, as that run had it: the same files, settings and function.",
    ),
    (
        "query",
        "look:query",
        (
            "Query datasets with SQL: each is a table with its pipeline's name, or the NAME given; "
            "one alone also `dataset`."
        ),
    ),
    (
        "snapshots",
        "look:snapshots",
        ("List the snapshots of a dataset's Iceberg table, the newest first: `query --as-of RUN` reads each of them."),
    ),
    (
        "retry",
        "run:retry",
        "Run the quarantined records again, with the function as it is now, and rebuild the dataset.",
    ),
    (
        "resume",
        "run:resume",
        "Continue a run where it was interrupted or failed; what is committed is not done again.",
    ),
    ("clean", "keep:clean", "Remove old runs that nothing needs any more."),
    ("check", "look:check", "Compare a dataset with all notes about it, record by record; changes nothing."),
    (
        "origin",
        "provenance:origin",
        "Say which record a row of the dataset comes from; rows are counted from 0, over all files in their order.",
    ),
    (
        "verify",
        "provenance:verify",
        "Compute some records of a dataset again, here, and compare their rows with those that are stored.",
    ),
    (
        "diff",
        "provenance:diff",
        "Show what the function, as it is now, would change in the dataset that is there.",
    ),
    ("pass1", "passes:pass1", "Pass 1 alone: the files of one folder to parts, plain Parquet files."),
    ("pass2", "passes:pass2", "Pass 2 alone: the Parquet files of some folders to one dataset."),
    ("init", "keep:init", "Write a pipeline that runs as it is, with made-up input, for you to change."),
    ("schedule", "schedule:schedule", "Keep a pipeline going by the schedule in its YAML file."),
    ("workflow", "workflow:workflow", "Run the steps of a file in their order, in one of its environments."),
    ("deploy", "deploy_job:deploy", "Write what runs a pipeline in your account, without this machine."),
    ("jobs", "jobs:jobs", "The queue that Processing and training jobs go through: submit, look, stop, try again."),
    ("engine", "engine:engine", "The engine that runs Processing jobs on this machine."),
):
    cli.add_command(Later(name, place, sentence))


def main(args: Sequence[str] | None = None) -> None:
    """The program."""
    # Arrow's own allocator keeps freed memory for a while: here that is a third of the peak, and no faster.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        cli.main(args=args, prog_name="shardkit")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # or Ctrl-C would print a traceback of the tidying up


if __name__ == "__main__":
    main()
