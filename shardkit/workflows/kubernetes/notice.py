"""The notice of a run's end on Kubernetes, which the exit handler sends."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

from shardkit.jobs.clock import iso
from shardkit.jobs.job import COMPLETED, FAILED
from shardkit.jobs.targets import Sender
from shardkit.workflows.notices import delivery_trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SUCCEEDED = "Succeeded"  # as Argo says it


def send_notice(
    name: str, run_id: str, status: str, *, environment: str, targets: Iterable[str], say: Callable[[str], object]
) -> bool:
    """Tell the targets how a run has ended; returns whether all of them know."""
    notice = notice_of(name, run_id, status, environment)
    sender, well = Sender(), True
    for target in targets:
        if trouble := delivery_trouble(sender, target, notice):
            say(f"No notice could be sent: {trouble}")
            well = False
    return well


def notice_of(name: str, run_id: str, status: str, environment: str) -> dict[str, Any]:
    """The notice, in the form that the queue's targets take; ``status`` is Argo's."""
    well = status == SUCCEEDED
    where = f" in {environment}" if environment else ""
    return {
        "about": "run",
        "job_id": name,
        "run": f"{name} {run_id}{where}",
        "kind": "workflow",
        "owner": "",
        "tags": {"workflow": name, "environment": environment},
        "status": COMPLETED if well else FAILED,
        "cause": "",
        "cause_in_words": "",
        "reason": "" if well else f"Argo says {status}; what the steps said: argo logs {shlex.quote(run_id)}",
        "attempts": 1,
        "waited_s": None,
        "ran_s": None,
        "instance_type": "",
        "instances": 1,
        "submitted_at": "",
        "ended_at": iso(time.time()),
        "log_group": "",
        "log_stream_prefix": "",
        "log_url": "",
        "again": "" if well else f"argo retry {shlex.quote(run_id)}",
    }
