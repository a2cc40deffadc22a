"""A run on an engine: its jobs are put in the queue, driven to their ends, watched and stopped.

The driver may go away at any moment and come back on another machine, because the run folder holds what the jobs have
done, and the engine knows how they are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

from shardkit.dataset.held import checks_failed, checks_of, held_by
from shardkit.dataset.switch import finish_switches
from shardkit.errors import RunBusy, RunFailed, RunInterrupted, ShardkitError
from shardkit.functions import python_version
from shardkit.jobs import JobError, stop
from shardkit.jobs.spending import COST
from shardkit.runfolder.display import make_progress
from shardkit.runfolder.names import STOP
from shardkit.runfolder.steps import Steps, advice
from shardkit.runs.bundle import upload_code
from shardkit.runs.container.job import DAYS, FUNCTION, ON_TOP
from shardkit.runs.cost import check_forecast_cost, check_not_ended_by_cost, check_spent, limit_jobs, with_known_prices
from shardkit.runs.queue import run_queue
from shardkit.runs.requests import Requests, check_engine, name_base
from shardkit.runs.signals import ended_by
from shardkit.runs.watching import Watch
from shardkit.storage.interruption import INTERRUPTION
from shardkit.times import now
from shardkit.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from shardkit.functions import FunctionRef
    from shardkit.jobs import Job
    from shardkit.jobs.rounds import Change
    from shardkit.runfolder.display import Progress
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runs.bundle import Sent
    from shardkit.spec.spec import Spec
    from shardkit.storage.locks import Held


@contextlib.contextmanager
def _queueing() -> Iterator[None]:
    """Turn the queue's errors into errors of a run."""
    try:
        yield
    except JobError as error:
        raise RunFailed(error.message, hint=error.hint) from error


class RunJobs:
    """The jobs of one run, in their queue; ``held`` is the run's lock, if they are to be driven."""

    def __init__(self, folder: RunFolder, pipeline: Spec, held: Held | None = None) -> None:
        if pipeline.engine is None:
            raise RunFailed(f"Run {folder.run_id} has no engine.", hint="Resume it on this machine.")
        self.folder = folder
        self._held = held
        self.pipeline = pipeline
        self.engine = pipeline.engine
        self.base = name_base(folder, folder.plan()["pipeline"]["name"], self.engine)
        with _queueing():
            self.queue = run_queue(folder, self.base, self.engine, pipeline.queue)
        self.store = self.queue.store
        self._submitted = 0

    @property
    def generation(self) -> int:
        """The number of the latest generation of jobs; 0 if none was submitted yet."""
        return max(map(self._generation_of, self.jobs()), default=0)

    def _generation_of(self, job: Job) -> int:
        number = job.job_id.removeprefix(f"{self.base}-g").partition("-")[0]
        return int(number) if number.isdigit() else 0

    def jobs(self) -> list[Job]:
        """All jobs of the run, those of earlier generations too."""
        with _queueing():
            return self.store.jobs(run=self.base)

    def current(self) -> list[Job]:
        """The jobs of the latest generation."""
        jobs = self.jobs()
        latest = max(map(self._generation_of, jobs), default=0)
        return [job for job in jobs if self._generation_of(job) == latest]

    def submit(
        self,
        pipeline: Spec,
        jobs: list[int],
        *,
        changes: Mapping[str, Any],
        retry: bool,
        function: FunctionRef | None = None,
        code: str | None = None,
    ) -> None:
        """Put a new generation of jobs in the queue: those of the plan with these numbers, and pass 2.

        ``function`` and ``code`` are as for `go_on`.
        """
        self._check()
        self.engine.check_site()
        plan, generation = self.folder.plan(), self.generation + 1
        code = code or upload_code(self.folder.output, pipeline, function or pipeline.function_ref())
        if function is not None:
            sha256 = hashlib.sha256(function.pickled).hexdigest() if function.pickled is not None else None
            sent = {"name": function.name, "digest": function.digest, "python": python_version(), "sha256": sha256}
            changes = {**changes, FUNCTION: sent}
            self.folder.write_pickled(f"function-{generation}", function.pickled)
        if self.folder.days is not None:
            changes = {**changes, DAYS: sorted(self.folder.days)}
        if self.folder.on_top:
            changes = {**changes, ON_TOP: True}
        requests = Requests(self.folder, pipeline, plan, code, generation, changes, retry)
        self._check()  # else these jobs, and the copy of their queue, might be another's by now
        self.folder.files.remove(STOP)
        with _queueing():
            check_spent(self.folder, self.store, self.base)
            self._submitted = len(self.store.submit_many(requests.submissions([plan["jobs"][each] for each in jobs])))
        self.queue.keep()

    def refresh(self) -> None:
        """Ask the engine how the jobs are."""
        with _queueing():
            if any(job.live for job in self.current()):
                self.queue.refresh()

    def drive(self, progress: Progress) -> None:
        """Launch and watch until all jobs have ended.

        Raises:
            RunFailed: the engine takes no calls.
            RunInterrupted: by Ctrl-C; the jobs that run go on.
        """
        earlier = Counter(job.status for job in self.jobs()) - Counter(job.status for job in self.current())
        watch = Watch(self.folder, self.engine, self.store, progress, run=self.base, earlier=earlier)

        def show(trouble: str, changed: Sequence[Change]) -> None:
            self._check()
            watch.show(trouble, changed)

        try:
            with _queueing(), ended_by(signal.SIGINT, signal.SIGTERM, note=INTERRUPTION.note):
                self.queue.drive(self._submitted, show)
            watch.end()
        except KeyboardInterrupt:
            raise self._interruption() from None
        finally:
            progress.finish()
            with contextlib.suppress(ShardkitError):
                self._check()
                self.queue.keep()

    def _check(self) -> None:
        if self._held is not None:
            self._held.check()

    def _interruption(self) -> RunInterrupted:
        jobs = self.current()
        live, waiting = sum(job.live for job in jobs), sum(job.status == "New" for job in jobs)
        return RunInterrupted(
            f"Run {self.folder.run_id}: no longer watching; {counted(live, 'job')} {'goes' if live == 1 else 'go'} on, "
            f"and {waiting} {'waits' if waiting == 1 else 'wait'} to be launched.",
            hint=advice(self.folder, lambda step: f"\nGo on: {step('resume')}\nStop them: {step('stop')}"),
        )

    def conclude(self) -> None:
        """Raise what went wrong with the jobs, which have ended, if something did.

        Raises:
            RunFailed: a job failed for good.
            RunInterrupted: the jobs were stopped.
            BudgetExceeded: more records failed than the pipeline allows.
        """
        from shardkit.runfolder.ledger import Ledger
        from shardkit.runfolder.limits import NOTHING_MADE, check_budget, check_made

        failed = [job for job in self.current() if job.status in {"Failed", "Stopped"}]
        if not failed:
            return
        go_on = advice(self.folder, lambda step: f"Go on: {step('resume')}")
        guilty = [job for job in failed if job.cause != "dependency"] or failed
        if all(job.status == "Stopped" for job in guilty):
            raise RunInterrupted(f"Run {self.folder.run_id} was stopped.", hint=go_on)
        ledger = Ledger(self.folder)
        check_budget(ledger, self.pipeline.limits())
        check_not_ended_by_cost(self.folder, self.store, self.base, failed)
        first = next(job for job in sorted(guilty, key=lambda job: job.cause == COST) if job.status != "Stopped")
        checks = checks_of(self.folder)
        if held_by(checks, self.folder.result()) is not None and checks is not None:
            raise checks_failed(self.folder, checks["results"])
        if NOTHING_MADE in first.reason:
            check_made(ledger, sum(part.rows for part in ledger.parts()), allow_empty=self.pipeline.allow_empty)
        more = f" ({counted(len(guilty) - 1, 'more job')} failed.)" if len(guilty) > 1 else ""
        raise RunFailed(
            f"Run {self.folder.run_id}: job {first.name or first.job_id} failed after "
            f"{counted(len(first.attempts), 'attempt')}: {first.reason}{more}",
            hint=advice(self.folder, functools.partial(self._after_failure, first)),
        )

    def _after_failure(self, failed: Job, step: Steps) -> str:
        """The next steps after that job has failed."""
        if failed.cause == "refused":  # so it has said nothing
            return f"\nChange what its engine refuses, and go on: {step.other_engine()}"
        text = f"\nSee what it said: {step.logs()}\nThen go on: {step('resume')}"
        if self.pipeline.input_mode == "download" and failed.reason.startswith("ClientError"):
            stream = step("resume", input_mode="stream")
            text += f"\nOr, so that objects that are not given out cost their own records alone: {stream}"
        return text

    def stop(self) -> list[Job]:
        """Stop all jobs that have not ended; returns them. A driver on another machine learns of it, too."""
        with _queueing():
            left = [job.job_id for job in self.jobs() if not job.ended]
            self.folder.write(STOP, {"asked": now()})
            stop(self.store, self.engine.client(), run=self.base)
            stopped = list(self.store.find(left).values())  # the driver may have been faster with some
        self.queue.keep()
        return stopped


def start_jobs(
    pipeline: Spec,
    folder: RunFolder,
    *,
    days: tuple[str, ...] | None = None,
    may_exist: bool,
    quiet: bool,
    wait: bool,
    sent: Sent | None = None,
) -> RunFolder:
    """Plan a run, submit its jobs and drive them; returns the run that makes the dataset.

    If the run exists already, which is possible only with ``may_exist``, and its plan is the same, go on with it.
    ``sent`` is the code, if this process is a job itself.

    Raises:
        PipelineError: the engine cannot do what the pipeline asks for.
        RunFailed, RunInterrupted: as for `RunJobs.drive`.
    """
    from shardkit.dataset.day_claims import holding_days
    from shardkit.runs.here import nothing_to_do
    from shardkit.runs.planning import is_new, make_run_plan, write_run
    from shardkit.runs.summary import tell_set_aside

    check_engine(pipeline)
    if pipeline.engine is not None:
        engine = pipeline.engine.resolved()
        engine.check_site()
        pipeline = with_known_prices(pipeline.replace(engine=engine))  # another machine may have to go on with it
    progress = make_progress(quiet=quiet)
    ref = pipeline.function_ref()
    finish_switches(folder.output, must=True)
    origin = sent.origin if sent is not None else None
    plan = make_run_plan(pipeline, function_ref=ref, run_id=folder.run_id, days=days, origin=origin)
    if not plan.content["totals"]["records"]:
        return nothing_to_do(pipeline, plan, progress)
    if not may_exist or not folder.exists():
        check_forecast_cost(pipeline, plan, progress)
    code = sent.uri if sent is not None else None
    with folder.lock(new=not may_exist) as held, holding_days(folder, plan.content):
        if is_new(folder, plan, may_exist=may_exist):
            # An error in the code is raised before there is a run.
            code = code or upload_code(folder.output, pipeline, ref)
            write_run(folder, plan, ref, pipeline.merge(), merge=True)
        else:
            progress.note(f"Run {folder.run_id} exists; going on where it ended.")
        go_on(folder, pipeline, progress, changes={}, retry=False, wait=wait, code=code, held=held)
    tell_set_aside(folder, progress)
    return folder


def go_on(
    folder: RunFolder,
    pipeline: Spec,
    progress: Progress,
    *,
    changes: Mapping[str, Any],
    retry: bool,
    wait: bool = True,
    function: FunctionRef | None = None,
    code: str | None = None,
    held: Held,
) -> None:
    """Drive a run's jobs; if none is left but work is, submit a new generation of them.

    ``function`` takes the place of the plan's; ``code`` is the URI of the folder with the code, if it is there already;
    ``held`` is the run's lock, which the caller holds.

    Raises:
        RunBusy: the settings are to change while jobs run.
        RunFailed, RunInterrupted, BudgetExceeded: as for `RunJobs.drive` and `RunJobs.conclude`.
    """
    from shardkit.runfolder.ledger import OPEN, QUARANTINED, Ledger
    from shardkit.runs.summary import is_complete

    check_engine(pipeline)
    pipeline = with_known_prices(pipeline)
    jobs = RunJobs(folder, pipeline, held)
    jobs.refresh()
    with _queueing():
        limit_jobs(jobs.store, jobs.base, pipeline, folder.plan()["pipeline"], changes)
        jobs.queue.stop_if_asked()
    left = [job for job in jobs.current() if not job.ended]
    if left and wait and all(job.stop_asked_at for job in left):
        progress.note(f"Run {folder.run_id}: waiting until its jobs have stopped.")
        jobs.drive(progress)
        left = []
    if left:
        if {name for name in changes if name.partition(".")[0] != "max_cost"} or retry:
            raise RunBusy(
                f"Run {folder.run_id} has jobs that have not ended.",
                hint=advice(folder, lambda step: f"Wait for them, or stop them first: {step('stop')}"),
            )
    else:
        ledger = Ledger(folder)
        wanted = {OPEN, QUARANTINED} if retry else {OPEN}
        shards = {int(shard) for state in wanted for shard in set(ledger.shard[ledger.state == state].tolist())}
        todo = [job["job"] for job in folder.plan()["jobs"] if shards & set(job["shards"])]
        if not todo and not changes and not folder.on_top and is_complete(folder):
            progress.note(f"Run {folder.run_id} is done; there is nothing to do.")
            return
        jobs.submit(pipeline, todo, changes=changes, retry=retry, function=function, code=code)
    if wait:
        jobs.drive(progress)
        jobs.conclude()
