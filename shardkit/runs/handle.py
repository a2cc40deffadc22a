"""A run as users hold it: its numbers, its dataset, its jobs; resumed, retried, stopped."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from shardkit.dataset.current import current_result
from shardkit.errors import PipelineError, ShardkitError
from shardkit.runs.planning import planned_pipeline
from shardkit.runs.rows import RunRows
from shardkit.runs.summary import Summary, is_complete, summarize, tell_set_aside
from shardkit.storage.interruption import heeding_interrupts

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

    from shardkit.jobs.history import Prices
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runs.going_on import GoingOn
    from shardkit.runs.on_engine import RunJobs
    from shardkit.runs.origin import RowOrigin
    from shardkit.runs.tried import Tried
    from shardkit.runs.verifying import Verified


LIVE = ("Launched", "InProgress")  # the states of jobs that the engine has


class Run(RunRows):
    """One execution of a pipeline, as its run folder describes it; other processes may look at it too.

    With ``whole_dataset``, which is how `open_run` opens an output's latest run, the quarantine is the whole dataset's:
    it includes the days that other runs have made.
    """

    def __init__(self, folder: RunFolder, *, whole_dataset: bool = False) -> None:
        super().__init__(folder)
        self._whole_dataset = whole_dataset

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.folder.run_id

    @property
    def output(self) -> Path:
        """The folder of the dataset, if it is on this machine; if not, see ``output_uri``."""
        return self.folder.output.path

    @property
    def output_uri(self) -> str:
        """The folder of the dataset, wherever it is."""
        return self.folder.output.uri

    @property
    def path(self) -> Path:
        """The run folder, if it is on this machine."""
        return self.folder.path

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, output={self.output_uri!r})"

    def _repr_html_(self) -> str:
        from shardkit.runs.views import run_view

        return run_view(self.folder, self.summary)

    def summary(self, *, jobs: list[dict[str, Any]] | None = None) -> Summary:
        """The run in numbers.

        With its ``jobs()``, a run whose jobs wait for their turn is known to be ``running``, though none is at work.
        """
        return summarize(self.folder, live=sum(job["status"] in LIVE for job in jobs or ()))

    def failures(self) -> pd.DataFrame:
        """The quarantine: one row a record, with its key, error, message, traceback, seconds, bytes, signal and run.

        A notebook shows it in short, with a traceback for each kind of failure.
        """
        from shardkit.runs.frames import Failures

        return Failures.of(self.quarantine())

    def checks(self) -> pd.DataFrame:
        """How the pipeline's checks of the new files ended: name, passed, message, offending (a count) and sample."""
        import pandas as pd

        from shardkit.runs.checked import COLUMNS, results_of_checks

        frame: pd.DataFrame = pd.DataFrame(results_of_checks(self.folder), columns=COLUMNS)
        return frame

    @heeding_interrupts()
    def accept(self, *, quiet: bool = False) -> Run:
        """Switch the dataset to the new files that are kept aside, though a check of them has failed.

        Raises:
            RunNotFound: none are kept aside.
            PlanMismatch, RunReplaced: another run has switched the dataset since.
        """
        from shardkit.runs.checked import accept_held

        with naming(self):
            accept_held(self.folder, quiet=quiet)
        return self

    def timings(self) -> pd.DataFrame:
        """When, where and for how long the records were worked on: one row for each time that a record was run.

        Columns: record, shard, chunk, job, attempt, worker, begin (UTC), seconds, bytes, rows, and outcome, which is
        ``done`` or ``quarantined``. Records that were taken over from an earlier run are not in it.
        """
        from shardkit.runfolder.timings import RunTimings

        frame: pd.DataFrame = RunTimings.of(self.folder).records.to_pandas()
        return frame

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the run's timeline with matplotlib: its chunks over time, a line for each worker, a colour for each job.

        Returns the axes; ``ax`` are those to draw in, by default new ones.

        Raises:
            PipelineError: matplotlib is not installed.
            RunNotFound: the run has committed nothing yet, or is of a version that noted no times.
        """
        from shardkit.runs.plot import plot_timeline

        return plot_timeline(self.folder, ax)

    def replay(self, key: str, *, current: bool = False) -> Tried:
        """Run one record again as the run had it, in this process; nothing is written.

        It gets the same files (those that have changed since are named in ``notes``), the same settings, and the
        function as it was sent, or with ``current`` as it is now. What it raises is raised, so that ``%debug`` works.

        Raises:
            InputError: the run has no such record.
            PlanMismatch: the run kept no copy of the function, and that has changed since.
            Exception: what the function raises.
        """
        __tracebackhide__ = True  # IPython then leaves this frame out
        from shardkit.runs.replay import replayed

        return replayed(self.folder, key, self.quarantine(), current=current, only=True)

    def origin(self, row: int, *, file: str | None = None) -> RowOrigin:
        """The record that a row of the dataset comes from; ``row`` counts from 0, in ``file`` or over all its files.

        Raises:
            RunNotFound: the run has no dataset, or a part of it is gone.
            InputError: there is no such file or row.
            PipelineError: it is not known, because a combine or partition_by has put the rows in another order.
        """
        from shardkit.runs.origin import origin_of

        return origin_of(self.folder, row, file)

    def verify(self, *, sample: int = 100, workers: int | None = None, quiet: bool = False) -> Verified:
        """Compute some records of the dataset again, and compare their rows with those that are stored.

        The records are of all sizes. Workers compute them, with the function as the run had it; nothing is written.

        Args:
            sample: how many records.
            workers: how many processes, by default those of the run; never more than there are CPUs.
            quiet: show no progress, which is otherwise shown on terminals and in notebooks.

        Raises:
            PipelineError: the sample is not at least 1.
            PlanMismatch: the run kept no copy of the function, and that has changed since.
            RunFailed: a part that the dataset was made of is gone.
            RunInterrupted: by Ctrl-C or SIGTERM.
        """
        from shardkit.runs.verifying import verify

        return verify(self.folder, sample, workers=workers, quiet=quiet)

    def quarantine(self) -> list[dict[str, Any]]:
        """The same as plain data, without pandas."""
        from shardkit.runs.quarantine import entries_of

        return [dict(entry) for folder in (self.folder, *self._others()) for entry in entries_of(folder)]

    def _others(self) -> list[RunFolder]:
        """Other runs whose days of the dataset have records in quarantine, if these count."""
        from shardkit.runs.quarantine import elsewhere

        if not self._whole_dataset:
            return []
        return [folder for folder, _ in elsewhere(self.folder, current_result(self.folder.output))]

    @property
    def has_jobs(self) -> bool:
        """Whether the run's passes are jobs on an engine."""
        return bool(self.folder.plan()["pipeline"].get("engine"))

    def wait(self, *, quiet: bool = False) -> Run:
        """Launch and watch the jobs of a run on an engine until they have ended; the same as ``resume()`` then."""
        return self.resume(quiet=quiet)

    def jobs(self, *, refresh: bool = True) -> list[dict[str, Any]]:
        """The jobs of a run on an engine: id, name, status, attempts, reason; with ``refresh`` as the engine has them.

        Raises:
            PipelineError: the run has no jobs.
        """
        from shardkit.runs.views import JobList

        jobs = self._run_jobs()
        if refresh:
            jobs.refresh()
        return JobList(
            {
                "job": job.job_id,
                "name": job.name,
                "status": job.status,
                "attempts": [dict(entry) for entry in job.attempts],
                "cause": job.cause,
                "reason": job.reason,
            }
            for job in jobs.current()
        )

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        prices: Prices | None = None,
        watch_s: float | None = None,
        written: Callable[[Path], None] = lambda _: None,
    ) -> Path:
        """Write a page about the run for a browser, by default ``report-<run id>.html`` in this folder; returns it.

        It shows how the run went, what failed and what came out, and needs no network. ``prices`` give the costs of a
        run on an engine: ``shardkit.jobs.prices.KnownPrices`` or ``ListPrices``. With ``watch_s`` it is written again
        after so many seconds, until nobody works on the run any more; ``written`` is called when it is there first.

        Raises:
            PipelineError: the file cannot be written, or ``shardkit[report]`` is not installed.
        """
        from shardkit.runs.report.write import write_report

        jobs = self._run_jobs().current if self.has_jobs else tuple
        return write_report(self.folder, path, jobs=jobs, prices=prices, watch_s=watch_s, written=written)

    def stop(self) -> int:
        """Stop all jobs of a run on an engine that have not ended; returns how many there were.

        What they have committed is kept, and ``resume()`` goes on from there.

        Raises:
            RunFailed: the service did not answer for some, which go on.
        """
        from shardkit.runs.stopping import stop_jobs

        with naming(self):
            return stop_jobs(self._run_jobs())

    def logs(self, job: str | None = None, *, follow: bool = False) -> Iterator[str]:
        """The lines that the jobs of a run on an engine have printed; ``job`` is a job's name or id, or a part of it.

        By default these are the jobs that failed or, if none did, all jobs. With ``follow`` they are all jobs, and the
        lines come as they are written, until all jobs have ended.

        Raises:
            PipelineError: the run has no such job.
        """
        from shardkit.runs.logs import followed_logs, logs_of

        jobs = self._run_jobs()
        return followed_logs(jobs, job) if follow else logs_of(jobs, job)

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
        ``changed_function`` says that old and new results may be mixed; ``function`` is the new one, if the
        first was sent by value. With ``make_current`` the dataset of a run that a later run has replaced becomes the
        current one again, from the rows that are kept.

        Raises:
            RunReplaced: a later run has replaced the dataset, and ``make_current`` is not set.
        """
        from shardkit.runs.going_on import GoingOn

        going = GoingOn("resume", settings, function, changed_function=changed_function, make_current=make_current)
        return self._go_on(going, quiet=quiet)

    def retry(
        self,
        *,
        function: str | Callable[..., Any] | None = None,
        quiet: bool = False,
        changed_function: bool = False,
        **settings: Any,
    ) -> Run:
        """Run the quarantined records again, with the function as it is now, and rebuild the dataset.

        For the latest run of an output this includes the records of days that earlier runs have made, run by run.
        Returns the run that made the dataset last. ``function`` is the mended one, if the first was sent by value. A
        function of another name is refused, unless ``changed_function`` says that the two belong together.
        """
        from shardkit.runfolder.ledger import Ledger
        from shardkit.runs.going_on import GoingOn

        going = GoingOn("retry", settings, function, changed_function=changed_function)
        others = [Run(folder) for folder in self._others()]
        for run in others:
            run._go_on(going, quiet=quiet)  # noqa: SLF001  another of the same class
        if others and is_complete(self.folder) and not Ledger(self.folder).quarantined:
            return Run(others[-1].folder, whole_dataset=True)
        return self._go_on(going, quiet=quiet)

    @heeding_interrupts()
    def _go_on(self, going: GoingOn, *, quiet: bool) -> Run:
        from shardkit.runfolder.display import make_progress
        from shardkit.runs.going_on import go_on_with

        progress = make_progress(quiet=quiet)
        with naming(self):
            go_on_with(self.folder, going, progress)
        tell_set_aside(self.folder, progress)
        return self


@contextlib.contextmanager
def naming(run: Run) -> Iterator[None]:
    """Put the run into errors that are raised in the block, once there is one, so that they can name it."""
    try:
        yield
    except ShardkitError as error:
        with contextlib.suppress(ShardkitError, OSError):
            if error.run is None and run.folder.exists():
                error.run = run
        raise
