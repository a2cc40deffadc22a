"""One record of a run, run again as that run had it: the same files, settings and function."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.errors import PlanMismatch, ShardkitError
from shardkit.functions import FunctionRef, python_version, reference
from shardkit.hints import Hint
from shardkit.runfolder.ledger import Ledger
from shardkit.runs.container.job import FUNCTION
from shardkit.runs.planning import planned_pipeline
from shardkit.runs.trying import Trial, row_of
from shardkit.storage.base import STATE_DIR
from shardkit.workers.calling import made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.folder import RunFolder
    from shardkit.runs.tried import Tried


def replayed(
    folder: RunFolder, key: str, quarantine: list[dict[str, Any]], *, current: bool = False, only: bool = False
) -> Tried:
    """Run a record of a run again, in this process; with ``current`` by the function as it is now.

    ``quarantine`` says which records are those of other runs. With ``only`` what the function raises is raised.

    Raises:
        InputError: the run has no such record.
        PlanMismatch: the run kept no copy of the function, and that has changed since.
    """
    __tracebackhide__ = True
    folder = _folder_with(folder, key, quarantine)
    records = folder.records()
    row = row_of(records, key)
    plan = folder.plan()
    pipeline = planned_pipeline(plan, {"engine": None} if plan["pipeline"].get("engine") else {})
    with tempfile.TemporaryDirectory(prefix="shardkit-replay-") as scratch:
        if current:
            ref = reference(plan["pipeline"]["function"], source_dir=pipeline.source_dir)
        else:
            ref = function_of(folder, _digest_of(folder, row), scratch)
        notes = [] if current else [f"With {ref.name} as the run had it."]
        return Trial(pipeline, ref.load(make=made)).run(records.take([row]), only=only, told=notes)


def _folder_with(folder: RunFolder, key: str, quarantine: list[dict[str, Any]]) -> RunFolder:
    """The folder of the run that has the record: of a dataset of days, perhaps another run's."""
    owner = next((entry["run"] for entry in quarantine if entry["key"] == key), folder.run_id)
    return folder if owner == folder.run_id else replace(folder, run_id=owner, days=None)


def _digest_of(folder: RunFolder, row: int) -> str:
    """The digest of the function that the record was last run with; that of the plan if it has not been run."""
    digest = folder.plan()["function_digest"]
    with contextlib.suppress(ShardkitError):
        for marker, ids in Ledger(folder).settled():
            if (ids == row).any():
                digest = marker.get("function_digest", digest)
    return digest


def function_of(folder: RunFolder, digest: str, scratch: str) -> FunctionRef:
    """The function of that digest: sent by value, or by its name from its source as it is now or as jobs had it.

    Raises:
        PlanMismatch: it is nowhere any more.
    """
    plan = folder.plan()
    name, source = plan["pipeline"]["function"], plan["pipeline"]["source_dir"]
    for python, sent in _by_value(folder, digest):
        if python != python_version():
            raise PlanMismatch(
                f"The function {name} was sent by value from Python {python}, and this is Python {python_version()}.",
                hint=f"Replay the record with Python {python}.",
            )
        return FunctionRef(name, None, digest, sent)
    with contextlib.suppress(ShardkitError):
        now = reference(name, source_dir=source)
        if now.digest == digest:
            return now
    for home in _code_of_jobs(folder, scratch):
        with contextlib.suppress(ShardkitError):
            then = reference(name, source_dir=home)
            if then.digest == digest:
                return then
    raise PlanMismatch(
        f"The source of {name} has changed since run {folder.run_id}, which kept no copy of it.",
        hint=Hint(
            "Replay the record with the function as it is now: replay(key, current=True).",
            "Replay the record with the function as it is now: add --current.",
        ),
    )


def _by_value(folder: RunFolder, digest: str) -> Iterator[tuple[str, bytes]]:
    """The functions of that digest that the run was sent by value, each with its version of Python."""
    plan = folder.plan()
    if digest == plan["function_digest"] and (pickled := folder.pickled("function")) is not None:
        yield plan.get("python", python_version()), pickled
    names = [entry.key for entry in folder.files.entries("settings") if entry.key.endswith(".json")]
    for name, data in zip(names, folder.files.read_many(names), strict=True):
        instead: dict[str, Any] = json.loads(data).get(FUNCTION) or {}
        if instead.get("digest") == digest:
            pickled = folder.sent(f"function-{Path(name).stem}", instead.get("sha256"))
            if pickled is not None:
                yield instead.get("python", python_version()), pickled


def _code_of_jobs(folder: RunFolder, scratch: str) -> Iterator[str]:
    """The folders with code that jobs or nodes of this output had, each unpacked."""
    code = folder.output.child(f"{STATE_DIR}/code")
    for entry in code.entries():
        if entry.key.endswith("/source.zip"):
            home = Path(scratch, entry.key.partition("/")[0][:16])
            with zipfile.ZipFile(BytesIO(code.read(entry.key))) as archive:
                archive.extractall(home)
            yield str(home)
