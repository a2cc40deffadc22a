"""launch(): from New to the service, one attempt after the other.

Before CreateProcessingJob is called, the store says "Launched, attempt n", by a conditional write: no other launcher
takes the job. The attempt's name is made of job id and number, so that a call that is made again, by whoever, is
recognised by the service and runs nothing twice. Whether a call without an answer got through is seen in the
service's list (by monitor()); where it is not, the same call is made again. The next number is taken only after the
service itself has said that the attempt has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.jobs import calls, transitions
from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.job import LAUNCHED, NEW, YES, Job
from shardkit.jobs.policy import Policy
from shardkit.jobs.rounds import (
    LAUNCHING,
    MONITORING,
    Change,
    Report,
    change_state,
    fail_dependents,
    monitor_due,
    settle,
)
from shardkit.jobs.store import turned

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.store import Store

# With these, the pace is as fast as it may be while fewer than two calls in seven are throttled.
SLOWER, FASTER = 1.5, 0.85
SLOWEST = 20.0  # times the interval of the policy
IDLE_S = 0.01  # after a round that had nothing to do, the next one is not at once


def launch(
    store: Store,
    engine: Engine,
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> Report:
    """Launch what is ready, as fast as the policy and the service allow.

    Any number of these may run at the same time. It makes the calls that are due now and returns; ``policy.launch_s``
    lets it wait for the next ones.

    Args:
        store: The jobs.
        engine: The service.
        policy: How fast; the default is for SageMaker, ``Policy.local()`` for an engine on this machine.
        clock: What tells the time.
        rng: Where the randomness of waits comes from.

    Returns:
        What was launched, what waits and for what, and when to call again.

    Raises:
        EngineRefused: The service takes no calls from this client; no job suffers for it.
    """
    return _Launch(store, engine, policy or Policy(), clock or RealClock(), rng).run()


class _Launch:
    def __init__(self, store: Store, engine: Engine, policy: Policy, clock: Clock, rng: random.Random | None) -> None:
        self._store, self._engine, self._policy, self._clock, self._rng = store, engine, policy, clock, rng
        self._calls = 0
        self._launched: list[str] = []
        self._changed: list[Change] = []
        self._trouble = ""
        self._waits_for = "pace"
        self._deadline = clock.time() + policy.launch_s

    def run(self) -> Report:
        self._changed += fail_dependents(self._store, self._clock.time())
        for _ in range(self._policy.max_launches):
            job = self._choose()
            if job is None or not self._slot() or not self._launch(job):
                break
        return self._report()

    # ---- what is next ----------------------------------------------------------------------------------------------

    def _choose(self) -> Job | None:
        """The job to be launched next: those first whose call may not have got through."""
        now = self._clock.time()
        looked_at = self._store.state(MONITORING)[0].get("passed", 0.0)
        uncertain = self._store.uncertain()
        for job in uncertain:
            if repeat_due(job, now, looked_at, self._policy) and not self._over_quota(job, now, uncertain):
                return job
        self._waits_for = "retry"
        full: set[str] = set()
        while True:
            found = self._store.ready(now, without=full)
            if not found:
                return None
            if self._too_large(found[0], now):
                continue
            short_of = self._short_of(found[0], now)
            if not short_of:
                self._waits_for = "pace"
                return found[0]
            self._waits_for = short_of
            if short_of == "max_instances":
                return None
            full.add(found[0].instance_type)

    def _too_large(self, job: Job, now: float) -> bool:
        """Whether a job needs more instances than there may ever be; it fails then."""
        cap = self._policy.max_instances
        if cap is None or job.instances <= cap:
            return False
        reason = f"It needs {job.instances} instances at once; max_instances allows {cap}."
        failed = self._store.update(transitions.given_up(job, now, "refused", reason))
        self._changed += [Change.of(failed)] if failed else []
        return True

    def _short_of(self, job: Job, now: float) -> str:
        """What there is no room for: ``max_instances``, ``quota``, or nothing."""
        cap = self._policy.max_instances
        if cap is not None and sum(self._store.in_flight().values()) + job.instances > cap:
            return "max_instances"
        return "quota" if self._over_quota(job, now) else ""

    def _over_quota(self, job: Job, now: float, uncertain: Iterable[Job] = ()) -> bool:
        """Whether the service would surely refuse one more of that type; those that are uncertain may not be there."""
        limit = self._store.state(LAUNCHING)[0].get("limits", {}).get(job.instance_type)
        if limit is None or now >= limit["probe_at"]:
            return False
        in_flight = self._store.in_flight().get(job.instance_type, 0)
        in_flight -= sum(each.instances for each in uncertain if each.instance_type == job.instance_type)
        return bool(in_flight + job.instances > limit["ceiling"])

    def _slot(self) -> bool:
        """Wait for the next moment at which a call may be made, and take it; False if that is too far away."""
        while True:
            state, version = self._store.state(LAUNCHING)
            now = self._clock.time()
            wait_s = state.get("next_at", 0.0) - now
            longest = max(self._policy.throttle_max_s, SLOWEST / self._policy.creates_per_s)
            if 0 < wait_s <= longest:  # longer than that: the clock was set back
                if now + wait_s > self._deadline:
                    return False
                self._clock.sleep(wait_s)
                continue
            state["next_at"] = now + self._interval(state)
            if self._store.put_state(LAUNCHING, state, version):
                return True

    def _interval(self, state: dict[str, Any]) -> float:
        """Seconds from one call to the next, as the service has taught."""
        return max(float(state.get("interval_s", 0.0)), 1 / self._policy.creates_per_s)

    # ---- the call --------------------------------------------------------------------------------------------------

    def _launch(self, job: Job) -> bool:
        """One CreateProcessingJob call; whether another one makes sense now."""
        repeat = job.status == LAUNCHED
        claimed = self._store.update(transitions.claim(job, self._clock.time(), self._policy.lease_s))
        if claimed is None:
            return True  # another launcher took it
        request = turned(self._store.request(job.job_id), claimed.instance_type)
        self._calls += 1
        try:
            self._engine.create_processing_job(**request, ProcessingJobName=claimed.name)
        except Exception as error:  # noqa: BLE001  whatever it is: the job's state must not lie
            return self._answered(claimed, error, repeat=repeat)
        except BaseException:
            self._settle(claimed, lambda job, now: transitions.doubtful(job, now, "The launcher was interrupted."))
            raise
        self._taken(claimed)
        return True

    def _taken(self, claimed: Job) -> None:
        """The service has the attempt."""
        now = self._clock.time()

        def change(job: Job) -> Job | None:
            same = job.attempt == claimed.attempt and job.status == LAUNCHED and job.exists != YES
            return transitions.created(job, now) if same else None

        settle(self._store, claimed, change)
        self._launched.append(claimed.name)

        def faster(state: dict[str, Any]) -> None:
            state["failures"] = 0
            state["interval_s"] = self._interval(state) * FASTER
            limit = state.get("limits", {}).get(claimed.instance_type)
            in_flight = self._store.in_flight().get(claimed.instance_type, 0) if limit else 0
            if limit and in_flight > limit["ceiling"]:
                limit.update(ceiling=in_flight, wait_s=limit["wait_s"] / 4, probe_at=now)

        change_state(self._store, LAUNCHING, faster)

    def _answered(self, claimed: Job, error: Exception, *, repeat: bool) -> bool:
        """CreateProcessingJob was answered with an error, or not at all."""
        kind, reason = calls.kind_of(error), calls.words(error)
        if kind == "exists":
            self._taken(claimed)
            return True
        surely_not = kind != "unclear" and not repeat and calls.final(error)
        if kind == "quota":
            self._back(claimed, reason, surely_not=surely_not)
            self._lower(claimed, reason)
            return True
        if kind in {"refused", "missing"}:
            return self._refused(claimed, reason, surely_not=surely_not)
        self._back(claimed, reason, surely_not=surely_not)
        if kind == "caller":
            raise calls.turned_away(error) from error
        if not isinstance(error, calls.EXPECTED):
            raise error
        self._trouble = reason
        self._slower(throttled=kind == "throttled")
        return False

    def _back(self, claimed: Job, reason: str, *, surely_not: bool) -> None:
        """The call made nothing, or nobody knows."""
        if surely_not:
            self._settle(claimed, lambda job, now: transitions.put_back(job, now, reason))
        else:
            self._settle(claimed, lambda job, now: transitions.doubtful(job, now, reason))

    def _refused(self, claimed: Job, reason: str, *, surely_not: bool) -> bool:
        """An error that will not go away; of a job that an earlier call may have made, it says nothing."""
        if not surely_not:
            self._calls += 1
            try:
                self._engine.describe_processing_job(ProcessingJobName=claimed.name)
            except Exception as error:  # noqa: BLE001  told apart below
                if calls.kind_of(error) != "missing":
                    self._back(claimed, calls.words(error), surely_not=False)
                    self._slower(throttled=calls.kind_of(error) == "throttled")
                    return False
            else:
                self._taken(claimed)
                return True
        job = self._settle(claimed, lambda job, now: transitions.refused(job, now, reason))
        self._changed.append(Change.of(job))
        return True

    def _settle(self, claimed: Job, change: Callable[[Job, float], Job]) -> Job:
        """Change the job, unless somebody else knows more of this attempt by now."""
        now = self._clock.time()

        def if_ours(job: Job) -> Job | None:
            ours = job.attempt == claimed.attempt and job.status == LAUNCHED and job.exists != YES
            return change(job, now) if ours and job.lease_until == claimed.lease_until else None

        return settle(self._store, claimed, if_ours)

    # ---- what the answers teach ------------------------------------------------------------------------------------

    def _slower(self, *, throttled: bool) -> None:
        """Back off after a throttled call or a network error: longer each time that it happens in a row.

        Calls that are throttled again and again make the pace itself slower, until they are rare.
        """

        def back_off(state: dict[str, Any]) -> None:
            state["failures"] = state.get("failures", 0) + 1
            if throttled:
                state["interval_s"] = min(self._interval(state) * SLOWER, SLOWEST / self._policy.creates_per_s)
            wait_s = min(2.0 ** min(state["failures"], 30) / self._policy.creates_per_s, self._policy.throttle_max_s)
            state["next_at"] = self._clock.time() + max(calls.jitter(wait_s, self._rng), self._interval(state))

        change_state(self._store, LAUNCHING, back_off)

    def _lower(self, claimed: Job, reason: str) -> None:
        """A quota is used up: no more instances of that type in flight than the service surely has now.

        Each time that one more than the ceiling is tried in vain, the next such try is further away.
        """
        kind = claimed.instance_type
        uncertain = [job for job in self._store.uncertain() if job.instance_type == kind]
        job = self._store.get(claimed.job_id)
        doubtful = sum(each.instances for each in uncertain if each.job_id != job.job_id)
        ceiling = self._store.in_flight().get(kind, 0) - doubtful - (job.instances if job.live else 0)
        now = self._clock.time()

        def learn(state: dict[str, Any]) -> None:
            limits = state.setdefault("limits", {})
            before = limits.get(kind, {"ceiling": 0, "wait_s": 0.0})
            tried_more = ceiling + job.instances > before["ceiling"]
            wait_s = before["wait_s"] * 2 if tried_more else before["wait_s"]
            wait_s = min(max(wait_s, self._policy.probe_s), self._policy.probe_max_s)
            limits[kind] = {"ceiling": ceiling, "wait_s": wait_s, "probe_at": now + wait_s, "reason": reason}

        change_state(self._store, LAUNCHING, learn)

    # ---- the report ------------------------------------------------------------------------------------------------

    def _report(self) -> Report:
        counts = self._store.counts()
        blocked = self._store.blocked()
        rest = counts[NEW] - blocked
        waiting = {"dependency": blocked, self._waits_for: rest}
        return Report(
            next_in_s=self._next_in_s(),
            counts=counts,
            calls=self._calls,
            trouble=self._trouble or self._quota_reason(),
            changed=tuple(self._changed),
            launched=tuple(self._launched),
            waiting={what: number for what, number in waiting.items() if number},
        )

    def _quota_reason(self) -> str:
        limits = self._store.state(LAUNCHING)[0].get("limits", {}) if self._waits_for == "quota" else {}
        return next((limit["reason"] for limit in limits.values()), "")

    def _next_in_s(self) -> float:
        """Seconds until a launcher or a monitor has something to do."""
        now, policy = self._clock.time(), self._policy
        pace = self._store.state(LAUNCHING)[0]
        state, live = self._store.state(MONITORING)[0], self._store.live()
        times: list[float] = []
        if live.jobs:
            times.append(monitor_due(state, live, policy))
        ready_at, next_at = self._store.next_ready(), pace.get("next_at", 0.0)
        probe_at = min((limit["probe_at"] for limit in pace.get("limits", {}).values()), default=0.0)
        if ready_at is not None and self._waits_for != "max_instances":
            times.append(max(ready_at, next_at, probe_at if self._waits_for == "quota" else 0.0))
        looked_at, uncertain = state.get("passed", 0.0), self._store.uncertain()
        times += [
            max(job.lease_until, next_at, probe_at if self._over_quota(job, now, uncertain) else 0.0)
            for job in uncertain
            if repeat_due(job, max(now, job.lease_until), looked_at, policy)
        ]
        if not times:
            return policy.poll_s if ready_at is not None else 0.0
        return min(max(min(times) - now, 0.0 if self._calls else IDLE_S), policy.poll_s)


def repeat_due(job: Job, now: float, looked_at: float, policy: Policy) -> bool:
    """Whether it is time to make the call again of a job that may not have been created.

    That is so once a look at the whole list, begun after the call, did not show it: the call again would be answered
    with "it exists" at the worst, but it would be a call too many.
    """
    return not job.stop_asked_at and now >= job.lease_until and looked_at >= job.changed_at + policy.settle_s
