"""Calls to the engine, and what its answers mean.

Processing jobs and training jobs have methods and fields of their own. Here both look the same: an answer about a
training job is put into the words of a Processing job.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import botocore.exceptions
import botocore.parsers

from shardkit.jobs.errors import EngineRefused
from shardkit.jobs.job import PROCESSING, TRAINING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_QUOTA = re.compile(r"service limit .* is (\d+) Instances")
PAGE = 100  # the most that ListProcessingJobs gives at a time

THROTTLED = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "SlowDown",
    }
)
MISSING = ("could not find", "requested resource not found")  # of Processing, and of training jobs
# The caller's fault, not the job's: every call would get this answer.
CALLER = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
# Errors that the client library raises before anything is sent.
REQUEST = (botocore.exceptions.ParamValidationError,)
BROKEN = (botocore.parsers.ResponseParserError,)
NETWORK = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError, OSError, *BROKEN)


# Errors that a call may end with; any other is a fault of the engine itself, and is raised.
EXPECTED = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, *BROKEN)


class Engine(Protocol):
    """Where jobs run: these four methods of boto3's SageMaker client.

    If training jobs are submitted too, it also has these four methods for them (``create_training_job`` and so on).
    If it is better at many jobs than at one, it has ``create_processing_jobs(requests=[...])``, which returns None for
    each that was created, and the error for each that was not; and likewise ``stop_processing_jobs(requests=[...])``. A
    job that the engine has and has not begun, it gives as ``InProgress`` with a ``WaitingReason``.
    """

    def create_processing_job(self, **kwargs: Any) -> Any:
        """CreateProcessingJob."""

    def describe_processing_job(self, **kwargs: Any) -> Any:
        """DescribeProcessingJob."""

    def list_processing_jobs(self, **kwargs: Any) -> Any:
        """ListProcessingJobs."""

    def stop_processing_job(self, **kwargs: Any) -> Any:
        """StopProcessingJob."""


class OutOfCalls(Exception):
    """No more calls may be made."""


@dataclass(frozen=True)
class Kind:
    """The service's words for a kind of job."""

    method: str
    word: str

    @property
    def name(self) -> str:
        """The field of a job's name."""
        return f"{self.word}JobName"


KINDS = {PROCESSING: Kind("processing", "Processing"), TRAINING: Kind("training", "Training")}
RAN_OUT = "MaxRuntimeExceeded"  # a secondary status


class Service:
    """An engine that counts its calls, and makes at most ``most`` of them; None is no limit."""

    def __init__(self, engine: Engine, *, most: int | None = None) -> None:
        self._engine, self._most, self.made = engine, most, 0

    def create(self, kind: str, name: str, request: Mapping[str, Any]) -> None:
        """Create a job."""
        self._call("create_{}_job", kind, **request, **{KINDS[kind].name: name})

    @property
    def takes_batches(self) -> bool:
        """Whether the engine creates many jobs in one call."""
        return hasattr(self._engine, "create_processing_jobs")

    def create_many(self, jobs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Exception | None]:
        """Create Processing jobs in one call: for each name and request None, or the error that its call ends with."""
        name = KINDS[PROCESSING].name
        requests = [{**request, name: job} for job, request in jobs]
        return list(self._call("create_{}_jobs", PROCESSING, requests=requests))

    def describe(self, kind: str, name: str) -> dict[str, Any]:
        """What the service says about a job."""
        return processing_words(self._call("describe_{}_job", kind, **{KINDS[kind].name: name}))

    def stop(self, kind: str, name: str) -> None:
        """Stop a job."""
        self._call("stop_{}_job", kind, **{KINDS[kind].name: name})

    @property
    def stops_batches(self) -> bool:
        """Whether the engine stops many jobs in one call."""
        return hasattr(self._engine, "stop_processing_jobs")

    def stop_many(self, names: Sequence[str]) -> list[Exception | None]:
        """Stop Processing jobs in one call: for each name None, or the error that its call ends with."""
        requests = [{KINDS[PROCESSING].name: name} for name in names]
        return list(self._call("stop_{}_jobs", PROCESSING, requests=requests))

    def list_pages(self, kind: str, **filters: Any) -> Iterator[list[dict[str, Any]]]:
        """The lines of the service's list, page by page, the oldest job first; empty filters are left out."""
        request = {"SortBy": "CreationTime", "SortOrder": "Ascending", "MaxResults": PAGE}
        request |= {name: value for name, value in filters.items() if value}
        while True:
            answer = self._call("list_{}_jobs", kind, **request)
            yield [processing_words(line) for line in answer[f"{KINDS[kind].word}JobSummaries"]]
            if not answer.get("NextToken"):
                return
            request["NextToken"] = answer["NextToken"]

    def _call(self, method: str, kind: str, **request: Any) -> Any:
        name = method.format(KINDS[kind].method)
        call = getattr(self._engine, name, None)
        if call is None:
            raise EngineRefused(f"This engine has no {kind} jobs.", hint="Use boto3's SageMaker client.")
        if self._most is not None and self.made >= self._most:
            raise OutOfCalls
        self.made += 1
        return call(**request)


def processing_words(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer about a training job, in the words of a Processing job; one about a Processing job, as it is."""
    if "TrainingJobName" not in answer:
        return dict(answer)
    translated = {key.replace("TrainingJob", "ProcessingJob"): value for key, value in answer.items()}
    for ours, theirs in (("ProcessingStartTime", "TrainingStartTime"), ("ProcessingEndTime", "TrainingEndTime")):
        if theirs in answer:
            translated[ours] = answer[theirs]
    if answer.get("SecondaryStatus") == RAN_OUT and not answer.get("FailureReason"):
        translated["FailureReason"] = f"{answer['SecondaryStatus']}: it ran longer than its StoppingCondition allows."
    return translated


def kind_of(error: Exception) -> str:
    """What an error of a call means.

    Returns:
        ``throttled``, ``quota``, ``exists``, ``missing``, ``caller`` (credentials and the like), ``unclear`` (it may
        have been done) or ``refused``.
    """
    if isinstance(error, botocore.exceptions.ClientError):
        return _kind_of_answer(error)
    if isinstance(error, REQUEST):
        return "refused"
    if isinstance(error, NETWORK):
        return "unclear"
    return "caller" if isinstance(error, botocore.exceptions.BotoCoreError) else "unclear"


def quota_of(reason: str) -> float:
    """How many instances the account may have, by the service's words for a quota that is used up; else infinite."""
    allowed = _QUOTA.search(reason)
    return int(allowed[1]) if allowed is not None else math.inf


def _kind_of_answer(error: botocore.exceptions.ClientError) -> str:
    details = error.response.get("Error", {})
    code, text = str(details.get("Code", "")), str(details.get("Message", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code in THROTTLED or "rate exceeded" in text.lower():
        return "throttled"
    if code == "ResourceLimitExceeded":
        return "quota"
    if code == "ResourceInUse" or "already exist" in text.lower():
        return "exists"
    if code in {"ResourceNotFound", "ResourceNotFoundException"} or any(words in text.lower() for words in MISSING):
        return "missing"
    if code in CALLER:
        return "caller"
    unclear = status >= 500 or code in {
        "InternalFailure",
        "InternalServerError",
        "ServiceUnavailable",
        "RequestTimeout",
    }
    return "unclear" if unclear else "refused"


def final(error: Exception) -> bool:
    """Whether the error is the answer to the only time that the request was sent.

    The client library may repeat a request by itself. The second answer says nothing about a job that the first
    request made.
    """
    response = getattr(error, "response", None) or {}
    return not (response.get("ResponseMetadata") or {}).get("RetryAttempts")


def words(error: Exception) -> str:
    """An error as a reason: the service's code and message, or the library's sentence."""
    response = getattr(error, "response", None) or {}
    details = response.get("Error") or {}
    if details.get("Code"):
        return f"{details['Code']}: {details.get('Message', '')}".strip(": ")
    return f"{type(error).__name__}: {error}"


def jitter(seconds: float, rng: random.Random | None = None) -> float:
    """Between half and all of that time, so that two that wait do not come back together."""
    draw = rng.random() if rng else random.random()  # noqa: S311  no secret
    return seconds * (0.5 + draw / 2)


def turned_away(error: Exception) -> EngineRefused:
    """The error to raise if the service takes no calls from this client."""
    return EngineRefused(
        f"The service takes no calls from here: {words(error)}.",
        hint="Check credentials, permissions and region, then go on.",
    )
