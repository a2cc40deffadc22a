"""What a changed function would change: it is run on records whose old rows are stored, and both are compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, RunNotFound
from shardkit.plan.chunks import record_costs
from shardkit.runfolder.find import latest_run
from shardkit.runs.trying import Trial, ready
from shardkit.runs.verifying import Again, Compared, sampled
from shardkit.units import counted, human_seconds
from shardkit.workers.calling import made

if TYPE_CHECKING:
    import numpy as np

    from shardkit.runs.stored import StoredRows
    from shardkit.spec.spec import Spec


@dataclass
class Difference(Compared):
    """What a pipeline's function would change in the dataset that is there.

    Attributes:
        same: The keys of the records that would give the same rows as before.
        different: Those that would give others; ``differences`` says in which columns.
        failed: Those that would fail, each with its error.
        changed: Those whose objects have changed since, which were not compared, each with what has changed.
        differences: Of all records together.
        all_s: How many seconds all records of the dataset would take with the pipeline's workers, estimated.
    """

    all_s: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing would change, as far as records could be compared."""
        return not self.different and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**super().to_dict(), "all_s": round(self.all_s, 3)}

    def __str__(self) -> str:
        lines = [f"{len(self.different):,} of {counted(self.total, 'record')} would give other rows."]
        lines += self.lines("Would fail")
        if self.all_s:
            lines.append(f"All records would take about {human_seconds(self.all_s)}.")
        return "\n".join(lines)


def diff(pipeline: Spec, sample: int = 200) -> Difference:
    """Run the pipeline's function on ``sample`` records of its present dataset, and compare with what is stored.

    They are of all sizes, the largest among them. They run in this process, and nothing is written.

    Raises:
        RunNotFound: the pipeline's output holds no dataset.
        PipelineError: the sample is not at least 1, the function cannot be loaded, or the records are others.
        RunFailed: a part that the dataset was made of is gone.
    """
    folder = latest_run(pipeline.output_folder())
    if folder is None:
        raise RunNotFound(f"{pipeline.output.uri} holds no dataset.", hint="Run the pipeline first.")
    given = pipeline.function
    trial = Trial(
        pipeline, ready(given) if callable(given) else pipeline.function_ref().load(make=made), rows_kept=sys.maxsize
    )
    difference, seconds, costs = Difference(), 0.0, 0.0
    runs: dict[int, StoredRows] = {}
    for stored, record in sampled(folder, sample):
        if id(stored) not in runs:
            _check_same_records(pipeline, stored)
            runs[id(stored)] = stored
        again = Again.of(trial, stored, record)
        seconds += again.seconds
        costs += _cost(stored.ledger.bytes[[record]])
        difference.add(again, stored, record)
    everything = sum(_cost(stored.ledger.bytes[stored.done]) for stored in runs.values())
    difference.all_s = seconds * everything / costs / pipeline.worker_count() if costs else 0.0
    return difference


def _check_same_records(pipeline: Spec, stored: StoredRows) -> None:
    """See that the pipeline makes the same records of the same input.

    Raises:
        PipelineError: it does not, so that their rows cannot be compared.
    """
    before, now = stored.folder.plan()["pipeline"], pipeline.to_dict()
    for name, was, is_ in (
        ("records", before.get("records"), now["records"]),
        ("input.uri", before["input"].get("uri"), now["input"].get("uri")),
    ):
        if was != is_:
            raise PipelineError(
                f"{name} was {was!r} in run {stored.folder.run_id}, and is {is_!r}: these are other records.",
                hint="Compare with the same input, cut into records in the same way.",
            )


def _cost(sizes: np.ndarray) -> float:
    return float(record_costs(sizes).sum())
