"""The store contract: where jobs lie, and who may change them.

A store is a table of small rows with conditional writes; nothing in it calls an engine. ``launch()``, ``monitor()`` and
the rest know only this contract, so that a table in a file and a table in the cloud serve the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shardkit.jobs.errors import JobError
from shardkit.jobs.job import Job, check_job_id

Request = Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """A job to be submitted.

    Args:
        job_id: Its id; the ProcessingJobNames of its attempts are ``<id>-1``, ``<id>-2`` and so on, and must be
            unique in account and region. A Processing job that is already there under such a name is taken for this
            one's.
        request: The arguments of CreateProcessingJob, without ProcessingJobName.
        depends_on: The ids of jobs, submitted before it, that must be ``Completed`` first.
        owner: Whose job it is.
        tags: Whatever else its owner wants to know about it; these are not the service's tags.
    """

    job_id: str
    request: Request
    depends_on: Sequence[str] = ()
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def job(self, now: float) -> Job:
        """The job that it makes.

        Raises:
            JobError: The id or the request cannot be used.
        """
        check_job_id(self.job_id)
        if "ProcessingJobName" in self.request:
            raise JobError(
                f"The request of job {self.job_id} has a ProcessingJobName; the queue names every attempt itself.",
                hint="Leave it out.",
            )
        types, instances = resources_of(self.request)
        return Job(
            self.job_id,
            depends_on=tuple(dict.fromkeys(self.depends_on)),
            owner=self.owner,
            tags=dict(self.tags),
            instance_types=types,
            instance_type=types[0] if types else "",
            instances=instances,
            submitted_at=now,
            changed_at=now,
            version=1,
        )

    def text(self) -> str:
        """The request as JSON, the same for the same request.

        Raises:
            JobError: The request is no plain data.
        """
        try:
            return json.dumps(self.request, sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise JobError(f"The request of job {self.job_id} cannot be written as JSON: {error}.") from None


@dataclass(frozen=True)
class Live:
    """What is in flight, in short.

    Args:
        jobs: How many jobs are ``Launched`` or ``InProgress``.
        first: The first of their ids in the alphabet; empty if there is none.
        last: The last one.
        launched_at: When the oldest of their attempts was launched, seconds since 1970.
    """

    jobs: int
    first: str
    last: str
    launched_at: float


class Store(Protocol):
    """What a table of jobs can do; every write is a condition and a change in one."""

    def submit(
        self,
        job_id: str,
        request: Request,
        *,
        depends_on: Sequence[str] = (),
        owner: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> Job:
        """Add a job, or return the one that is there if it has the same request."""

    def submit_many(self, submissions: Iterable[Submission]) -> list[Job]:
        """Add jobs, all or none."""

    def get(self, job_id: str) -> Job:
        """The job of that id; JobNotFound if there is none."""

    def find(self, job_ids: Iterable[str]) -> dict[str, Job]:
        """The jobs of those ids, as far as there are any."""

    def request(self, job_id: str) -> dict[str, Any]:
        """The request of that job."""

    def jobs(
        self, *, status: str | Iterable[str] | None = None, prefix: str = "", limit: int | None = None
    ) -> list[Job]:
        """Jobs in the order of their submission: of a status or several, with an id that begins like that."""

    def counts(self) -> dict[str, int]:
        """How many jobs there are, by status; every status is named."""

    def update(self, job: Job) -> Job | None:
        """Write a changed job, if nobody changed it since it was read; the job as it is now, or None."""

    def update_many(self, jobs: Iterable[Job]) -> list[Job | None]:
        """The same for several, each by itself."""

    def take_over(self, jobs: Iterable[Job]) -> int:
        """Put jobs in the place of those with their ids, if they are later versions; how many were."""

    def ready(self, now: float, *, without: Iterable[str] = (), limit: int = 1) -> list[Job]:
        """``New`` jobs that may be launched now, in the order of their submission, not of those instance types."""

    def next_ready(self) -> float | None:
        """When the first ``New`` job that waits for nothing but time may be launched; None if there is none."""

    def blocked(self) -> int:
        """How many ``New`` jobs wait for others."""

    def doomed(self, limit: int = 100) -> list[tuple[Job, str]]:
        """``New`` jobs that wait for one that failed or was stopped, each with the id of that one."""

    def dependents(self, job_id: str) -> list[Job]:
        """The jobs that wait for that one."""

    def in_flight(self) -> dict[str, int]:
        """Instances of live jobs, by instance type."""

    def live(self) -> Live:
        """What is in flight, in short."""

    def uncertain(self, limit: int = 1000) -> list[Job]:
        """``Launched`` jobs of which nobody knows whether the service has them."""

    def stopping(self, limit: int = 1000) -> list[Job]:
        """Live jobs that somebody asked to be stopped."""

    def state(self, key: str) -> tuple[dict[str, Any], int]:
        """What launchers and monitors keep for each other under that key, and its version; empty, 0 if nothing."""

    def put_state(self, key: str, value: Mapping[str, Any], version: int) -> bool:
        """Write it, if its version is still that one; whether it was."""


def resources_of(request: Request) -> tuple[tuple[str, ...], int]:
    """The instance types that a request allows, in order of preference, and how many instances it takes at most."""
    cluster = (request.get("ProcessingResources") or {}).get("ClusterConfig") or {}
    wanted = cluster.get("InstancePreferences") or [cluster]
    types = tuple(dict.fromkeys(each["InstanceType"] for each in wanted if each.get("InstanceType")))
    counts = [each.get("InstanceCount") or cluster.get("InstanceCount") or 1 for each in wanted]
    return types, max(counts)


def turned(request: dict[str, Any], first: str) -> dict[str, Any]:
    """The request with its instance preferences turned so that the one of that type comes first."""
    resources = request.get("ProcessingResources") or {}
    cluster = resources.get("ClusterConfig") or {}
    wanted = cluster.get("InstancePreferences") or []
    at = next((i for i, each in enumerate(wanted) if each.get("InstanceType") == first), 0)
    if not at:
        return request
    turned_cluster = cluster | {"InstancePreferences": [*wanted[at:], *wanted[:at]]}
    return request | {"ProcessingResources": resources | {"ClusterConfig": turned_cluster}}
