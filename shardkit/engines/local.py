"""SageMaker Processing on this machine, without Docker: the same four calls, the same requests, the same answers.

    engine = LocalEngine()
    engine.create_processing_job(ProcessingJobName="one", ...)     # the arguments of boto3's create_processing_job
    engine.describe_processing_job(ProcessingJobName="one")["ProcessingJobStatus"]
    engine.stop_processing_job(ProcessingJobName="one")
    list(engine.log_lines("one"))
    engine.create_training_job(TrainingJobName="two", ...)         # and so on, for training jobs

Every instance is a process tree of its own with its own ``/opt/ml``. Jobs live in files under ``root``: they go on when
the process that made them ends, and every process that uses the same root sees the same jobs. In place of S3 URIs, the
engine also takes local paths and ``file://`` URIs.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from shardkit.engines import pyenv, validation
from shardkit.engines.local_answers import answer
from shardkit.engines.local_jobs import LocalJobs, available_isolation, default_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shardkit.engines.local_training import LocalTraining

__all__ = ["LocalEngine", "available_isolation", "default_root"]
TRAINING = "training"  # the folder under an engine's root


class LocalEngine(LocalJobs):
    """Runs Processing and training jobs on this machine, with the methods of ``boto3.client("sagemaker")``.

    Args:
        root: the folder in which the jobs live; by default one in the user's state folder.
        max_instances: how many instances may run at once, over all jobs under ``root``; more are refused with
            ResourceLimitExceeded, as the service does. By default one per CPU, and at least 4.
        isolation: ``auto`` gives every instance its own ``/opt/ml`` where the system allows it; ``namespace`` insists
            on that; ``none`` runs shardkit's own jobs only, which find their files by path mapping.
        endpoint_url: the address of S3 for the jobs and their files; by default that of the AWS_* variables.
        stop_grace: seconds between SIGTERM and SIGKILL when a job is stopped.

    Raises:
        PipelineError: an argument cannot be used, or ``isolation="namespace"`` does not work here.
    """

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        """Start a job; the arguments are those of the service's CreateProcessingJob.

        Raises:
            botocore.exceptions.ParamValidationError: a field is missing or of another type.
            botocore.exceptions.ClientError: ValidationException, ResourceInUse (the name is taken) or
                ResourceLimitExceeded (``max_instances`` are in use).
            StorageError: ``root`` cannot be written to.
        """
        return self._create(request)

    def create_failed_job(self, reason: str, **request: Any) -> dict[str, Any]:
        """Take a request as `create_processing_job` does, but let the job fail at once, with ``reason``."""
        return self._create(request, failed=reason)

    def _create(self, request: dict[str, Any], *, failed: str = "") -> dict[str, Any]:
        validation.check("CreateProcessingJob", request)
        validation.check_rules(request, isolated=self.isolation != "none")
        content = self._described(request, pyenv.described())
        self._start(request, content, failed=failed)
        return answer({"ProcessingJobArn": content["arn"]})

    # ---- training jobs -----------------------------------------------------------------------------------------

    @functools.cached_property
    def training(self) -> LocalTraining:
        """The training jobs, which have names and quotas of their own."""
        from shardkit.engines.local_training import LocalTraining

        made = LocalTraining(
            os.path.join(self.root, TRAINING), max_instances=self.max_instances, endpoint_url=self.endpoint_url
        )
        made.isolation, made.stop_grace = self.isolation, self.stop_grace
        return made

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        """Start a training job; see `LocalTraining`."""
        return self.training.create_training_job(**request)

    def create_failed_training_job(self, reason: str, **request: Any) -> dict[str, Any]:
        """Take a request as `create_training_job` does, but let the job fail at once, with ``reason``."""
        return self.training.create_failed_training_job(reason, **request)

    def describe_training_job(self, **request: Any) -> dict[str, Any]:
        """Return a training job's request and how far the job is."""
        return self.training.describe_training_job(**request)

    def list_training_jobs(self, **request: Any) -> dict[str, Any]:
        """List training jobs."""
        return self.training.list_training_jobs(**request)

    def stop_training_job(self, **request: Any) -> dict[str, Any]:
        """Stop a training job."""
        return self.training.stop_training_job(**request)

    def interrupt_training_job(self, name: str, *, restart: bool = True) -> None:
        """Take the spot instances of a training job away; see `LocalTraining`."""
        self.training.interrupt_training_job(name, restart=restart)

    def log_lines(self, job_name: str) -> Iterator[str]:
        """The lines that a job of either kind has written so far; with several instances, each line names its own.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job.
        """
        trained = self._files(job_name).request() is None and self.training.has(job_name)
        return self.training.log_lines(job_name) if trained else super().log_lines(job_name)
