"""What launch() and monitor() have in common: reports, shared state, the times of the next round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import is_due
from shardkit.jobs.transitions import given_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.jobs.job import Job
    from shardkit.jobs.live import Flight
    from shardkit.jobs.policy import Policy
    from shardkit.jobs.store import Flying, Store

UNMET = "It needs {needs}, which did not complete. Once that is tried again, so is this one."
MONITORING = "monitor"  # the key of the shared state


@dataclass(frozen=True)
class Change:
    """What became of a job.

    Args:
        job_id: The job.
        name: The ProcessingJobName of the attempt that this is about.
        status: The job's status now.
        cause: Why the attempt failed, if it did.
        reason: The same in words.
    """

    job_id: str
    name: str
    status: str
    cause: str = ""
    reason: str = ""

    @classmethod
    def of(cls, job: Job) -> Change:
        """The change that led to the job as it is."""
        return cls(job.job_id, job.name, job.status, job.cause, job.reason)


@dataclass(frozen=True)
class Report:
    """What a call of launch() or monitor() did, and when to call again.

    Args:
        next_in_s: Seconds until a launcher or a monitor has something to do again.
        new: launch(): how many jobs are still ``New``.
        live: How many jobs are ``Launched`` or ``InProgress``.
        calls: How many calls of the engine it made.
        trouble: What kept it from doing more, in words, such as a throttled call; empty if nothing did.
        changed: The jobs that changed.
        launched: launch(): the ProcessingJobNames of the attempts that the service has taken.
        waiting: launch(): how many jobs are still ``New``, by what they wait for: ``dependency``, ``retry`` (a wait
            after a failure), ``quota``, ``max_instances`` (the policy's own limits) or ``pace``.
        looked: monitor(): whether it looked at the service's list; it does so every ``policy.poll_s``.
    """

    next_in_s: float
    new: int = 0
    live: int = 0
    calls: int = 0
    trouble: str = ""
    changed: tuple[Change, ...] = ()
    launched: tuple[str, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    looked: bool = False

    @property
    def ended(self) -> bool:
        """launch(): whether this round saw no job that has not ended."""
        return not self.new and not self.live


def change_state(store: Store, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what launchers and monitors share, even if others do so at the same time."""
    while True:
        value, version = store.state(key)
        change(value)
        if store.put_state(key, value, version):
            return


def settle(store: Store, job: Job, change: Callable[[Job], Job | None]) -> Job:
    """Write a change; if somebody else was faster, make the change to the job as it is then.

    Args:
        store: The store that has the job.
        job: The job as it was read.
        change: Makes the changed job; the same job or None if there is nothing to change any more.

    Returns:
        The job as it is in the store.
    """
    while True:
        changed = change(job)
        if changed is None or changed is job:
            return job
        written = store.update(changed)
        if written is not None:
            return written
        job = store.get(job.job_id)


def fail_dependents(store: Store, now: float) -> list[Change]:
    """Fail the jobs that need one that will not complete, then those that need them, and so on."""
    changes: list[Change] = []
    while True:
        in_vain = store.unblock()
        failed = [given_up(job, now, "dependency", UNMET.format(needs=needs)) for job, needs in in_vain]
        changes += [Change.of(job) for job in store.update_many(failed) if job is not None]
        if not in_vain:
            return changes


def monitor_due(state: Mapping[str, Any], flight: Flight, policy: Policy) -> float:
    """When the next look at the service's list is due, if anything is in flight."""
    return max(float(state.get("next_at", 0.0)), flight.launched_at() + policy.poll_s)


def repeat_due(job: Job | Flying, now: float, looked_at: float, policy: Policy) -> bool:
    """Whether it is time to repeat the call for a job that may not have been created.

    That is once a look at the whole list, begun after the call, has not shown the job. To repeat it earlier would do no
    harm (the answer would be "it exists"), but would be a call too many.
    """
    return not job.stop_asked_at and is_settled(job, now, looked_at, policy)


def is_settled(job: Job | Flying, now: float, looked_at: float, policy: Policy) -> bool:
    """Whether nobody is making a call for the job any more, and a look at the list was begun after the last call.

    Times that are too far ahead to be true were set by a clock that has been set back since.
    """
    longest_s = policy.longest_lease_s
    called = job.changed_at <= now + longest_s and looked_at < job.changed_at + policy.settle_s
    return is_due(job.lease_until, now, longest_s) and not called
