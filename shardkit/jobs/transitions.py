"""What becomes of a job when something happens: pure functions, a job in, a job out.

The store writes what they return only if the job has not changed meanwhile; if it has, they are called again with the
job as it is now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.jobs.causes import classify, reason_of
from shardkit.jobs.clock import iso, seconds_of
from shardkit.jobs.job import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    LAUNCHED,
    MAX_ATTEMPT,
    MAYBE,
    NEW,
    NO,
    STOPPED,
    YES,
    Job,
)
from shardkit.jobs.policy import LARGER, NO_FAULT, OWN_FAULTS, RETRIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.jobs.policy import Policy

ROTATE_AFTER = ("capacity", "internal")
AS_ASKED = "Stopped as asked."
WAITS = "waits: "  # the beginning of the reason of a job that the service has, and has not begun


def next_attempt(job: Job) -> int:
    """The number of the attempt that the next launch makes: the current one, if the service never had it."""
    return job.attempt if job.attempt and job.exists != YES else job.attempt + 1


def claim(job: Job, now: float, lease_s: float) -> Job:
    """It is claimed: written before CreateProcessingJob is called, for the first time or again."""
    again = job.status == LAUNCHED
    claimed = job.changed(
        status=LAUNCHED,
        attempt=next_attempt(job),
        exists=MAYBE,
        reason="",
        launched_at=job.launched_at if again else now,
        changed_at=now,
        lease_until=now + lease_s,
        stop_sent_at=0.0,
        missing_since=0.0,
    )
    if again:
        return claimed
    return claimed.with_entry(
        instance_type=job.instance_type, instances=job.instances, launched_at=iso(now), status=LAUNCHED, reason=""
    )


def created(job: Job, now: float) -> Job:
    """The service has the attempt."""
    done = job.changed(exists=YES, changed_at=now, lease_until=0.0, reason="")
    return done.with_entry(created_at=iso(now))


def doubtful(job: Job, now: float, reason: str) -> Job:
    """Nobody knows whether the call got through: a look at the list, or the same call again, will show it."""
    return job.changed(exists=MAYBE, changed_at=now, lease_until=0.0, reason=reason)


def put_back(job: Job, now: float, reason: str, *, wait_s: float = 0.0) -> Job:
    """The service surely does not have the attempt: its name is free for the next launch."""
    status, reason = (STOPPED, AS_ASKED) if job.stop_asked_at else (NEW, reason)
    back = job.changed(
        status=status, exists=NO, reason=reason, changed_at=now, lease_until=0.0, not_before=now + wait_s
    )
    return back.with_entry(status=status, reason=reason)


def refused(job: Job, now: float, reason: str) -> Job:
    """CreateProcessingJob was answered with an error that will not go away."""
    return _failed(job.changed(exists=NO), now, "refused", reason, wait_s=0.0, final=True)


def given_up(job: Job, now: float, cause: str, reason: str) -> Job:
    """It is not launched at all: a job that it needs will not complete, or it is too large."""
    return job.changed(status=FAILED, cause=cause, reason=reason, changed_at=now)


def stop_asked(job: Job, now: float) -> Job:
    """Somebody wants it to be stopped: at once if the service does not have it."""
    if job.status == NEW:
        return job.changed(status=STOPPED, reason=AS_ASKED, stop_asked_at=now, changed_at=now)
    return job.changed(stop_asked_at=now, stop_sent_at=0.0, changed_at=now)


def never_created(job: Job, now: float) -> Job:
    """It was to be stopped, and the service has never had it."""
    return put_back(job, now, AS_ASKED)


def stop_sent(job: Job, now: float) -> Job:
    """The service was told to stop it."""
    return job.changed(stop_sent_at=now)


def missing(job: Job, now: float) -> Job:
    """The service says for the first time that it does not know it."""
    return job.changed(missing_since=now)


def ahead(job: Job, attempt: int, now: float) -> Job:
    """The service has a later attempt than the store knows of: the store was restored from an earlier state."""
    reached = job.changed(attempt=attempt, status=LAUNCHED, exists=YES, launched_at=now, changed_at=now)
    return reached.with_entry(instance_type=job.instance_type, instances=job.instances)


def lost(job: Job, now: float, policy: Policy) -> Job:
    """The service has said for long that it does not know it: it is created again if nobody ever saw it run."""
    if job.status == LAUNCHED:
        return doubtful(job, now, "The service does not know it; it is created again under the same name.")
    return _failed(
        job, now, "lost", "The service knows nothing of it any more.", wait_s=policy.retry_wait_s, policy=policy
    )


def fresh(job: Job, now: float) -> Job:
    """It gets a new budget of attempts, and its usual instances."""
    usual = not job.instance_types or job.instance_type in job.instance_types
    return job.changed(
        instance_type=job.instance_type if usual else job.instance_types[0],
        status=NEW,
        base=next_attempt(job) - 1,
        cause="",
        reason="",
        changed_at=now,
        not_before=0.0,
        stop_asked_at=0.0,
        stop_sent_at=0.0,
        notice_at=0.0,
        notice_tries=0,
        notified=(),
    )


def observed(job: Job, answer: Mapping[str, Any], now: float, policy: Policy) -> Job:
    """It is as the service says of its current attempt, in a List line or a Describe response.

    Returns:
        The job as it is now: the same object if nothing is new.
    """
    status = answer["ProcessingJobStatus"]
    if status in {COMPLETED, FAILED, STOPPED}:
        return _over(job, answer, now, policy)
    if job.status == IN_PROGRESS and not job.missing_since:
        return job
    if "WaitingReason" in answer:
        return waiting(job, str(answer["WaitingReason"]), now)
    seen = job.changed(status=IN_PROGRESS, exists=YES, changed_at=now, lease_until=0.0, missing_since=0.0, reason="")
    entry = job.entry()
    return seen.with_entry(
        launched_at=entry.get("launched_at") or _time(answer, "CreationTime", now),
        created_at=_time(answer, "CreationTime", now),
        instance_type=entry.get("instance_type") or job.instance_type,
        instances=entry.get("instances") or job.instances,
        status=IN_PROGRESS,
    )


def waiting(job: Job, reason: str, now: float) -> Job:
    """The service has the attempt, and has not begun it: it is ``Launched``, and the reason says what it waits for."""
    text = f"{WAITS}{reason}"
    if job.status == LAUNCHED and job.exists == YES and job.reason == text and not job.missing_since:
        return job
    return job.changed(
        status=LAUNCHED, exists=YES, changed_at=now, lease_until=0.0, missing_since=0.0, reason=text
    ).with_entry(status=LAUNCHED)


def _over(job: Job, answer: Mapping[str, Any], now: float, policy: Policy) -> Job:
    """The attempt has ended."""
    seen = job.changed(exists=YES, lease_until=0.0, missing_since=0.0)
    facts: dict[str, Any] = {
        "created_at": _time(answer, "CreationTime", now),
        "ended_at": _time(answer, "ProcessingEndTime", now),
        "exit_message": answer.get("ExitMessage") or "",
    }
    if answer.get("BillableTimeInSeconds") is not None:
        facts["billable_s"] = float(answer["BillableTimeInSeconds"])
    cluster = (answer.get("ProcessingResources") or {}).get("ClusterConfig") or answer.get("ResourceConfig") or {}
    if cluster.get("SelectedInstanceType"):
        facts["instance_type"] = cluster["SelectedInstanceType"]
    if answer["ProcessingJobStatus"] == COMPLETED:
        done = seen.changed(status=COMPLETED, cause="", reason="", changed_at=now)
        return done.with_entry(status=COMPLETED, **facts)
    cause = classify(answer)
    if job.stop_asked_at and cause in ("stopped", "interrupted"):
        stopped = seen.changed(status=STOPPED, reason=AS_ASKED, changed_at=now)
        return stopped.with_entry(status=STOPPED, reason=stopped.reason, **facts)
    wait_s = wait_after(seen, cause, policy)
    reason = reason_of(answer, cause)
    return _failed(seen.with_entry(**facts), now, cause, reason, wait_s=wait_s, policy=policy)


def _failed(
    job: Job, now: float, cause: str, reason: str, *, wait_s: float, policy: Policy | None = None, final: bool = False
) -> Job:
    """An attempt failed: the job is New again if its budget allows another attempt, else Failed."""
    entry = job.entry()
    failed = job.with_entry(status=FAILED, cause=cause, reason=reason, ended_at=entry.get("ended_at") or iso(now))
    if failed.instance_types:
        failed = failed.changed(instance_type=_next_type(failed))
    left = not final and not job.stop_asked_at and policy is not None and tries_left(failed, cause, policy)
    return failed.changed(
        status=NEW if left else FAILED,
        cause=cause,
        reason=reason,
        changed_at=now,
        lease_until=0.0,
        not_before=now + wait_s if left else 0.0,
        exists=YES,
    )


def _next_type(job: Job) -> str:
    """The instance type that the next attempt asks for first."""
    return larger_type(job) or job.instance_types[rotation(job)]


def larger_type(job: Job) -> str:
    """The larger type that a job has come to because it needs more memory; empty if it has its usual types."""
    causes = [entry.get("cause") for entry in job.attempts if entry["attempt"] > job.base]
    larger = job.tags.get(LARGER, "").split()
    steps = 0 if "quota" in causes else min(causes.count("memory"), len(larger))
    return larger[steps - 1] if steps else ""


def may_grow(job: Job) -> bool:
    """Whether a larger type may be had for the job, should it need more memory than its next attempt has."""
    larger = job.tags.get(LARGER, "").split()
    refused = any(entry.get("cause") == "quota" for entry in job.attempts if entry["attempt"] > job.base)
    return bool(larger) and not refused and larger_type(job) != larger[-1]


def no_quota(job: Job, now: float, reason: str, policy: Policy) -> Job:
    """The account may have none of the larger instances, so the job goes on with those that it had."""
    return _failed(job.changed(exists=NO), now, "quota", reason, wait_s=0.0, policy=policy)


def tries_left(job: Job, cause: str, policy: Policy) -> bool:
    """Whether another attempt is allowed after one that ended with that cause."""
    budget = [entry for entry in job.attempts if entry["attempt"] > job.base]
    faults = sum(entry.get("cause") not in NO_FAULT for entry in budget)
    retries = job.tags.get(RETRIES, "")
    if cause in OWN_FAULTS and retries.isdigit():
        alike, tries = OWN_FAULTS, int(retries) + 1
    else:
        alike, tries = frozenset({cause}), policy.tries(cause)
    of_cause = sum(entry.get("cause") in alike for entry in budget)
    return of_cause < tries and faults < max(policy.max_attempts, tries) and job.attempt < MAX_ATTEMPT


def wait_after(job: Job, cause: str, policy: Policy) -> float:
    """Seconds from a failure to the next launch."""
    before: int = sum(entry.get("cause") == cause for entry in job.attempts if entry["attempt"] > job.base)
    if cause in NO_FAULT:
        return policy.retry_wait_s
    if cause != "capacity":
        return min(policy.retry_wait_s * 2.0**before, policy.retry_wait_max_s)
    turns = (before + 1) // max(len(job.instance_types), 1)
    return min(policy.capacity_wait_s * 2.0 ** (turns - 1), policy.retry_wait_max_s) if turns else 0.0


def rotation(job: Job) -> int:
    """By how many places the instance preferences are rotated for the next attempt."""
    budget = [entry for entry in job.attempts if entry["attempt"] > job.base]
    return sum(entry.get("cause") in ROTATE_AFTER for entry in budget) % max(len(job.instance_types), 1)


def _time(answer: Mapping[str, Any], key: str, now: float) -> str:
    seconds = seconds_of(answer.get(key))
    return iso(now if seconds is None else seconds)
