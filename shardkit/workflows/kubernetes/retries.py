"""When a pod is started again: after a lost node always, after a failure only if the file says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shardkit.runs.container.job import TRY_AGAIN

if TYPE_CHECKING:
    from shardkit.workflows.parts import Step

LOST_NODES = 10  # so many times a pod may lose its node
KILLED, TERMINATED = 137, 143  # exit codes of a process that SIGKILL or SIGTERM has ended, as when a node goes
LOST = "pod deleted|node shutdown|[Ee]victed|[Pp]reempt|node lost"
OWN_FAULT = "OOMKilled|[Dd]eadline"  # killed for its memory or its time: it would be again
BACKOFF = {"duration": "20s", "factor": "2", "cap": "10m"}


def retry_strategy(step: Step | None) -> dict[str, Any]:
    """The retryStrategy of a step's pods.

    Argo has one limit for everything. Without ``retries`` a pod is started again only if its node was lost, or if its
    exit code says that another attempt is worth while. With ``retries`` every end that is no success counts as one.
    """
    if step is not None and step.retries:
        return {"limit": str(step.retries), "retryPolicy": "Always", "backoff": dict(BACKOFF)}
    codes = ", ".join(str(code) for code in (TRY_AGAIN, KILLED, TERMINATED))
    expression = (
        f'lastRetry.status == "Error" || lastRetry.message matches "{LOST}" || '
        f'(asInt(lastRetry.exitCode) in [{codes}] && !(lastRetry.message matches "{OWN_FAULT}"))'
    )
    return {"limit": str(LOST_NODES), "retryPolicy": "Always", "expression": expression, "backoff": dict(BACKOFF)}
