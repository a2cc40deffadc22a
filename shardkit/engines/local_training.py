"""SageMaker training jobs on this machine: the four calls for them, beside those for Processing jobs.

Inside, a training job is a Processing job with a supervisor of its own kind: what it may do and how it ended is
translated here. Training jobs have names, quotas and a folder of their own, ``<root>/training``.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from shardkit.engines import pyenv, training_rules, validation
from shardkit.engines.jobfiles import ENDED, replace
from shardkit.engines.local_answers import answer
from shardkit.engines.local_jobs import LocalJobs, send_signal
from shardkit.engines.training_supervisor import CHANNELS, CHECKPOINTS, INTERRUPTION
from shardkit.engines.validation import refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.engines.jobfiles import JobFiles

LIST_ONLY = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime")
LISTED = (*LIST_ONLY, "TrainingJobStatus", "SecondaryStatus", "WarmPoolStatus")
# What has to be the same in two jobs so that the second one gets the instances that the first one has left warm.
MATCHING = ("RoleArn", "VpcConfig", "EnableInterContainerTrafficEncryption", "EnableNetworkIsolation")
MATCHING_RESOURCES = ("InstanceType", "InstanceCount", "VolumeKmsKeyId")


class LocalTraining(LocalJobs):
    """The training jobs of a local engine; the arguments are as for ``LocalEngine``."""

    supervise = "from shardkit.engines.training_supervisor import main; main()"
    word = "training"

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        """Start a job; the arguments are those of the service's CreateTrainingJob.

        Raises:
            botocore.exceptions.ParamValidationError: a field is missing or of another type.
            botocore.exceptions.ClientError: ValidationException, ResourceInUse (the name is taken) or
                ResourceLimitExceeded (``max_instances`` are in use).
            StorageError: ``root`` cannot be written to.
        """
        return self._create(request)

    def create_failed_training_job(self, reason: str, **request: Any) -> dict[str, Any]:
        """Take a request as `create_training_job` does, but let the job fail at once, with ``reason``."""
        return self._create(request, failed=reason)

    def _create(self, request: dict[str, Any], failed: str = "") -> dict[str, Any]:
        validation.check("CreateTrainingJob", request)
        training_rules.check_rules(request, isolated=self.isolation != "none")
        inner = _as_processing(request)
        content = self._described(inner, pyenv.described())
        content["arn"] = content["arn"].replace(":processing-job/", ":training-job/")
        content["training"] = {key: value for key, value in request.items() if key != "TrainingJobName"}
        self._start(inner, content, failed=failed)
        return answer({"TrainingJobArn": content["arn"]})

    def describe_training_job(self, **request: Any) -> dict[str, Any]:
        """Return a job's request and how far the job is.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job.
        """
        validation.check("DescribeTrainingJob", request)
        name = request["TrainingJobName"]
        files, job = self._find("DescribeTrainingJob", name)
        about = self.describe_processing_job(ProcessingJobName=name)
        fields = dict(job["training"])
        fields.pop("Tags", None)
        described = fields | self._told(files, job, about)
        described.setdefault("StoppingCondition", {"MaxRuntimeInSeconds": 86400})
        if described["ResourceConfig"].get("InstancePreferences"):
            chosen = {"SelectedInstanceType": job["instance_type"], "SelectedInstanceCount": len(job["hosts"])}
            described["ResourceConfig"] = described["ResourceConfig"] | chosen
        model = f"{fields['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output/model.tar.gz"
        return answer(described | {"ModelArtifacts": {"S3ModelArtifacts": model}})

    def list_training_jobs(self, **request: Any) -> dict[str, Any]:
        """List jobs, newest first unless asked otherwise; at most ``MaxResults`` (default 10), then a NextToken.

        Raises:
            botocore.exceptions.ClientError: ValidationException, a filter or the token cannot be used.
        """
        validation.check("ListTrainingJobs", request)
        wanted = request.pop("WarmPoolStatusEquals", None)
        answered = self.list_processing_jobs(**request)
        lines = []
        for about in answered.pop("ProcessingJobSummaries"):
            files, job = self._find("ListTrainingJobs", about["ProcessingJobName"])
            told = self._told(files, job, about)
            lines.append({name: told[name] for name in LISTED if name in told})
        if wanted is not None:
            lines = [line for line in lines if line.get("WarmPoolStatus", {}).get("Status") == wanted]
        return answered | {"TrainingJobSummaries": lines}

    def stop_training_job(self, **request: Any) -> dict[str, Any]:
        """Stop a job: SIGTERM to its instances, SIGKILL ``stop_grace`` seconds later.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job, or it has ended.
        """
        validation.check("StopTrainingJob", request)
        files, _ = self._find("StopTrainingJob", request["TrainingJobName"])
        status = self._state(files)["ProcessingJobStatus"]
        if status in ENDED:
            rejected = f"The request was rejected because the training job is in status {status}."
            refuse("StopTrainingJob", validation.INVALID, rejected)
        return self.stop_processing_job(ProcessingJobName=request["TrainingJobName"])

    def interrupt_training_job(self, name: str, *, restart: bool = True) -> None:
        """Take the job's spot instances away, as the service does: SIGTERM, and later SIGKILL.

        With ``restart`` the job gets others and begins again, else it ends as ``Stopped``, for its interruption.

        Raises:
            botocore.exceptions.ClientError: ValidationException, there is no such job on spot instances.
        """
        files, job = self._find("DescribeTrainingJob", name)
        if not job["training"].get("EnableManagedSpotTraining"):
            refuse("DescribeTrainingJob", validation.INVALID, f"{name} has no spot instances.")
        replace(os.path.join(files.folder, INTERRUPTION), "restart" if restart else "end")
        send_signal(files.supervisor(), signal.SIGTERM)

    def has(self, name: str) -> bool:
        """Whether there is such a job."""
        return self._files(name).request() is not None

    # ---- inside ------------------------------------------------------------------------------------------------

    def _find(self, operation: str, name: str) -> tuple[JobFiles, dict[str, Any]]:
        files = self._files(name)
        job = files.request()
        if job is None:
            operation = operation.replace("Processing", "Training")
            refuse(operation, validation.INVALID, "Requested resource not found.")
        return files, job

    def _told(self, files: JobFiles, job: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        """Name, status, times and messages of a job, in the words of training jobs."""
        state = files.state()
        changes = [dict(each) for each in state.get("transitions", [])]
        status = about["ProcessingJobStatus"]
        last = changes[-1]["Status"] if changes else "Starting"
        secondary = {"Stopping": "Stopping", "Completed": "Completed", "Failed": "Failed"}.get(status, last)
        if status == "Stopped":
            secondary = state.get("why_stopped", "Stopped")
        told: dict[str, Any] = {
            "TrainingJobName": files.name,
            "TrainingJobArn": job["arn"],
            "TrainingJobStatus": status,
            "SecondaryStatus": secondary,
            "CreationTime": about["CreationTime"],
            "LastModifiedTime": about["LastModifiedTime"],
        }
        if about.get("FailureReason") and status == "Failed":
            told["FailureReason"] = about["FailureReason"]
        began = next((each["StartTime"] for each in changes if each["Status"] == "Training"), None)
        end = state.get("ProcessingEndTime")
        if began is not None:
            told["TrainingStartTime"] = _moment(began)
            busy = [each for each in changes if each["Status"] in ("Downloading", "Training", "Uploading")]
            seconds = sum((each.get("EndTime") or end or time.time()) - each["StartTime"] for each in busy)
            told |= {"TrainingTimeInSeconds": int(seconds), "BillableTimeInSeconds": int(seconds)}
        if end is not None:
            told["TrainingEndTime"] = _moment(end)
        for each in changes:
            each |= {key: _moment(each[key]) for key in ("StartTime", "EndTime") if key in each}
        if changes:
            told["SecondaryStatusTransitions"] = changes
        return told | self._warm_pool(files, job, state)

    def _warm_pool(self, files: JobFiles, job: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        """What has become of instances that were to be kept for the next job."""
        kept_s = job["training"]["ResourceConfig"].get("KeepAlivePeriodInSeconds")
        if not kept_s or state.get("FailureReason", "").startswith("InternalServerError"):
            return {}
        if state["ProcessingJobStatus"] not in ENDED:
            return {"WarmPoolStatus": {"Status": "InUse"}}
        end = state["ProcessingEndTime"]
        successor = self._reused_by(files.name, job, end, end + kept_s)
        if successor is not None:
            name, created = successor
            retained = {"ResourceRetainedBillableTimeInSeconds": int(created - end)}
            return {"WarmPoolStatus": {"Status": "Reused", "ReusedByJob": name} | retained}
        over = time.time() - end
        status = "Available" if over < kept_s else "Terminated"
        retained = {"ResourceRetainedBillableTimeInSeconds": int(min(over, kept_s))}
        return {"WarmPoolStatus": {"Status": status} | retained}

    def _reused_by(self, name: str, job: dict[str, Any], begin: float, until: float) -> tuple[str, float] | None:
        """The first matching job that was made while the instances of another were warm, and when."""
        folder = os.path.join(self.root, "jobs")
        later = []
        for other in os.listdir(folder):
            request = self._files(other).request()
            if other == name or request is None or not begin <= request["created"] < until:
                continue
            if _match_key(request["training"]) == _match_key(job["training"]):
                later.append((request["created"], other))
        return (min(later)[1], min(later)[0]) if later else None


def _match_key(request: Mapping[str, Any]) -> list[Any]:
    resources = request["ResourceConfig"]
    return [request.get(name) for name in MATCHING] + [resources.get(name) for name in MATCHING_RESOURCES]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=timezone.utc)


def _as_processing(request: dict[str, Any]) -> dict[str, Any]:
    """What the local engine does for a training job, as a request for a Processing job."""
    algorithm, resources = request["AlgorithmSpecification"], dict(request["ResourceConfig"])
    resources.pop("KeepAlivePeriodInSeconds", None)
    application = {"ImageUri": algorithm.get("TrainingImage", "")}
    for name in ("ContainerEntrypoint", "ContainerArguments"):
        if name in algorithm:
            application[name] = algorithm[name]
    limits = request.get("StoppingCondition") or {}
    inner = {
        "ProcessingJobName": request["TrainingJobName"],
        "RoleArn": request["RoleArn"],
        "AppSpecification": application,
        "ProcessingResources": {"ClusterConfig": resources},
        "ProcessingInputs": [_input(channel) for channel in request.get("InputDataConfig") or []],
        "StoppingCondition": {"MaxRuntimeInSeconds": limits.get("MaxRuntimeInSeconds", 86400)},
        "NetworkConfig": {"EnableNetworkIsolation": bool(request.get("EnableNetworkIsolation"))},
    }
    inner |= {name: request[name] for name in ("Environment", "Tags") if name in request}
    if kept := request.get("CheckpointConfig"):
        path = kept.get("LocalPath", CHECKPOINTS)
        output = {"S3Uri": kept["S3Uri"], "LocalPath": path, "S3UploadMode": "Continuous"}
        inner["ProcessingOutputConfig"] = {"Outputs": [{"OutputName": "checkpoints", "S3Output": output}]}
    return inner


def _input(channel: dict[str, Any]) -> dict[str, Any]:
    source = channel["DataSource"]["S3DataSource"]
    about = source | {"LocalPath": f"{CHANNELS}{channel['ChannelName']}", "S3InputMode": "File"}
    return {"InputName": channel["ChannelName"], "S3Input": about}
