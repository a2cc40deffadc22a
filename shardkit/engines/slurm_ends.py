"""How a job ended that Slurm has ended, in the service's words: what Slurm says, as a status and a reason.

The queue of jobs recognizes a cause by the first word of a reason (see ``shardkit.jobs.causes``).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardkit.engines.slurm_commands import Seen
    from shardkit.engines.slurm_files import Batch

FAILED, STOPPED = "Failed", "Stopped"
_ENDS = {
    "PREEMPTED": (FAILED, "Preempted: Slurm gave the node{node} of job {job} to others."),
    "NODE_FAIL": (FAILED, "NodeFailure: the node{node} of Slurm job {job} does not answer any more."),
    "BOOT_FAIL": (FAILED, "NodeFailure: the node{node} of Slurm job {job} did not start."),
    "REVOKED": (FAILED, "NodeFailure: Slurm job {job} was taken over by another cluster."),
    "OUT_OF_MEMORY": (FAILED, "OutOfMemory: Slurm job {job} took more memory than it has; raise engine.memory_gb."),
    "TIMEOUT": (STOPPED, "MaxRuntimeExceeded: Slurm job {job} ran longer than its time limit."),
    "DEADLINE": (STOPPED, "MaxRuntimeExceeded: Slurm job {job} could not end before its deadline."),
    "CANCELLED": (STOPPED, "Somebody cancelled Slurm job {job}."),
}
GONE = "JobLost: Slurm knows nothing of job {job} any more, and it has not said how it ended."
SILENT = "InternalServerError: Slurm job {job} ended ({state}){on} without a word; it may have been killed."
NEVER = (
    "InternalServerError: Slurm job {job} ended ({state}){on} before its program began. Do the nodes see engine.root, "
    "{root}, and the Python that submitted the job, {python}? {log} may say more."
)


def end_of(seen: Seen | None, job: str, *, begun: bool, stopped: bool, batch: Batch) -> tuple[dict[str, str], bool]:
    """How a job ended whose files do not say it, and whether that is sure.

    It is not if the files may just not have arrived here yet: its program may have ended by itself.

    Args:
        seen: What Slurm says of it; None if it does not know it.
        job: The Slurm job.
        begun: Whether its program has begun.
        stopped: Whether it was to be stopped.
        batch: The submission that it is of.
    """
    state = "" if seen is None else seen.state
    if stopped and (not begun or state == "CANCELLED"):
        return {"ProcessingJobStatus": STOPPED}, seen is not None
    if seen is not None and state == "FAILED" and batch.exceeded_memory(seen.number):
        state = "OUT_OF_MEMORY"
    if state in _ENDS:
        status, reason = _ENDS[state]
        return {"ProcessingJobStatus": status, "FailureReason": reason.format(job=job, node=_node(seen))}, True
    if stopped:
        return {"ProcessingJobStatus": STOPPED}, False
    reason = GONE if seen is None else SILENT if begun else NEVER
    places = {"root": batch.root, "python": sys.executable, "log": batch.log}
    on = f" on{_node(seen)}" if _node(seen) else ""
    text = reason.format(job=job, state=state, on=on, **places)
    return {"ProcessingJobStatus": FAILED, "FailureReason": text}, False


def _node(seen: Seen | None) -> str:
    """The name of a job's node, after a space; empty if it is not known."""
    return f" {seen.node}" if seen is not None and seen.node else ""
