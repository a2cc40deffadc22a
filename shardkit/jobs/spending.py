"""What the jobs of a run have cost so far, and the end of its launches once that is what it may cost.

The limit lies with what launchers share, so that all of them keep to it, and it outlives each of them. It is compared
with the jobs' records: the seconds of each attempt, from its creation to its end or until now, times the price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardkit.jobs import transitions
from shardkit.jobs.job import NEW
from shardkit.jobs.pace import LAUNCHING
from shardkit.jobs.rounds import Change, change_state
from shardkit.jobs.wording import billed_s, seconds_at
from shardkit.units import dollars

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shardkit.jobs.job import Job
    from shardkit.jobs.pace import Pace
    from shardkit.jobs.policy import Policy
    from shardkit.jobs.store import Store

COST = "cost"  # the cause of jobs that are not launched any more
LIMITS = "max_cost"  # among what launchers share: the limits, by run
LOOK_S = 1.0  # the least time between two looks at what a run has cost
FORGET_S = 3600.0  # a limit of jobs that have ended is forgotten then


@dataclass(frozen=True)
class CostLimit:
    """The most that a run may cost, and by which prices.

    Args:
        usd: US dollars.
        usd_per_hour: The price of an instance, by its type. A type that is not in it has the highest of these prices.
    """

    usd: float
    usd_per_hour: Mapping[str, float]

    def spent(self, jobs: Iterable[Job], now: float) -> float:
        """What all attempts of these jobs have cost until now; one for which there was no instance cost nothing."""
        dearest = max(self.usd_per_hour.values())
        total = 0.0
        for job in jobs:
            for entry in job.attempts:
                begun, seconds = seconds_at(entry.get("created_at")), billed_s(entry)
                if begun is None or entry.get("cause") == "capacity" or (seconds is None and not job.live):
                    continue
                price = self.usd_per_hour.get(entry.get("instance_type") or "", dearest)
                instances = entry.get("instances") or job.instances
                total += (max(0.0, now - begun) if seconds is None else seconds) / 3600 * instances * price
        return total


def limit_cost(store: Store, run: str, limit: CostLimit | None, now: float) -> None:
    """Set what the jobs of a run may cost, or that there is no limit any more."""

    def change(state: dict[str, Any]) -> None:
        limits = {name: kept for name, kept in state.get(LIMITS, {}).items() if name != run}
        if limit is not None:
            limits[run] = {"usd": limit.usd, "usd_per_hour": dict(limit.usd_per_hour), "set_at": now, "looked_at": 0.0}
        state[LIMITS] = limits

    known = store.state(LAUNCHING)[0].get(LIMITS, {})
    if limit is not None or run in known:
        change_state(store, LAUNCHING, change)


def cost_limit_of(store: Store, run: str) -> CostLimit | None:
    """What the jobs of a run may cost; None if nothing limits them."""
    kept = store.state(LAUNCHING)[0].get(LIMITS, {}).get(run)
    return CostLimit(kept["usd"], kept["usd_per_hour"]) if kept is not None else None


def end_costly_runs(store: Store, pace: Pace, policy: Policy, now: float) -> list[Change]:
    """Give up the jobs that wait to be launched, of runs that have cost what they may."""
    changes: list[Change] = []
    for run, kept in pace.cost_limits.items():
        if 0 <= now - kept["looked_at"] < max(policy.poll_s, LOOK_S):
            continue
        jobs, limit = store.jobs(run=run), CostLimit(kept["usd"], kept["usd_per_hour"])
        spent, waiting = limit.spent(jobs, now), [job for job in jobs if job.status == NEW]
        if spent >= limit.usd:
            reason = f"Its run has spent {dollars(spent)} and may cost {dollars(limit.usd)}, so it is not launched."
            given_up = store.update_many(transitions.given_up(job, now, COST, reason) for job in waiting)
            changes += [Change.of(job) for job in given_up if job is not None]
        over = bool(jobs) and all(job.ended for job in jobs) and now - kept["set_at"] > FORGET_S
        pace.note_cost_look(run, None if over else now)
    return changes
