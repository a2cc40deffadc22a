"""What a run will take, estimated from a few of its records."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import numpy as np
import pyarrow as pa

from shardkit.dataset.merge import write_merged
from shardkit.dataset.source import read_source
from shardkit.errors import BudgetExceeded, PipelineError
from shardkit.pass1_preprocessing import run_pass1
from shardkit.plan.chunks import record_costs
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.display import make_progress
from shardkit.runfolder.find import run_folder
from shardkit.runfolder.ledger import Ledger
from shardkit.runfolder.limits import WorkLimits
from shardkit.runfolder.timings import RunTimings
from shardkit.storage.local_folder import LocalFolder
from shardkit.tables.arrays import numpy
from shardkit.times import new_run_id
from shardkit.units import first_line, human_bytes, human_seconds

if TYPE_CHECKING:
    from shardkit.plan.plan import Plan
    from shardkit.runfolder.document_types import QuarantineEntry
    from shardkit.spec.spec import Spec


SCRATCH_TOKEN = "sample"  # noqa: S105  a part of file names


@dataclass(frozen=True)
class Estimate:
    """What all records will take, judging by a sample.

    ``seconds`` is the wall time of pass 1 with ``workers`` workers; ``memory_bytes`` the largest resident size that a
    worker had; ``output_bytes`` and ``rows`` are those of the dataset. ``failures`` is the sample's quarantine.
    """

    sampled: int
    records: int
    workers: int
    seconds: float
    memory_bytes: int
    output_bytes: int
    rows: int
    failures: list[QuarantineEntry]

    def __str__(self) -> str:
        lines = [
            f"From a sample of {self.sampled:,} of {self.records:,} records:",
            f"  time    about {human_seconds(self.seconds)} for pass 1 with {self.workers} workers",
            f"  memory  {human_bytes(self.memory_bytes)} a worker, at most",
            f"  output  about {self.rows:,} rows, {human_bytes(self.output_bytes)}",
        ]
        if not self.rows and len(self.failures) < self.sampled:
            lines.append("  No record of the sample gave a row: a run of such fails, unless allow_empty is true.")
        if self.failures:
            first = self.failures[0]
            lines.append(
                f"  {len(self.failures)} of the sample failed; the first is {first['key']}: "
                f"{first['error']}: {first_line(first['message'])}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Sample:
    """Records that were run, one a chunk: the estimate that follows from them, and what each of them took.

    ``seconds`` and ``bytes`` are those of the records; ``chunk_s`` is what a chunk takes beside its records.
    """

    estimate: Estimate
    seconds: np.ndarray
    bytes: np.ndarray
    chunk_s: float


def estimate(pipeline: Spec, records: int, *, quiet: bool) -> Estimate:
    """Run some records and estimate what all will take; as `take_sample`."""
    return take_sample(pipeline, records, quiet=quiet).estimate


def take_sample(pipeline: Spec, records: int, *, quiet: bool) -> Sample:
    """Run some records, spread over all sizes; nothing is left behind.

    Where the pipeline has more workers than this machine has CPUs, because they are those of an engine's instance, only
    as many work: more would keep each other from working.

    Raises:
        PipelineError: ``records`` is not at least 1, or the function cannot be loaded.
    """
    if records < 1:
        raise PipelineError(f"The sample is to have {records} records: expected 1 or more.")
    from shardkit.runs.crew import worker_pool
    from shardkit.runs.listing import with_roots
    from shardkit.runs.planning import make_run_plan

    pipeline = with_roots(pipeline)
    scratch = Path(tempfile.mkdtemp(prefix="shardkit-sample-"))
    folder = run_folder(LocalFolder(scratch), new_run_id())
    ref = pipeline.function_ref()
    here = pipeline.replace(workers=min(pipeline.worker_count(), joblib.cpu_count())) if pipeline.engine else pipeline
    try:
        with worker_pool(folder, here, ref) as pool:
            plan = make_run_plan(pipeline, function_ref=ref, run_id=folder.run_id, recompute=True)
            chosen = _spread(numpy(plan.records["bytes"]), records)
            calling = pipeline.calling(ref)
            sample = _in_chunks(plan, chosen, calling.batch or 1)
            folder.write_plan(plan.content, sample, {"function": ref.pickled})
            everything = WorkLimits(pool.size, pipeline.timeout, "100%")
            with Attempt(folder, make_progress(quiet=quiet), begun=time.monotonic()) as attempt:
                try:
                    ledger = run_pass1(folder, pool, everything, attempt)
                except BudgetExceeded:
                    ledger = Ledger(folder)
            output_bytes = _merged_bytes(pipeline, ledger, scratch)
        calls_at_once = calling.calls_at_once if calling.overlaps else 1
        estimated = _extrapolate(plan, ledger, output_bytes, workers=pool.size, calls_at_once=calls_at_once)
        return _sample(estimated, ledger, calls_at_once=calls_at_once)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _spread(sizes: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of ``count`` records, evenly spread over the records in order of size."""
    order = np.argsort(sizes, kind="stable")
    count = min(count, len(order))
    return np.sort(order[((np.arange(count) + 0.5) * len(order) / count).astype(np.int64)])


def _in_chunks(plan: Plan, chosen: np.ndarray, size: int) -> pa.Table:
    """The chosen records in chunks of that size."""
    rows = plan.records.take(pa.array(chosen))
    for name, values in (("shard", np.zeros(len(rows))), ("chunk", np.arange(len(rows)) // size)):
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values.astype(np.int32)))
    return rows


def _merged_bytes(pipeline: Spec, ledger: Ledger, scratch: Path) -> int:
    """The size of the sample's rows in the dataset, without what does not grow with the rows, such as a footer."""
    merge = pipeline.merge()
    source = read_source((p.file for p in ledger.parts()), schema=merge.schema, widen_ints=merge.widen_ints)
    files, _ = write_merged(LocalFolder(scratch / "dataset"), source, merge, token=SCRATCH_TOKEN, threads=1)
    return sum(merge.layout.kind.bytes_of_rows(scratch / "dataset" / file.path) for file in files)


def _sample(estimated: Estimate, ledger: Ledger, *, calls_at_once: int) -> Sample:
    """The estimate with the times that it is made from; of calls that wait at the same time, each has its share."""
    took = RunTimings.of_ledger(ledger).records
    seconds = took["seconds"].to_numpy()
    beside = max(sum(marker["seconds"] for marker in ledger.markers) - float(np.nansum(seconds)), 0.0)
    known = ~np.isnan(seconds)
    shares = seconds[known] / calls_at_once
    return Sample(estimated, shares, took["bytes"].to_numpy()[known], beside / max(len(ledger.markers), 1))


def _extrapolate(plan: Plan, ledger: Ledger, output_bytes: int, *, workers: int, calls_at_once: int) -> Estimate:
    sizes = numpy(plan.records["bytes"])
    scale = float(record_costs(sizes).sum() / record_costs(ledger.bytes).sum())
    markers = ledger.markers
    return Estimate(
        sampled=ledger.listed,
        records=len(sizes),
        workers=workers,
        seconds=sum(m["seconds"] for m in markers) * scale / (workers * calls_at_once),
        memory_bytes=max((m["peak_memory_bytes"] for m in markers), default=0),
        output_bytes=int(output_bytes * scale),
        rows=int(ledger.rows * scale),
        failures=ledger.quarantine(),
    )
