"""The driver as a job: one CreateProcessingJob request, whose program makes the other jobs of a run and watches them.

    <output>/_shardkit/drivers/<digest>/driver.json      the pipeline, and where its code is

The request names that folder and the folder of the code. So it stays the same from night to night; only its name and
the run's id differ.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit._version import __version__
from shardkit.engines import limits
from shardkit.engines.service_settings import ServiceSettings
from shardkit.errors import PipelineError
from shardkit.runs import driver_policy, driver_starts
from shardkit.runs.bundle import upload_code
from shardkit.runs.container.driver import DRIVER_FILE, DRIVER_FOLDER, run_id_of
from shardkit.runs.cost import with_known_prices
from shardkit.runs.requests import CODE_FOLDER, ENTRYPOINT, OPT_ML, check_engine, prefix_input, slug
from shardkit.storage.base import STATE_DIR
from shardkit.times import days_since, zone_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.spec.spec import Spec
    from shardkit.storage.base import Folder

SMALL_INSTANCE = "ml.t3.medium"
VOLUME_GB = 10
LONGEST_RUN_S = 5 * 86400
NAME_CHARACTERS = 22  # what the services that start it put after that is at most 40 characters long


@dataclass(frozen=True)
class DriverJob(driver_starts.Driver):
    """A driver that is a job: its request, what its role may do, and what starts it elsewhere.

    Args:
        pipeline: The pipeline, as the job gets it.
    """

    pipeline: Spec

    @property
    def request(self) -> dict[str, Any]:
        """The request for boto3 and, as JSON, for the AWS CLI; its name is good for one start."""
        return self.with_id(self.run_id, ProcessingJobName=f"{self.name}-{driver_starts.now_in_a_name()}")

    @functools.cached_property
    def policy(self) -> dict[str, Any]:
        """What the driver's role may do: as little as will do."""
        return driver_policy.policy_of(self.pipeline, self.template)

    @property
    def trust(self) -> dict[str, Any]:
        """Who may take on the driver's role: SageMaker."""
        return driver_policy.trust_of("sagemaker.amazonaws.com")

    @property
    def starter_policy(self) -> dict[str, Any]:
        """What the role of a service may do that starts the driver."""
        return driver_policy.starter_policy_of(self.template, self.name)

    def forms(self) -> dict[str, Any]:
        """Everything that there is to print, by the name that the command line gives it."""
        return {
            "request": self.request,
            "policy": self.policy,
            "trust": self.trust,
            "starter-policy": self.starter_policy,
            "step-functions": driver_starts.state_machine(self),
            "pipelines": driver_starts.pipeline_definition(self),
            "airflow": driver_starts.airflow_config(self),
            "scheduler": driver_starts.schedule(self),
        }


def driver_job(
    pipeline: Spec,
    *,
    role: str | None = None,
    run_id: str | None = None,
    dates: Iterable[str] = (),
    since: str | None = None,
    instance_type: str = SMALL_INSTANCE,
    max_runtime: int = LONGEST_RUN_S,
    schedule: str | None = None,
    dry_run: bool = False,
) -> DriverJob:
    """Upload a pipeline with its code, and make the request for a job that runs it; see `Pipeline.driver_job`."""
    engine = _service_engine(pipeline)
    check_engine(pipeline)
    _check_elsewhere(pipeline)
    since = since or (pipeline.schedule.since if pipeline.schedule is not None and not dates else None)
    days = _days(pipeline, dates, since)
    jobs_engine = engine.resolved().replace(profile=None)  # a profile of this machine means nothing there
    name = f"{slug(pipeline.pipeline_name(), NAME_CHARACTERS - len('-driver'))}-driver"
    own = {"role": role or _own_role(jobs_engine.role, name), "instance_type": instance_type, "volume_gb": VOLUME_GB}
    driver_engine = jobs_engine.replace(**own, jobs="processing", max_runtime=max_runtime, merge=None)
    if not limits.ROLE_ARN.fullmatch(driver_engine.role):
        raise PipelineError(f"role: {driver_engine.role} is no ARN of a role.", hint="arn:aws:iam::ACCOUNT:role/NAME")
    sent = with_known_prices(pipeline.replace(engine=jobs_engine))  # the driver sees no file of prices from here
    code = upload_code(pipeline.output_folder(), pipeline, pipeline.function_ref(), dry_run=dry_run)
    uri = _write(pipeline.output_folder(), sent, code, dry_run=dry_run)
    template = driver_engine.request(
        entrypoint=ENTRYPOINT,
        arguments=["run", *days],
        inputs=[prefix_input("code", code, CODE_FOLDER), prefix_input("driver", uri, f"{OPT_ML}/{DRIVER_FOLDER}")],
        environment=driver_engine.job_environment(),
    )
    when = driver_starts.when(pipeline.schedule, schedule)
    return DriverJob(name, template, run_id_of(run_id) if run_id else None, days, when, sent)


def _service_engine(pipeline: Spec) -> ServiceSettings:
    engine = pipeline.engine
    if not isinstance(engine, ServiceSettings) or engine.sees_local_paths:
        kind = "none" if engine is None else engine.kind
        raise PipelineError(
            f"engine: it is {kind}, and a driver that is a job needs SageMaker.",
            hint="Set engine: {kind: sagemaker, role: ..., image: ...} in the pipeline.",
        )
    return engine


def _check_elsewhere(pipeline: Spec) -> None:
    """See that nothing of the pipeline exists in this process, or on this machine, alone."""
    if pipeline.function_ref().pickled is not None or not isinstance(pipeline.combine, str | None):
        raise PipelineError(
            "function: it exists in this process only, and the driver runs elsewhere.",
            hint="Put it in a module, and name it as module:callable.",
        )
    if pipeline.inside is None and not isinstance(pipeline.records, str):
        raise PipelineError("records: the driver runs elsewhere.", hint="Name the rule as module:callable.")
    if pipeline.queue is not None and "://" not in pipeline.queue.place:
        raise PipelineError(
            f"queue.place: {pipeline.queue.place} is a file of this machine, which the driver does not see.",
            hint="Leave queue out, or name a table: dynamodb://TABLE.",
        )


def _days(pipeline: Spec, dates: Iterable[str], since: str | None) -> tuple[str, ...]:
    """The arguments about days, made sure that they mean something."""
    listed = list(dates)
    pipeline.chosen_days([*listed, *(days_since(since, zone=zone_of(None)) if since else ())] or None)
    return (*(word for day in listed for word in ("--date", day)), *(("--since", since) if since else ()))


def _own_role(role: str, name: str) -> str:
    """The ARN of the driver's role, which is for people to make: beside the role of the jobs."""
    return re.sub(r":role/.*", f":role/shardkit-{name}", role)


def _write(output: Folder, pipeline: Spec, code: str, *, dry_run: bool) -> str:
    """Write down the pipeline for the driver; returns the URI of the folder."""
    ref = pipeline.function_ref()
    content = pipeline.to_dict()
    content["source_dir"] = content["source_dir"] or ref.source_dir
    text = json.dumps({"pipeline": content, "code": code, "shardkit": __version__}, indent=1, sort_keys=True).encode()
    folder = output.child(f"{STATE_DIR}/drivers/{hashlib.sha256(text).hexdigest()[:32]}")
    if not dry_run:
        folder.write(DRIVER_FILE, text)
    return f"{folder.uri}/"
