"""Stopping jobs, and trying them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.jobs import calls, transitions
from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.errors import JobConflict
from shardkit.jobs.job import COMPLETED, FAILED, LIVE, NEW, PROCESSING, STOPPED, YES, Job
from shardkit.jobs.monitoring import send_stop, send_stops
from shardkit.jobs.rounds import settle

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shardkit.jobs.calls import Engine
    from shardkit.jobs.store import Store


def stop(
    store: Store,
    engine: Engine | None,
    job_ids: Iterable[str] | None = None,
    *,
    run: str = "",
    clock: Clock | None = None,
) -> list[Job]:
    """Stop jobs: ``New`` ones at once; the service is told to stop the others, and monitor() sees them end.

    If the service cannot be told now (a throttled call, no network), monitor() tells it later.

    Args:
        store: The jobs.
        engine: The service; None leaves its calls to monitor().
        job_ids: Which jobs; all that have not ended by default, or those of the run.
        run: The run.
        clock: Gives the time.

    Returns:
        The jobs that were to be stopped, as they are now.

    Raises:
        EngineRefused: The service takes no calls from this client; the jobs are only marked.
    """
    time = clock or RealClock()
    wanted = list(job_ids) if job_ids is not None else None
    jobs = store.jobs(status=(NEW, *LIVE), run=run) if wanted is None else [store.get(each) for each in wanted]
    now = time.time()

    def ask(job: Job) -> Job | None:
        return None if job.ended or (job.live and job.stop_asked_at) else transitions.stop_asked(job, now)

    marked = [settle(store, job, ask) for job in jobs if not job.ended]
    if engine is not None:
        _send_stops(store, calls.Service(engine), marked, time)
    after = store.find(job.job_id for job in marked)
    return [after[job.job_id] for job in marked]


def _send_stops(store: Store, service: calls.Service, jobs: list[Job], time: Clock) -> None:
    """Send the stops that the service has not got yet, until one fails."""
    due = [job for job in jobs if job.live and job.exists == YES and not job.stop_sent_at]
    kinds = {PROCESSING} if service.stops_batches else set()
    if together := [job for job in due if job.kind in kinds]:
        send_stops(store, service, together, time.time())
    for job in due:
        if job.kind not in kinds and not send_stop(store, service, job, time.time()):
            return


def again(store: Store, job_id: str, *, clock: Clock | None = None) -> Job:
    """Let a job that failed or was stopped be launched again, with a new budget of attempts.

    The jobs that failed only because they needed it are ``New`` again too. Attempt numbers go on.

    Args:
        store: The jobs.
        job_id: Which job.
        clock: Gives the time.

    Returns:
        The job, ``New``.

    Raises:
        JobConflict: It neither failed nor was stopped.
    """
    now = (clock or RealClock()).time()
    job = store.get(job_id)
    if job.status not in {FAILED, STOPPED}:
        what = "has completed" if job.status == COMPLETED else f"is {job.status}"
        raise JobConflict(f"Job {job_id} {what}; only a job that failed or was stopped can be tried again.")

    def renew(current: Job) -> Job | None:
        return transitions.fresh(current, now) if current.status in {FAILED, STOPPED} else None

    done = settle(store, job, renew)
    waiting = [done.job_id]
    while waiting:
        needed = waiting.pop()
        for dependent in store.dependents(needed):
            if dependent.status == FAILED and dependent.cause == "dependency":
                settle(store, dependent, renew)
                waiting.append(dependent.job_id)
    return done
