"""The next state of a dataset: built beside the present one, and switched to."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.dataset.build import Build
from shardkit.dataset.catalogs import check_table
from shardkit.dataset.checks import check_name, check_types
from shardkit.dataset.current import current_result
from shardkit.dataset.held import CHECKS, check_base, check_build, check_staged, held_build
from shardkit.dataset.switch import dataset_lock, switch
from shardkit.dataset.switch_steps import build_of, staging
from shardkit.storage.side_by_side import together
from shardkit.times import now

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from shardkit.dataset.merge import Merge
    from shardkit.dataset.switch_steps import LockedDataset
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import Result
    from shardkit.runfolder.folder import RunFolder

SWITCH_PATIENCE_S = 600.0


@contextlib.contextmanager
def switching(
    folder: RunFolder,
    attempt: Attempt,
    *,
    name: str,
    fresh: bool = False,
    staged: Collection[str] = (),
    checks: Mapping[str, Any] | None = None,
) -> Iterator[Build]:
    """Keep the dataset locked while the block builds its next state, then switch to that if its ``checks`` pass.

    ``staged`` are files of the next state that jobs have staged already. ``fresh``: this is the first attempt.

    Runs of different days build side by side: they need the lock only to check and to switch.

    Raises:
        ChecksFailed: a check has failed; the next state stays aside.
    """
    if folder.plan()["by_day"]:
        build = _begin(folder, attempt, name, current=current_result(folder.output), fresh=fresh, staged=staged)
        yield build
        build.check()
        with dataset_lock(folder.output, patience_s=SWITCH_PATIENCE_S) as dataset:
            check_name(folder.output, dataset.result, name)
            _to(build, dataset, folder, attempt, of_jobs=staged, checks=checks)
        return
    with dataset_lock(folder.output) as dataset:
        check_name(
            folder.output, dataset.result, name
        )  # a second time: another pipeline's run may have ended there meanwhile
        build = _begin(folder, attempt, name, current=dataset.result, fresh=fresh)
        yield build
        _to(build, dataset, folder, attempt, checks=checks)


def _to(
    build: Build,
    dataset: LockedDataset,
    folder: RunFolder,
    attempt: Attempt,
    *,
    of_jobs: Collection[str] = (),
    checks: Mapping[str, Any] | None = None,
) -> None:
    """Switch the dataset to a build, once its checks pass."""
    attempt.check()
    if checks:
        check_build(folder, build, checks, dataset.result, of_jobs=of_jobs)
        attempt.check()
    rewritten = None
    if build.by_day:
        from shardkit.dataset.uniform import make_uniform

        check_types(folder, build.result, dataset.result)
        rewritten = make_uniform(folder, build, dataset.result)
    check_table(build.merge, folder.output, build.result)
    switch(folder, build.result, dataset, build.kept, rewritten, of_jobs=of_jobs)


def accept(folder: RunFolder, attempt: Attempt, merge: Merge) -> None:
    """Switch the dataset to the build that the run keeps aside, though its checks have failed.

    ``merge`` is what made it.

    Raises:
        RunNotFound: it keeps none.
        PlanMismatch: another run has switched the dataset since.
    """
    held, checks = held_build(folder)
    build = Build.restored(folder, attempt, held, merge)
    with dataset_lock(folder.output, patience_s=SWITCH_PATIENCE_S) as dataset:
        check_name(folder.output, dataset.result, held["result"]["name"])
        check_base(folder, held, dataset.result)
        check_staged(folder, held, build.home_of)
        _to(build, dataset, folder, attempt, of_jobs=held["of_jobs"])
    folder.write(CHECKS, {**checks, "held": None, "accepted": now()})


def _begin(
    folder: RunFolder,
    attempt: Attempt,
    name: str,
    *,
    current: Result | None,
    fresh: bool,
    staged: Collection[str] = (),
) -> Build:
    """A build with an empty staging folder; of the jobs' files, those that are ``staged`` stay."""
    before = None
    if not fresh:
        folder.files.remove(CHECKS)  # what it keeps aside is about to go
        before, _ = together([folder.result, lambda: _clear_staging(folder, attempt, staged)])
    # No other attempt has this number: names of files are never used twice, even if two processes work on the run.
    number = max((before["generation"] if before else 0) + 1, attempt.number)
    return Build(folder, attempt, name, current=current, number=number, of_jobs=staged)


def _clear_staging(folder: RunFolder, attempt: Attempt, staged: Collection[str]) -> None:
    """Remove what earlier attempts have staged and not published."""
    attempt.check()
    files = staging(folder)
    left = [entry.key for entry in files.entries() if entry.key not in staged]
    earlier = {key.partition("/")[0] for key in left if 0 < build_of(key) < attempt.number}
    of_jobs = [key for key in left if not build_of(key)]
    together([*(partial(files.remove_all, home) for home in earlier), *(partial(files.remove, key) for key in of_jobs)])
