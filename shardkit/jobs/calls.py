"""Calls to the engine, and what its answers mean."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol

import botocore.exceptions
import botocore.parsers

from shardkit.jobs.errors import EngineRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

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
# The caller's fault, not the job's: every call would be answered so.
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
# Errors of the client library that come up before anything is sent.
REQUEST = (botocore.exceptions.ParamValidationError,)
BROKEN = (botocore.parsers.ResponseParserError,)
NETWORK = (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError, OSError, *BROKEN)


# What a call may be answered with; anything else is a fault of the engine itself, and raised.
EXPECTED = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, *BROKEN)


class Engine(Protocol):
    """Where Processing jobs run: these four methods of boto3's SageMaker client."""

    def create_processing_job(self, **kwargs: Any) -> Any:
        """CreateProcessingJob."""

    def describe_processing_job(self, **kwargs: Any) -> Any:
        """DescribeProcessingJob."""

    def list_processing_jobs(self, **kwargs: Any) -> Any:
        """ListProcessingJobs."""

    def stop_processing_job(self, **kwargs: Any) -> Any:
        """StopProcessingJob."""


class OutOfCalls(Exception):
    """As many calls were made as may be."""


class Counted:
    """An engine that counts its calls, and makes no more than so many."""

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most, self.made = engine, most, 0

    def create_processing_job(self, **kwargs: Any) -> Any:
        """CreateProcessingJob."""
        return self._call("create_processing_job", kwargs)

    def describe_processing_job(self, **kwargs: Any) -> Any:
        """DescribeProcessingJob."""
        return self._call("describe_processing_job", kwargs)

    def list_processing_jobs(self, **kwargs: Any) -> Any:
        """ListProcessingJobs."""
        return self._call("list_processing_jobs", kwargs)

    def stop_processing_job(self, **kwargs: Any) -> Any:
        """StopProcessingJob."""
        return self._call("stop_processing_job", kwargs)

    def _call(self, method: str, kwargs: dict[str, Any]) -> Any:
        if self.made >= self._most:
            raise OutOfCalls
        self.made += 1
        return getattr(self._engine, method)(**kwargs)


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
    if code in {"ResourceNotFound", "ResourceNotFoundException"} or "could not find" in text.lower():
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

    The client library may send a request again by itself. Of a job that the first one made, the second one's answer
    tells nothing.
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
    """Between a half and all of it, so that two that wait do not come back together."""
    draw = rng.random() if rng else random.random()  # noqa: S311  no secret
    return seconds * (0.5 + draw / 2)


def list_pages(engine: Engine, **filters: Any) -> Iterator[list[dict[str, Any]]]:
    """The lines of the service's list, page by page, the oldest job first; empty filters are left out."""
    request = {"SortBy": "CreationTime", "SortOrder": "Ascending", "MaxResults": PAGE}
    request |= {name: value for name, value in filters.items() if value}
    while True:
        answer = engine.list_processing_jobs(**request)
        yield answer["ProcessingJobSummaries"]
        if not answer.get("NextToken"):
            return
        request["NextToken"] = answer["NextToken"]


def turned_away(error: Exception) -> EngineRefused:
    """What to raise where the service takes no calls from this client."""
    return EngineRefused(
        f"The service takes no calls from here: {words(error)}.",
        hint="Check credentials, permissions and region, then go on.",
    )
