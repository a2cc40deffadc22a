"""The program of a Processing job: one pass of a planned run, for the shards of this job on this instance.

Its arguments are the run folder and the job's number; everything else is in the plan. Exit codes: 0 done, 1 failed for
good, 75 failed but worth another attempt. The reason goes to ``/opt/ml/output/message``.

The same program does the jobs of a prepared run, which something else than an engine of shardkit starts
(runs/prepare.py); as nobody holds the lock of such a run, pass 2 takes it (``--lock``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardkit.collector import spare_what_is_loaded
from shardkit.errors import (
    ChecksFailed,
    Damaged,
    RunBusy,
    RunFailed,
    RunInterrupted,
    ShardkitError,
    StorageError,
    WrittenByNewer,
)
from shardkit.jobs.policy import MAY_GROW
from shardkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from shardkit.functions import FunctionRef
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.document_types import PlanDocument
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.spec.spec import Spec

TRY_AGAIN = 75
TRANSIENT = "transient: "
MEMORY = "memory: "  # the queue tries again on a larger instance
MESSAGE_CHARACTERS = 1000
STEALING_SHARE = 0.8  # of a job's time, after which it does no more chunks of other jobs
INPUT_FOLDER = "processing/input/data"
CHANNEL = "input/data/data"  # the same of a training job
TIME_LIMIT = "SHARDKIT_MAX_RUNTIME"  # a training job has no file that says it
FUNCTION = "function"  # a setting of a generation: the function that replaces the plan's
DAYS = "days"  # a setting of a generation: the only days of the plan that are worked on
ON_TOP = "on_top"  # a setting of a generation: the run's dataset replaces that of a later run


class MoreMemoryNeeded(RunFailed):
    """Records are open because this instance has too little memory for them, and a larger one may be had."""


@dataclass(frozen=True)
class Container:
    """What the service says about a job.

    ``instance`` is the number of this instance among those of the job, ``longest_s`` the job's time limit, ``data`` is
    where downloaded input is.
    """

    root: Path
    job_name: str
    instance: int
    longest_s: float
    data: Path

    @classmethod
    def here(cls) -> Container:
        """Read it from the files under ``/opt/ml``, or under ``SHARDKIT_OPT_ML`` if there can be no such folder."""
        root = Path(os.environ.get("SHARDKIT_OPT_ML", "/opt/ml"))
        training = os.environ.get("TRAINING_JOB_NAME")
        config = root / ("input/config" if training else "config")
        job, resources = _config(config / "processingjobconfig.json"), _config(config / "resourceconfig.json")
        name = training or job.get("ProcessingJobName", "")
        hosts = sorted(resources.get("hosts", []), key=lambda host: (len(host), host))
        here = resources.get("current_host")
        limit = (job.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds") or os.environ.get(TIME_LIMIT)
        data = root / (CHANNEL if training else INPUT_FOLDER)
        instance = hosts.index(here) if here in hosts else 0
        return cls(root, name, instance, float(limit or math.inf), data)

    @property
    def attempt(self) -> int:
        """The number of the attempt, with which the job's name ends."""
        last = self.job_name.rpartition("-")[2]
        return int(last) if last.isdigit() else 1

    def leave_message(self, message: str, *, failed: bool = False) -> None:
        """Write how the job ended to the file that the service shows, if this is a job of the service's."""
        if not self.root.is_dir():
            return
        folder = self.root / "output"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("message", "failure") if failed else ("message",):  # of Processing, and of training jobs
            (folder / name).write_text(masked(message)[:MESSAGE_CHARACTERS])


def _config(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def main(arguments: Sequence[str]) -> int:
    """Run a pass; returns the exit code."""
    begun = time.monotonic()

    def work(container: Container) -> None:
        given = _parser().parse_args(arguments)
        given.work(given, container, begun)

    return run_program(work)


def run_program(work: Callable[[Container], None]) -> int:
    """Do the work of a job; returns the exit code, and leaves a message if it failed."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    os.environ.setdefault("SHARDKIT_CACHE", os.path.join(tempfile.gettempdir(), f"shardkit-cache-{os.getuid()}"))
    spare_what_is_loaded()
    container = Container.here()
    try:
        work(container)
    except (RunInterrupted, RunBusy) as error:
        return _end(container, str(error), TRY_AGAIN)
    except (Damaged, WrittenByNewer) as error:  # every attempt would fail in the same way
        return _end(container, str(error), 1)
    except MoreMemoryNeeded as error:
        return _end(container, f"{MEMORY}{error}", TRY_AGAIN)
    except StorageError as error:
        return _end(container, f"{TRANSIENT}{error}", TRY_AGAIN)
    except ShardkitError as error:
        return _end(container, str(error), error.exit_code if isinstance(error, ChecksFailed) else 1)
    return 0


def _end(container: Container, message: str, code: int) -> int:
    sys.stderr.write(f"Error: {message}\n")
    container.leave_message(message, failed=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shardkit.job")
    passes = parser.add_subparsers(required=True)
    for name, work in (("pass1", _pass1), ("pass2", _pass2)):
        one = passes.add_parser(name)
        one.set_defaults(work=work)
        one.add_argument("--run", required=True)
        one.add_argument("--settings")
        if name == "pass1":
            one.add_argument("--job", type=int, required=True)
            one.add_argument("--retry", action="store_true")
            one.add_argument("--download", action="store_true")
        else:
            one.add_argument("--lock", action="store_true")
    return parser


def open_planned(uri: str, settings: str | None) -> tuple[RunFolder, PlanDocument, Spec, dict[str, Any]]:
    """The run folder at ``uri``, its plan, its pipeline, and later settings, which its file ``settings`` holds.

    Raises:
        RunFailed: there is no plan.
    """
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.names import RUNS
    from shardkit.runs.planning import planned_pipeline
    from shardkit.storage.open import folder

    output, _, run_id = uri.rstrip("/").rpartition(f"/{RUNS}/")
    run = RunFolder(folder(output), run_id)
    if not run.exists():
        raise RunFailed(f"{uri} holds no plan.", hint="Was the run folder removed?")
    plan = run.plan()
    run = run.encrypted(plan)
    changes = run.read(settings) if settings else {}
    if DAYS in changes:
        run = run.narrowed(changes[DAYS])
        plan = run.plan()
    if changes.get(ON_TOP):
        run = replace(run, on_top=True)
    own = {FUNCTION, DAYS, ON_TOP}
    settled = {name: value for name, value in changes.items() if name not in own}
    source = os.environ.get("SHARDKIT_SOURCE_DIR")
    if source:
        settled["engine"] = None  # a job need not know of what has launched it, which may be another package's
    pipeline = planned_pipeline(plan, settled)
    if source:
        pipeline = pipeline.replace(source_dir=source)
    return run, plan, pipeline, changes


def _pass1(given: argparse.Namespace, container: Container, begun: float) -> None:
    from shardkit.workers.forkserver import begin_server

    # NumPy's threads for linear algebra, which this process does not use, would spin while the workers start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with contextlib.suppress(OSError):  # the error is raised when it is needed
        begin_server()  # it gets ready while the plan is read
    from shardkit.pass1_preprocessing import run_pass1
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.display import make_progress
    from shardkit.runfolder.share import Share
    from shardkit.runs.crew import worker_pool
    from shardkit.runs.stealing import steal
    from shardkit.units import counted
    from shardkit.workers.process_limit import check_room

    folder, plan, pipeline, changes = open_planned(given.run, given.settings)
    if given.job >= len(plan["jobs"]):
        raise RunFailed(f"Run {folder.run_id} has jobs 0 to {len(plan['jobs']) - 1}, and no job {given.job}.")
    shards = plan["jobs"][given.job]["shards"]
    shard = shards[container.instance] if len(shards) > 1 else shards[0]
    source = str(container.data) if given.download else None
    here = _records_in(folder, source) if source is not None and len(shards) > 1 else None
    steals = source is None and _may_steal(folder, plan, pipeline)
    function = planned_function(folder, plan, pipeline, given.settings, changes.get(FUNCTION))
    check_room(pipeline.worker_count())
    named, leaves = container.job_name or None, MAY_GROW in os.environ
    machines = sum(job["instances"] for job in plan["jobs"])
    with worker_pool(folder, pipeline, function, source=source, job=named, leaves=leaves, machines=machines) as pool:
        attempt = Attempt(folder, make_progress(quiet=False), begun=begun, shard=shard, number=container.attempt)
        with attempt:
            share = Share(shards, shard, here, may_be_claimed=steals)
            ledger = run_pass1(folder, pool, pipeline.limits(), attempt, retry=given.retry, share=share)
            if pool.left:
                raise MoreMemoryNeeded(
                    f"For {counted(len(pool.left), 'record')} of shard {shard} this instance has too little memory, so "
                    "they go on with a larger one."
                )
            outcome = f"{counted(ledger.done, 'record')} done, {ledger.quarantined:,} quarantined."
            sys.stderr.write(f"Shard {shard}: {outcome}\n")
            if steals:
                steal(ledger, pool, pipeline.limits(), attempt, until=begun + STEALING_SHARE * container.longest_s)
            if plan["by_day"]:
                pool.hang_up()
                _merge_days(ledger, pipeline, changes, attempt)


def _may_steal(folder: RunFolder, plan: PlanDocument, pipeline: Spec) -> bool:
    """Whether the jobs do chunks of slower ones; a retry of some days has chunks that no plan has."""
    wanted = pipeline.shards is not None and pipeline.shards.steal is not False
    return wanted and len(plan["shards"]) > 1 and folder.days is None


def _merge_days(ledger: Ledger, pipeline: Spec, changes: dict[str, Any], attempt: Attempt) -> None:
    """Merge the job's own days, side by side with other jobs; if that fails, pass 2 merges them or raises the error."""
    from shardkit.dataset.merge_days import merge_days
    from shardkit.runs.planning import planned_merge
    from shardkit.units import counted

    if 2 * sum(sum(by.values()) for by in ledger.stolen().values()) > ledger.listed:  # this instance is slow
        sys.stderr.write("The days are left to pass 2: other jobs have done most of their records.\n")
        return
    try:
        merging = planned_merge(ledger.folder, pipeline, changes)
        count = merge_days(ledger, merging, attempt, threads=pipeline.worker_count())
        sys.stderr.write(f"{counted(count, 'day')} merged.\n")
    except ShardkitError as error:
        sys.stderr.write(f"The days are left to pass 2: {error}\n")


def _records_in(folder: RunFolder, source: str) -> np.ndarray:
    """A mask of the run's records, of one object each, that are in the folder ``source``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from shardkit.storage.local_folder import LocalFolder
    from shardkit.tables.arrays import numpy

    keys = folder.records(["objects"])["objects"].combine_chunks().flatten()
    there = pa.array([entry.key for entry in LocalFolder(Path(source)).entries()], keys.type)
    return numpy(pc.is_in(keys, value_set=there))


def _pass2(given: argparse.Namespace, container: Container, begun: float) -> None:
    from shardkit.dataset.day_claims import holding_days
    from shardkit.dataset.switch import finish_switches
    from shardkit.pass2_combine import run_pass2
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.display import make_progress
    from shardkit.runfolder.ledger import Ledger
    from shardkit.runfolder.limits import check_budget
    from shardkit.runs.here import made_already
    from shardkit.runs.planning import planned_merge
    from shardkit.runs.summary import summarize

    folder, plan, pipeline, changes = open_planned(given.run, given.settings)
    merging = planned_merge(folder, pipeline, changes)
    with contextlib.ExitStack() as stack:
        attempt = Attempt(folder, make_progress(quiet=False), begun=begun, number=container.attempt)
        if given.lock:  # otherwise the process that watches the jobs holds it
            finish_switches(folder.output, must=True)
            held = stack.enter_context(folder.lock())
            stack.enter_context(holding_days(folder, plan))
            if made_already(folder, merging, attempt.holding(held)):
                sys.stderr.write(f"Run {folder.run_id} is done; there is nothing to do.\n")
                return
        with attempt:
            ledger = Ledger(folder)
            check_budget(ledger, pipeline.limits())
            name, threads = pipeline.pipeline_name(), pipeline.worker_count()
            run_pass2(ledger, merging, attempt, name=name, threads=threads, merged=plan["by_day"])
    if given.lock:
        sys.stderr.write(f"{summarize(folder).command_text}\n")


def planned_function(
    folder: RunFolder, plan: PlanDocument, pipeline: Spec, settings: str | None, instead: dict[str, str] | None
) -> FunctionRef:
    """The function of a planned run, or the one that replaces it, in a form that this process can load.

    ``instead`` is what ``settings`` say of that one: its name, its digest, and the Python that it comes from.

    Raises:
        RunFailed: it travels by value, from another minor version of Python.
    """
    from shardkit.functions import FunctionRef, python_version, reference

    planned = {
        "name": plan["pipeline"]["function"],
        "digest": plan["function_digest"],
        "python": plan.get("python", python_version()),
    }
    chosen = instead or planned
    if settings and instead:
        pickled = folder.sent(f"function-{Path(settings).stem}", instead.get("sha256"))
    else:
        pickled = folder.pickled("function")
    if pickled is None:
        return reference(chosen["name"], source_dir=pipeline.source_dir) if instead else pipeline.function_ref()
    here, there = python_version(), chosen["python"]
    if here != there:
        raise RunFailed(
            f"The function {chosen['name']} travels by value from Python {there}, and this image has Python {here}.",
            hint=f"Use an image with Python {there}, or put the function in a module and set source_dir.",
        )
    return FunctionRef(chosen["name"], None, chosen["digest"], pickled)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
