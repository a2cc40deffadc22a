"""Whether records give the same rows again as are stored: a sample of them is computed once more, as the run had it."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.dataset.current import current_result
from shardkit.errors import InputError, ObjectRefused, PipelineError, PlanMismatch, RunNotFound
from shardkit.hints import Hint
from shardkit.runs.comparing import Differences
from shardkit.runs.planning import planned_pipeline
from shardkit.runs.replay import function_of
from shardkit.runs.stored import StoredRows, makers
from shardkit.runs.trying import Trial, spread
from shardkit.units import counted
from shardkit.workers.calling import made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.runfolder.folder import RunFolder

SHOWN = 10


@dataclass
class Compared:
    """What came of computing records again and comparing their rows with those that are stored."""

    same: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    differences: Differences = field(default_factory=Differences)

    def add(self, again: Again, stored: StoredRows, record: int) -> None:
        """Compare one record, as it was computed again, with the rows that are stored of it."""
        if again.changed:
            self.changed[again.key] = again.changed
        elif again.error:
            self.failed[again.key] = again.error
        elif self.differences.add(again.key, stored.of(record), again.rows):
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


def verify(folder: RunFolder, sample: int = 100) -> Verified:
    """Compute ``sample`` records of the present dataset again, in this process, and compare their rows with the stored.

    They are of all sizes, the largest among them. Nothing is written.

    Raises:
        RunNotFound: there is no dataset.
        PipelineError: the sample is not at least 1.
        PlanMismatch: the run kept no copy of the function, and that has changed since.
        RunFailed: a part that the dataset was made of is gone.
    """
    verified, trials = Verified(), dict[tuple[str, str], Trial]()
    with tempfile.TemporaryDirectory(prefix="shardkit-verify-") as scratch:
        for stored, record in sampled(folder, sample):
            digest = stored.function_digest(record)
            named = stored.folder.run_id, digest
            if named not in trials:
                trials[named] = _trial(stored.folder, digest, scratch)
            verified.add(Again.of(trials[named], stored, record), stored, record)
    return verified


def _trial(folder: RunFolder, digest: str, scratch: str) -> Trial:
    """What runs records with the run's function of that digest."""
    plan = folder.plan()
    pipeline = planned_pipeline(plan, {"engine": None} if plan["pipeline"].get("engine") else {})
    try:
        ref = function_of(folder, digest, scratch)
    except PlanMismatch as error:
        cure = Hint(
            "See what has changed with the pipeline's diff().", "See what has changed: shardkit diff PIPELINE.yaml"
        )
        raise PlanMismatch(error.message, hint=cure) from None
    return Trial(pipeline, ref.load(make=made), rows_kept=sys.maxsize)


@dataclass(frozen=True)
class Again:
    """A record that was computed again: its rows, or the error; or how its objects have changed, if they have."""

    key: str
    rows: pa.Table
    seconds: float = 0.0
    error: str = ""
    changed: str = ""

    @classmethod
    def of(cls, trial: Trial, stored: StoredRows, record: int) -> Again:
        """Compute a record again."""
        records = stored.records.take([record])
        key = str(records["key"][0].as_py())
        try:
            tried = trial.run(records)
        except (InputError, FileNotFoundError, ObjectRefused) as error:  # an object is gone, or not given out any more
            return cls(key, pa.table({}), changed=str(error))
        one = tried.records[0]
        rows = one.table if one.table is not None else pa.table({})
        return cls(key, rows, one.seconds, one.message, " ".join(tried.changes))


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
