"""The queue in the cloud: submit(), launch() and monitor() as Lambda functions.

    SHARDKIT_JOBS     where the jobs are: dynamodb://TABLE, with options as ``open_store()`` takes them

The policy is read from the store in every round (see ``shardkit.jobs.service``), so that it can be changed while all
this runs. Only connections are kept from one call to the next: calls may come twice, late, at the same time, or die
half-way, and the next ones go on from what the store says. A call raises what it could not do only after the store is
right, so that the function's errors count what is wrong.

Every call that had something to do prints one line from which CloudWatch makes metrics; that costs no call.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from shardkit.jobs import launching, monitoring
from shardkit.jobs.errors import EngineRefused, JobError, StoreError
from shardkit.jobs.notices import send_notices
from shardkit.jobs.open import open_store
from shardkit.jobs.service import mark_served, policy_of
from shardkit.jobs.store import Submission
from shardkit.jobs.targets import check_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shardkit.jobs.job import Job
    from shardkit.jobs.policy import Policy
    from shardkit.jobs.rounds import Report
    from shardkit.jobs.store import Store

PLACE = "SHARDKIT_JOBS"
NAMESPACE = "shardkit/jobs"
LAUNCH_S = 55.0  # for a launcher that is called once a minute
MARGIN_S = 30.0  # for the call that is under way when the time is up
PAUSE_S = 0.1  # at least, from one round to the next
MOST_LAUNCHES = 500
MOST_CALLS = 200  # in one look at the service's list: 20,000 jobs
MOST_NOTICES = 200
NOTICES_S = 60.0
MOST_JOBS = 1000  # in one submission
FIELDS = ("id", "request", "depends_on", "owner", "run", "notify", "tags")
STATE_CHANGES = ("SageMaker Processing Job State Change", "SageMaker Training Job State Change")


def submit(event: Any, context: Any = None) -> dict[str, Any]:
    """Add one job or several; the same jobs again are the same jobs.

    Args:
        event: A job: ``request``, and optionally ``id``, ``depends_on``, ``owner``, ``run``, ``notify`` and ``tags``
            as a ``Submission`` has them. Or several, under ``jobs``. One without an id is named after the invocation.
        context: Lambda's.

    Returns:
        ``{"job": {...}}`` or ``{"jobs": [...]}``, as they are now; ``{"error": {type, message, hint}}`` if the
        request is at fault.

    Raises:
        StoreError: The table cannot be used; the same call can be made again.
    """
    try:
        jobs = _store().submit_many(_submissions(event, getattr(context, "aws_request_id", "") or uuid.uuid4().hex))
    except StoreError:
        raise
    except JobError as error:
        return {"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}}
    _print_metrics(submitted=len(jobs))
    return {"jobs": [_shown(job) for job in jobs]} if "jobs" in event else {"job": _shown(jobs[0])}


def launch(_event: Any = None, context: Any = None) -> dict[str, Any]:
    """Launch what is ready, for somewhat less than a minute.

    Returns:
        What was done.

    Raises:
        EngineRefused: SageMaker takes no calls from this function, mostly for want of permissions.
        JobError: The store cannot be used, or its policy is not valid.
    """
    try:
        done = _launch(policy_of(_store()), min(LAUNCH_S, _left_s(context) - MARGIN_S))
    except EngineRefused as error:
        mark_served(_store(), time.time(), str(error))
        raise
    mark_served(_store(), time.time(), done["trouble"])
    return done


def _launch(policy: Policy, budget_s: float) -> dict[str, Any]:
    """Rounds of launch(): a call that is throttled ends a round, and the next one waits as long as it has to."""
    end = time.monotonic() + budget_s
    launched = calls = 0
    while True:
        within = dataclasses.replace(
            policy,
            launch_s=max(end - time.monotonic(), 0.0),
            max_launches=min(policy.max_launches, MOST_LAUNCHES - launched),
        )
        report = launching.launch(_store(), _engine(), policy=within)
        launched, calls = launched + len(report.launched), calls + report.calls
        wait_s = max(report.next_in_s, PAUSE_S)
        # Jobs that wait for more than the pace are left to the next call: a function costs the same while it waits.
        if not report.waiting.get("pace") or launched >= MOST_LAUNCHES or time.monotonic() + wait_s > end:
            break
        time.sleep(wait_s)
    done = {"waiting": report.new, "live": report.live, "stuck": stuck(report, launched), "launched": launched}
    if any(done.values()):
        _print_metrics(**done)
    return done | {"calls": calls, "trouble": report.trouble}


def monitor(event: Any = None, context: Any = None) -> dict[str, Any]:
    """Bring the store up to date, and send the notices that are due.

    Args:
        event: An event of SageMaker that says how a job is; anything else asks for a look at the service's list.
        context: Lambda's.

    Returns:
        What was done.

    Raises:
        EngineRefused: SageMaker takes no calls from this function.
        JobError: The store cannot be used, or its policy is not valid.
    """
    end = time.monotonic() + _left_s(context)
    try:
        done = _observe(event) if _is_state_change(event) else _look()
    finally:
        budget_s = max(min(NOTICES_S, end - time.monotonic() - MARGIN_S), 0.0)
        notices = send_notices(
            _store(), session=_session(), place=os.environ.get(PLACE, ""), limit=MOST_NOTICES, budget_s=budget_s
        )
    done |= {"notices": len(notices.sent), "notices_given_up": len(notices.given_up)}
    if done["changed"] or any((notices.sent, notices.given_up)):
        _print_metrics(**{name: done[name] for name in ("changed", "notices", "notices_given_up")})
    return done | {"trouble": "; ".join(filter(None, (done.get("trouble", ""), *notices.trouble)))}


def _look() -> dict[str, Any]:
    policy = policy_of(_store())
    policy = dataclasses.replace(policy, max_calls=min(policy.max_calls, MOST_CALLS))
    report = monitoring.monitor(_store(), _engine(), policy=policy)
    return {"changed": len(report.changed), "calls": report.calls, "trouble": report.trouble}


def _observe(event: Mapping[str, Any]) -> dict[str, Any]:
    changed = monitoring.observe(_store(), _engine(), [answer_of(event["detail"])], policy=policy_of(_store()))
    return {"changed": len(changed)}


def _is_state_change(event: Any) -> bool:
    if not isinstance(event, dict) or event.get("detail-type") not in STATE_CHANGES:
        return False
    detail = event.get("detail")
    return isinstance(detail, dict) and any(
        detail.get(f"{kind}JobName") and detail.get(f"{kind}JobStatus") for kind in ("Processing", "Training")
    )


def answer_of(detail: Mapping[str, Any]) -> dict[str, Any]:
    """What an event says about a job, as a Describe response says it: times in events are in milliseconds."""
    return {
        key: value / 1000 if key.endswith("Time") and isinstance(value, int | float) else value
        for key, value in detail.items()
    }


def stuck(report: Report, launched: int) -> int:
    """How many jobs wait for no reason that would pass by itself; 0 while any are launched."""
    if launched:
        return 0
    return report.waiting.get("pace", 0) if report.live else report.new


# ---- submissions ----------------------------------------------------------------------------------------------------


def _submissions(event: Any, call: str) -> list[Submission]:
    """The jobs of a call."""
    if not isinstance(event, dict):
        raise JobError("The event is no JSON object.", hint=f"A job has {', '.join(FIELDS)}; several go under jobs.")
    if "jobs" not in event:
        return [_submission(event, f"job-{call}", "The event")]
    jobs = event["jobs"]
    if set(event) != {"jobs"} or not isinstance(jobs, list) or not 1 <= len(jobs) <= MOST_JOBS:
        raise JobError(f"jobs must be a list of 1 to {MOST_JOBS} jobs, with nothing beside it.")
    return [_submission(job, f"job-{call}-{number}", f"jobs[{number}]") for number, job in enumerate(jobs)]


def _submission(job: Any, name: str, where: str) -> Submission:
    """One job of a call; ``where`` is its place in the call."""
    if not isinstance(job, dict) or not isinstance(job.get("request"), dict):
        raise JobError(f"{where} has no request.", hint="It is the arguments of CreateProcessingJob, without the name.")
    unknown = sorted(set(job) - set(FIELDS))
    if unknown:
        raise JobError(f"{where} has an unknown field {unknown[0]!r}.", hint=f"There are {', '.join(FIELDS)}.")
    for field in ("owner", "run"):
        if not isinstance(job.get(field, ""), str):
            raise JobError(f"{where}: {field} must be text.")
    for field in ("depends_on", "notify"):
        if not isinstance(job.get(field, []), list) or not all(isinstance(each, str) for each in job.get(field, [])):
            raise JobError(f"{where}: {field} must be a list of text.")
    tags = job.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise JobError(f"{where}: tags must be text by name.")
    for target in job.get("notify", []):
        check_target(target)
    more = {field: job[field] for field in FIELDS[2:] if field in job}
    return Submission(job.get("id", name), job["request"], **more)


def _shown(job: Job) -> dict[str, Any]:
    """A job as its submitter sees it."""
    return {
        "id": job.job_id,
        "status": job.status,
        "attempt": job.attempt,
        "name": job.name,
        "cause": job.cause,
        "reason": job.reason,
        "owner": job.owner,
        "run": job.run,
        "depends_on": list(job.depends_on),
        "notify": list(job.notify),
        "tags": dict(job.tags),
        "submitted_at": job.submitted_at,
    }


# ---- what a container keeps -----------------------------------------------------------------------------------------


@functools.cache
def _session() -> Any:
    import boto3

    return boto3.Session()


def _store() -> Store:
    place = os.environ.get(PLACE, "")
    if not place:
        raise StoreError(f"The variable {PLACE} is not set.", hint="It says where the jobs are: dynamodb://TABLE.")
    return _opened(place)


@functools.cache
def _opened(place: str) -> Store:
    return open_store(place, session=_session())


@functools.cache
def _engine() -> Any:
    """SageMaker's client. It repeats no calls: the queue does that, and must know of each call that was made."""
    from botocore.config import Config

    once = {"mode": "standard", "total_max_attempts": 1}
    return _session().client("sagemaker", config=Config(retries=once, connect_timeout=5, read_timeout=20))


def _left_s(context: Any) -> float:
    """How long this call may still take."""
    left = getattr(context, "get_remaining_time_in_millis", None)
    return left() / 1000 if left else LAUNCH_S + MARGIN_S


def _print_metrics(**figures: int) -> None:
    """Print a line from which CloudWatch makes metrics."""
    place = os.environ.get(PLACE, "").partition("://")[2].partition("?")[0]
    about = {
        "Namespace": NAMESPACE,
        "Dimensions": [["table"]],
        "Metrics": [{"Name": name, "Unit": "Count"} for name in figures],
    }
    line = {"_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [about]}, "table": place, **figures}
    print(json.dumps(line), flush=True)  # noqa: T201  what Lambda prints is its log
