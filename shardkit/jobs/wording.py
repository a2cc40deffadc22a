"""A job in words: how long it waited and ran, why it failed, where its log is."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from shardkit.jobs.job import TRAINING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.jobs.job import Job

CAUSES_IN_WORDS = {
    "preempted": "it had to give way to other jobs",
    "interrupted": "its spot instances were taken back",
    "node": "the machine that it ran on was lost",
    "memory": "it needs more memory",
    "quota": "the account may have no larger instance",
    "capacity": "the service had no such instance",
    "internal": "the service failed",
    "stopped": "it was stopped, although nobody had asked the queue to",
    "timeout": "it ran longer than it may",
    "died": "the program was killed",
    "transient": "the program asked for another try",
    "lost": "the service knows nothing of it any more",
    "unknown": "for a reason that the service does not give",
    "user": "the program failed",
    "client": "the service could not work with the request",
    "refused": "the service refused the request",
    "dependency": "a job that it needs did not complete",
    "cost": "its run has spent what it may",
}
LOG_GROUPS = "/aws/sagemaker/ProcessingJobs", "/aws/sagemaker/TrainingJobs"
# Where the service's console is, by the beginning of the region's name.
_CONSOLES = {
    "cn-": "{region}.console.amazonaws.cn",
    "us-gov-": "{region}.console.amazonaws-us-gov.com",
    "": "{region}.console.aws.amazon.com",
}


def seconds_at(text: object) -> float | None:
    """A time of an attempt, ISO 8601, in seconds since 1970; None if there is none."""
    if not isinstance(text, str) or not text:
        return None
    time = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)).timestamp()


def waited_s(job: Job) -> float | None:
    """Seconds from its submission to the launch of its last attempt; None if it was never launched."""
    launched = seconds_at(job.attempts[-1].get("launched_at")) if job.attempts else None
    return None if launched is None else max(0.0, launched - job.submitted_at)


def ran_s(attempt: Mapping[str, Any]) -> float | None:
    """How many seconds the service had an attempt; None if it never had it, or still has it."""
    begun, ended = seconds_at(attempt.get("created_at")), seconds_at(attempt.get("ended_at"))
    return None if begun is None or ended is None else max(0.0, ended - begun)


def billed_s(attempt: Mapping[str, Any]) -> float | None:
    """How many seconds of an attempt are billed: what the service says, as of spot instances, or as long as it ran."""
    said = attempt.get("billable_s")
    return float(said) if said is not None else ran_s(attempt)


def log_group(job: Job) -> str:
    """The CloudWatch log group of its attempts; their streams begin with the attempt's name and a slash."""
    return LOG_GROUPS[job.kind == TRAINING]


def log_url(job: Job, region: str, *, name: str = "") -> str:
    """Where a browser finds the log of an attempt, the last one by default; empty if there is none.

    Args:
        job: The job.
        region: The service's region; without it there is no link.
        name: The attempt's name.
    """
    wanted = name or next((entry["name"] for entry in reversed(job.attempts) if entry.get("created_at")), "")
    if not wanted or not region:
        return ""
    host = next(host for start, host in _CONSOLES.items() if region.startswith(start)).format(region=region)
    page = f"log-groups/log-group/{_twice(log_group(job))}" + _once(f"?logStreamNameFilter={_percent(wanted + '/')}")
    return f"https://{host}/cloudwatch/home?region={region}#logsV2:{page}"


def _percent(text: str) -> str:
    return quote(text, safe="")


def _once(text: str) -> str:
    """Encoded as the console does within its fragment: with dollar signs for per cent signs."""
    return _percent(text).replace("%", "$")


def _twice(text: str) -> str:
    return _once(_percent(text))
