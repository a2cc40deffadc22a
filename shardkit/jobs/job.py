"""A job as the store keeps it, and the names of its attempts.

    New -> Launched -> InProgress -> Completed | Failed | Stopped

``Launched`` is written before CreateProcessingJob is called, so that nobody else makes the same call; ``InProgress``
is what the service says. A failed attempt that may be tried again makes the job ``New`` once more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardkit.jobs.errors import JobError
from shardkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Mapping

NEW, LAUNCHED, IN_PROGRESS = "New", "Launched", "InProgress"
COMPLETED, FAILED, STOPPED = "Completed", "Failed", "Stopped"
STATUSES = (NEW, LAUNCHED, IN_PROGRESS, COMPLETED, FAILED, STOPPED)
LIVE = (LAUNCHED, IN_PROGRESS)
ENDED = (COMPLETED, FAILED, STOPPED)

# Does the service have the current attempt? NO: surely not, so its name can be used. MAYBE: a call may have got
# through. YES: the service said so, and the next attempt needs a name of its own.
NO, MAYBE, YES = "no", "maybe", "yes"

SENT = -1.0  # of a notice

PROCESSING, TRAINING = "processing", "training"
KINDS = (PROCESSING, TRAINING)

NAME_CHARACTERS = 63
MAX_ATTEMPT = 9999
ID_CHARACTERS = NAME_CHARACTERS - len(f"-{MAX_ATTEMPT}")
_ID = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*\Z")
_NAME = re.compile(r"(?P<job_id>[a-zA-Z0-9](?:-*[a-zA-Z0-9])*)-(?P<attempt>[1-9][0-9]{0,3})\Z")

Attempt = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One job of the queue.

    Args:
        job_id: Its id, unique in the store.
        status: ``New``, ``Launched``, ``InProgress``, ``Completed``, ``Failed`` or ``Stopped``.
        attempt: The number of the current attempt; 0 before the first launch.
        reason: Why it has its status, in words; empty if there is nothing to say.
        cause: The kind of the last failure (see ``shardkit.jobs.causes``); empty if there was none.
        attempts: What happened to every attempt, the oldest first: ``attempt``, ``name``, ``instance_type``,
            ``instances``, ``launched_at``, ``created_at``, ``ended_at``, ``status``, ``cause``, ``reason``,
            ``exit_message``, ``billable_s``, if they are known; times are ISO 8601 in UTC.
        depends_on: The ids of the jobs that must be ``Completed`` first.
        kind: ``processing`` or ``training``.
        owner: Whose job it is.
        run: The run that it and other jobs belong to; empty if it stands alone.
        notify: Who gets notice when it ends (see ``shardkit.jobs.notices``).
        tags: Anything else that its owner wants to note about it.
        instance_types: The instance types that the request allows, in order of preference.
        instance_type: The one that the current or next attempt asks for first.
        instances: How many instances it takes.
        exists: Whether the service has the current attempt: ``no``, ``maybe`` or ``yes``.
        submitted_at: When it was submitted, seconds since 1970; so are all times that follow.
        changed_at: When this row last changed.
        launched_at: When the current attempt was launched first.
        not_before: It is not launched before this time.
        lease_until: Until then, the call that launches it may still be under way.
        stop_asked_at: When somebody asked for it to be stopped; 0 if nobody did.
        stop_sent_at: When the service was told to stop it; 0 if it was not.
        missing_since: Since when the service has said that it does not know the attempt; 0 if it has not.
        base: The attempts up to this number belong to an earlier budget.
        notice_at: When its notice is to be sent; 0 before the job ends, ``SENT`` once it was sent or given up.
        notice_tries: How often sending it was tried in vain.
        notified: Those of ``notify`` that have got it.
        version: Counts the changes; a change is written only if nobody else has made one meanwhile.
    """

    job_id: str
    status: str = NEW
    attempt: int = 0
    reason: str = ""
    cause: str = ""
    attempts: tuple[Attempt, ...] = ()
    depends_on: tuple[str, ...] = ()
    kind: str = PROCESSING
    owner: str = ""
    run: str = ""
    notify: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    instance_types: tuple[str, ...] = ()
    instance_type: str = ""
    instances: int = 1
    exists: str = NO
    submitted_at: float = 0.0
    changed_at: float = 0.0
    launched_at: float = 0.0
    not_before: float = 0.0
    lease_until: float = 0.0
    stop_asked_at: float = 0.0
    stop_sent_at: float = 0.0
    missing_since: float = 0.0
    base: int = 0
    notice_at: float = 0.0
    notice_tries: int = 0
    notified: tuple[str, ...] = ()
    version: int = 0

    @property
    def name(self) -> str:
        """The service's name of the current attempt; empty before the first launch."""
        return name_of(self.job_id, self.attempt) if self.attempt else ""

    @property
    def live(self) -> bool:
        """Whether the service has or may have an attempt of it that has not ended."""
        return self.status in LIVE

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.status in ENDED

    def changed(self, **facts: Any) -> Job:
        """A copy with other values; a tenth of what `dataclasses.replace` takes, which a queue notices."""
        copy = object.__new__(Job)
        copy.__dict__.update(self.__dict__, **facts)
        return copy

    def written(self) -> Job:
        """The job as a store writes it over the version that was read; if it has ended, its notice is due."""
        due = self.notify and self.ended and not self.notice_at
        notice_at = self.changed_at if due else self.notice_at
        return self.changed(version=self.version + 1, notice_at=notice_at, reason=masked(self.reason))

    def entry(self, attempt: int | None = None) -> Attempt:
        """A copy of the entry of an attempt, by default the current one; empty if there is none."""
        wanted = self.attempt if attempt is None else attempt
        for entry in reversed(self.attempts):
            if entry["attempt"] == wanted:
                return dict(entry)
        return {}

    def with_entry(self, **facts: Any) -> Job:
        """This job with more facts in the entry of its current attempt."""
        facts |= {name: masked(facts[name]) for name in ("reason", "exit_message") if facts.get(name)}
        rest = tuple(entry for entry in self.attempts if entry["attempt"] != self.attempt)
        entry = {"attempt": self.attempt, "name": self.name} | self.entry() | facts
        return self.changed(attempts=(*rest, entry))


def name_of(job_id: str, attempt: int) -> str:
    """The ProcessingJobName of an attempt."""
    return f"{job_id}-{attempt}"


def parse_name(name: str) -> tuple[str, int] | None:
    """The job id and attempt of a ProcessingJobName; None if no queue has made it."""
    parts = _NAME.match(name)
    return (parts["job_id"], int(parts["attempt"])) if parts else None


def check_job_id(job_id: str) -> None:
    """See that all attempts of a job can be named.

    Raises:
        JobError: The id is too long, or has characters that the service's names do not have.
    """
    if not isinstance(job_id, str) or not _ID.match(job_id) or len(job_id) > ID_CHARACTERS:
        raise JobError(
            f"{job_id!r} cannot be a job id: attempts are named after it, and the service's names have letters, digits "
            f"and single or repeated hyphens between them only.",
            hint=f"Use at most {ID_CHARACTERS} such characters.",
        )
