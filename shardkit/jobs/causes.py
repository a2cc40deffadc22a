"""Why an attempt failed, from what the service says about it.

    preempted    it had to give way to other jobs: Preempted
    interrupted  its spot instances were taken back
    node         the machine that it ran on was lost: NodeFailure
    memory       it was ended because it took more memory than it had asked for: OutOfMemory; or it needs more for some
                 records, as a message says that begins with "memory:"
    quota        the account may have no instance of the larger type that it needs
    capacity     the service had no such instance: CapacityError
    internal     the service failed: InternalServerError
    stopped      it was stopped, although nobody had asked this queue to
    timeout      it ran longer than its MaxRuntimeInSeconds
    died         the program was killed: an exit code above 128, or neither exit code nor message
    transient    the program said that another try may help: exit code 75, or a message that begins with "transient:"
    user         the program failed by itself: any other AlgorithmError
    client       the service could not work with the request: ClientError
    refused      CreateProcessingJob was answered with an error that will not go away
    lost         the service does not know a job any more that it has run: JobLost, or it is in no list
    dependency   a job that this one needs failed or was stopped
    cost         its run had spent what it may before the job was launched
    unknown      none of these

After ``user``, ``client``, ``refused``, ``dependency`` or ``cost`` there are no further attempts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import seconds_of

if TYPE_CHECKING:
    from collections.abc import Mapping

EXIT_TRY_AGAIN = 75
SPOT_ENDS = {"Interrupted", "MaxWaitTimeExceeded"}  # secondary statuses of training jobs
_EXIT_CODE = re.compile(r"exit ?code:? *(-?[0-9]+)", re.IGNORECASE)
_TIMEOUT = re.compile(r"max\w*[ _-]?run[ _-]?time|time[ -]?out|timed out", re.IGNORECASE)
_KINDS = (
    ("CapacityError", "capacity"),
    ("InternalServerError", "internal"),
    ("InternalFailure", "internal"),
    ("Preempted:", "preempted"),
    ("NodeFailure:", "node"),
    ("OutOfMemory:", "memory"),
    ("JobLost:", "lost"),
)


def classify(answer: Mapping[str, Any]) -> str:  # noqa: PLR0911  a line for each
    """The cause of an attempt's end, from its Describe response or its line in a List response.

    Args:
        answer: The response or line of an attempt that is ``Failed`` or ``Stopped``.

    Returns:
        One of the causes above.
    """
    reason, message = answer.get("FailureReason") or "", answer.get("ExitMessage") or ""
    if answer.get("ProcessingJobStatus") == "Stopped" and answer.get("SecondaryStatus") in SPOT_ENDS:
        # With no start its spot instances were never there; with one they were, until they were taken back.
        return "interrupted" if answer.get("ProcessingStartTime") else "capacity"
    if answer.get("ProcessingJobStatus") == "Stopped":
        return "timeout" if _TIMEOUT.search(reason) or _ran_out(answer) else "stopped"
    fault = next((cause for word, cause in _KINDS if reason.startswith(word)), "")
    if fault:
        return fault
    said = next((cause for cause in ("transient", "memory") if message.lstrip().lower().startswith(f"{cause}:")), "")
    if said:
        return said
    code = _EXIT_CODE.search(reason)
    if code:
        return _cause_of_exit(int(code[1]))
    if reason.startswith("AlgorithmError"):
        return "user" if message.strip() else "died"
    if _TIMEOUT.search(reason):
        return "timeout"
    return "client" if reason.startswith("ClientError") else "unknown"


def _cause_of_exit(code: int) -> str:
    if code == EXIT_TRY_AGAIN:
        return "transient"
    return "died" if code > 128 or code < 0 else "user"


def reason_of(answer: Mapping[str, Any], cause: str) -> str:
    """The reason in words: the program's own message if there is one, else the service's reason."""
    reason = (answer.get("FailureReason") or "").strip()
    message = (answer.get("ExitMessage") or "").strip()
    if answer.get("SecondaryStatus") in SPOT_ENDS:
        return reason or _SPOT_ENDS_IN_WORDS[cause]
    if cause == "stopped":
        return reason or "It was stopped, and this queue was not asked to."
    if cause == "timeout":
        return reason or "It ran longer than its MaxRuntimeInSeconds."
    if message and cause in {"user", "transient", "died"}:
        return message
    return reason or message or "The service gave no reason."


_SPOT_ENDS_IN_WORDS = {
    "interrupted": "Its spot instances were taken back.",
    "capacity": "There were no spot instances within MaxWaitTimeInSeconds.",
}


def needs_describe(answer: Mapping[str, Any]) -> bool:
    """Whether a List line alone does not say why the attempt ended."""
    return answer.get("ProcessingJobStatus") in {"Failed", "Stopped"} and not answer.get("FailureReason")


def _ran_out(answer: Mapping[str, Any]) -> bool:
    """Whether it ran as long as it was allowed to."""
    allowed = (answer.get("StoppingCondition") or {}).get("MaxRuntimeInSeconds")
    begun = seconds_of(answer.get("ProcessingStartTime")) or seconds_of(answer.get("CreationTime"))
    ended = seconds_of(answer.get("ProcessingEndTime"))
    return allowed is not None and begun is not None and ended is not None and ended - begun >= allowed
