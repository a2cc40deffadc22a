"""SageMaker's Processing and training jobs in simulated time, with its limits and its faults.

An object with the methods of the boto3 client that an engine has. Nothing happens by itself: what has become of a job
is worked out from the clock when somebody asks. Errors are botocore's own.

    clock = SimulatedClock()
    service = SimulatedService(clock, seed=1, quota=20, faults=Faults(throttled=0.2, lost=0.1, capacity=0.03))
"""

from __future__ import annotations

import bisect
import datetime
import functools
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import ClientError, ReadTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

OPERATIONS = {
    "create_processing_job": "CreateProcessingJob",
    "describe_processing_job": "DescribeProcessingJob",
    "list_processing_jobs": "ListProcessingJobs",
    "stop_processing_job": "StopProcessingJob",
    "create_training_job": "CreateTrainingJob",
    "describe_training_job": "DescribeTrainingJob",
    "list_training_jobs": "ListTrainingJobs",
    "stop_training_job": "StopTrainingJob",
}


class Clock(Protocol):
    def time(self) -> float: ...


@dataclass(frozen=True)
class Faults:
    """How often things go wrong: shares of calls, and of attempts."""

    throttled: float = 0.0  # of calls
    lost: float = 0.0  # of calls: they get no answer, and half of them are carried out
    capacity: float = 0.0  # of attempts, here and below
    internal: float = 0.0
    stopped: float = 0.0
    timeout: float = 0.0
    died: float = 0.0
    user: float = 0.0
    hidden_reason: float = 0.0  # of failures: the list gives no reason


@dataclass
class Attempt:
    """A job of the service."""

    kind: str
    name: str
    request: dict[str, Any]
    created_at: float
    ends_at: float
    outcome: str
    hidden: bool = False
    stop_at: float | None = None
    changed_at: float = field(default=0.0)

    @functools.cached_property
    def job_id(self) -> str:
        return self.name.rpartition("-")[0]

    @functools.cached_property
    def instances(self) -> int:
        cluster = self.request.get("ProcessingResources", {}).get("ClusterConfig", {})
        return int(cluster.get("InstanceCount", 1))

    @property
    def over_at(self) -> float:
        return self.ends_at if self.stop_at is None else min(self.ends_at, self.stop_at)

    def status(self, now: float) -> str:
        if now < self.over_at:
            return "InProgress"
        if self.stop_at is not None and self.stop_at <= self.ends_at:
            return "Stopped"
        return {"completed": "Completed", "stopped": "Stopped", "timeout": "Stopped"}.get(self.outcome, "Failed")


REASONS = {
    "capacity": "CapacityError: Unable to provision requested ML compute capacity.",
    "internal": "InternalServerError: We encountered an internal error. Please try again.",
    "died": "AlgorithmError: See job logs for more information, exit code: 137",
    "user": "AlgorithmError: See job logs for more information, exit code: 1",
    "memory": "AlgorithmError: See job logs for more information, exit code: 75",
}


class SimulatedService:
    """Processing jobs that take only simulated time.

    Args:
        clock: Gives the time.
        seed: The seed of everything that is random.
        quota: How many instances may run at once.
        creates_per_s: CreateProcessingJob calls a second; more are throttled.
        seconds: How long a job runs: a number, or a function of the job's name.
        faults: What goes wrong, and how often.
        outcomes: The outcomes of attempts, by name, which take precedence over ``faults``.
        delay_s: How long a change takes to show up in the list.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        seed: int = 0,
        quota: int = 1_000_000,
        creates_per_s: float = 1.0,
        seconds: float | Callable[[str], float] = 300.0,
        faults: Faults = Faults(),
        outcomes: Mapping[str, str] | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.clock, self.seed, self.quota, self.faults, self.delay_s = clock, seed, quota, faults, delay_s
        self.creates_per_s, self.seconds, self.outcomes = creates_per_s, seconds, dict(outcomes or {})
        self.jobs: dict[str, Attempt] = {}
        self._alive: list[Attempt] = []
        self._over: list[tuple[float, str]] = []  # when those that are no more alive ended, and their names
        self.calls: Counter[str] = Counter()  # by operation
        self.answers: Counter[tuple[str, str]] = Counter()  # by operation and answer
        self.stops: list[str] = []
        self.next_errors: dict[str, list[Exception]] = {}  # by method: raised instead of the next calls
        self.twice: list[str] = []  # jobs that had two running attempts at once
        self._dice = random.Random(seed)
        self._tokens, self._filled_at = 1.0, clock.time()
        self._lock = threading.RLock()

    # ---- the four methods -------------------------------------------------------------------------------------------

    def create_processing_job(self, **request: Any) -> dict[str, Any]:
        return self._call("create_processing_job", lambda: self._create(request.pop("ProcessingJobName"), request))

    def describe_processing_job(self, **request: Any) -> dict[str, Any]:
        return self._call("describe_processing_job", lambda: self._describe(request["ProcessingJobName"]))

    def list_processing_jobs(self, **filters: Any) -> dict[str, Any]:
        return self._call("list_processing_jobs", lambda: self._list(filters))

    def stop_processing_job(self, **request: Any) -> dict[str, Any]:
        return self._call("stop_processing_job", lambda: self._stop(request["ProcessingJobName"]))

    def create_training_job(self, **request: Any) -> dict[str, Any]:
        name = request.pop("TrainingJobName")
        return self._call("create_training_job", lambda: self._create(name, request, kind="Training"))

    def describe_training_job(self, **request: Any) -> dict[str, Any]:
        return self._call("describe_training_job", lambda: training_words(self._describe(request["TrainingJobName"])))

    def list_training_jobs(self, **filters: Any) -> dict[str, Any]:
        def list_them() -> dict[str, Any]:
            answer = self._list(filters, kind="Training")
            lines = [training_words(line) for line in answer.pop("ProcessingJobSummaries")]
            return answer | {"TrainingJobSummaries": [without_reason(line) for line in lines]}

        return self._call("list_training_jobs", list_them)

    def stop_training_job(self, **request: Any) -> dict[str, Any]:
        return self._call("stop_training_job", lambda: self._stop(request["TrainingJobName"]))

    # ---- what tests look at -----------------------------------------------------------------------------------------

    def alive(self) -> list[Attempt]:
        now = self.clock.time()
        alive, over = [], []
        for each in self._alive:
            (alive if now < each.over_at else over).append(each)
        if over:
            self._alive = alive
            for each in over:
                bisect.insort(self._over, (each.over_at, each.name))
        return self._alive

    def event(self, name: str, *, ago_s: float = 0.0) -> dict[str, Any]:
        """A state-change event of a job, as it was so many seconds ago."""
        now = self.clock.time() - ago_s
        attempt = self.jobs[name]
        content = self._line(attempt, now) | self._why(attempt, now)
        return training_words(content) if attempt.kind == "Training" else content

    def fail_next(self, method: str, *errors: Exception) -> None:
        self.next_errors.setdefault(method, []).extend(errors)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _call(self, method: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            operation = OPERATIONS[method]
            self.calls[operation] += 1
            try:
                if self.next_errors.get(method):
                    raise self.next_errors[method].pop(0)
                answer = self._with_faults(operation, do)
            except ClientError as error:
                self.answers[operation, error.response["Error"]["Code"]] += 1
                raise
            except ReadTimeoutError:
                self.answers[operation, "lost"] += 1
                raise
            self.answers[operation, "done"] += 1
            return answer

    def _with_faults(self, operation: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self._dice.random() < self.faults.throttled:
            raise client_error("ThrottlingException", "Rate exceeded", operation)
        if operation.startswith("Create") and not self._token():
            self.answers[operation, "too fast"] += 1
            raise client_error("ThrottlingException", "Rate exceeded", operation)
        lost = self._dice.random() < self.faults.lost
        if lost and self._dice.random() < 0.5:
            self.answers[operation, "not done"] += 1
            raise ReadTimeoutError(endpoint_url="https://service")
        answer = do()
        if lost:
            raise ReadTimeoutError(endpoint_url="https://service")
        return answer

    def _token(self) -> bool:
        """Whether the rate allows another create: a token bucket of size one."""
        now = self.clock.time()
        self._tokens = min(1.0, self._tokens + abs(now - self._filled_at) * self.creates_per_s)
        self._filled_at = now
        if self._tokens < 0.999:
            return False
        self._tokens -= 1.0
        return True

    def _create(self, name: str, request: dict[str, Any], *, kind: str = "Processing") -> dict[str, Any]:
        operation, now = "CreateProcessingJob", self.clock.time()
        if name in self.jobs:
            raise client_error("ResourceInUse", f"Processing job {name} already exists.", operation)
        attempt = Attempt(kind, name, request, now, now, "", changed_at=now)
        alive = self.alive()
        used = sum(each.instances for each in alive)
        if used + attempt.instances > self.quota:
            raise client_error(
                "ResourceLimitExceeded",
                f"The account-level service limit for processing job usage is {self.quota} Instances, with current "
                f"utilization of {used} Instances and a request delta of {attempt.instances} Instances.",
                operation,
            )
        attempt.outcome, took = self._fate(name)
        attempt.ends_at = now + took
        attempt.hidden = self._draw(name, "hidden") < self.faults.hidden_reason
        if any(each.job_id == attempt.job_id for each in alive):
            self.twice.append(name)
        self.jobs[name] = attempt
        self._alive.append(attempt)
        return {"ProcessingJobArn": arn(name)}

    def _fate(self, name: str) -> tuple[str, float]:
        """An attempt's outcome, and after how long: always the same for the same name, whenever it is created."""
        took = float(self.seconds(name) if callable(self.seconds) else self.seconds)
        draw, outcome = self._draw(name, "fate"), self.outcomes.get(name, "")
        if not outcome:
            outcome = "completed"
            for cause in ("capacity", "internal", "stopped", "timeout", "died", "user"):
                share = getattr(self.faults, cause)
                if draw < share:
                    outcome = cause
                    break
                draw -= share
        if outcome == "capacity":
            took = min(took, 30.0)
        return outcome, took

    def _draw(self, name: str, what: str) -> float:
        return random.Random(f"{self.seed}/{what}/{name}").random()

    def _describe(self, name: str) -> dict[str, Any]:
        attempt = self._known(name, "DescribeProcessingJob")
        answer = self._line(attempt, self.clock.time()) | self._why(attempt, self.clock.time())
        answer |= attempt.request
        if answer["ProcessingJobStatus"] != "InProgress":
            answer["ProcessingStartTime"] = moment(attempt.created_at)
        return answer

    def _list(self, filters: Mapping[str, Any], *, kind: str = "Processing") -> dict[str, Any]:
        now = self.clock.time() - self.delay_s
        since = filters["LastModifiedTimeAfter"].timestamp() - 1 if "LastModifiedTimeAfter" in filters else 0.0
        lines = [
            self._line(each, now)
            for each in self._modified(since)
            if each.kind == kind and each.created_at <= now and min(each.over_at, now) >= since
        ]
        lines = [line for line in lines if matches(line, filters)]
        lines.sort(key=lambda line: (line["CreationTime"], line["ProcessingJobName"]))
        after = filters.get("NextToken", "")
        if after:
            time, _, name = after.partition(" ")
            lines = [
                line
                for line in lines
                if (line["CreationTime"].timestamp(), line["ProcessingJobName"]) > (float(time), name)
            ]
        most = filters.get("MaxResults", 10)
        page = [line | self._why_listed(line["ProcessingJobName"], now) for line in lines[:most]]
        answer: dict[str, Any] = {"ProcessingJobSummaries": page}
        if len(lines) > most:
            last = page[-1]
            answer["NextToken"] = f"{last['CreationTime'].timestamp()!r} {last['ProcessingJobName']}"
        return answer

    def _modified(self, since: float) -> list[Attempt]:
        """Those that were still alive then, and that no test has taken away."""
        alive = [each.name for each in self.alive()]
        ended = [name for _, name in self._over[bisect.bisect_left(self._over, (since, "")) :]]
        return [self.jobs[name] for name in (*alive, *ended) if name in self.jobs]

    def _line(self, attempt: Attempt, now: float) -> dict[str, Any]:
        status = attempt.status(now)
        over = status != "InProgress"
        line = {
            "ProcessingJobName": attempt.name,
            "ProcessingJobArn": arn(attempt.name),
            "CreationTime": moment(attempt.created_at),
            "LastModifiedTime": moment(attempt.over_at if over else attempt.changed_at),
            "ProcessingJobStatus": status,
        }
        return line | ({"ProcessingEndTime": moment(attempt.over_at)} if over else {})

    def _why_listed(self, name: str, now: float) -> dict[str, Any]:
        return {} if self.jobs[name].hidden else self._why(self.jobs[name], now)

    def _why(self, attempt: Attempt, now: float) -> dict[str, Any]:
        if attempt.status(now) != "Failed":
            return {}
        messages = {"user": "ValueError: no such column", "memory": "memory: 1 record needs more."}
        message = messages.get(attempt.outcome)
        return {"FailureReason": REASONS[attempt.outcome]} | ({"ExitMessage": message} if message else {})

    def _stop(self, name: str) -> dict[str, Any]:
        attempt = self._known(name, "StopProcessingJob")
        now = self.clock.time()
        if now >= attempt.over_at:
            raise client_error(
                "ValidationException", "The job is in a terminal state and cannot be stopped.", "StopProcessingJob"
            )
        self.stops.append(name)
        attempt.stop_at = now + 5
        return {}

    def _known(self, name: str, operation: str) -> Attempt:
        if name not in self.jobs:
            raise client_error("ValidationException", "Could not find requested job", operation)
        return self.jobs[name]


def matches(line: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    def checks() -> Iterator[bool]:
        yield filters.get("NameContains", "") in line["ProcessingJobName"]
        yield filters.get("StatusEquals", line["ProcessingJobStatus"]) == line["ProcessingJobStatus"]
        for name, key in (("CreationTime", "CreationTime"), ("LastModifiedTime", "LastModifiedTime")):
            yield filters.get(f"{name}After", line[key]) <= line[key]
            yield filters.get(f"{name}Before", line[key]) >= line[key]

    return all(checks())


def training_words(answer: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {key.replace("ProcessingJob", "TrainingJob"): value for key, value in answer.items()}
    for ours, theirs in (("ProcessingStartTime", "TrainingStartTime"), ("ProcessingEndTime", "TrainingEndTime")):
        if ours in renamed:
            renamed[theirs] = renamed.pop(ours)
    return renamed


def without_reason(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in {"FailureReason", "ExitMessage"}}


def client_error(code: str, message: str, operation: str, *, status: int = 400, retries: int = 0) -> ClientError:
    metadata = {"HTTPStatusCode": status, "RetryAttempts": retries}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, operation)  # type: ignore[arg-type]


def moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def arn(name: str) -> str:
    return f"arn:aws:sagemaker:eu-west-1:123456789012:processing-job/{name}"
