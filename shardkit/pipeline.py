"""The pipeline: one job, described in Python or in YAML alike, and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict

from shardkit.spec.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardkit.jobs.history import Prices
    from shardkit.plan.plan import Plan
    from shardkit.runs.differing import Difference
    from shardkit.runs.driver_job import DriverJob
    from shardkit.runs.estimate import Estimate
    from shardkit.runs.forecast.result import Forecast
    from shardkit.runs.handle import Run
    from shardkit.runs.tried import Tried


class Pipeline(Spec):
    """One job: an input, a function and an output, and all settings for them.

    Examples:
        >>> pipeline = Pipeline.from_yaml("pipeline.yaml")                              # doctest: +SKIP
        >>> pipeline = Pipeline(function=features, input="data/", output="out/")        # doctest: +SKIP
        >>> run = pipeline.run()                                                        # doctest: +SKIP

    ``input`` and ``output`` are folders, or mappings with a ``uri``. See docs/pipeline.md for every field.

    Raises:
        PipelineError: a field is unknown, mistyped or missing.
    """

    model_config = ConfigDict(defer_build=False)

    def __init__(self, **fields: Any) -> None:  # for type checkers, which else ask for every field by its exact type
        super().__init__(**fields)

    def _repr_html_(self) -> str:
        from shardkit.spec.view import pipeline_view

        return pipeline_view(self)

    def run(
        self,
        engine: Any = None,
        *,
        days: Iterable[str] | None = None,
        run_id: str | None = None,
        quiet: bool = False,
        wait: bool = True,
    ) -> Run:
        """Run both passes. With the id of an unfinished run of the same plan, go on with that one.

        Args:
            engine: `SageMaker` or `Local` settings, or a Processor of the SageMaker SDK; by default the pipeline's
                own ``engine``. Without any, the passes run in this process and its workers; else as jobs.
            days: with shards by date, only these, such as ``["2020-01-01", "2020-01-05..2020-01-09"]``.
            run_id: a name for the run.
            quiet: show no progress.
            wait: with an engine, stay until all jobs have ended; else return when they are in the queue. Then
                ``run.wait()`` launches them, or the server of the pipeline's ``queue``.

        Raises:
            InputError: the input is empty or cannot be read.
            PlanMismatch: the run with that id has another plan.
            RunFailed: the dataset could not be made; what is committed is kept.
            RunInterrupted: by Ctrl-C or SIGTERM; it can be resumed.
        """
        from shardkit.runs.start import start

        if engine is not None:
            return self.replace(engine=engine).run(days=days, run_id=run_id, quiet=quiet, wait=wait)
        return start(self, days=self.chosen_days(days), run_id=run_id, quiet=quiet, wait=wait)

    def plan(self, *, days: Iterable[str] | None = None, run_id: str | None = None) -> Plan:
        """List the input and plan a run, without writing or running anything."""
        from shardkit.runs.planning import make_run_plan
        from shardkit.times import new_run_id

        run_id = run_id or new_run_id()
        return make_run_plan(self, function_ref=self.function_ref(), run_id=run_id, days=self.chosen_days(days))

    def driver_job(
        self,
        *,
        role: str | None = None,
        run_id: str | None = None,
        dates: Iterable[str] = (),
        since: str | None = None,
        instance_type: str = "ml.t3.medium",
        max_runtime: int = 432000,
        schedule: str | None = None,
        dry_run: bool = False,
    ) -> DriverJob:
        """Upload the pipeline with its code, and make the request for a Processing job that runs it.

        Args:
            role: the ARN of the driver's role; by default one in the account of the jobs' role, named after the
                pipeline. ``DriverJob.policy`` says what it has to allow.
            run_id: a name for the run, with which a further job goes on; by default each job is a run of its own.
            dates: with shards by date, only these days.
            since: only the days since that long before the start of the job, such as ``3d``; by default as the
                pipeline's schedule says.
            instance_type: the driver plans and watches, and needs memory for the list of the input alone.
            max_runtime: seconds after which the service stops the driver.
            schedule: when EventBridge Scheduler starts it, as ``rate(...)`` or ``cron(...)``; by default as the
                pipeline's schedule says, or at two o'clock each night.
            dry_run: upload nothing.

        Raises:
            PipelineError: the pipeline cannot run so, or the service would not take the request.
            StorageError: the code cannot be uploaded.
        """
        from shardkit.runs.driver_job import driver_job

        return driver_job(
            self,
            role=role,
            run_id=run_id,
            dates=dates,
            since=since,
            instance_type=instance_type,
            max_runtime=max_runtime,
            schedule=schedule,
            dry_run=dry_run,
        )

    def try_records(self, records: int | Iterable[str] = 5) -> Tried:
        """Run some records in this process, so that prints, breakpoints and debuggers work; nothing is written.

        Args:
            records: how many, spread over all sizes and with the largest among them; or the keys of those to try.

        Returns:
            Their rows as a frame, with types, seconds and memory, the errors of those that failed, and what all
            records would take. A notebook shows it as a table.

        Raises:
            InputError: there is no record of that key.
            PipelineError: the function cannot be loaded.
        """
        from shardkit.runs.trying import try_records

        keys = [records] if isinstance(records, str) else records
        return try_records(self, keys if isinstance(keys, int) else list(keys))

    def diff(self, *, sample: int = 200, quiet: bool = False) -> Difference:
        """Run the function, as it is now, on some records of the present dataset, and compare with what is stored.

        So you see what a change would do before all is computed again. The records are of all sizes; workers compute
        them, and nothing is written. With ``quiet`` no progress is shown, as otherwise on terminals and in notebooks.

        Returns:
            Which records would give other rows, in which columns, and about how long all records would take.

        Raises:
            RunNotFound: the output holds no dataset.
            PipelineError: the sample is not at least 1, or the function cannot be loaded.
            RunFailed: a part that the dataset was made of is gone.
            RunInterrupted: by Ctrl-C or SIGTERM.
        """
        from shardkit.runs.differing import diff

        return diff(self, sample, quiet=quiet)

    def try_record(self, key: str) -> Tried:
        """Run one record in this process; what the function raises is raised, so that ``%debug`` works after it.

        Raises:
            InputError: there is no record of that key.
            Exception: what the function raises; TypeError if it returns what cannot become rows.
        """
        __tracebackhide__ = True  # IPython then leaves this frame out
        from shardkit.runs.trying import try_records

        return try_records(self, [key], only=True)

    def sample(self, records: int, *, quiet: bool = True) -> Estimate:
        """Run some records and estimate what all of them will take; nothing is left behind."""
        from shardkit.runs.estimate import estimate

        return estimate(self, records, quiet=quiet)

    def forecast(
        self,
        records: int = 20,
        *,
        prices: Prices | Mapping[str, float] | str | None = None,
        deadline: float | str | None = None,
        budget: float | None = None,
        quotas: Mapping[str, int] | int | None = None,
        startup_s: float | None = None,
        capacity_errors: float = 0.0,
        days: Iterable[str] | None = None,
        trials: int = 50,
        seed: int = 0,
        quiet: bool = True,
    ) -> Forecast:
        """Run some records, and say what the run will take on its engine: time and money, as p50 and p95.

        The queue itself runs, on a simulated clock and service, over what the records of the sample have taken.

        Args:
            records: how many to run here, spread over all sizes.
            prices: US dollars an hour by instance type; or ``shipped``, ``aws`` or a file, as for the command line.
                Without them there is no money in the forecast.
            deadline: when the run is to have ended: seconds, or a time such as ``2h``. A budget or a deadline asks for
                a recommendation.
            budget: what it may cost, in US dollars; the prices are then the shipped ones, unless given.
            quotas: how many instances of each type the account may have at once, or of any.
            startup_s: seconds from a job's creation to its work; by default 240 on SageMaker.
            capacity_errors: the share of attempts for which there is no instance.
            days: with shards by date, only these.
            trials: how many runs to simulate.
            seed: of all that is random in them.
            quiet: show no progress.

        Raises:
            PipelineError: the pipeline has no engine with instances of SageMaker.
        """
        from shardkit.runs.forecast.ask import forecast_of

        return forecast_of(
            self,
            records,
            prices=prices,
            deadline=deadline,
            budget=budget,
            quotas=quotas,
            startup_s=startup_s,
            capacity_errors=capacity_errors,
            days=days,
            trials=trials,
            seed=seed,
            quiet=quiet,
        )
