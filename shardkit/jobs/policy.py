"""How fast, how often and how long: the queue's policy, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from shardkit.jobs.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping

# How many attempts may end with each cause. If it is 1, the first such failure is final.
ATTEMPTS = {
    "preempted": 1000,
    "interrupted": 1000,
    "node": 5,
    "memory": 3,
    "quota": 2,
    "capacity": 10,
    "internal": 5,
    "stopped": 3,
    "timeout": 3,
    "died": 3,
    "transient": 5,
    "lost": 3,
    "unknown": 2,
    "user": 1,
    "client": 1,
    "refused": 1,
    "dependency": 1,
    "cost": 1,
}

# These say nothing about the job, so that they do not count among all its attempts, nor make it wait ever longer.
NO_FAULT = frozenset({"preempted", "interrupted"})
# A job may say itself how often it is tried again after what its own program did: by a tag with that number.
RETRIES = "own_retries"
# It may name larger instance types, the next one first: each attempt after one with too little memory has the next.
LARGER = "larger"
MAY_GROW = "SHARDKIT_MAY_GROW"  # in the environment of an attempt after which a larger one would come
SPOT = "spot"  # a tag of jobs on spot instances: the service says how many seconds of an attempt it bills
OWN_FAULTS = frozenset({"user", "died", "memory", "timeout"})
SLOWEST = 20.0  # calls come at most so many times slower than the policy has it


@dataclass(frozen=True)
class Policy:
    """The rules of launch() and monitor(). All times are in seconds.

    Args:
        creates_per_s: CreateProcessingJob calls a second, of all launchers of a store together.
        poll_s: The time from one look at the service's list to the next.
        max_instances: The most instances in flight at once; None leaves it to the service's quota.
        ceilings: The same for single instance types, by name.
        attempts: How many attempts may end with a cause, if not the default number.
        max_attempts: How many attempts a job has in all, until somebody calls again().
        retry_wait_s: The wait after a failure; doubled by every further failure of that cause.
        capacity_wait_s: The same after a CapacityError, once every instance preference has had its turn.
        retry_wait_max_s: No such wait is longer.
        launch_s: How long one launch() may sleep between its calls; with 0 it makes the calls that are due and returns.
        batch: How many jobs are created in one call, if the engine takes several.
        max_launches: The CreateProcessingJob calls of one launch().
        max_calls: The calls of one monitor(); enough for every page of what changed, 100 jobs a call.
        throttle_max_s: The longest wait after throttled calls.
        probe_s: The wait before one instance above the learned ceiling is tried; doubled each time it is refused.
        probe_max_s: No such wait is longer.
        lease_s: How long a CreateProcessingJob call may take before another launcher takes over.
        settle_s: How long a job may take to show up in the service's list.
        overlap_s: How far a look at the list reaches back before the last one.
        recheck_s: The time between two looks at everything in flight, changed or not.
        lost_s: How long a job must be unknown to the service before it counts as lost.
    """

    creates_per_s: float = 1.0
    poll_s: float = 20.0
    max_instances: int | None = None
    ceilings: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    max_attempts: int = 15
    retry_wait_s: float = 5.0
    capacity_wait_s: float = 30.0
    retry_wait_max_s: float = 900.0
    launch_s: float = 0.0
    batch: int = 1
    max_launches: int = 1000
    max_calls: int = 500
    throttle_max_s: float = 60.0
    probe_s: float = 60.0
    probe_max_s: float = 1800.0
    lease_s: float = 60.0
    settle_s: float = 5.0
    overlap_s: float = 30.0
    recheck_s: float = 900.0
    lost_s: float = 300.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.attempts) - set(ATTEMPTS))
        if unknown:
            raise JobError(f"There is no cause {unknown[0]!r}.", hint=f"The causes are {', '.join(ATTEMPTS)}.")
        for name in ("creates_per_s", "poll_s", "max_attempts", "batch", "max_launches", "max_calls"):
            if getattr(self, name) <= 0:
                raise JobError(f"{name} must be more than 0, not {getattr(self, name)}.")

    @classmethod
    def local(cls, **changes: Any) -> Policy:
        """The policy for an engine on this machine, where calls cost nothing and jobs start at once."""
        quick = {
            "creates_per_s": 100.0,
            "poll_s": 0.2,
            "retry_wait_s": 0.2,
            "capacity_wait_s": 0.5,
            "throttle_max_s": 5.0,
            "probe_s": 2.0,
            "probe_max_s": 30.0,
            "lease_s": 5.0,
            "settle_s": 0.0,
            "overlap_s": 2.0,
            "recheck_s": 15.0,
            "lost_s": 5.0,
        }
        return cls(**(quick | changes))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """A policy that was written as data.

        Raises:
            JobError: It has a field that a policy does not have.
        """
        names = {each.name for each in fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            raise JobError(f"A policy has no {unknown[0]!r}.", hint=f"It has {', '.join(sorted(names))}.")
        return cls(**data)

    @property
    def longest_wait_s(self) -> float:
        """The longest that a job waits for its next attempt."""
        return max(self.retry_wait_max_s, self.capacity_wait_s, self.throttle_max_s, self.probe_max_s)

    @property
    def longest_lease_s(self) -> float:
        """The longest that a launcher claims a job."""
        return self.lease_s + self.launch_s + self.longest_pace_s

    @property
    def longest_pace_s(self) -> float:
        """The longest wait for the next call to the service."""
        return max(self.throttle_max_s, SLOWEST / self.creates_per_s)

    def tries(self, cause: str) -> int:
        """How many attempts may end with that cause."""
        return self.attempts.get(cause, ATTEMPTS[cause])
