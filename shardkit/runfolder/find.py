"""Finding the runs of an output: all, one by its id, the latest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from shardkit.errors import Damaged, PipelineError, RunNotFound, WrittenByNewer
from shardkit.runfolder import documents
from shardkit.runfolder.document_types import Latest
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import LATEST, RUN_ID, RUNS

if TYPE_CHECKING:
    from shardkit.storage.base import Folder


def runs_of(output: Folder) -> list[RunFolder]:
    """All runs of an output, the newest last."""
    folders = [RunFolder(output, name) for name in output.children(RUNS)]
    return sorted((f for f in folders if f.exists()), key=lambda f: (_created(f), f.run_id))


def _created(folder: RunFolder) -> str:
    """When a run was planned; empty if its plan cannot be read: the other runs must still be listed."""
    with contextlib.suppress(Damaged, WrittenByNewer):
        return str(folder.plan()["created"])
    return ""


def run_folder(output: Folder, run_id: str) -> RunFolder:
    """The folder of a run, which may not exist yet.

    Raises:
        PipelineError: ``run_id`` cannot be a folder's name.
    """
    if not RUN_ID.fullmatch(run_id):
        raise PipelineError(
            f"run id {run_id!r} is not allowed.", hint="Use letters, digits, '.', '_' and '-', 63 characters at most."
        )
    return RunFolder(output, run_id)


def find_run(output: Folder, run_id: str | None = None) -> RunFolder:
    """The run with that id, or the output's latest.

    Raises:
        RunNotFound: there is none.
    """
    if run_id is not None and RUN_ID.fullmatch(run_id) and RunFolder(output, run_id).exists():
        return RunFolder(output, run_id)
    latest = latest_run(output)
    if latest is None:
        raise RunNotFound(
            f"{output.uri} holds no run of shardkit.", hint="Give the output of the pipeline, as in its YAML."
        )
    if run_id is None:
        return latest
    import difflib

    names = output.children(RUNS)
    near = difflib.get_close_matches(run_id, names, n=1)
    if run_id in names:
        raise RunNotFound(
            f"{output.uri} holds only remains of run {run_id}: it was cleaned away, or never planned to the end.",
            hint=f"Its rows cannot be had back but by a new run. The latest is {latest.run_id}.",
        )
    raise RunNotFound(
        f"{output.uri} holds no run {run_id}.",
        hint=f"Did you mean {near[0]}?" if near else f"Its latest is {latest.run_id}.",
    )


def latest_run(output: Folder) -> RunFolder | None:
    """The run that was planned, or retried, last; reads all runs only if no note names it."""
    try:
        name = documents.parse(output.read(LATEST), Latest, f"{output.uri}/{LATEST}")["run_id"]
        if RUN_ID.fullmatch(name) and (noted := RunFolder(output, name)).exists():
            return noted
    except (FileNotFoundError, Damaged):
        pass
    runs = runs_of(output)
    return runs[-1] if runs else None
