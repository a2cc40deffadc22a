"""The answers of the local engine, as the service and boto3 give them."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from shardkit.engines import validation

if TYPE_CHECKING:
    from collections.abc import Callable

    from shardkit.engines.jobfiles import JobFiles

TIMES = ("CreationTime", "LastModifiedTime", "ProcessingStartTime", "ProcessingEndTime")


def summary_of(files: JobFiles, job: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Name, ARN, status, messages and times of a job, as the service gives them."""
    about = {"CreationTime": job["created"], "LastModifiedTime": job["created"]} | state
    about.pop("keepers", None)
    for field in TIMES:
        if field in about:
            about[field] = datetime.fromtimestamp(about[field], tz=timezone.utc)
    return {"ProcessingJobName": files.name, "ProcessingJobArn": job["arn"]} | about


def without_start(about: dict[str, Any]) -> dict[str, Any]:
    """The summary without the time at which the program began, which a list does not have."""
    return {key: value for key, value in about.items() if key != "ProcessingStartTime"}


def matches(about: dict[str, Any], request: dict[str, Any]) -> bool:
    """Whether a job passes a list's filters."""
    if request.get("StatusEquals") not in (None, about["ProcessingJobStatus"]):
        return False
    for field in ("CreationTime", "LastModifiedTime"):
        after, before = (validation.moment(request.get(f"{field}{side}")) for side in ("After", "Before"))
        if (after and about[field] <= after) or (before and about[field] >= before):
            return False
    return True


def sort_key(by: str) -> Callable[[dict[str, Any]], tuple[str, str]]:
    """The sort key of jobs; among equals the name decides, so that pages do not overlap."""

    def key(about: dict[str, Any]) -> tuple[str, str]:
        fields = {
            "Name": "",
            "CreationTime": f"{about['CreationTime'].timestamp():020.6f}",
            "Status": about["ProcessingJobStatus"],
        }
        return fields[by], about["ProcessingJobName"]

    return key


def answer(content: dict[str, Any]) -> dict[str, Any]:
    """A response as boto3 gives it."""
    about = {"RequestId": str(uuid.uuid4()), "HTTPStatusCode": 200, "HTTPHeaders": {}, "RetryAttempts": 0}
    return content | {"ResponseMetadata": about}
