"""The command for the checks of a run's new files."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from shardkit.cli.commands import Command, echo
from shardkit.cli.given import opened
from shardkit.cli.options import JSON, OUTPUT, QUIET, RUN_ID
from shardkit.errors import ChecksFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.check_types import CheckResult


@click.command(
    cls=Command, epilog="shardkit checks out/\nshardkit checks out/ --json | jq .results\nshardkit checks out/ --accept"
)
@OUTPUT
@RUN_ID
@click.option("--accept", is_flag=True, help="Switch the dataset to the files that are kept aside, all the same.")
@QUIET
@JSON
def checks(output: str, run_id: str | None, *, accept: bool, quiet: bool, as_json: bool) -> None:
    """Show how the checks of a run's new files ended, and what offends.

    If one has failed, the dataset is as it was, and the new files are kept aside until --accept switches to them, or
    another run replaces them. Exit codes: 0 all have passed or were accepted, 3 one has failed.
    """
    from shardkit.runs.checked import outcome_text, results_of_checks

    handle = opened(output, run_id)
    if accept:
        handle.accept(quiet=quiet)
    results = results_of_checks(handle.folder)
    short = handle.summary().checks
    if as_json:
        echo(json.dumps({"run_id": handle.run_id, **short, "results": results}))
    elif not results:
        echo(f"Run {handle.run_id} has checked nothing.")
    else:
        echo(f"Checks of run {handle.run_id}: {outcome_text(short)}.")
        for result in results:
            for line in _lines(result):
                echo(line)
    if short.get("failed") and not short["accepted"]:
        sys.exit(ChecksFailed.exit_code)


def _lines(result: CheckResult) -> Iterator[str]:
    yield f"  {'passed' if result['passed'] else 'FAILED'}  {result['name']}: {result['message']}"
    for row in result["sample"]:
        yield f"          {', '.join(f'{name}={json.dumps(value, ensure_ascii=False)}' for name, value in row.items())}"
    more = result["offending"] - len(result["sample"])
    if result["sample"] and more > 0:
        yield f"          ... and {more:,} more"
