"""send_notices(): gives notice of a job's end to everybody who asked for it, once, and holds nothing up.

The store notes what is due and who has got it, so that any number of senders may run at the same time and die at any
moment. A notice comes twice only if a sender dies, or an answer gets lost, between the sending and that note.
"""

from __future__ import annotations

import logging
import time as machine_time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import Clock, RealClock
from shardkit.jobs.job import SENT, Job
from shardkit.jobs.message import notice_of
from shardkit.jobs.targets import TIMEOUT_S, Sender, Undelivered

if TYPE_CHECKING:
    from shardkit.jobs.message import Notice
    from shardkit.jobs.store import Store

LIMIT = 100
BUDGET_S = 60.0
MOST_TRIES = 10
RETRY_WAIT_S = 60.0  # doubled by every further failure
RETRY_WAIT_MAX_S = 4 * 3600.0
LONGEST_WAIT_S = 2 * RETRY_WAIT_MAX_S  # a notice that waits for longer was put off by a clock that was ahead

_log = logging.getLogger(__name__)
_NO_TIME = Undelivered("There was no time left.", wait_s=1.0)


@dataclass(frozen=True)
class NoticeReport:
    """What a call of send_notices() did.

    Args:
        sent: The jobs whose notice everybody has got.
        later: How many notices are tried again later.
        given_up: The jobs whose notice did not reach everybody, and is not sent again.
        trouble: Why notices could not be sent, in words, once for each target.
        more: Whether there may be more that are due now.
    """

    sent: tuple[str, ...] = ()
    later: int = 0
    given_up: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()
    more: bool = False


def send_notices(
    store: Store,
    *,
    session: Any = None,
    clock: Clock | None = None,
    place: str = "",
    region: str | None = None,
    limit: int = LIMIT,
    timeout_s: float = TIMEOUT_S,
    budget_s: float = BUDGET_S,
) -> NoticeReport:
    """Send the notices that are due.

    A target that does not accept a notice gets it again later, up to ten times within some hours; the other targets do
    not get it twice. A target that is down is tried once per call, no matter how many notices there are for it.

    Args:
        store: The jobs.
        session: The boto3 session; by default one is made when it is needed.
        clock: Gives the time.
        place: Where the store is, as the command line takes it.
        region: The service's region, for links to logs; by default the session's. There are no links if it is empty.
        limit: The most notices to send.
        timeout_s: How long one message may take.
        budget_s: No message is begun later than this many seconds after the call.

    Returns:
        What was done; no target's failure is raised.
    """
    time = clock or RealClock()
    due = store.notices(time.time(), limit=limit, longest_s=LONGEST_WAIT_S)
    if not due:
        return NoticeReport()
    sender = Sender(session, timeout_s=timeout_s)
    post = _Post(store, time, sender, machine_time.monotonic() + budget_s, budget_s + timeout_s + RETRY_WAIT_S)
    log_region = sender.region() if region is None else region
    done = 0
    for job in due:
        if post.is_over():
            break
        done += 1
        post.deliver(job, place=place, region=log_region)
    more = done < len(due) or len(due) >= limit
    return NoticeReport(tuple(post.sent), post.later, tuple(post.given_up), tuple(post.trouble.values()), more)


@dataclass
class _Post:
    """One call's work."""

    store: Store
    clock: Clock
    sender: Sender
    until: float
    lease_s: float
    sent: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    later: int = 0
    trouble: dict[str, str] = field(default_factory=dict)
    down: dict[str, Undelivered] = field(default_factory=dict)

    def is_over(self) -> bool:
        """Whether the time is up."""
        return machine_time.monotonic() >= self.until

    def deliver(self, job: Job, *, place: str, region: str) -> None:
        """Send one job's notice to all who have not got it, and note who has."""
        claimed = self.store.update(replace(job, notice_at=self.clock.time() + self.lease_s))
        if claimed is None:
            return  # another sender has it, or the job is tried again
        notice = notice_of(self.store, claimed, place=place, region=region)
        reached, failures, tried = list(claimed.notified), list[Undelivered](), False
        for target in claimed.notify:
            if target in reached:
                continue
            outage = self.down.get(target)
            failure = outage or self._send(target, notice)
            if failure is None:
                reached.append(target)
            else:
                failures.append(failure)
                tried |= not outage.wait_s if outage else failure is not _NO_TIME
        self._note(replace(claimed, notified=tuple(reached)), failures, tried=tried)

    def _send(self, target: str, notice: Notice) -> Undelivered | None:
        """Send it to one target; returns why that failed, or None."""
        if self.is_over():
            return _NO_TIME
        try:
            self.sender.send(target, notice)
        except Undelivered as failure:
            if failure.down:
                self.down[target] = failure
            self.trouble.setdefault(target, str(failure))
            return failure
        return None

    def _note(self, job: Job, failures: list[Undelivered], *, tried: bool) -> None:
        """Write what became of a notice."""
        if not failures:
            if self.store.update(replace(job, notice_at=SENT)) is not None:
                self.sent.append(job.job_id)
            return
        tries = job.notice_tries + tried
        if tries >= MOST_TRIES:
            left = ", ".join(target for target in job.notify if target not in job.notified)
            _log.warning(
                "The notice of job %s was given up after %d tries: %s has not got it. %s",
                job.job_id,
                tries,
                left,
                failures[0],
            )
            if self.store.update(replace(job, notice_at=SENT, notice_tries=tries)) is not None:
                self.given_up.append(job.job_id)
            return
        wait_s = min(RETRY_WAIT_S * 2.0 ** max(tries - 1, 0), RETRY_WAIT_MAX_S) if tried else 0.0
        wait_s = max(wait_s, *(failure.wait_s for failure in failures))
        self.store.update(replace(job, notice_at=self.clock.time() + wait_s, notice_tries=tries))
        self.later += 1
