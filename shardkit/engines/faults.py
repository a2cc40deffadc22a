"""The service's bad days: an engine that answers as the service does when it is asked too often, or has no machines.

    engine = FaultyEngine(LocalEngine(), create_rate=1, throttle=0.2, lose_responses=0.1, capacity_errors=0.03, seed=7)

What it does to which call follows from the seed, so that a test can be run again.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import ConnectionClosedError

from shardkit.engines.validation import refuse
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type "
    "or after some time."
)


class Engine(Protocol):
    """The calls of a local engine that faults can be put before."""

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        """Start a job."""

    def create_failed_job(self, reason: str, **request: Any) -> dict[str, Any]:
        """Take a request, and let its job fail at once."""

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        """Describe a job."""

    def list_processing_jobs(self, **request: Any) -> dict[str, Any]:
        """List jobs."""

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        """Stop a job."""


class FaultyEngine:
    """An engine with faults.

    Args:
        engine: what does the work.
        create_rate: CreateProcessingJob calls a second; more are throttled. None: as many as come.
        throttle: the share of calls, 0 to 1, that are throttled whatever the rate.
        lose_responses: the share of calls that are carried out while their answer never arrives.
        capacity_errors: the share of jobs that fail with a CapacityError.
        seed: what the choices are made from.
        clock: seconds, for the rate.

    Raises:
        PipelineError: a share is not between 0 and 1, or the rate is not above 0.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        create_rate: float | None = None,
        throttle: float = 0.0,
        lose_responses: float = 0.0,
        capacity_errors: float = 0.0,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shares = {"throttle": throttle, "lose_responses": lose_responses, "capacity_errors": capacity_errors}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise PipelineError(f"{name} is {share}; it is a share of the calls, from 0 to 1.")
        if create_rate is not None and create_rate <= 0:
            raise PipelineError(f"create_rate is {create_rate}; it is calls a second, above 0.")
        self._engine = engine
        self._create_rate = create_rate
        self._shares = shares
        self._random = random.Random(seed)  # noqa: S311  # not for secrets
        self._clock = clock
        self._lock = threading.Lock()
        self._next_create = float("-inf")

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        """Start a job, or have it fail for want of machines."""

        def create(**request: Any) -> dict[str, Any]:
            if self._happens("capacity_errors"):
                return self._engine.create_failed_job(CAPACITY, **request)
            return self._engine.create_processing_job(**request)

        with self._lock:
            early = self._create_rate is not None and self._clock() < self._next_create
            if self._create_rate is not None and not early:
                self._next_create = self._clock() + 1 / self._create_rate
        if early:
            _throttled("CreateProcessingJob")
        return self._call("CreateProcessingJob", create, request)

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        """Describe a job."""
        return self._call("DescribeProcessingJob", self._engine.describe_processing_job, request)

    def list_processing_jobs(self, **request: Any) -> dict[str, Any]:
        """List jobs."""
        return self._call("ListProcessingJobs", self._engine.list_processing_jobs, request)

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        """Stop a job."""
        return self._call("StopProcessingJob", self._engine.stop_processing_job, request)

    def __getattr__(self, name: str) -> Any:
        """All other attributes of the engine, unchanged."""
        return getattr(self._engine, name)

    def _call(self, operation: str, call: Callable[..., dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
        if self._happens("throttle"):
            _throttled(operation)
        lost = self._happens("lose_responses")
        answer = call(**request)
        if lost:
            raise ConnectionClosedError(endpoint_url=f"the local engine ({operation} was carried out)")
        return answer

    def _happens(self, fault: str) -> bool:
        share = self._shares[fault]
        if not share:
            return False
        with self._lock:
            return self._random.random() < share


def _throttled(operation: str) -> None:
    refuse(operation, "ThrottlingException", "Rate exceeded")
