"""The service's bad days: an engine that answers as the service does when it is asked too often, or has no machines.

    engine = FaultyEngine(LocalEngine(), create_rate=1, throttle=0.2, lose_responses=0.1, capacity_errors=0.03, seed=7)

What it does to which call follows from the seed, so that a test can be run again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ConnectionClosedError

from shardkit.engines.validation import refuse
from shardkit.errors import PipelineError

if TYPE_CHECKING:
    from shardkit.engines.local import LocalEngine

INTERRUPTED_AFTER_S = 1.0
CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type "
    "or after some time."
)


Call = Callable[..., dict[str, Any]]


class FaultyEngine:
    """An engine with faults.

    Args:
        engine: what does the work.
        create_rate: CreateProcessingJob calls a second; more are throttled. None: as many as come.
        throttle: the share of calls, 0 to 1, that are throttled whatever the rate.
        lose_responses: the share of calls that are carried out while their answer never arrives.
        capacity_errors: the share of jobs that fail with a CapacityError.
        spot_interruptions: the share of training jobs on spot instances that lose them once, a second after their
            creation.
        seed: what the choices are made from.
        clock: seconds, for the rate.

    Raises:
        PipelineError: a share is not between 0 and 1, or the rate is not above 0.
    """

    def __init__(
        self,
        engine: LocalEngine,
        *,
        create_rate: float | None = None,
        throttle: float = 0.0,
        lose_responses: float = 0.0,
        capacity_errors: float = 0.0,
        spot_interruptions: float = 0.0,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shares = {"throttle": throttle, "lose_responses": lose_responses, "capacity_errors": capacity_errors}
        shares["spot_interruptions"] = spot_interruptions
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
        engine = self._engine
        return self._create("CreateProcessingJob", engine.create_processing_job, engine.create_failed_job, request)

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        """Start a training job, or have it fail for want of machines."""
        engine = self._engine
        create, fail = engine.create_training_job, engine.create_failed_training_job
        answer = self._create("CreateTrainingJob", create, fail, request)
        if request.get("EnableManagedSpotTraining") and self._happens("spot_interruptions"):
            timer = threading.Timer(INTERRUPTED_AFTER_S, engine.interrupt_training_job, [request["TrainingJobName"]])
            timer.daemon = True
            timer.start()
        return answer

    def _create(self, operation: str, create: Call, fail: Call, request: dict[str, Any]) -> dict[str, Any]:
        def create_or_fail(**request: Any) -> dict[str, Any]:
            return fail(CAPACITY, **request) if self._happens("capacity_errors") else create(**request)

        with self._lock:
            early = self._create_rate is not None and self._clock() < self._next_create
            if self._create_rate is not None and not early:
                self._next_create = self._clock() + 1 / self._create_rate
        if early:
            _throttled(operation)
        return self._call(operation, create_or_fail, request)

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        """Describe a job."""
        return self._call("DescribeProcessingJob", self._engine.describe_processing_job, request)

    def describe_training_job(self, **request: Any) -> dict[str, Any]:
        """Describe a training job."""
        return self._call("DescribeTrainingJob", self._engine.describe_training_job, request)

    def list_processing_jobs(self, **request: Any) -> dict[str, Any]:
        """List jobs."""
        return self._call("ListProcessingJobs", self._engine.list_processing_jobs, request)

    def list_training_jobs(self, **request: Any) -> dict[str, Any]:
        """List training jobs."""
        return self._call("ListTrainingJobs", self._engine.list_training_jobs, request)

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        """Stop a job."""
        return self._call("StopProcessingJob", self._engine.stop_processing_job, request)

    def stop_training_job(self, **request: Any) -> dict[str, Any]:
        """Stop a training job."""
        return self._call("StopTrainingJob", self._engine.stop_training_job, request)

    def __getattr__(self, name: str) -> Any:
        """All other attributes of the engine, unchanged."""
        return getattr(self._engine, name)

    def _call(self, operation: str, call: Call, request: dict[str, Any]) -> dict[str, Any]:
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
