"""monitor(): from the service's list into the store.

A look asks ListProcessingJobs for everything that changed since the last look (a page holds 100 jobs). It goes by the
service's own times, so that neither the number of jobs nor this machine's clock matters. A page says why a failed job
failed; DescribeProcessingJob is called only if it does not. Now and then a look covers everything in flight, and asks
by name for jobs that are missing from the list.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from shardkit.jobs import calls, transitions
from shardkit.jobs.causes import needs_describe
from shardkit.jobs.clock import Clock, RealClock, seconds_of
from shardkit.jobs.job import COMPLETED, IN_PROGRESS, NEW, NO, YES, Job, parse_name
from shardkit.jobs.live import Flight
from shardkit.jobs.policy import SPOT, Policy
from shardkit.jobs.rounds import MONITORING, Change, Report, fail_dependents, is_settled, monitor_due, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.store import Store

CLOCKS_APART_S = 900.0  # how far this machine's clock and the service's may be apart


def monitor(
    store: Store,
    engine: Engine,
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
    force: bool = False,
) -> Report:
    """Bring the store up to date with the service, if it is time for that.

    Any number of these calls may run at the same time; only one of them looks.

    Args:
        store: The jobs.
        engine: The service.
        policy: How often to look; the default is for SageMaker, ``Policy.local()`` for an engine on this machine.
        clock: Gives the time.
        force: Look now, no matter when the last look was.

    Returns:
        What changed, and when to call again.

    Raises:
        EngineRefused: The service takes no calls from this client.
    """
    return _Monitor(store, engine, policy or Policy(), clock or RealClock()).run(force=force)


def observe(
    store: Store,
    engine: Engine,
    answers: Iterable[Mapping[str, Any]],
    *,
    policy: Policy | None = None,
    clock: Clock | None = None,
) -> list[Change]:
    """Take in what the service reports of jobs by itself: faster than the next monitor(), which does not depend on it.

    The answers may come late, twice and in any order; those about jobs of other stores are ignored.

    Args:
        store: The jobs.
        engine: The service; asked only if an answer does not say why a job failed.
        answers: Describe responses or lines of List responses, or anything with the same fields.
        policy: Whether attempts that failed are tried again.
        clock: Gives the time.

    Returns:
        What changed.
    """
    return _Monitor(store, engine, policy or Policy(), clock or RealClock()).observe(answers)


class _Monitor:
    def __init__(self, store: Store, engine: Engine, policy: Policy, clock: Clock) -> None:
        self._store, self._policy, self._clock = store, policy, clock
        self._service = calls.Service(engine, most=policy.max_calls)
        self._flight = Flight([])
        self._changed: list[Change] = []
        self._trouble = ""
        self._whole = True  # whether everything that this look has seen is in the store
        self._state: dict[str, Any] = {}  # what monitors share, and its version
        self._version = 0

    def run(self, *, force: bool) -> Report:
        begun = self._clock.time()
        looked = self._take_turn(begun, force=force)
        if looked:
            try:
                self._look(begun)
                self._stop_what_is_to_stop(begun)
            except calls.OutOfCalls:
                self._trouble = f"More than {self._policy.max_calls} calls are needed; the next round goes on."
            except calls.EXPECTED as error:
                self._failed(error)
        self._changed += fail_dependents(self._store, begun)
        return self._report(looked=looked)

    def observe(self, answers: Iterable[Mapping[str, Any]]) -> list[Change]:
        """Write what these answers say into the store."""
        self._take_in([calls.processing_words(answer) for answer in answers])
        return self._changed + fail_dependents(self._store, self._clock.time())

    def _take_turn(self, now: float, *, force: bool) -> bool:
        """Whether it is this call's turn to look."""
        self._flight = Flight(self._store.flight())
        if not len(self._flight):
            return False
        self._state, self._version = self._store.state(MONITORING)
        wait_s = monitor_due(self._state, self._flight, self._policy) - now
        if not force and 0 < wait_s <= self._policy.poll_s:  # if it is longer, the clock was set back
            return False
        if self._put(self._state | {"next_at": now + self._policy.poll_s}):
            return True
        self._state, self._version = self._store.state(MONITORING)
        return False

    def _put(self, state: dict[str, Any]) -> bool:
        """Write what monitors share, unless somebody else was faster; returns whether it was written."""
        if not self._store.put_state(MONITORING, state, self._version):
            return False
        self._state, self._version = state, self._version + 1
        return True

    def _change_state(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change what monitors share, even if others do so at the same time."""
        while True:
            state = dict(self._state)
            change(state)
            if self._put(state):
                return
            self._state, self._version = self._store.state(MONITORING)

    # ---- looking ---------------------------------------------------------------------------------------------------

    def _look(self, begun: float) -> None:
        """Take in what changed since the last look, and from time to time everything else too.

        "Since" means since the latest change that a look has seen, by the service's times. For a while it means
        somewhat earlier, because a change may show up in the list after a later one.
        """
        state = self._state
        newest: dict[str, tuple[float, float]] = {}
        for kind in self._flight.kinds:
            newest[kind] = self._look_at_changes(kind, begun, *state.get("newest", {}).get(kind, (0.0, 0.0)))

        full_at = state.get("full_at", self._flight.launched_at())

        def seen(shared: dict[str, Any]) -> None:
            before = shared.get("newest", {})
            later = {kind: times for kind, times in newest.items() if times[0] > before.get(kind, (0.0, 0.0))[0]}
            shared.update(newest=before | later, passed=max(begun, shared.get("passed", 0.0)))
            shared.setdefault("full_at", full_at)

        if self._whole:
            self._change_state(seen)
        if not 0 <= begun - full_at < self._policy.recheck_s:  # ahead of now: the clock was set back
            full_at = self._look_at_everything(begun)
            self._change_state(lambda shared: shared.update(full_at=full_at))

    def _look_at_changes(self, kind: str, begun: float, newest: float, newest_at: float) -> tuple[float, float]:
        """Take in what changed; returns when the latest change was (the service's clock) and was seen (our clock)."""
        reach_back_s = max(self._policy.overlap_s - (begun - newest_at), 0.0)
        launched_at = min(self._flight.launched_at(kind), begun)  # it may have been written by a clock that was ahead
        since = max(newest - reach_back_s, launched_at - CLOCKS_APART_S)
        after = datetime.datetime.fromtimestamp(since, datetime.timezone.utc)
        prefix = self._flight.prefix(kind)
        for page in self._service.list_pages(kind, NameContains=prefix, LastModifiedTimeAfter=after):
            self._take_in(page)
            latest = max((_modified(line) for line in page), default=0.0)
            newest, newest_at = (latest, begun) if latest > newest else (newest, newest_at)
        return newest, newest_at

    def _look_at_everything(self, begun: float) -> float:
        """Ask by name for jobs in flight that the service's list does not show as running."""
        running: set[str] = set()
        for kind in self._flight.kinds:
            for page in self._service.list_pages(
                kind, NameContains=self._flight.prefix(kind), StatusEquals=IN_PROGRESS
            ):
                running |= {line["ProcessingJobName"] for line in page}
        any_missing = False
        for job in self._store.find(each.job_id for each in self._flight).values():
            if not job.live:
                continue
            fresh = 0 <= begun - job.changed_at <= self._policy.settle_s
            if job.exists == YES and not fresh and job.name not in running:
                any_missing |= self._ask(job).missing_since > 0
            elif job.missing_since and job.name in running:
                self._settle(job, {"ProcessingJobStatus": IN_PROGRESS})
        return begun - (self._policy.recheck_s - self._policy.lost_s) if any_missing else begun

    def _take_in(self, page: list[dict[str, Any]]) -> None:
        """Write what a page says about this store's jobs."""
        lines = [(parsed, line) for line in page if (parsed := parse_name(line["ProcessingJobName"]))]
        jobs = self._store.find(job_id for (job_id, _), _ in lines)
        changes: list[tuple[Job, Job, dict[str, Any]]] = []
        for (job_id, attempt), line in lines:
            job = jobs.get(job_id)
            if job is None:
                continue
            if is_stray(job, attempt, line):
                self._stop(job.kind, line["ProcessingJobName"])
                continue
            answer = self._full(job, attempt, line)
            changed = None if answer is None else self._after(job, attempt, answer)
            if answer is not None and changed is not None:
                changes.append((job, changed, answer))
        written = self._store.update_many(changed for _, changed, _ in changes)
        for (job, changed, answer), now in zip(changes, written, strict=True):
            before = job if now else self._store.get(job.job_id)  # if somebody else was faster, the job as it is now
            done = now or self._settle(before, answer, changed.attempt)
            self._flight.update(done)
            if done.version != before.version:
                self._changed.append(Change.of(done))

    def _full(self, job: Job, attempt: int, line: dict[str, Any]) -> dict[str, Any] | None:
        """The line, or the Describe response if the line does not say enough; None if the call for it fails."""
        asked = job.stop_asked_at > 0 and line["ProcessingJobStatus"] == "Stopped"
        wanted = needs_describe(line) or (SPOT in job.tags and line["ProcessingJobStatus"] != IN_PROGRESS)
        if asked or not wanted or self._after(job, attempt, line) is None:
            return line
        try:
            return self._service.describe(job.kind, line["ProcessingJobName"])
        except calls.EXPECTED as error:
            self._failed(error)
            return None

    def _after(self, job: Job, attempt: int, answer: dict[str, Any]) -> Job | None:
        """The job after what the service says about that attempt; None if nothing changes."""
        now = self._clock.time()
        if attempt > job.attempt and job.status != COMPLETED:
            job = transitions.ahead(job, attempt, now)
        elif attempt != job.attempt or not _open(job):
            return None
        changed = transitions.observed(job, answer, now, self._policy)
        return None if changed is job else changed

    def _settle(self, job: Job, answer: dict[str, Any], attempt: int | None = None) -> Job:
        wanted = job.attempt if attempt is None else attempt
        return settle(self._store, job, lambda current: self._after(current, wanted, answer))

    # ---- asking by name --------------------------------------------------------------------------------------------

    def _ask(self, job: Job) -> Job:
        """Ask the service about a job that its list does not show; returns the job as it is then."""
        now = self._clock.time()
        try:
            answer = self._service.describe(job.kind, job.name)
        except calls.EXPECTED as error:
            if calls.kind_of(error) != "missing":
                raise
            changed = settle(self._store, job, lambda current: self._missed(current, job, now))
        else:
            changed = self._settle(job, answer)
        if changed.version != job.version and changed.status != job.status:
            self._changed.append(Change.of(changed))
        return changed

    def _missed(self, job: Job, asked: Job, now: float) -> Job | None:
        """The job after the service has said that it does not know it; None if nothing changes."""
        if job.version != asked.version:
            return None
        if job.exists != YES:
            return transitions.never_created(job, now) if job.stop_asked_at else None
        if not 0 < job.missing_since <= now:
            return transitions.missing(job, now)
        return transitions.lost(job, now, self._policy) if now - job.missing_since >= self._policy.lost_s else None

    def _stop_what_is_to_stop(self, begun: float) -> None:
        """Send the stops that the service has not got yet; find out what became of calls without an answer."""
        looked_at = self._state.get("passed", 0.0)
        stopping = self._store.find(each.job_id for each in self._flight.stopping)
        for job in stopping.values():
            if not job.live or not job.stop_asked_at:
                continue
            if job.exists != YES:
                if is_settled(job, begun, looked_at, self._policy):
                    self._ask(job)
            elif not 0 <= begun - job.stop_sent_at < self._policy.recheck_s:
                send_stop(self._store, self._service, job, begun)

    def _stop(self, kind: str, name: str) -> None:
        """Stop an attempt that was created after all, although it had been given up."""
        try:
            self._service.stop(kind, name)
        except calls.EXPECTED as error:
            if calls.kind_of(error) not in {"missing", "refused"}:
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        """A call failed, so this look is incomplete; the next one covers the same changes again."""
        self._whole = False
        self._trouble = calls.words(error)
        kind = calls.kind_of(error)
        if kind in {"caller", "refused"}:
            raise calls.turned_away(error) from error

    # ---- the report ------------------------------------------------------------------------------------------------

    def _report(self, *, looked: bool) -> Report:
        due = monitor_due(self._state, self._flight, self._policy) if len(self._flight) else 0.0
        return Report(
            next_in_s=max(due - self._clock.time(), 0.0),
            live=len(self._flight),
            calls=self._service.made,
            trouble=self._trouble,
            changed=tuple(self._changed),
            looked=looked,
        )


def is_stray(job: Job, attempt: int, line: dict[str, Any]) -> bool:
    """Whether the service runs an attempt that was given up because it seemed never to have been created."""
    if line["ProcessingJobStatus"] != IN_PROGRESS or job.entry(attempt).get("created_at") or attempt > job.attempt:
        return False
    return attempt < job.attempt or (job.ended and job.status != COMPLETED)


def send_stop(store: Store, service: calls.Service, job: Job, now: float) -> bool:
    """Tell the service to stop a job; returns whether that worked. A job that has ended meanwhile is no error."""
    try:
        service.stop(job.kind, job.name)
    except calls.EXPECTED as error:
        kind = calls.kind_of(error)
        if kind == "caller":
            raise calls.turned_away(error) from error
        if kind not in {"missing", "refused"}:
            return False
    settle(store, job, lambda current: transitions.stop_sent(current, now) if current.live else None)
    return True


def send_stops(store: Store, service: calls.Service, jobs: Sequence[Job], now: float) -> None:
    """The same for several Processing jobs, in one call; those for which it does not work are left to monitor()."""
    try:
        answers = service.stop_many([job.name for job in jobs])
    except calls.EXPECTED as error:
        if calls.kind_of(error) == "caller":
            raise calls.turned_away(error) from error
        return
    for job, answer in zip(jobs, answers, strict=True):
        if answer is None or calls.kind_of(answer) in {"missing", "refused"}:
            settle(store, job, lambda current: transitions.stop_sent(current, now) if current.live else None)


def _open(job: Job) -> bool:
    """Whether what the service says about the current attempt can still change the job."""
    return job.live or (job.status == NEW and job.attempt > 0 and job.exists == NO)


def _modified(line: dict[str, Any]) -> float:
    """When the service last changed that job, by its own clock."""
    times = (seconds_of(line.get(key)) for key in ("LastModifiedTime", "ProcessingEndTime", "CreationTime"))
    return max((time for time in times if time is not None), default=0.0)
