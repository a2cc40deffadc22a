"""What a changed function would change: it is run on records whose old rows are stored, and both are compared."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.errors import PipelineError, RunNotFound
from shardkit.plan.chunks import record_costs
from shardkit.runfolder.display import make_progress
from shardkit.runfolder.find import latest_run
from shardkit.runs.recomputing import Work
from shardkit.runs.verifying import Compared, apart, sampled
from shardkit.units import counted, human_seconds

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


def diff(pipeline: Spec, sample: int = 200, *, quiet: bool = False) -> Difference:
    """Run the pipeline's function on ``sample`` records of its present dataset, and compare with what is stored.

    They are of all sizes, the largest among them. As in a run, workers compute them, as many as the pipeline says but
    no more than there are CPUs. Nothing is written.

    Raises:
        RunNotFound: the pipeline's output holds no dataset.
        PipelineError: the sample is not at least 1, the function cannot be loaded, or the records are others.
        RunFailed: a part that the dataset was made of is gone.
        RunInterrupted: by Ctrl-C or SIGTERM.
    """
    folder = latest_run(pipeline.output_folder())
    if folder is None:
        raise RunNotFound(f"{pipeline.output.uri} holds no dataset.", hint="Run the pipeline first.")
    ref = pipeline.function_ref()
    work = Work(pipeline, ref, list(sampled(folder, sample)))
    runs = {id(stored): stored for stored, _ in work.records}
    for stored in runs.values():
        _check_same_records(pipeline, stored)
    difference, seconds, costs = Difference(), 0.0, 0.0
    progress = make_progress(quiet=quiet, in_logs=False)
    with apart("The comparison") as scratch, contextlib.closing(work.again(scratch, progress)) as records:
        for again in records:
            seconds += again.seconds
            costs += _cost(again.stored.ledger.bytes[[again.record]])
            difference.add(again)
    everything = sum(_cost(stored.ledger.bytes[stored.done]) for stored in runs.values())
    calling = pipeline.calling(ref)
    at_once = pipeline.worker_count() * (calling.calls_at_once if calling.overlaps else 1)
    difference.all_s = seconds * everything / costs / at_once if costs else 0.0
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
