"""Whether records give the same rows again as are stored: a sample of them is computed once more, as the run had it."""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.dataset.current import current_result
from shardkit.errors import PipelineError, PlanMismatch, RunInterrupted, RunNotFound
from shardkit.hints import Hint
from shardkit.runfolder.display import make_progress
from shardkit.runs.comparing import Differences
from shardkit.runs.planning import planned_pipeline
from shardkit.runs.recomputing import Work
from shardkit.runs.replay import function_of
from shardkit.runs.signals import ended_by
from shardkit.runs.stored import StoredRows, makers
from shardkit.runs.trying import spread
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.functions import FunctionRef
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runs.recomputing import Again
    from shardkit.spec.spec import Spec

SHOWN = 10


@dataclass
class Compared:
    """What came of computing records again and comparing their rows with those that are stored."""

    same: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    differences: Differences = field(default_factory=Differences)

    def add(self, again: Again) -> None:
        """Compare one record, as it was computed again, with the rows that are stored of it."""
        if again.changed:
            self.changed[again.key] = again.changed
        elif again.error:
            self.failed[again.key] = again.error
        elif self.differences.add(again.key, again.stored.of(again.record), again.rows):
            self.different.append(again.key)
        else:
            self.same.append(again.key)

    @property
    def total(self) -> int:
        """How many records were compared, or failed."""
        return len(self.same) + len(self.different) + len(self.failed)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "same": len(self.same),
            "different": self.different,
            "failed": self.failed,
            "changed": self.changed,
            **difference_numbers(self.differences),
        }

    def lines(self, failed: str) -> list[str]:
        """What differs, and the first records of each kind, under ``failed`` those that failed."""
        return [
            *difference_lines(self.differences),
            *listed("Different", self.different),
            *listed(failed, [f"{key}: {error}" for key, error in self.failed.items()]),
            *listed("Not compared", [*self.changed.values()]),
        ]


@dataclass
class Verified(Compared):
    """What came of computing records again.

    Attributes:
        same: The keys of the records that gave the same rows.
        different: Those that gave others; ``differences`` says in which columns.
        failed: Those that failed, each with its error.
        changed: Those whose objects have changed since, which were not compared, each with what has changed.
        differences: Of all records together.
    """

    @property
    def is_reproducible(self) -> bool:
        """Whether all records that could be compared gave the same rows, and there were some."""
        return bool(self.same) and not self.different and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"reproducible": self.is_reproducible, **super().to_dict()}

    def __str__(self) -> str:
        words = "give the same rows again" if self.total != 1 else "gives the same rows again"
        head = f"{len(self.same):,} of {counted(self.total, 'record')} {words}."
        return "\n".join([head, *self.lines("Failed now")])


def listed(title: str, texts: list[str]) -> list[str]:
    """A title and the first of some texts below it; nothing if there is none."""
    more = [f"    ... and {len(texts) - SHOWN:,} more"] if len(texts) > SHOWN else []
    return [f"{title}:", *(f"    {text}" for text in texts[:SHOWN]), *more] if texts else []


def difference_numbers(differences: Differences) -> dict[str, Any]:
    """Rows and columns that differ, as plain data."""
    return {
        "rows": {name: getattr(differences, name) for name in ("compared", "changed", "added", "removed")},
        "columns": {name: {"rows": each.rows, "text": str(each)} for name, each in differences.columns.items()},
        "new_columns": differences.new_columns,
        "gone_columns": differences.gone_columns,
    }


def difference_lines(differences: Differences) -> Iterator[str]:
    """Rows and columns that differ, as a person reads them; nothing if none does."""
    if differences.added or differences.removed:
        yield f"  rows     {differences.added:,} added, {differences.removed:,} removed"
    if differences.changed:
        share, rows = differences.changed / differences.compared, counted(differences.compared, "row")
        yield f"  changed  {differences.changed:,} of {rows} ({share:.1%}), in the columns"
    for name, column in sorted(differences.columns.items(), key=lambda item: -item[1].rows):
        yield f"    {name}: {column.rows / differences.compared:.1%} of the rows, {column}"
    for title, columns in (("new", differences.new_columns), ("gone", differences.gone_columns)):
        if columns:
            yield f"  {title:<8} {', '.join(f'{name} ({kind})' for name, kind in columns.items())}"


def verify(folder: RunFolder, sample: int = 100, *, workers: int | None = None, quiet: bool = False) -> Verified:
    """Compute ``sample`` records of the present dataset again, and compare their rows with the stored.

    They are of all sizes, the largest among them. As in a run, workers compute them, by default as many as the run had
    but no more than there are CPUs. Nothing is written.

    Raises:
        RunNotFound: there is no dataset.
        PipelineError: the sample is not at least 1.
        PlanMismatch: the run kept no copy of the function, and that has changed since.
        RunFailed: a part that the dataset was made of is gone.
        RunInterrupted: by Ctrl-C or SIGTERM.
    """
    verified, progress = Verified(), make_progress(quiet=quiet, in_logs=False)
    with apart("The verification") as scratch:
        for work in _works(folder, sample, scratch, workers):
            with contextlib.closing(work.again(scratch, progress)) as records:
                for again in records:
                    verified.add(again)
    return verified


@contextlib.contextmanager
def apart(title: str) -> Iterator[Path]:
    """A folder for what is only looked at, which is removed in the end, whatever happens.

    Raises:
        RunInterrupted: by Ctrl-C or SIGTERM.
    """
    try:
        with ended_by(signal.SIGTERM), tempfile.TemporaryDirectory(prefix="shardkit-again-") as scratch:
            yield Path(scratch)
    except KeyboardInterrupt:
        raise RunInterrupted(f"{title} was interrupted; nothing was written.") from None


def _works(folder: RunFolder, sample: int, scratch: Path, workers: int | None) -> list[Work]:
    """The records of a sample, with all those together that have the same function and settings, of whichever run."""
    works: dict[str, Work] = {}
    found: dict[tuple[str, str], str] = {}
    for stored, record in sampled(folder, sample):
        of_run = stored.folder.run_id, stored.function_digest(record)
        if of_run not in found:
            pipeline, ref = _as_it_was(stored.folder, of_run[1], str(scratch))
            pipeline = pipeline if workers is None else pipeline.replace(workers=workers)
            found[of_run] = json.dumps([ref.digest, pipeline.to_dict()], sort_keys=True, default=str)
            works.setdefault(found[of_run], Work(pipeline, ref))
        works[found[of_run]].records.append((stored, record))
    return list(works.values())


def _as_it_was(folder: RunFolder, digest: str, scratch: str) -> tuple[Spec, FunctionRef]:
    """A run's pipeline, without its engine, and its function of that digest."""
    plan = folder.plan()
    pipeline = planned_pipeline(plan, {"engine": None} if plan["pipeline"].get("engine") else {})
    try:
        return pipeline, function_of(folder, digest, scratch)
    except PlanMismatch as error:
        cure = Hint(
            "See what has changed with the pipeline's diff().", "See what has changed: shardkit diff PIPELINE.yaml"
        )
        raise PlanMismatch(error.message, hint=cure) from None


def sampled(folder: RunFolder, sample: int) -> Iterator[tuple[StoredRows, int]]:
    """Records of the present dataset that are done, of all sizes, each with what the run that has it has stored.

    Raises:
        RunNotFound: there is no dataset.
        PipelineError: the sample is not at least 1.
    """
    if sample < 1:
        raise PipelineError(f"{sample} records are no sample: expected 1 or more.")
    result = current_result(folder.output)
    if result is None:
        raise RunNotFound(f"{folder.output.uri} holds no dataset.", hint="Run the pipeline first.")
    runs = [StoredRows(each) for each in makers(folder, result)]
    total = sum(len(stored.done) for stored in runs)
    for stored in runs:
        done = stored.done
        share = min(len(done), max(1, round(sample * len(done) / total))) if len(done) else 0
        if share:
            yield from ((stored, int(done[at])) for at in spread(stored.ledger.bytes[done], share))
