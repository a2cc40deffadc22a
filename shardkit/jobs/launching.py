"""launch(): from New to the service, one attempt after the other.

Before CreateProcessingJob is called, the store says "Launched, attempt n". That is a conditional write, so no other
launcher takes the job. The attempt's name is made of the job's id and this number: if anybody repeats the call, the
service recognises it and runs nothing twice. monitor() sees in the service's list whether a call without an answer got
through; if it did not, the same call is made again. The next number is taken only after the service itself has said
that the attempt has ended.

Jobs are claimed, and their outcomes written, several at a time: a store in the cloud gets a few calls for ten
launches, not a few calls for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.jobs import calls, transitions
from shardkit.jobs.choosing import MAX_INSTANCES, QUOTA, Chooser
from shardkit.jobs.clock import Clock, RealClock, is_due
from shardkit.jobs.errors import EngineRefused
from shardkit.jobs.job import LAUNCHED, NEW, PROCESSING, YES, Job
from shardkit.jobs.live import Flight
from shardkit.jobs.outcome import Outcome
from shardkit.jobs.pace import Pace
from shardkit.jobs.policy import Policy
from shardkit.jobs.rounds import MONITORING, Change, Report, fail_dependents, monitor_due, repeat_due
from shardkit.jobs.spending import end_costly_runs
from shardkit.jobs.store import prepared_for

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.store import Flying, Store

BLOCK = 10  # jobs claimed at a time, at full pace
KEPT = 100  # waiting jobs that are read of each owner and instance type: more than are launched, as some may be gone
READ_EVERY = 3  # reads of the live jobs for each read of the waiting jobs, which is many times larger
INTERRUPTED = "The launcher was interrupted."
IDLE_S = 0.01  # the least wait after a round that had nothing to do


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
    lets it wait for the next ones. Owners take turns: the next job is the first one submitted by the owner with
    the fewest instances in flight.

    Args:
        store: The jobs.
        engine: The service.
        policy: How fast; the default is for SageMaker, ``Policy.local()`` for an engine on this machine.
        clock: Gives the time.
        rng: The source of randomness for waits.

    Returns:
        What was launched, what waits and for what, and when to call again.

    Raises:
        EngineRefused: The service takes no calls from this client; the jobs are unharmed.
    """
    return _Launch(store, engine, policy or Policy(), clock or RealClock(), rng).run()


class _Launch:
    def __init__(self, store: Store, engine: Engine, policy: Policy, clock: Clock, rng: random.Random | None) -> None:
        self._store, self._policy, self._clock = store, policy, clock
        self._service = calls.Service(engine)
        self._pace = Pace(store, policy, clock, rng)
        self._launched: list[str] = []
        self._changed: list[Change] = []
        self._trouble = ""
        self._batches = policy.batch > 1 and self._service.takes_batches
        self._learned = 0  # how many of the jobs that were taken in a block the pace has learned from
        self._put_back: set[str] = set()
        self._used_up: set[str] = set()  # instance types whose quota the present block has found used up
        self._flight = Flight([])
        self._began = clock.time()

    def run(self) -> Report:
        self._changed += end_costly_runs(self._store, self._pace, self._policy, self._began)
        self._changed += end_costly_runs(self._store, self._pace, self._policy, self._began)
        self._changed += fail_dependents(self._store, self._began)
        self._read()
        left = self._policy.max_launches
        while left > 0:
            now = self._clock.time()
            if now - self._read_at >= READ_EVERY * self._policy.poll_s:
                self._read()
            elif now - self._seen_at >= self._policy.poll_s:
                self._see()
            most = self._policy.batch if self._batches else self._pace.together(BLOCK)
            count, go_on = self._block(min(left, most))
            if not go_on:
                break
            left -= max(count, 1)
        return self._report()

    def _read(self) -> None:
        """Read which jobs wait, and which are live."""
        self._see()
        self._read_at = self._seen_at
        at_once = min(self._policy.launch_s, READ_EVERY * self._policy.poll_s) * self._policy.creates_per_s
        most = min(self._policy.max_launches, KEPT + 2 * int(at_once) + (self._policy.batch if self._batches else 0))
        self._waiting = self._store.waiting(self._read_at, most=most, longest_s=self._policy.longest_wait_s)
        self._new = self._waiting.jobs
        self._chooser = Chooser(self._waiting, self._flight, self._policy, self._pace)

    def _see(self) -> None:
        """See which jobs are live, and when somebody looked at the service's list."""
        self._seen_at = self._clock.time()
        self._flight.see(self._store.flight())
        self._monitoring = self._store.state(MONITORING)[0]

    @property
    def _looked_at(self) -> float:
        return float(self._monitoring.get("passed", 0.0))

    # ---- a block ---------------------------------------------------------------------------------------------------

    def _block(self, most: int) -> tuple[int, bool]:
        """Launch some jobs; returns how many were tried, and whether to go on.

        Moments for calls are reserved only for jobs that can still be launched: what this round has read is some
        seconds old, and another launcher may have been faster.
        """
        repeats = self._repeats()[:most]
        fresh = self._chooser.choose(most - len(repeats))
        self._give_up()
        wanted = [*repeats, *(each.job_id for each in fresh)]
        room = self._pace.room(self._calls(wanted)) if wanted else 0
        room = len(wanted) if room and self._batches else room
        open_ones = self._open(wanted[:room], repeats)
        slots = self._pace.reserve(self._calls(open_ones)) if open_ones else 0
        slots = len(open_ones) if slots and self._batches else slots
        left = {*wanted[room:], *(job.job_id for job in open_ones[slots:])}
        if slots:
            self._create_all(self._claim(open_ones[:slots]), Outcome(self._store, self._clock, set(repeats)))
            left |= self._put_back
        self._chooser.put_back(each for each in fresh if each.job_id in left)
        return room, bool(slots) or (room > 0 and not open_ones)

    def _calls(self, jobs: Sequence[object]) -> int:
        """How many calls these jobs take."""
        return min(1, len(jobs)) if self._batches else len(jobs)

    def _repeats(self) -> list[str]:
        """The jobs whose call is due again, because it may not have created them."""
        now = self._clock.time()
        return [
            job.job_id
            for job in self._flight.uncertain
            if repeat_due(job, now, self._looked_at, self._policy) and not self._quota_at(job)
        ]

    def _quota_at(self, job: Flying) -> float:
        """When the service will have room for a job that it may not have yet; 0 if now."""
        surely = self._flight.of_type(job.instance_type, surely=True)
        return self._pace.quota_at(job.instance_type, job.instances, surely)

    def _give_up(self) -> None:
        """Fail the jobs that are too large for the policy's own limits."""
        if not self._chooser.too_large:
            return
        now = self._clock.time()
        jobs = self._store.find(each.job_id for each, _ in self._chooser.too_large)
        for each, reason in self._chooser.too_large:
            job = jobs.get(each.job_id)
            if job is not None and job.status == NEW:
                failed = self._store.update(transitions.given_up(job, now, "refused", reason))
                self._changed += [Change.of(failed)] if failed else []
                self._new -= 1
        self._chooser.too_large.clear()

    def _open(self, job_ids: list[str], repeats: list[str]) -> list[Job]:
        """The jobs that nobody else has taken meanwhile, as they are now; takes in how the others are, too."""
        now = self._clock.time()
        current = self._store.find(job_ids)
        for job in current.values():
            self._new -= job.status != NEW and job.job_id not in repeats
            self._flight.update(job)
        return [current[each] for each in job_ids if each in current and self._claimable(current[each], now)]

    def _claim(self, jobs: list[Job]) -> list[Job]:
        """Write that these are launched; returns those that nobody else was faster with."""
        now = self._clock.time()
        lease_s = self._pace.takes_s + self._policy.lease_s
        written = self._store.update_many(transitions.claim(job, now, lease_s) for job in jobs)
        claimed = [job for job in written if job is not None]
        self._new -= sum(before.status == NEW for before, job in zip(jobs, written, strict=True) if job)
        for job in claimed:
            self._flight.update(job)
        return claimed

    def _claimable(self, job: Job, now: float) -> bool:
        if job.status == NEW:
            return is_due(job.not_before, now, self._policy.longest_wait_s)
        return job.status == LAUNCHED and job.exists != YES and repeat_due(job, now, self._looked_at, self._policy)

    def _create_all(self, claimed: list[Job], outcome: Outcome) -> None:
        """Make the calls, each at its moment; after a throttled call or the like, the rest is left for later."""
        requests = self._store.requests(job.job_id for job in claimed)
        full: set[str] = set()
        self._used_up = set()
        self._learned = 0
        try:
            if self._batches and self._pace.await_moment():
                self._create_batch(claimed, requests, outcome)
            for job in () if self._batches else claimed:
                if job.instance_type in full:
                    continue  # no call was made for it, so it is put back
                if not self._pace.await_moment():
                    break
                if self._clock.time() < job.lease_until:
                    self._create(job, requests[job.job_id], outcome)
                in_flight = self._flight.of_type(job.instance_type, surely=True)
                if self._pace.over_quota(job.instance_type, job.instances, in_flight):
                    full.add(job.instance_type)
        finally:
            self._conclude(claimed, outcome)

    def _create_batch(self, claimed: list[Job], requests: Mapping[str, dict[str, Any]], outcome: Outcome) -> None:
        """One call for all Processing jobs whose lease has not run out."""
        now = self._clock.time()
        jobs = [job for job in claimed if now < job.lease_until and job.kind == PROCESSING]
        asked = [(job.name, prepared_for(job, requests[job.job_id])) for job in jobs]
        answers: list[Exception | None]
        try:
            answers = self._service.create_many(asked)
        except calls.EXPECTED as error:
            answers = [error] * len(jobs)
        except BaseException:
            for job in jobs:
                outcome.doubtful(job, INTERRUPTED)
            raise
        for job, answer in zip(jobs, answers, strict=True):
            if answer is None:
                self._taken(job, outcome)
        for job, answer in zip(jobs, answers, strict=True):  # now that it is known how many the service has
            if answer is not None:
                self._answered(job, answer, outcome)
        for job in claimed:
            if job.kind != PROCESSING:
                self._create(job, requests[job.job_id], outcome)

    def _conclude(self, claimed: list[Job], outcome: Outcome) -> None:
        """Write what became of a block."""
        written = outcome.write(claimed)
        self._put_back = {job.job_id for job in written if job.status == NEW}
        self._new += len(self._put_back)
        for job in written:
            self._flight.update(job)
            if job.ended:
                self._changed.append(Change.of(job))
        self._learn(outcome)

    def _learn(self, outcome: Outcome) -> None:
        """Take in that the service has accepted jobs of a block."""
        self._pace.learn(outcome.taken[self._learned :], self._flight)
        self._learned = len(outcome.taken)

    # ---- the call --------------------------------------------------------------------------------------------------

    def _create(self, job: Job, request: dict[str, Any], outcome: Outcome) -> None:
        """One CreateProcessingJob call."""
        try:
            self._service.create(job.kind, job.name, prepared_for(job, request))
        except Exception as error:  # noqa: BLE001  whatever it is, the job's state must stay true
            self._answered(job, error, outcome)
        except BaseException:
            outcome.doubtful(job, INTERRUPTED)
            raise
        else:
            self._taken(job, outcome)

    def _taken(self, job: Job, outcome: Outcome) -> None:
        """The service has the attempt."""
        outcome.took(job)
        self._flight.update(transitions.created(job, self._clock.time()))
        self._launched.append(job.name)
        self._trouble = ""

    def _answered(self, job: Job, error: Exception, outcome: Outcome) -> None:
        """CreateProcessingJob was answered with an error, or not at all."""
        if isinstance(error, EngineRefused):
            outcome.refused(job, str(error))
            return
        kind, reason = calls.kind_of(error), calls.words(error)
        if kind == "exists":
            self._taken(job, outcome)
            return
        surely_not = kind != "unclear" and calls.final(error) and outcome.is_first(job)
        if kind in {"refused", "missing"}:
            self._refused(job, reason, outcome, surely_not=surely_not)
            return
        outcome.failed(job, reason, surely_not=surely_not)
        if kind == "quota" and surely_not and transitions.larger_type(job) and calls.quota_of(reason) < job.instances:
            outcome.no_quota(job, reason, self._policy)
            return
        if kind == "quota":
            if job.instance_type not in self._used_up:  # or of many jobs in one call, each would make the wait longer
                self._pace.quota_used_up(job, self._flight.of_type(job.instance_type, surely=True), reason)
            self._used_up.add(job.instance_type)
            return
        if kind == "caller":
            raise calls.turned_away(error) from error
        if not isinstance(error, calls.EXPECTED):
            raise error
        self._slower(reason, outcome, throttled=kind == "throttled")

    def _refused(self, job: Job, reason: str, outcome: Outcome, *, surely_not: bool) -> None:
        """The error will not go away. It says nothing about a job that an earlier call may have made."""
        if not surely_not:
            try:
                self._service.describe(job.kind, job.name)
            except Exception as error:  # noqa: BLE001  sorted out below
                if calls.kind_of(error) != "missing":
                    outcome.doubtful(job, calls.words(error))
                    self._slower(calls.words(error), outcome, throttled=calls.kind_of(error) == "throttled")
                    return
            else:
                self._taken(job, outcome)
                return
        outcome.refused(job, reason)

    def _slower(self, reason: str, outcome: Outcome, *, throttled: bool) -> None:
        """Put off the next calls."""
        if self._batches and self._trouble == reason:
            return  # of the same call
        self._trouble = reason
        self._learn(outcome)
        self._pace.slower(throttled=throttled)

    # ---- the report ------------------------------------------------------------------------------------------------

    def _report(self) -> Report:
        blocked = self._waiting.blocked
        waiting = {"dependency": blocked, self._chooser.waits_for: self._new - blocked}
        return Report(
            next_in_s=self._next_in_s(),
            new=self._new,
            live=len(self._flight),
            calls=self._service.made,
            trouble=self._trouble or (self._pace.quota_reason if self._chooser.waits_for == QUOTA else ""),
            changed=tuple(self._changed),
            launched=tuple(self._launched),
            waiting={what: number for what, number in waiting.items() if number > 0},
        )

    def _next_in_s(self) -> float:
        """Seconds until a launcher or a monitor has something to do."""
        now, policy, pace = self._clock.time(), self._policy, self._pace
        times: list[float] = []
        if len(self._flight):
            times.append(monitor_due(self._monitoring, self._flight, policy))
        if self._chooser.waits_for != MAX_INSTANCES:
            short = self._chooser.short_of_quota if self._chooser.waits_for == QUOTA else ()
            probe_at = pace.probe_at(short)
            times += [max(at, pace.next_at, probe_at) for at in self._ready_at(now)]
        times += [
            max(job.lease_until, pace.next_at, self._quota_at(job))
            for job in self._flight.uncertain
            if repeat_due(job, max(now, job.lease_until), self._looked_at, policy)
        ]
        if not times:
            return policy.poll_s if self._new > self._waiting.blocked else 0.0
        return min(max(min(times) - now, 0.0 if self._service.made else IDLE_S), policy.poll_s)

    def _ready_at(self, now: float) -> list[float]:
        """When the ``New`` jobs that wait only for time may be launched."""
        at_once = self._new > self._waiting.later + self._waiting.blocked
        later = [self._waiting.next_at] if self._waiting.next_at is not None else []
        return [now, *later] if at_once else later
