"""What launch() and monitor() have in common: reports, shared state, the times of the next round."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.jobs.job import ENDED, Job
from shardkit.jobs.transitions import given_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shardkit.jobs.policy import Policy
    from shardkit.jobs.store import Live, Store

UNMET = "It needs {needs}, which did not complete. Once that is tried again, so is this one."
LAUNCHING, MONITORING = "launch", "monitor"  # the keys of the shared state


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
        next_in_s: Seconds until there is something to do again, for a launcher or a monitor.
        counts: How many jobs there are now, by status.
        calls: The calls of the engine that it made.
        trouble: What kept it from doing more, in words: a throttled call, a network error; empty if nothing did.
        changed: The jobs that changed.
        launched: launch(): the ProcessingJobNames of the attempts that the service has taken.
        waiting: launch(): how many jobs are still ``New``, by what they wait for: ``dependency``, ``retry`` (a wait
            after a failure), ``quota``, ``max_instances`` or ``pace``.
        looked: monitor(): whether it looked at the service's list; it does so every ``policy.poll_s``.
    """

    next_in_s: float
    counts: Mapping[str, int]
    calls: int = 0
    trouble: str = ""
    changed: tuple[Change, ...] = ()
    launched: tuple[str, ...] = ()
    waiting: Mapping[str, int] = field(default_factory=dict)
    looked: bool = False

    @property
    def ended(self) -> bool:
        """Whether every job has ended."""
        return all(not number for status, number in self.counts.items() if status not in ENDED)


def change_state(store: Store, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what launchers and monitors share, whoever else does so at the same time."""
    while True:
        value, version = store.state(key)
        change(value)
        if store.put_state(key, value, version):
            return


def settle(store: Store, job: Job, change: Callable[[Job], Job | None]) -> Job:
    """Write a change; where somebody was faster, the change to the job as it is then.

    Args:
        store: Where the job lies.
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
    """Jobs that need one that will not complete fail themselves, and those that need them, and so on."""
    changes: list[Change] = []
    while True:
        found = store.doomed()
        failed = [given_up(job, now, "dependency", UNMET.format(needs=needs)) for job, needs in found]
        changes += [Change.of(job) for job in store.update_many(failed) if job is not None]
        if not found:
            return changes


def monitor_due(state: Mapping[str, Any], live: Live, policy: Policy) -> float:
    """When the service's list is worth the next look; only if something is in flight."""
    return max(float(state.get("next_at", 0.0)), live.launched_at + policy.poll_s)
