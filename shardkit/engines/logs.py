"""Reads the logs of jobs from CloudWatch Logs."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from shardkit.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GROUP, TRAINING_GROUP = "/aws/sagemaker/ProcessingJobs", "/aws/sagemaker/TrainingJobs"


def log_of(job_name: str, lines: Callable[[], Iterator[str]], *, hint: str) -> Iterator[str]:
    """The lines of a job's log, as ``lines`` reads them.

    Raises:
        StorageError: they cannot be read; ``hint`` says what to do then.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield from lines()
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"The log of job {job_name} cannot be read: {str(error).rstrip('.')}.", hint=hint) from error


def log_lines(client: Any, job_name: str, *, group: str = GROUP) -> Iterator[str]:
    """All lines that a job has written so far, in order; it may still be running, or not have begun.

    If a job has several instances, each line begins with its instance's name.
    """
    streams = _streams(client, group, job_name)
    events = [_events(client, group, stream) for stream in streams]
    several = len(streams) > 1
    for _, place, text in heapq.merge(*(_placed(stream, place) for place, stream in enumerate(events))):
        yield f"{_instance(streams[place])}: {text}" if several else text


def _streams(client: Any, group: str, job_name: str) -> list[str]:
    """The log streams of a job: one an instance, ``JOB/algo-1-1700000000``."""
    names: list[str] = []
    options = {"logGroupName": group, "logStreamNamePrefix": f"{job_name}/"}
    while True:
        try:
            page = client.describe_log_streams(**options)
        except client.exceptions.ResourceNotFoundException:
            return []  # no job of this account and region has written a line yet
        names += [stream["logStreamName"] for stream in page["logStreams"]]
        if not page.get("nextToken"):
            return sorted(names, key=lambda name: (len(_instance(name)), name))
        options["nextToken"] = page["nextToken"]


def _events(client: Any, group: str, stream: str) -> Iterator[tuple[int, str]]:
    options: dict[str, Any] = {"logGroupName": group, "logStreamName": stream, "startFromHead": True}
    while True:
        page = client.get_log_events(**options)
        for event in page["events"]:
            yield event["timestamp"], event["message"].rstrip("\r\n")
        if page["nextForwardToken"] == options.get("nextToken"):
            return  # the same token again: the end, for now
        options["nextToken"] = page["nextForwardToken"]


def _placed(events: Iterator[tuple[int, str]], place: int) -> Iterator[tuple[tuple[int, int], int, str]]:
    """Events with a key to merge by; a stream's own order stands, whatever its clock says."""
    latest = 0
    for i, (timestamp, text) in enumerate(events):
        latest = max(latest, timestamp)
        yield (latest, i), place, text


def _instance(stream: str) -> str:
    """``algo-1`` of ``JOB/algo-1-1700000000``."""
    return stream.rpartition("/")[2].rpartition("-")[0]
