"""How fast the service takes calls, and how many instances it gives: what all launchers of a store have learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.jobs.calls import jitter
from shardkit.jobs.clock import is_due
from shardkit.jobs.policy import SLOWEST

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from shardkit.jobs.clock import Clock
    from shardkit.jobs.job import Job
    from shardkit.jobs.live import Flight
    from shardkit.jobs.policy import Policy
    from shardkit.jobs.store import Store

LAUNCHING = "launch"  # the key of the shared state
# With these, the pace is as fast as allowed as long as fewer than two calls in seven are throttled.
SLOWER, FASTER = 1.5, 0.85
CLOSE_S = 1e-3  # moments closer together than this are the same


class Pace:
    """The shared state of launchers; each change of it is a conditional write.

    Args:
        store: The store that has the state.
        policy: How fast calls may be made.
        clock: Gives the time.
        rng: The source of randomness for waits.
    """

    def __init__(self, store: Store, policy: Policy, clock: Clock, rng: random.Random | None) -> None:
        self._store, self._policy, self._clock, self._rng = store, policy, clock, rng
        self._deadline = clock.time() + policy.launch_s
        self._next_call = self._end = 0.0  # the calls that were reserved last are between these times
        self._state, self._version = store.state(LAUNCHING)

    def _change(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the state, even if others do so at the same time."""
        while True:
            value = {**self._state, "limits": {**self._state.get("limits", {})}}
            change(value)
            if self._store.put_state(LAUNCHING, value, self._version):
                self._state, self._version = value, self._version + 1
                return
            self._state, self._version = self._store.state(LAUNCHING)

    # ---- the pace --------------------------------------------------------------------------------------------------

    @property
    def next_at(self) -> float:
        """When the next call may be made."""
        return float(self._state.get("next_at", 0.0))

    def _interval(self, state: dict[str, Any]) -> float:
        """Seconds from one call to the next, as learned from the service."""
        return max(float(state.get("interval_s", 0.0)), 1 / self._policy.creates_per_s)

    def together(self, most: int) -> int:
        """How many of ``most`` calls to reserve together: fewer while the pace is slow, as it may soon be faster."""
        return max(int(most / (self._interval(self._state) * self._policy.creates_per_s)), 1)

    def room(self, wanted: int) -> int:
        """How many calls could be made soon enough, by the state as it was last read."""
        return self._moments(self._state, wanted)[1]

    def reserve(self, wanted: int) -> int:
        """Take the next moments for calls that come soon enough; returns how many."""
        taken = 0

        def take(state: dict[str, Any]) -> None:
            nonlocal taken
            self._next_call, taken = self._moments(state, wanted)
            self._end = self._next_call + taken * self._interval(state)
            if taken:
                state["next_at"] = self._end

        if self.room(wanted):
            self._change(take)
        return taken

    def _moments(self, state: dict[str, Any], wanted: int) -> tuple[float, int]:
        """The first of ``wanted`` moments, and how many of them come soon enough."""
        now = self._clock.time()
        wait_s = state.get("next_at", 0.0) - now
        longest_s = self._policy.longest_pace_s
        first = now + wait_s if 0 < wait_s <= longest_s else now  # if it is longer, the clock was set back
        if first > self._deadline and (first > now or self._policy.launch_s > 0):
            return first, 0
        return first, min(wanted, 1 + int(max(self._deadline - first, 0.0) / self._interval(state)))

    def await_moment(self) -> bool:
        """Wait for the next of the moments that were taken; False if none is left, because calls were too slow."""
        if self._next_call > self._end - self._interval(self._state) + CLOSE_S:
            return False  # the next one is somebody else's
        self._clock.sleep(max(self._next_call - self._clock.time(), 0.0))
        self._next_call += self._interval(self._state)
        return True

    @property
    def takes_s(self) -> float:
        """Seconds until the last of the moments that were taken."""
        return max(self._end - self._clock.time(), 0.0)

    def slower(self, *, throttled: bool) -> None:
        """Back off after a throttled call or a network error: longer for each one in a row.

        Repeated throttling makes the pace itself slower, until throttled calls are rare. The moments that others have
        reserved stay theirs; of those reserved here, the ones after the wait remain.
        """

        def back_off(state: dict[str, Any]) -> None:
            state["failures"] = state.get("failures", 0) + 1
            if throttled:
                state["interval_s"] = min(self._interval(state) * SLOWER, SLOWEST / self._policy.creates_per_s)
            wait_s = min(2.0 ** min(state["failures"], 30) / self._policy.creates_per_s, self._policy.throttle_max_s)
            again_at = self._clock.time() + max(jitter(wait_s, self._rng), self._interval(state))
            self._next_call = max(again_at, self._next_call)
            state["next_at"] = max(again_at, state.get("next_at", 0.0))

        self._change(back_off)

    def learn(self, taken: Iterable[Job], flight: Flight) -> None:
        """Learn from jobs that the service has accepted: calls may come faster, and it has so many instances."""
        jobs = list(taken)
        base_s, now = 1 / self._policy.creates_per_s, self._clock.time()
        limits = self._state.get("limits", {})
        raised = {
            job.instance_type
            for job in jobs
            if job.instance_type in limits and flight.of_type(job.instance_type) > limits[job.instance_type]["ceiling"]
        }
        slowed = self._state.get("failures", 0) or self._state.get("interval_s", 0.0) > base_s
        if not jobs or not (raised or slowed):
            return

        def faster(state: dict[str, Any]) -> None:
            state["failures"] = 0
            state["interval_s"] = max(self._interval(state) * FASTER ** len(jobs), base_s)
            for kind in raised & set(state["limits"]):
                limit, in_flight = state["limits"][kind], flight.of_type(kind)
                if in_flight > limit["ceiling"]:
                    state["limits"][kind] = limit | {
                        "ceiling": in_flight,
                        "wait_s": limit["wait_s"] / 4,
                        "probe_at": now,
                    }

        self._change(faster)

    # ---- what runs may cost -----------------------------------------------------------------------------------------

    @property
    def cost_limits(self) -> dict[str, dict[str, Any]]:
        """The limits that `spending.limit_cost` has set, by run."""
        return dict(self._state.get("max_cost", {}))

    def note_cost_look(self, run: str, now: float | None) -> None:
        """Note when somebody looked at what a run has cost; None forgets its limit."""

        def change(state: dict[str, Any]) -> None:
            limits = dict(state.get("max_cost", {}))
            kept = limits.pop(run, None)
            if kept is not None and now is not None:
                limits[run] = kept | {"looked_at": now}
            state["max_cost"] = limits

        self._change(change)

    # ---- quotas ----------------------------------------------------------------------------------------------------

    def over_quota(self, instance_type: str, wanted: int, in_flight: int) -> bool:
        """Whether the service would surely refuse so many more instances of that type."""
        limit = self._state.get("limits", {}).get(instance_type)
        if limit is None or is_due(limit["probe_at"], self._clock.time(), self._policy.probe_max_s):
            return False
        return bool(in_flight + wanted > limit["ceiling"])

    def quota_used_up(self, job: Job, in_flight: int, reason: str) -> None:
        """A quota is used up: the ceiling for that type is now the number of instances that the service surely has.

        Each time that one above the ceiling is tried in vain, the wait before the next such try grows.
        """
        kind, now = job.instance_type, self._clock.time()

        def learn(state: dict[str, Any]) -> None:
            before = state["limits"].get(kind, {"ceiling": 0, "wait_s": 0.0})
            tried_more = in_flight + job.instances > before["ceiling"]
            wait_s = before["wait_s"] * 2 if tried_more else before["wait_s"]
            wait_s = min(max(wait_s, self._policy.probe_s), self._policy.probe_max_s)
            state["limits"][kind] = {
                "ceiling": in_flight,
                "wait_s": wait_s,
                "probe_at": now + wait_s,
                "reason": reason,
            }

        self._change(learn)

    def quota_at(self, instance_type: str, wanted: int, in_flight: int) -> float:
        """When more instances of that type may be asked for; 0 if now."""
        over = self.over_quota(instance_type, wanted, in_flight)
        return float(self._state["limits"][instance_type]["probe_at"]) if over else 0.0

    def probe_at(self, instance_types: Iterable[str]) -> float:
        """When the first quota of these types is tried again; 0 if none is known."""
        limits = self._state.get("limits", {})
        return min((limits[kind]["probe_at"] for kind in instance_types if kind in limits), default=0.0)

    @property
    def quota_reason(self) -> str:
        """What the service says of a quota that is used up; empty if none is known."""
        return next((limit["reason"] for limit in self._state.get("limits", {}).values()), "")
