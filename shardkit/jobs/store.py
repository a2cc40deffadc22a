"""The store contract: where jobs are kept, and who may change them.

A store is a table of small rows with conditional writes; nothing in it calls an engine. ``launch()``, ``monitor()`` and
the rest know only this contract, so that a table in a file and a table in the cloud serve the same functions.
"""

from __future__ import annotations

import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from shardkit.jobs.errors import JobConflict, JobError
from shardkit.jobs.job import LAUNCHED, MAYBE, PROCESSING, STATUSES, TRAINING, Job, check_job_id
from shardkit.jobs.policy import MAY_GROW, SPOT
from shardkit.jobs.transitions import may_grow
from shardkit.masking import secret_places

Request = Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """A job to be submitted.

    Args:
        job_id: Its id; the service's names of its attempts are ``<id>-1``, ``<id>-2`` and so on, and must be unique in
            account and region. If the service already has a job of such a name, it is taken to be this one's.
        request: The arguments of CreateProcessingJob or CreateTrainingJob, without the job's name.
        depends_on: The ids of jobs, submitted before it, that must be ``Completed`` first.
        owner: Whose job it is.
        run: The run that it and other jobs belong to.
        notify: Who gets notice when it ends (see ``shardkit.jobs.notices``).
        tags: Anything else that its owner wants to note about it; these are not the service's tags.
    """

    job_id: str
    request: Request
    depends_on: Sequence[str] = ()
    owner: str = ""
    run: str = ""
    notify: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def job(self, now: float) -> Job:
        """The job that this submission makes.

        Raises:
            JobError: The id or the request cannot be used.
        """
        check_job_id(self.job_id)
        for name in ("ProcessingJobName", "TrainingJobName"):
            if name in self.request:
                raise JobError(
                    f"The request of job {self.job_id} has a {name}; the queue names every attempt itself.",
                    hint="Leave it out.",
                )
        self._check_secrets()
        types, instances = resources_of(self.request)
        return Job(
            self.job_id,
            depends_on=tuple(dict.fromkeys(self.depends_on)),
            kind=kind_of(self.request),
            owner=self.owner,
            run=self.run,
            notify=tuple(dict.fromkeys(self.notify)),
            tags=dict(self.tags) | ({SPOT: "true"} if self.request.get("EnableManagedSpotTraining") else {}),
            instance_types=types,
            instance_type=types[0] if types else "",
            instances=instances,
            submitted_at=now,
            changed_at=now,
            version=1,
        )

    def _check_secrets(self) -> None:
        """See that there is no secret in it: the store shows it, and so does the service to all who may describe."""
        about = {"request": self.request, "tags": dict(self.tags), "owner": self.owner, "run": self.run}
        place = next(secret_places(about), None)
        if place is not None:
            raise JobError(
                f"Job {self.job_id}: {place} looks like a secret, which everybody who may describe the job could read.",
                hint="Keep it in Secrets Manager and pass its ARN, or let the job's role give the access.",
            )

    def text(self) -> str:
        """The request as JSON; equal requests give equal text.

        Raises:
            JobError: The request is not plain data.
        """
        try:
            return json.dumps(self.request, sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise JobError(f"The request of job {self.job_id} cannot be written as JSON: {error}.") from None

    def check_same(self, existing: Job, text: str) -> None:
        """See that this is the existing job, whose request is ``text``.

        Raises:
            JobConflict: It is another one.
        """
        same = self.text() == text
        if same and tuple(dict.fromkeys(self.depends_on)) == existing.depends_on:
            return
        what = "list of jobs that it depends on" if same else "request"
        raise JobConflict(
            f"There is a job {self.job_id} already, with another {what}.", hint="Submit this one under another id."
        )


@dataclass(frozen=True)
class Ready:
    """A ``New`` job that may be launched now, in short.

    Args:
        job_id: Its id.
        owner: Whose job it is.
        instance_type: What it asks for first.
        instances: How many.
        order: Its position in the order of submission; a later job has a greater one.
    """

    job_id: str
    owner: str
    instance_type: str
    instances: int
    order: float | str


@dataclass(frozen=True)
class Waiting:
    """The ``New`` jobs, in short.

    Args:
        ready: Those that may be launched now: the first ones of each owner and instance type, by place.
        now: How many may be launched now.
        later: How many wait until a certain time.
        next_at: When the first of those may be launched, seconds since 1970; None if there is none.
        blocked: How many wait for other jobs.
    """

    ready: tuple[Ready, ...]
    now: int
    later: int
    next_at: float | None
    blocked: int

    @property
    def jobs(self) -> int:
        """How many there are."""
        return self.now + self.later + self.blocked


@dataclass(frozen=True)
class Flying:
    """A live job, in short; the fields are the job's."""

    job_id: str
    status: str
    kind: str
    owner: str
    instance_type: str
    instances: int
    exists: str
    launched_at: float
    changed_at: float
    lease_until: float
    stop_asked_at: float

    @classmethod
    def of(cls, job: Job) -> Flying:
        """A live job, in short."""
        return cls(*_fields_of_flying(job))

    @property
    def uncertain(self) -> bool:
        """Whether nobody knows if the service has it."""
        return self.status == LAUNCHED and self.exists == MAYBE


_fields_of_flying = operator.attrgetter(*(each.name for each in fields(Flying)))


class Store(Protocol):
    """What a table of jobs can do; every write is a condition and a change at once.

    Reads of many jobs (``waiting``, ``flight``, ``jobs``, ``counts``, ``ended``, ``notices``) may lag a moment behind
    the writes; ``get``, ``find``, ``requests`` and ``state`` do not.

    ``lag_s`` is how long that moment may be, in seconds; 0 if there is none.
    """

    lag_s: float

    def submit(
        self,
        job_id: str,
        request: Request,
        *,
        depends_on: Sequence[str] = (),
        owner: str = "",
        run: str = "",
        notify: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Job:
        """Add a job, or return the existing one if it has the same request."""

    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """Add jobs, in their order; after an error or a crash the same call again adds those that are missing."""

    def get(self, job_id: str) -> Job:
        """The job with that id; JobNotFound if there is none."""

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs with those ids; those that do not exist are left out."""

    def requests(self, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The requests of those jobs; jobs that do not exist are left out."""

    def jobs(
        self,
        *,
        status: str | Iterable[str] | None = None,
        run: str = "",
        owner: str = "",
        limit: int | None = None,
        latest: bool = False,
    ) -> list[Job]:
        """Jobs in the order of their submission.

        Args:
            status: Only those of this status, or of these.
            run: Only those of this run.
            owner: Only those of this owner.
            limit: The most jobs to return.
            latest: The latest first.
        """

    def counts(self, *, run: str = "") -> dict[str, int]:
        """How many jobs there are, in all or in that run, by status; every status is named."""

    def update(self, job: Job) -> Job | None:
        """Write a changed job, unless somebody has changed it since it was read; the job as it is now, or None."""

    def update_many(self, jobs: Iterable[Job]) -> list[Job | None]:
        """The same for several jobs, each on its own."""

    def take_over(self, jobs: Iterable[Job]) -> int:
        """Replace the jobs with the same ids, if these are later versions; returns how many were replaced."""

    def waiting(self, now: float, *, most: int, longest_s: float = math.inf) -> Waiting:
        """The ``New`` jobs, in short; ``ready`` has at most ``most`` for each owner and instance type.

        A job that would wait for longer than ``longest_s`` counts as ready: the clock that set its time was ahead.
        """

    def unblock(self, limit: int = 100) -> list[tuple[Job, str]]:
        """Unblock the jobs whose needs have all ``Completed``.

        Returns:
            At most ``limit`` ``New`` jobs that need one that failed or was stopped, each with the id of that one.
        """

    def dependents(self, job_id: str) -> list[Job]:
        """The jobs that wait for that one, or failed because it did not complete."""

    def flight(self) -> list[Flying]:
        """All live jobs, in short."""

    def notices(self, now: float, *, limit: int = 100, longest_s: float = math.inf) -> list[Job]:
        """Ended jobs whose notice is due, the longest overdue first, and any put off for over ``longest_s``."""

    def ended(self, since: float, until: float) -> Iterator[Job]:
        """The jobs that ended at ``since`` or later and before ``until``, in the order of their ends."""

    def state(self, key: str) -> tuple[dict[str, Any], int]:
        """What launchers and monitors share under that key, and its version; empty and 0 if nothing."""

    def put_state(self, key: str, value: Mapping[str, Any], version: int) -> bool:
        """Write it, if its version is still that one; returns whether it was written."""


class Submitting(ABC):
    """What all stores have in common: one job is submitted in the same way as several."""

    @abstractmethod
    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """Add jobs, in their order."""

    def submit(
        self,
        job_id: str,
        request: Request,
        *,
        depends_on: Sequence[str] = (),
        owner: str = "",
        run: str = "",
        notify: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Job:
        """Add a job.

        Args:
            job_id: Its id (see ``Submission``).
            request: The arguments of CreateProcessingJob or CreateTrainingJob, without the job's name.
            depends_on: The ids of jobs that must be ``Completed`` first.
            owner: Whose job it is.
            run: The run that it and other jobs belong to.
            notify: Who gets notice when it ends.
            tags: Anything else that its owner wants to note about it.

        Returns:
            The job; the one that is there already if it has the same request and needs the same jobs.

        Raises:
            JobConflict: The id is taken by another request.
            JobNotFound: It depends on a job that was not submitted.
            JobError: The id or the request cannot be used.
            StoreError: The store cannot be used, or has no place for such a request.
        """
        return self.submit_many([Submission(job_id, request, depends_on, owner, run, notify, tags or {})])[0]


def request_of(store: Store, job_id: str) -> dict[str, Any]:
    """The request of that job.

    Raises:
        JobNotFound: There is no such job.
    """
    requests = store.requests([job_id])
    if job_id not in requests:
        store.get(job_id)  # raises that it does not exist
    return requests[job_id]


def batches(values: Iterable[str], size: int) -> Iterator[list[str]]:
    """The distinct values, ``size`` at a time."""
    different = list(dict.fromkeys(values))
    return (different[at : at + size] for at in range(0, len(different), size))


def check_statuses(status: str | Iterable[str]) -> list[str]:
    """A status, or several, as a list.

    Raises:
        JobError: One of them is not a status.
    """
    wanted = [status] if isinstance(status, str) else list(status)
    unknown = sorted(set(wanted) - set(STATUSES))
    if unknown:
        raise JobError(f"There is no status {unknown[0]!r}.", hint=f"There are {', '.join(STATUSES)}.")
    return wanted


def kind_of(request: Request) -> str:
    """Whether it is a request for a Processing job or for a training job."""
    return TRAINING if "AlgorithmSpecification" in request or "ResourceConfig" in request else PROCESSING


def resources_of(request: Request) -> tuple[tuple[str, ...], int]:
    """The instance types that a request allows, in order of preference, and how many instances it takes at most."""
    cluster = (request.get("ProcessingResources") or {}).get("ClusterConfig") or request.get("ResourceConfig") or {}
    if not cluster and "Resources" in request:
        cluster = {"InstanceType": request["Resources"].get("partition")}
    choices, groups = cluster.get("InstancePreferences"), cluster.get("InstanceGroups")
    wanted = choices or groups or [cluster]
    types = tuple(dict.fromkeys(each["InstanceType"] for each in wanted if each.get("InstanceType")))
    counts = [each.get("InstanceCount") or cluster.get("InstanceCount") or 1 for each in wanted]
    return types, sum(counts) if groups else max(counts)


def prepared_for(job: Job, request: dict[str, Any]) -> dict[str, Any]:
    """The request for a job's next attempt; a variable tells it that it may have a larger instance after that."""
    if may_grow(job):
        request = request | {"Environment": {**(request.get("Environment") or {}), MAY_GROW: "1"}}
    return turned(request, job.instance_type) if job.instance_type else request


def turned(request: dict[str, Any], first: str) -> dict[str, Any]:
    """The request with its instance preferences rotated so that type ``first`` comes first, or alone if it is none."""
    resources = request.get("ProcessingResources") or {}
    cluster = resources.get("ClusterConfig") or request.get("ResourceConfig") or {}
    wanted = cluster.get("InstancePreferences") or []
    at = next((i for i, each in enumerate(wanted) if each.get("InstanceType") == first), 0)
    if at:
        cluster = cluster | {"InstancePreferences": [*wanted[at:], *wanted[:at]]}
    elif cluster and first not in resources_of(request)[0]:
        cluster = {name: value for name, value in cluster.items() if name != "InstancePreferences"}
        cluster |= {"InstanceType": first, "InstanceCount": resources_of(request)[1]}
    else:
        return request
    if not resources:
        return request | {"ResourceConfig": cluster}
    return request | {"ProcessingResources": resources | {"ClusterConfig": cluster}}
