"""Commands that run single records in the foreground, under a debugger if need be."""

from __future__ import annotations

import sys
from bdb import BdbQuit
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import Command, echo
from shardkit.cli.given import opened, read_pipeline
from shardkit.cli.options import OUTPUT, PIPELINE_FIELDS, RUN_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.runs.tried import Tried, TriedRecord

PDB = click.option("--pdb", is_flag=True, help="After an error, look around with Python's debugger.")


@click.command(
    "try",
    cls=Command,
    epilog="""
shardkit try pipeline.yaml
shardkit try pipeline.yaml p000020/3000003 --pdb
shardkit try pipeline.yaml -n 20 --set input.uri=/data/2020
shardkit try --function features:rows --input data/ --output out/
""",
)
@click.argument("pipeline", required=False, metavar="[PIPELINE.yaml]")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("-n", "count", type=int, metavar="N", help="How many, if no KEY is given (default 5).")
@PDB
@PIPELINE_FIELDS
def try_(pipeline: str | None, keys: tuple[str, ...], *, count: int | None, pdb: bool, **given: Any) -> None:
    """Run some records here, in this process, and show what the function gives; nothing is written.

    Prints, breakpoint() and debuggers work. Without a KEY these are records of all sizes, with the largest among them.

    Exit codes: 0 all gave rows, 1 one failed.
    """
    if keys and count is not None:
        raise click.UsageError("Give keys, or -n.")
    if pipeline is not None and given["function"] is not None and not pipeline.endswith((".yaml", ".yml")):
        keys = (pipeline, *keys)
        pipeline = None
    loaded = read_pipeline(pipeline, given)
    _show(lambda: loaded.try_records(keys or (5 if count is None else count)), pdb=pdb)


@click.command(
    cls=Command,
    epilog="""
shardkit replay out/ p000020/3000003
shardkit replay out/ p000020/3000003 --pdb
shardkit replay out/ p000020/3000003 --current
""",
)
@OUTPUT
@click.argument("key")
@RUN_ID
@click.option("--current", is_flag=True, help="Take the function as it is now, not as the run had it.")
@PDB
def replay(output: str, key: str, run_id: str | None, *, current: bool, pdb: bool) -> None:
    """Run one record of a run again, here, as that run had it: the same files, settings and function.

    Nothing is written. Files that have changed since are named.

    Exit codes: 0 it gave rows, 1 it failed.
    """
    from shardkit.runs.replay import replayed

    run = opened(output, run_id)
    _show(lambda: replayed(run.folder, key, run.quarantine(), current=current), pdb=pdb)


def _show(work: Callable[[], Tried], *, pdb: bool) -> None:
    try:
        tried = work()
    except BdbQuit:  # somebody has ended the debugger at a breakpoint
        sys.exit(1)
    echo(str(tried))
    failed = tried.failed
    if failed and pdb:
        _debug(failed[0])
    if failed:
        sys.exit(1)


def _debug(record: TriedRecord) -> None:
    """Begin Python's debugger in the user's innermost frame."""
    import pdb  # noqa: T100  it is what was asked for

    from shardkit.tracebacks import users_part

    trace = users_part(record.error)
    if trace is None:
        echo("The error is not raised in your function, so there is nothing to look around in.", err=True)
        return
    echo(f"At the error of {record.key}; q ends the debugger.", err=True)
    pdb.post_mortem(trace)
