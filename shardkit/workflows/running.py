"""A run of a workflow: its steps' jobs are put into a queue, driven to their ends, watched, stopped and resumed.

The queue is what knows how far the run is. A process that drives it may die at any moment: the steps go on, and the
next process takes them over. A step that has ended well is never done again.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, Protocol

from shardkit.errors import PipelineError, RunBusy, RunFailed, RunInterrupted
from shardkit.jobs import JobError, Submission, stop
from shardkit.jobs.job import COMPLETED, NEW
from shardkit.jobs.policy import RETRIES
from shardkit.runs.signals import ended_by
from shardkit.storage.interruption import INTERRUPTION
from shardkit.workflows.order import needs
from shardkit.workflows.problems import near
from shardkit.workflows.resolve import resolve
from shardkit.workflows.states import BEGINNING, GENERATION, OUTPUT, STEP, generation_of, latest_jobs, states_of
from shardkit.workflows.telling import Teller, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shardkit.jobs import Job, Store
    from shardkit.jobs.calls import Engine
    from shardkit.runfolder.display import Progress
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.resolve import Resolved
    from shardkit.workflows.run_files import RunFiles
    from shardkit.workflows.states import StepState


class Place(Protocol):
    """Where the steps of a run run: this machine, or an engine."""

    title: str
    outputs: str  # the folder for the outputs of the steps for which the file names none; empty if there is none
    served: bool  # whether somebody else launches the jobs, and sends the notices
    stops_with_driver: bool  # whether Ctrl-C stops the steps, too

    def store(self) -> Store:
        """The queue of the jobs."""

    def client(self) -> Engine:
        """The engine that runs the jobs."""

    def drive(self, store: Store, on_round: Callable[[str], bool | None]) -> None:
        """Launch and watch the jobs until all have ended, or ``on_round`` says False.

        It gets what is wrong with the queue, in words.
        """

    def job_id(self, step: str, generation: int) -> str:
        """The id of a step's job."""

    def check(self, resolved: Resolved) -> None:
        """See that a step can run there.

        Raises:
            PipelineError: it cannot.
        """

    def submissions(self, resolved: Resolved, job: Submission, beginning: int) -> list[Submission]:
        """What is submitted for a step: its job with its request, and jobs that it needs itself."""

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that an attempt of a job has written."""


@contextlib.contextmanager
def queueing() -> Iterator[None]:
    """Turn the queue's errors into errors of a run."""
    try:
        yield
    except JobError as error:
        raise RunFailed(error.message, hint=error.hint) from error


class WorkflowRun:
    """One run of a workflow.

    Args:
        workflow: The workflow, as it is in its environment.
        files: The run's folder.
        place: Where its steps run.
        say: Gets a line about whatever happens.
    """

    def __init__(self, workflow: Workflow, files: RunFiles, place: Place, *, say: Callable[[str], object]) -> None:
        self.workflow, self.files, self.place, self.say = workflow, files, place, say
        with queueing():
            self.store = place.store()
        self.run_name = f"{workflow.name}-{files.run_id}"

    def jobs(self) -> list[Job]:
        """All jobs of the run's steps, those that later ones have replaced too."""
        with queueing():
            return self.store.jobs(run=self.run_name)

    def states(self) -> list[StepState]:
        """How the steps are."""
        return states_of([step.name for step in self.workflow.steps], self.jobs(), time.time())

    def is_open(self) -> bool:
        """Whether a step runs, or waits, or none was submitted yet."""
        jobs = self.jobs()
        return not jobs or any(not job.ended for job in latest_jobs(jobs).values())

    def submit(self, *, begin_again: str | None = None) -> None:
        """Put all steps into the queue that have not ended well and do not run.

        Args:
            begin_again: The step that begins again, with all that come after it, whatever has become of them.

        Raises:
            PipelineError: there is no such step, or a step cannot run here.
            RunBusy: a step that is to begin again is running.
        """
        latest = latest_jobs(self.jobs())
        anew = self._anew(begin_again, latest)
        kept = {name: job for name, job in latest.items() if name not in anew and _counts(job)}
        made = {name: job.tags.get(OUTPUT, "") for name, job in kept.items()}
        steps = resolve(self.workflow, self.files.facts(), outputs=self.place.outputs, made=made)
        for resolved in steps:
            if resolved.step.name not in kept:
                self.place.check(resolved)
        with queueing():
            stop(self.store, None, [job.job_id for job in latest.values() if job.status == NEW])
            ids = {name: job.job_id for name, job in kept.items()}
            submissions: list[Submission] = []
            for resolved in steps:
                name = resolved.step.name
                if name not in ids:
                    job, beginning = self._submission(resolved, latest.get(name), ids, anew=name in anew)
                    submissions += self.place.submissions(resolved, job, beginning)
                    ids[name] = job.job_id
            self.store.submit_many(submissions)

    def _anew(self, name: str | None, latest: dict[str, Job]) -> set[str]:
        if name is None:
            return set()
        names = [step.name for step in self.workflow.steps]
        if name not in names:
            raise PipelineError(f"{self.workflow.name} has no step {name!r}; {near(name, names)}")
        anew = {name, *(each for each in names if name in needs(self.workflow.steps, each))}
        busy = next((each for each in names if each in anew and each in latest and latest[each].live), None)
        if busy is not None:
            raise RunBusy(f"Step {busy} is running.", hint=f"Stop it first: {self.command('stop')}")
        return anew

    def _submission(
        self, resolved: Resolved, before: Job | None, ids: dict[str, str], *, anew: bool
    ) -> tuple[Submission, int]:
        """The job of a step without its request, and how many times the step began from nothing, with this one."""
        step = resolved.step
        generation = generation_of(before) + 1 if before is not None else 1
        beginning = int(before.tags.get(BEGINNING, "1")) + anew if before is not None else 1
        tags = {STEP: step.name, GENERATION: str(generation), BEGINNING: str(beginning), OUTPUT: resolved.output}
        tags |= {RETRIES: str(step.retries or 0), "workflow": self.workflow.name}
        job_id = self.place.job_id(step.name, generation)
        after = [ids[each] for each in step.after]
        last = not any(step.name in other.after for other in self.workflow.steps)
        notify = self.workflow.notify.all() if self.place.served and last else ()
        return Submission(job_id, {}, after, run=self.run_name, notify=notify, tags=tags), beginning

    def drive(self, *, leave: bool = False, progress: Progress | None = None) -> None:
        """Launch and watch until all steps have ended.

        Args:
            leave: Whether the steps go on after Ctrl-C or SIGTERM, even if they run on this machine.
            progress: Shows how far the run is.

        Raises:
            RunInterrupted: by Ctrl-C or SIGTERM.
        """
        teller = Teller(self.say, self.files, progress)
        if progress is not None:
            progress.start(len(self.workflow.steps))
        try:
            with queueing(), ended_by(signal.SIGINT, signal.SIGTERM, note=INTERRUPTION.note):
                self.place.drive(self.store, lambda trouble: teller.tell(self.states(), trouble))
            teller.tell(self.states())
        except KeyboardInterrupt:
            raise self._interrupted(teller, leave=leave) from None
        finally:
            if progress is not None:
                progress.finish()

    def _interrupted(self, teller: Teller, *, leave: bool) -> RunInterrupted:
        name = f"Run {self.files.run_id} of {self.workflow.name}"
        if leave or not self.place.stops_with_driver:
            return RunInterrupted(
                f"{name}: no longer watching; its steps go on.",
                hint=f"\nGo on watching: {self.command('resume')}\nStop them: {self.command('stop')}",
            )
        teller.say("Stopping the steps; Ctrl-C again leaves them to end by themselves.")
        with queueing(), ended_by(signal.SIGINT, signal.SIGTERM):
            self.stop()
            self.await_stopped()
        teller.tell(self.states())
        return RunInterrupted(f"{name} was interrupted; its steps were stopped.", hint=self._go_on())

    def await_stopped(self) -> None:
        """Wait until the jobs have ended that were asked to stop."""
        with queueing():
            if any(job.live and job.stop_asked_at for job in self.jobs()):
                self.place.drive(self.store, lambda _: any(job.live and job.stop_asked_at for job in self.jobs()))

    def stop(self) -> int:
        """Stop all steps that have not ended; returns how many that are."""
        with queueing():
            left = [job.job_id for job in self.jobs() if not job.ended]
            stop(self.store, self.place.client(), left)
        return len(left)

    def conclude(self) -> None:
        """Raise what went wrong, if something did.

        Raises:
            RunFailed: a step failed.
            RunStopped: the steps were stopped.
        """
        failure_of(self.workflow, self.files, self.states(), self._go_on())

    def _go_on(self) -> str:
        return f"\nGo on: {self.command('resume')}"

    def command(self, verb: str) -> str:
        """The command that does something with this run."""
        return command_of(verb, self.workflow, self.files)


def command_of(verb: str, workflow: Workflow, files: RunFiles) -> str:
    """A command of the command line about a run."""
    import shlex

    from shardkit.workflows.run_files import runs_in, state_of

    words = ["shardkit", "workflow", verb, str(workflow.file or "workflow.yaml")]
    words += ["--env", workflow.environment] if workflow.environment else []
    state = files.path.parent
    words += ["--state", str(state)] if state != state_of(workflow) else []
    runs = runs_in(state)
    words += ["--run-id", files.run_id] if runs and runs[-1].run_id != files.run_id else []
    return shlex.join(words)


def _counts(job: Job) -> bool:
    """Whether a job is left as it is: it has ended well, or runs and was not asked to stop."""
    return job.status == COMPLETED or (job.live and not job.stop_asked_at)


def data_of(states: list[StepState]) -> list[dict[str, Any]]:
    """How the steps are, as plain data."""
    names = ("name", "state", "attempts", "seconds", "reason", "output")
    return [{name: getattr(state, name) for name in names} for state in states]
