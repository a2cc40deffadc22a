"""What starts a driver that is a job, each time under a name of its own: four services that take a request as data.

The run's id is the same for all tries of one start, so that a further try goes on where the one before it has ended.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from shardkit.errors import PipelineError
from shardkit.times import interval

if TYPE_CHECKING:
    from shardkit.spec.schedule import Schedule

TRIES = 3
NIGHTLY = "cron(0 2 * * ? *)"
_CRON = re.compile(r"(\S+) (\S+) \* \* \*")
_EXPRESSION = re.compile(r"(?:rate|cron|at)\(.+\)")


class When(NamedTuple):
    """An expression as EventBridge Scheduler takes it, and its time zone."""

    expression: str
    zone: str


@dataclass(frozen=True)
class Driver:
    """A request for a driver, without what differs from start to start.

    Args:
        name: What the job's names begin with.
        template: The request; the run's id is not yet among its arguments.
        run_id: The run's id; None where it is made of the job's name, or of what has started the job.
        days: Further arguments: which days are looked at.
        schedule: When EventBridge Scheduler starts it.
    """

    name: str
    template: dict[str, Any]
    run_id: str | None
    days: tuple[str, ...]
    schedule: When

    def with_id(self, run_id: Any, **more: Any) -> dict[str, Any]:
        """The request with that run id, which may be an expression of a service; without one if it is None."""
        words = ["run", *(["--run-id", run_id] if run_id is not None else []), *self.days]
        application = self.template["AppSpecification"] | {"ContainerArguments": words}
        return more | self.template | {"AppSpecification": application}


def now_in_a_name() -> str:
    """The time, as it can stand in a job's name."""
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S}"


def when(own: Schedule | None, given: str | None) -> When:
    """When EventBridge Scheduler starts a driver: as ``given``, as the pipeline's own schedule says, or each night.

    Raises:
        PipelineError: it cannot be said as EventBridge has it.
    """
    zone = (own.zone if own is not None else None) or "UTC"
    if given is not None:
        if not _EXPRESSION.fullmatch(given):
            raise PipelineError(
                f"schedule: {given!r} is nothing that EventBridge Scheduler takes.",
                hint="Write rate(3 hours), or cron(0 2 * * ? *): minute, hour, day, month, weekday, year.",
            )
        return When(given, zone)
    if own is None:
        return When(NIGHTLY, zone)
    if own.every is not None:
        minutes = int(interval(own.every).total_seconds() // 60)  # type: ignore[union-attr]  # it was checked
        return When(f"rate({minutes} minute{'s' * (minutes != 1)})", zone)
    daily = _CRON.fullmatch(str(own.cron).strip())
    if daily is None:
        raise PipelineError(
            f"schedule.cron: {own.cron!r} reads otherwise in EventBridge, whose weekdays begin with 1 for Sunday.",
            hint="Give --schedule in its words, such as 'cron(0 2 ? * MON-FRI *)'.",
        )
    return When(f"cron({daily[1]} {daily[2]} * * ? *)", zone)


def state_machine(job: Driver) -> dict[str, Any]:
    """A state machine of Step Functions: it starts the driver, waits for its end, and tries again."""
    retry = {"ErrorEquals": ["States.TaskFailed"], "IntervalSeconds": 60, "MaxAttempts": TRIES - 1, "BackoffRate": 2.0}
    request = job.with_id(None)
    words = ["'run'", "'--run-id'", _literal(job.run_id) or "$$.Execution.Name", *map(_literal, job.days)]
    application = {name: value for name, value in request["AppSpecification"].items() if name != "ContainerArguments"}
    application["ContainerArguments.$"] = f"States.Array({', '.join(words)})"
    name = {"ProcessingJobName.$": f"States.Format('{job.name}-{{}}-{{}}', $$.Execution.Name, $$.State.RetryCount)"}
    state = {
        "Type": "Task",
        "Resource": f"arn:{_partition(job)}:states:::sagemaker:createProcessingJob.sync",
        "Parameters": name | request | {"AppSpecification": application},
        "Retry": [retry],
        "End": True,
    }
    return {"StartAt": "Driver", "States": {"Driver": state}}


def _literal(text: str | None) -> str:
    return f"'{text}'" if text else ""


def pipeline_definition(job: Driver) -> dict[str, Any]:
    """The definition of a SageMaker pipeline with one step; the service names the jobs of a step itself."""
    retry = {
        "ExceptionType": ["Step.SERVICE_FAULT", "Step.THROTTLING", "SageMaker.CAPACITY_ERROR"],
        "IntervalSeconds": 60,
        "BackoffRate": 2.0,
        "MaxAttempts": TRIES,
    }
    run_id = job.run_id or {"Get": "Execution.PipelineExecutionId"}
    step = {"Name": job.name, "Type": "Processing", "Arguments": job.with_id(run_id), "RetryPolicies": [retry]}
    return {"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": [step]}


def airflow_config(job: Driver) -> dict[str, Any]:
    """The ``config`` of Airflow's SageMakerProcessingOperator, which fills in what is in braces for each try."""
    name = f"{job.name}-{{{{ ti.start_date.strftime('%Y%m%d-%H%M%S') }}}}-{{{{ ti.try_number }}}}"
    return job.with_id(job.run_id or "{{ run_id }}", ProcessingJobName=name)


def schedule(job: Driver) -> dict[str, Any]:
    """A schedule of EventBridge Scheduler, which calls CreateProcessingJob itself: `aws scheduler create-schedule`."""
    name = f"{job.name}-<aws.scheduler.execution-id>"
    request = job.with_id(job.run_id or "<aws.scheduler.scheduled-time>", ProcessingJobName=name)
    role = job.template["RoleArn"]
    return {
        "Name": job.name,
        "ScheduleExpression": job.schedule.expression,
        "ScheduleExpressionTimezone": job.schedule.zone,
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": f"arn:{_partition(job)}:scheduler:::aws-sdk:sagemaker:createProcessingJob",
            "RoleArn": f"{role.partition(':role/')[0]}:role/shardkit-{job.name}-starter",
            "Input": json.dumps(request),
            "RetryPolicy": {"MaximumEventAgeInSeconds": 3600, "MaximumRetryAttempts": TRIES - 1},
        },
    }


def _partition(job: Driver) -> str:
    return str(job.template["RoleArn"].split(":")[1])
