"""The run folders of an output that are no longer needed, and their removal.

The present dataset needs the runs that have made its partitions, because the next run compares its records with theirs.
These runs, and all runs that may go on, need the parts that they have taken over from earlier runs. Everything else in
the folders of finished runs is left over from datasets that have been replaced.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.dataset.current import current_result
from shardkit.dataset.held import checks_of, held_by, is_current
from shardkit.dataset.iceberg.expiry import expire_snapshots
from shardkit.dataset.kept_files import noted_by
from shardkit.dataset.lance_expiry import expire_versions
from shardkit.dataset.switch import finish_switches
from shardkit.errors import Damaged, LockLost, PipelineError, RunBusy, RunNotFound, StorageError, WrittenByNewer
from shardkit.jobs.job import LIVE
from shardkit.runfolder.find import latest_run
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import LOCK, REMOVED, RUNS
from shardkit.runs.planning import planned_pipeline
from shardkit.runs.summary import status_of
from shardkit.storage.base import Access
from shardkit.storage.open import folder as folder_at
from shardkit.storage.side_by_side import together
from shardkit.times import interval, now
from shardkit.units import counted, human_bytes

if TYPE_CHECKING:
    import datetime
    import os
    from collections.abc import Collection, Iterable

    from shardkit.dataset.iceberg.expiry import ExpiredSnapshots
    from shardkit.runfolder.document_types import Result
    from shardkit.storage.base import Entry, Folder
    from shardkit.storage.locks import Held

BEING_PLANNED_S = 3600.0  # a folder without a plan may belong to a run that is about to write its plan
UNUSED = "no longer of use"
AT_WORK = "at work"
UNFINISHED = "not finished, and may be resumed"
HELD = "its new files failed a check, and may be accepted"
TAKEN_OVER = "what is left has been taken over by others"


@dataclass(frozen=True)
class CleanedRun:
    """A run folder: how many ``files`` and ``bytes`` are removed, how many ``files_kept`` stay, and the ``reason``."""

    run_id: str
    files: int
    bytes: int
    files_kept: int
    reason: str

    def __str__(self) -> str:
        some = f" of {self.files + self.files_kept:,}" if self.files_kept else ""
        return f"{self.run_id}  {counted(self.files, 'file')}{some}, {human_bytes(self.bytes)}"


@dataclass(frozen=True)
class Cleaned:
    """The answer of `clean`: what it has removed, or with ``dry_run`` would remove, run by run."""

    output: str
    dry_run: bool
    runs: list[CleanedRun]
    snapshots: ExpiredSnapshots | None = None

    @property
    def files(self) -> int:
        """How many files of runs are removed."""
        return sum(run.files for run in self.runs)

    @property
    def bytes(self) -> int:
        """The size of these files."""
        return sum(run.bytes for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """As ``clean --json`` prints it."""
        return asdict(self) | {"files": self.files, "bytes": self.bytes}

    def __str__(self) -> str:
        going = [run for run in self.runs if run.files]
        size = f"{counted(self.files, 'file')} and {human_bytes(self.bytes)} of {counted(len(going), 'run')}"
        verdict = f"{size} {'would go' if self.dry_run else 'removed'} in {self.output}."
        if not going:
            verdict = f"There is nothing to remove in {self.output}."
        staying = Counter(run.reason for run in self.runs if not run.files)
        reasons = [f"{counted(count, 'run')} untouched: {reason}." for reason, count in staying.items()]
        tables = [self.snapshots.line(dry_run=self.dry_run)] if self.snapshots else []
        return "\n".join([*map(str, going), verdict, *reasons, *tables])


def clean(
    output: str | os.PathLike[str],
    *,
    older_than: str | None = None,
    unfinished: bool = False,
    dry_run: bool = False,
    boto_session: Any = None,
) -> Cleaned:
    """Remove run folders, or parts of them, that neither the dataset nor another run needs.

    The dataset's files stay as they are, and no later run has to compute more because of it. If the dataset is in an
    Iceberg table, snapshots that are older than the table keeps them expire, and files that only they need are removed.

    Args:
        output: the folder of a dataset.
        older_than: only runs to which nothing was written for so long, such as ``7d``, ``12h`` or ``2w``.
        unfinished: also runs that have made no dataset and could still be resumed, but not those at work.
        dry_run: only find out what would be removed.
        boto_session: how S3 is reached, if not as boto3 does by default.

    Raises:
        RunNotFound: there are no runs.
        PipelineError: ``older_than`` is no time.
        StorageError: something cannot be read or removed; the rest can be, by cleaning again.
        CatalogError: the folders are cleaned, but the Iceberg table cannot be looked at.
    """
    return clean_folder(
        folder_at(output, Access(boto_session)), older_than=older_than, unfinished=unfinished, dry_run=dry_run
    )


def clean_folder(
    output: Folder, *, older_than: str | None = None, unfinished: bool = False, dry_run: bool = False
) -> Cleaned:
    """The same for a folder that is open already."""
    age = interval(older_than) if older_than is not None else None
    if older_than is not None and age is None:
        raise PipelineError(f"older_than {older_than!r} is no time.", hint="Write 30m, 12h, 7d or 2w.")
    finish_switches(output)
    runs = [RunFolder(output, name) for name in output.children(RUNS)]
    if not runs:
        raise RunNotFound(f"{output.uri} holds no run of shardkit.", hint="Give the output of the pipeline.")
    listed = together([run.files.entries for run in runs])  # before looking which runs are at work: see `_Folder.clean`
    why = _why_they_stay(output, runs, unfinished=unfinished)
    folders = [
        _Folder(run, entries, stays or _too_young(entries, age))
        for run, entries, stays in zip(runs, listed, why, strict=True)
    ]
    needed = _parts_needed([folder.run for folder in folders if folder.stays])
    cleaned = [folder.clean(_needed_of(folder, needed), dry_run=dry_run) for folder in folders]
    expired = expire_snapshots(output, dry_run=dry_run) or expire_versions(output, dry_run=dry_run)
    return Cleaned(output.uri, dry_run, cleaned, expired)


def _why_they_stay(output: Folder, runs: list[RunFolder], *, unfinished: bool) -> list[str]:
    """For each run, why its whole folder stays; empty if it need not."""
    # First the runs, then the dataset: a run that ends meanwhile is at work, or it has made the dataset.
    states = together([partial(_state, run) for run in runs])
    current = current_result(output)
    makers: set[str] = set()
    if current is not None:
        makers = {run for made in current["partitions"].values() for run in (made["run"], noted_by(made))}
        makers.add(current["run_id"])
    latest = latest_run(output)
    reasons = []
    for run, state_of_run in zip(runs, states, strict=True):
        state = _with_held(run, current) if state_of_run == UNFINISHED else state_of_run
        if run.run_id in makers:
            reasons.append("still in the dataset")
        elif state in {UNFINISHED, HELD} and unfinished:
            reasons.append(AT_WORK if _has_live_jobs(run) else "")
        elif latest is not None and run.run_id == latest.run_id:
            reasons.append(state or "the latest")
        else:
            reasons.append(state)
    return reasons


def _with_held(run: RunFolder, current: Result | None) -> str:
    """Why an unfinished run stays: its new files may be accepted, unless the dataset has been switched since."""
    try:
        checks = checks_of(run)
    except (Damaged, WrittenByNewer):
        return UNFINISHED
    held = held_by(checks, None)
    if held is None:
        return UNFINISHED
    return HELD if is_current(run, held, current) else ""


def _state(run: RunFolder) -> str:
    """Why a run stays even if the dataset does not need it; empty if nothing keeps it."""
    if run.is_locked():
        return AT_WORK
    if not run.exists():
        return ""
    try:
        if status_of(run) == "running":
            return AT_WORK
    except (Damaged, WrittenByNewer) as error:
        return f"{error.message.rstrip('.')}. Delete its folder yourself if you are sure"
    return "" if run.files.exists("result.json") else UNFINISHED


def _has_live_jobs(run: RunFolder) -> bool:
    """Whether jobs of the run go on although nobody watches them; asks the engine."""
    from shardkit.runs.on_engine import RunJobs

    plan = run.plan()
    if not plan["pipeline"].get("engine"):
        return False
    jobs = RunJobs(run, planned_pipeline(plan, {}))
    jobs.refresh()
    return any(job.status in LIVE for job in jobs.current())


def _too_young(entries: list[Entry], age: datetime.timedelta | None) -> str:
    idle_s = time.time() - max((entry.modified for entry in entries), default=0.0)
    if age is not None and idle_s < age.total_seconds():
        return "not that old"
    keys = {entry.key for entry in entries}
    noted = bool({"plan.json", REMOVED} & keys) or all(key.startswith("parts/") for key in keys)  # or it was cleaned
    return "" if noted or idle_s > BEING_PLANNED_S else "perhaps about to be planned"


def _parts_needed(runs: Iterable[RunFolder]) -> dict[str, set[str]] | None:
    """The parts that these runs have taken over, as keys in the folders of earlier runs; None if one cannot be read."""
    needed: dict[str, set[str]] = {}
    try:
        taken_over = together([run.taken_over for run in runs])
    except (Damaged, WrittenByNewer):
        return None
    for markers in taken_over:
        for part in (part for marker in markers for part in marker["parts"]):
            needed.setdefault(part["run"], set()).add(f"{part['at']}/{part['name']}")
    return needed


def _needed_of(folder: _Folder, needed: dict[str, set[str]] | None) -> set[str]:
    """The parts of a run that others have taken over; all of its parts if these are not known."""
    if needed is not None:
        return needed.get(folder.run.run_id, set())
    return {entry.key for entry in folder.entries if entry.key.startswith("parts/")}


@dataclass(frozen=True)
class _Folder:
    """A run folder, its files, and why it stays."""

    run: RunFolder
    entries: list[Entry]
    stays: str

    def clean(self, needed: Collection[str], *, dry_run: bool) -> CleanedRun:
        """Remove files that are not needed; none if the folder stays, or somebody works on the run again."""
        going = [entry for entry in self.entries if entry.key not in needed]
        if self.stays or not going:
            if not dry_run and self.stays != AT_WORK and any(entry.key == REMOVED for entry in self.entries):
                self.run.files.remove(REMOVED)  # who wanted to remove it was killed before it began
            return self._staying(self.stays or TAKEN_OVER)
        whole = len(going) == len(self.entries)
        try:
            if not dry_run and not self._remove([entry.key for entry in going], whole=whole):
                return self._staying(AT_WORK)
        except LockLost:
            raise
        except RunBusy:
            return self._staying(AT_WORK)
        kept, size = len(self.entries) - len(going), sum(entry.bytes for entry in going)
        return CleanedRun(self.run.run_id, len(going), size, kept, UNUSED if whole else TAKEN_OVER)

    def _remove(self, keys: list[str], *, whole: bool) -> bool:
        """Remove files of the folder, unless the run was gone on with since it was looked at.

        From the note on, no run begins or goes on in the folder, however long this is paused before it removes the
        plan. The note goes last: if this is killed, the next cleaning does the rest.
        """
        files = self.run.files
        with files.lock(LOCK, AT_WORK) as held:
            self.run.write(REMOVED, {"since": now()})
            try:
                changed = self._has_changed()
                held.check(sure=True)
            except LockLost:
                files.remove(REMOVED)
                raise
            if changed:
                files.remove(REMOVED)
                return False
            _remove(files, keys, held, whole=whole)
        return True

    def _has_changed(self) -> bool:
        """Whether the run has gone on since its files were listed, so that it may have made the dataset by now."""
        before, after = ({entry.key for entry in each} for each in (self.entries, self.run.files.entries()))
        return bool(after - before - {LOCK, REMOVED})

    def _staying(self, reason: str) -> CleanedRun:
        return CleanedRun(self.run.run_id, 0, 0, len(self.entries), reason)


def _remove(files: Folder, keys: list[str], held: Held, *, whole: bool) -> None:
    """Remove files of a run folder, or all of it; the plan first, because without a plan there is no run.

    Only files that were listed before go: another process may write here while this one is paused.
    """
    files.remove("plan.json")
    files.remove_many([key for key in keys if key not in {"plan.json", LOCK, REMOVED}], held.check)
    left = {entry.key for entry in files.entries()} & set(keys) - {LOCK, REMOVED}
    held.check()
    if left:
        raise StorageError(f"{files.uri}/{min(left)} cannot be removed.", hint="Are you allowed to? Then clean again.")
    files.remove(REMOVED)
    files.remove(LOCK)
    if whole:
        files.remove_remains()
