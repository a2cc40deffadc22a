"""Claims: which run is making which days of a dataset now.

A run that holds its own lock writes one file, ``_shardkit/days/<run id>.json``, that names all its days. It does so
under a lock of all claims, which it holds for a moment, and only if no other claim names one of them. A claim counts as
long as the lock of its run is held: the claim of a process that was killed is removed by the next one that wants one of
its days.
"""

from __future__ import annotations

import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING

from shardkit.dataset.checks import check_base
from shardkit.dataset.current import current_result
from shardkit.runfolder.folder import RunFolder
from shardkit.storage.base import STATE_DIR
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.document_types import PlanDocument
    from shardkit.storage.base import Folder

CLAIMS = f"{STATE_DIR}/days"
TAKING_PATIENCE_S = 60.0


@contextlib.contextmanager
def holding_days(folder: RunFolder, plan: PlanDocument) -> Iterator[None]:
    """Keep other runs from making the days of a plan, and check that none has made them since it was planned.

    The caller holds the run's lock.

    Raises:
        RunBusy: another run is making one of them.
        PlanMismatch: another run has rebuilt one meanwhile.
    """
    if not plan["by_day"]:
        yield
        return
    output, own = folder.output, _claim_of(folder.run_id)
    try:
        _claim(folder, set(plan["partitions"] or ()))
        check_base(folder.run_id, plan, current_result(output))
        yield
    finally:
        output.remove(own)
        if not folder.exists():  # it was refused before its plan was written: only its lock is there
            folder.files.remove_all("")


def _claim(folder: RunFolder, days: set[str]) -> None:
    """Write the run's claim, once no other run claims one of its days.

    Raises:
        RunBusy: one does, and is at work.
    """
    output = folder.output
    busy = f"Other runs are taking their days of {output.uri}."
    while True:
        with output.lock(f"{CLAIMS}/lock", busy, patience_s=TAKING_PATIENCE_S) as held:
            others = _others(output, folder.run_id, days)
            if not others:
                held.check()
                content = {"run_id": folder.run_id, "days": sorted(days)}
                output.write(_claim_of(folder.run_id), json.dumps(content).encode())
                return
        for run_id, shared in others.items():  # outside that lock: checking whether a run is alive may take a minute
            _remove_if_dead(output, run_id, shared)


def _others(output: Folder, run_id: str, days: set[str]) -> dict[str, set[str]]:
    """The other runs that claim some of these days, each with the days that it claims."""
    keys = [e.key for e in output.entries(CLAIMS) if e.key.endswith(".json") and e.key != _claim_of(run_id)]
    claimed = together([partial(_days_of, output, key) for key in keys])
    names = [key.rpartition("/")[2].removesuffix(".json") for key in keys]
    return {name: shared for name, theirs in zip(names, claimed, strict=True) if (shared := days & theirs)}


def _days_of(output: Folder, key: str) -> set[str]:
    with contextlib.suppress(FileNotFoundError, ValueError, LookupError, TypeError):
        return set(json.loads(output.read(key))["days"])
    return set()


def _remove_if_dead(output: Folder, run_id: str, shared: set[str]) -> None:
    """Remove the claim of a run that no process is working on.

    Raises:
        RunBusy: a process is.
    """
    busy = f"Another run is making {_few(sorted(shared))} of {output.uri}: {run_id}."
    with RunFolder(output, run_id).lock(busy):
        output.remove(_claim_of(run_id))


def _few(days: list[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} and {len(days) - 1:,} more of the same days"


def _claim_of(run_id: str) -> str:
    return f"{CLAIMS}/{run_id}.json"
