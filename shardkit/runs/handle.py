"""A run: started, looked at, resumed, retried."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from shardkit.clock import new_run_id
from shardkit.dataset.day_claims import holding_days
from shardkit.dataset.switch import check_not_replaced, current_result, finish_switches
from shardkit.errors import PipelineError, PlanMismatch, RunFailed, RunNotFound, RunReplaced, ShardkitError
from shardkit.functions import FunctionRef, reference
from shardkit.hints import joined
from shardkit.masking import masked
from shardkit.runfolder.attempt import Attempt
from shardkit.runfolder.folder import STATE_DIR, RunFolder, find_run, latest_run, run_folder
from shardkit.runfolder.steps import advice
from shardkit.runs.planning import check_same_plan, make_run_plan, planned_merge, planned_pipeline, write_run
from shardkit.runs.summary import Summary, is_complete, summarize, tell_set_aside
from shardkit.storage.base import Access, absolute_uri
from shardkit.storage.base import folder as folder_at
from shardkit.storage.interruption import heeding_interrupts
from shardkit.workers.process_limit import check_room

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    import pyarrow.dataset as pads

    from shardkit.jobs import Job
    from shardkit.macro import Plan
    from shardkit.pass2_combine import Merge
    from shardkit.pipeline import Pipeline
    from shardkit.runfolder.display import Progress
    from shardkit.runs.on_engine import RunJobs
    from shardkit.workers.pool import WorkerPool


JOBS_NAMED = 3
LAMBDA = "<lambda>"  # the name of what has none
STOP_TRIES = 4  # in vain, with longer and longer waits


class Run:
    """One execution of a pipeline, as its run folder tells it; another process may look at it too.

    With ``whole_dataset``, as `open_run` opens an output's latest run, the quarantine is that of the dataset: also of
    the days that other runs have made.
    """

    def __init__(self, folder: RunFolder, *, whole_dataset: bool = False) -> None:
        self.folder = folder
        self._whole_dataset = whole_dataset

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.folder.run_id

    @property
    def output(self) -> Path:
        """The folder of the dataset, where it is one of this machine; else see ``output_uri``."""
        return self.folder.output.path

    @property
    def output_uri(self) -> str:
        """The folder of the dataset, wherever it is."""
        return self.folder.output.uri

    @property
    def path(self) -> Path:
        """The run folder, where it is one of this machine."""
        return self.folder.path

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, output={self.output_uri!r})"

    def summary(self) -> Summary:
        """The run in numbers."""
        return summarize(self.folder)

    def failures(self) -> pd.DataFrame:
        """The quarantine: one row a record, with its key, error, message, traceback, seconds, bytes, signal and run."""
        import pandas as pd

        columns = ["key", "error", "message", "traceback", "seconds", "bytes", "signal", "peak_memory_bytes"]
        columns += ["shard", "chunk", "attempt", "record", "run"]
        frame: pd.DataFrame = pd.DataFrame(self.quarantine(), columns=columns)
        return frame

    def quarantine(self) -> list[dict[str, Any]]:
        """The same as plain data, without pandas."""
        from shardkit.runs.quarantine import entries_of

        return [entry for folder in (self.folder, *self._others()) for entry in entries_of(folder)]

    def _others(self) -> list[RunFolder]:
        """The runs that have made other days of the dataset with records in quarantine, where these count."""
        from shardkit.runs.quarantine import elsewhere

        if not self._whole_dataset:
            return []
        return [folder for folder, _ in elsewhere(self.folder, current_result(self.folder.output))]

    def dataset(self) -> pads.Dataset:
        """The dataset's files, exactly those that the run wrote.

        Raises:
            RunNotFound: the run has no dataset yet, or files of it are gone.
            RunReplaced: a later run has replaced it.
        """
        from shardkit.dataset.query import open_dataset

        result = self.folder.result()
        if result is None:
            raise RunNotFound(f"Run {self.run_id} has no dataset yet.", hint="Resume it first.")
        files = self.folder.output
        there = {entry.key for entry in files.entries() if not entry.key.startswith(f"{STATE_DIR}/")}
        gone = next((file["path"] for file in result["files"] if file["path"] not in there), None)
        if gone is not None:
            try:
                check_not_replaced(self.folder)
            except RunReplaced as error:
                raise RunReplaced(
                    error.message, hint=joined("A later run has replaced this dataset.", error.hint)
                ) from None
            raise RunNotFound(
                f"Run {self.run_id}: {files.uri}/{gone} is gone.", hint="A later run has replaced this dataset."
            )
        return open_dataset(files, result)

    def sql(self, query: str, *, using: Literal["athena", "duckdb"] | None = None) -> pd.DataFrame:
        """Ask SQL of the dataset as it is now; in the query it has the pipeline's name, and ``dataset``.

        ``using`` is by default Athena where the dataset is in a Glue catalogue, else DuckDB on this machine.

        Raises:
            QueryError: the query cannot be answered.
            PipelineError: DuckDB, or for Athena awswrangler, is not installed.
        """
        from shardkit.dataset.query import read_sql

        return read_sql(query, self.folder, using=using)

    @property
    def has_jobs(self) -> bool:
        """Whether the run's passes are jobs on an engine."""
        return bool(self.folder.plan().get("pipeline", {}).get("engine"))

    def wait(self, *, quiet: bool = False) -> Run:
        """Launch and watch the jobs of a run on an engine until they have ended; the same as ``resume()`` then."""
        return self.resume(quiet=quiet)

    def jobs(self, *, refresh: bool = True) -> list[dict[str, Any]]:
        """The jobs of a run on an engine: id, name, status, attempts, reason; with ``refresh`` as the engine has them.

        Raises:
            PipelineError: the run has no jobs.
        """
        found = self._run_jobs()
        if refresh:
            found.refresh()
        return [
            {
                "job": job.job_id,
                "name": job.name,
                "status": job.status,
                "attempts": [dict(entry) for entry in job.attempts],
                "cause": job.cause,
                "reason": job.reason,
            }
            for job in found.current()
        ]

    def stop(self) -> int:
        """Stop all jobs of a run on an engine that have not ended; returns how many these are.

        What they have committed is kept, and ``resume()`` goes on from there.

        Raises:
            RunFailed: the service could not be told of some, which go on.
        """
        jobs = self._run_jobs()
        stopped = jobs.stop()
        count, untold, tries = len(stopped), _untold(stopped), 0
        while untold and tries < STOP_TRIES:
            time.sleep(2.0**tries)
            left = _untold(jobs.stop())
            tries = 0 if left < untold else tries + 1
            untold = left
        if untold:
            from shardkit.runfolder.display import counted

            error = RunFailed(
                f"Run {self.run_id}: the service does not answer, and {counted(untold, 'job')} could not be stopped.",
                hint=advice(self.folder, lambda step: f"Try again: {step('stop')}"),
            )
            error.run = self
            raise error
        return count

    def logs(self, job: str | None = None) -> Iterator[str]:
        """What the jobs of a run on an engine have said, line by line; ``job`` is one's name or id, or a part of it.

        By default those that failed, or if none did, all.
        """
        found = self._run_jobs()
        launched = [known for known in found.current() if known.name]
        if job is not None:
            chosen = [known for known in launched if job in known.name]
            if not chosen:
                raise self._no_such_job(job, found.current())
        else:
            chosen = [known for known in launched if known.status == "Failed"] or launched
        for known in chosen:
            if len(chosen) > 1:
                yield f"== {known.name} ({known.status})"
            yield from map(masked, found.engine.log_lines(known.name))

    def _no_such_job(self, name: str, jobs: list[Job]) -> PipelineError:
        import difflib

        waiting = next((job for job in jobs if name in job.job_id and not job.name), None)
        if waiting is not None:
            return PipelineError(
                f"Job {waiting.job_id} of run {self.run_id} has not been launched, and has said nothing."
            )
        names = [job.name for job in jobs if job.name]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        hint = f"Did you mean {near[0]}?" if near else f"Its jobs are {', '.join(names[:JOBS_NAMED])}." if names else ""
        return PipelineError(f"Run {self.run_id} has no job {name!r}.", hint=hint)

    def _run_jobs(self) -> RunJobs:
        if not self.has_jobs:
            raise PipelineError(f"Run {self.run_id} runs in one process and has no jobs.")
        from shardkit.runs.on_engine import RunJobs

        return RunJobs(self.folder, planned_pipeline(self.folder.plan(), {}))

    def resume(
        self,
        *,
        function: str | Callable[..., Any] | None = None,
        quiet: bool = False,
        changed_function: bool = False,
        make_current: bool = False,
        **settings: Any,
    ) -> Run:
        """Go on with the run where its markers end.

        ``settings`` are fields that do not change what is computed: workers, timeout, max_failures, combine, and
        those of ``output`` other than its uri. A function whose source has changed is refused, unless
        ``changed_function`` says that old and new results may be mixed; ``function`` is the new one, where the first
        was sent by value. ``make_current`` makes the dataset of a run that a later one has replaced the current one
        again, of the rows that are kept.

        Raises:
            RunReplaced: a later run has replaced the dataset, and that is not to be undone.
        """
        going = _GoingOn("resume", settings, function, changed_function=changed_function, make_current=make_current)
        return self._go_on(going, quiet=quiet)

    def retry(
        self,
        *,
        function: str | Callable[..., Any] | None = None,
        quiet: bool = False,
        changed_function: bool = False,
        **settings: Any,
    ) -> Run:
        """Run the quarantined records again, with the function as it is now, and make the dataset anew.

        Of the latest run of an output these are also the records of days that earlier runs have made, run by run.
        Returns the run that has made the dataset last. ``function`` is the mended one, where the first was sent by
        value. One of another name than the run's is refused, unless ``changed_function`` says that the two belong
        together.
        """
        from shardkit.runfolder.ledger import Ledger

        going = _GoingOn("retry", settings, function, changed_function=changed_function)
        others = [Run(folder) for folder in self._others()]
        for run in others:
            run._go_on(going, quiet=quiet)  # noqa: SLF001  another of the same class
        if others and is_complete(self.folder) and not Ledger(self.folder).quarantined:
            return Run(others[-1].folder, whole_dataset=True)
        return self._go_on(going, quiet=quiet)

    @heeding_interrupts()
    def _go_on(self, going: _GoingOn, *, quiet: bool) -> Run:
        from shardkit.runfolder.display import make_progress

        progress = make_progress(quiet=quiet)
        with naming(self):
            self._work_on(going, progress)
        tell_set_aside(self.folder, progress)
        return self

    def _work_on(self, going: _GoingOn, progress: Progress) -> None:
        from shardkit.runfolder.ledger import Ledger
        from shardkit.runs.quarantine import own_days

        finish_switches(self.folder.output, must=True)
        folder = own_days(self.folder)
        plan, settings, retry = folder.plan(), going.settings, going.command == "retry"
        if "merge_of" in plan:
            raise PipelineError(f"Run {self.run_id} was made by pass2 alone.", hint="Give the pass2 command again.")
        try:
            if not (retry and plan.get("by_day")):  # then its days are looked at one by one, with a cure for each
                check_not_replaced(folder)
        except RunReplaced:
            if not going.make_current:
                raise
            folder = replace(folder, on_top=True)
            plan = folder.plan()
        pipeline = planned_pipeline(plan, settings)
        if folder.on_top:
            going = replace(going, changed_function=True)  # all its records are settled, so that it calls none
        ref = self._function(going, pipeline)
        if pipeline.engine is not None:
            from shardkit.runs.on_engine import go_on

            instead = ref if going.function is not None else None
            with folder.lock() as held, holding_days(folder, plan):
                _is_meant(folder)
                go_on(Run(folder), pipeline, progress, changes=settings, retry=retry, function=instead, held=held)
            return
        merging = planned_merge(folder, pipeline, settings)
        begun = time.monotonic()
        with folder.lock() as held, holding_days(folder, plan):
            more = settings or folder.on_top or (retry and Ledger(folder).quarantined)
            if not more and is_complete(folder):
                progress.note(f"Run {self.run_id} is done; there is nothing to {going.command}.")
                return
            _is_meant(folder)
            with worker_pool(folder, pipeline, ref) as pool:
                attempt = Attempt(folder, progress, begun=begun, command=going.command).holding(held)
                _both_passes(folder, pipeline, merging, pool, attempt, retry=retry)

    def _function(self, going: _GoingOn, pipeline: Pipeline) -> FunctionRef:
        """The function to go on with.

        Raises:
            PlanMismatch: it is not the run's own, and nobody has said that this is meant.
        """
        plan = self.folder.plan()
        if going.function is not None:
            ref = reference(going.function, source_dir=pipeline.source_dir)
        elif (pickled := self.folder.pickled("function")) is not None:
            ref = FunctionRef(plan["pipeline"]["function"], None, plan["function_digest"], pickled)
        else:
            ref = pipeline.function_ref()
        if going.changed_function:
            return ref
        name, before = _bare_name(ref.name), _bare_name(plan["pipeline"]["function"])
        if name != before and LAMBDA not in {name, before}:
            mixed = advice(
                self.folder,
                lambda step: (
                    "Is this the run that you mean? If so, say that the two functions belong together: "
                    f"{step.other_function(going.command, ref.name)}"
                ),
            )
            raise PlanMismatch(f"Run {self.run_id} is of the function {before}, not of {name}.", hint=mixed)
        if going.command == "resume" and ref.digest != plan["function_digest"]:
            raise PlanMismatch(
                f"The source of {ref.name} has changed since run {self.run_id} was planned.",
                hint=advice(
                    self.folder,
                    lambda step: (
                        "Start a new run; or, to keep what is done and use the new source for the rest: "
                        f"{step('resume', changed_function=True)}"
                    ),
                ),
            )
        return ref


@dataclass(frozen=True)
class _GoingOn:
    """How a run is to be gone on with: ``resume`` or ``retry``, with other settings or another function."""

    command: str
    settings: Mapping[str, Any]
    function: str | Callable[..., Any] | None
    changed_function: bool = False
    make_current: bool = False


def _bare_name(function: str) -> str:
    """What a function is called in its module, wherever that is by now."""
    return function.rpartition(":")[2].rpartition(".")[2]


@contextlib.contextmanager
def naming(run: Run) -> Iterator[None]:
    """Have what goes wrong in the block tell which run it happened to, once there is one."""
    try:
        yield
    except ShardkitError as error:
        with contextlib.suppress(ShardkitError, OSError):
            if error.run is None and run.folder.exists():
                error.run = run
        raise


def _is_meant(folder: RunFolder) -> None:
    """Have the output's latest run be this one, which goes on: it is what to look at, and to resume, from now on."""
    latest = latest_run(folder.output)
    if latest is not None and latest.run_id != folder.run_id:
        folder.note_as_latest()


def _untold(jobs: list[Job]) -> int:
    """How many jobs are at work and were not told to stop."""
    return sum(job.live and job.exists == "yes" and not job.stop_sent_at for job in jobs)


@contextlib.contextmanager
def worker_pool(
    folder: RunFolder,
    pipeline: Pipeline,
    ref: FunctionRef,
    *,
    source: str | None = None,
    begun: int | None = None,
) -> Iterator[WorkerPool]:
    """The workers of a pipeline; ``source`` is where its input lies by now, ``begun`` how many begin at once."""
    from shardkit.workers.pool import WorkerPool
    from shardkit.workers.tasks import WorkerSettings

    settings = WorkerSettings(
        function=ref,
        input_root=source or absolute_uri(pipeline.input.uri),
        input_access=pipeline.input.access(),
        output=folder.output.uri,
        run_id=folder.run_id,
        scratch=None,
        by_stem=pipeline.records == "stem",
        schema=pipeline.output.columns,
    )
    with WorkerPool(settings, pipeline.worker_count(), begun=begun) as pool:
        yield pool


@heeding_interrupts()
def start_run(
    pipeline: Pipeline,
    *,
    days: tuple[str, ...] | None = None,
    run_id: str | None,
    quiet: bool,
    merge: bool = True,
) -> Run:
    """Plan and run both passes; or go on with the run of that id, if its plan is the same.

    Without ``merge`` the dataset is pass 1's parts as they are.
    """
    from shardkit.runfolder.display import make_progress

    begun = time.monotonic()
    check_room(pipeline.worker_count())
    if not merge:
        pipeline = pipeline.replace(incremental=False)  # of a part taken over, some rows may no longer count
    if pipeline.catalog is not None:
        from shardkit.dataset.catalog import check_installed

        check_installed()
    progress = make_progress(quiet=quiet)
    folder = run_folder(pipeline.output_folder(), run_id or new_run_id())
    ref, merging = pipeline.function_ref(), pipeline.merge()
    finish_switches(folder.output, must=True)
    with naming(Run(folder)), contextlib.ExitStack() as stack:
        # The workers get ready while the input is listed; one is enough if little has changed.
        ready = 1 if pipeline.is_incremental else None
        pool = stack.enter_context(worker_pool(folder, pipeline, ref, begun=ready))
        plan = make_run_plan(pipeline, function_ref=ref, run_id=folder.run_id, days=days)
        if not plan.content["totals"]["records"]:
            return nothing_to_do(pipeline, plan, progress)
        pool.begin(plan.content["totals"]["chunks"] - len(plan.taken_over))
        with folder.lock() as held, holding_days(folder, plan.content):
            fresh = run_id is None or not folder.exists()
            if not fresh:
                check_same_plan(folder, plan)
                check_not_replaced(folder)
                same = folder.plan()["pipeline"] == plan.content["pipeline"]
                if same and is_complete(folder):
                    progress.note(f"Run {folder.run_id} is done; there is nothing to do.")
                    return Run(folder)
                progress.note(f"Run {folder.run_id} exists; going on where it ended.")
            else:
                write_run(folder, plan, ref, merging, merge=merge)
            attempt = Attempt(folder, progress, begun=begun, fresh=fresh).holding(held)
            _both_passes(folder, pipeline, merging, pool, attempt, fresh=fresh)
    tell_set_aside(folder, progress)
    return Run(folder)


def nothing_to_do(pipeline: Pipeline, plan: Plan, progress: Progress) -> Run:
    """The run that made the dataset as it is, for nothing of what it was made of has changed."""
    current = current_result(pipeline.output_folder())
    if current is None:
        raise RunNotFound(f"{pipeline.output.uri} holds no dataset.", hint="Run with incremental: false.")
    from shardkit.dataset.catalog import keep_registered

    keep_registered(pipeline.merge().glue, pipeline.output_folder(), changed=False)
    count = plan.content["unchanged"]["records"]
    progress.note(f"Nothing has changed in {count:,} records since run {current['run_id']}; there is nothing to do.")
    return Run(run_folder(pipeline.output_folder(), current["run_id"]))


def _both_passes(
    folder: RunFolder,
    pipeline: Pipeline,
    merging: Merge,
    pool: WorkerPool,
    attempt: Attempt,
    *,
    retry: bool = False,
    fresh: bool = False,
) -> None:
    from shardkit.pass1_preprocessing import run_pass1
    from shardkit.pass2_combine import publish_parts, run_pass2

    with attempt:
        ledger = run_pass1(folder, pool, pipeline.limits(), attempt, retry=retry, fresh=fresh)
        pool.hang_up()  # the workers end while the parts are merged
        if folder.plan()["merge"]:
            name, threads = pipeline.pipeline_name(), pool.size
            run_pass2(ledger, merging, attempt, name=name, threads=threads, fresh=fresh)
        else:
            publish_parts(ledger, attempt, name=pipeline.pipeline_name(), allow_empty=pipeline.allow_empty)


def open_run(output: str | os.PathLike[str], run_id: str | None = None, *, boto_session: Any = None) -> Run:
    """The run with that id under an output, by default its latest.

    ``boto_session`` is how S3 is reached, if not as boto3 does by default.

    Raises:
        RunNotFound: there is none.
    """
    root = folder_at(output, Access(boto_session))
    finish_switches(root)
    found = find_run(root, run_id)
    return Run(found.encrypted(found.plan()), whole_dataset=run_id is None)


# Fields of a pipeline's input and output that `run` takes as they are.
INPUT_FIELDS = ("pattern", "exclude", "requester_pays", "anonymous")
OUTPUT_FIELDS = ("format", "rows_per_file", "target_bytes", "partition_by", "schema", "widen_ints")


def run(
    function: str | Callable[..., Any],
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    run_id: str | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Run a function over a folder of files into a dataset, and return the finished run.

    >>> run = shardkit.run(features, "data/", "out/", records="stem", pattern="*.dat")     # doctest: +SKIP

    Args:
        function: takes a Record; returns a DataFrame, a pyarrow Table, a dict, an iterable of dicts, or None.
        input: the folder with the files.
        output: the folder of the dataset.
        run_id: a name for the run; that of an unfinished one goes on with it.
        quiet: show no progress.
        fields: any other field of Pipeline; those of its input and output by their own names, such as ``pattern``.

    Raises:
        PipelineError: something cannot be used as given.
        RunFailed: the dataset could not be made; what is committed is kept.
        RunInterrupted: by Ctrl-C or SIGTERM; it can be resumed.
    """
    return build_pipeline(function, input, output, **fields).run(run_id=run_id, quiet=quiet)


def build_pipeline(
    function: str | Callable[..., Any],
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    **fields: Any,
) -> Pipeline:
    """A pipeline from flat fields: those of its input and output are told by their names."""
    from shardkit.pipeline import Pipeline
    from shardkit.spec.yaml import unknown_field

    known = [*Pipeline.model_fields, *INPUT_FIELDS, *OUTPUT_FIELDS]
    for name in fields:
        if name not in known:
            raise PipelineError(f"{name}: {unknown_field(name, known)}")
    inputs = {"uri": input} | {name: fields.pop(name) for name in INPUT_FIELDS if name in fields}
    outputs = {"uri": output} | {name: fields.pop(name) for name in OUTPUT_FIELDS if name in fields}
    return Pipeline(function=function, input=inputs, output=outputs, **fields)
