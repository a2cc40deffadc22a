"""The arguments of a command as the library has them: a pipeline, its days, a run; and the report of a run's end."""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardkit.cli.commands import echo
from shardkit.errors import ShardkitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.pipeline import Pipeline
    from shardkit.runs.handle import Run


def read_pipeline(pipeline: str | None, given: dict[str, Any], *, expect_work: bool = False) -> Pipeline:
    """The pipeline from a YAML file, from options, or from both.

    With ``expect_work`` the workers get ready meanwhile, unless an engine does the work.
    """
    from shardkit.workers.forkserver import begin_server, end_server

    if expect_work and not given.get("engine"):
        with suppress(OSError):  # the error shows when a worker is needed
            begin_server()
    loaded = _made_of(pipeline, settings_of(given))
    if loaded.engine is not None:
        end_server()
    if loaded.combine is None:  # a combine may use NumPy's threads, which spin while other processes begin
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return loaded


def _made_of(pipeline: str | None, fields: dict[str, Any]) -> Pipeline:
    from shardkit.pipeline import Pipeline
    from shardkit.spec.yaml import from_settings

    if pipeline is not None:
        return Pipeline.from_yaml(pipeline, overrides=fields)
    sections = {name.partition(".")[0] for name in fields if name in {"input.uri", "input.manifest", "output.uri"}}
    missing = [f"--{name}" for name in ("function", "input", "output") if name not in fields and name not in sections]
    if missing:
        raise click.UsageError(f"Give a PIPELINE.yaml, or {', '.join(missing)}.")
    return from_settings(Pipeline, fields)


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Fields by their dotted names, from options and from --set, which wins."""
    from shardkit.spec.fields import dotted_names
    from shardkit.spec.spec import Spec
    from shardkit.spec.yaml import parse_setting

    settings = given.pop("settings", ())
    fields: dict[str, Any] = {}
    names = dotted_names(Spec) if given else {}
    for option, value in given.items():
        if value not in (None, ()):
            if option == "workers" and value.isdigit():
                value = int(value)  # noqa: PLW2901
            name = option.rstrip("_")  # some have one, to differ from Python's own names
            fields[names.get(name, name)] = list(value) if isinstance(value, tuple) else value
    fields |= dict(parse_setting(text) for text in settings)
    return fields


def days_of(pipeline: Pipeline, date: tuple[str, ...], since: str | None) -> list[str] | None:
    """The days that were asked for; None for all."""
    from shardkit.times import days_since, zone_of

    zone = zone_of(pipeline.shards.zone if pipeline.shards is not None else None)
    return [*date, *(days_since(since, zone=zone) if since else ())] or None


def report(work: Callable[[], Run], *, as_json: bool) -> None:
    """Do the work, and print how it ended, even if it failed."""
    try:
        with redirect_stdout(sys.stderr):  # for what the user's own functions print
            run = work()  # an earlier one, if there was nothing to do
    except ShardkitError as error:
        if as_json:
            summary_data = (
                error.run.summary().to_dict() if error.run is not None else {"run_id": None, "status": "failed"}
            )
            echo(json.dumps(summary_data | {"reason": error.message}))
        raise
    summary = run.summary()
    echo(summary.command_text, err=True)
    if as_json:
        echo(json.dumps(summary.to_dict()))


def opened(output: str, run_id: str | None) -> Run:
    """The run in an output, given as its folder or as a pipeline's YAML file."""
    from shardkit.runs.start import open_run

    return open_run(output_of(output), run_id)


def output_of(output: str) -> str:
    """The folder of an output, given as that folder or as a pipeline's YAML file."""
    if output.endswith((".yaml", ".yml")) and Path(output).is_file():
        from shardkit.pipeline import Pipeline

        return Pipeline.from_yaml(output).output.uri
    return output
