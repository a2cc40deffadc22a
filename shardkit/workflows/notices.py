"""Notices of the end of a workflow's run, to those whom the file names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from shardkit.errors import RunInterrupted
from shardkit.jobs.clock import iso
from shardkit.jobs.job import COMPLETED, FAILED, STOPPED
from shardkit.jobs.targets import Sender, Undelivered
from shardkit.workflows.states import DONE, FAILED_STEP
from shardkit.workflows.telling import reason_of

if TYPE_CHECKING:
    from shardkit.errors import ShardkitError
    from shardkit.workflows.running import WorkflowRun

WAITS_S = (0.0, 2.0, 10.0)  # before each try


def send_notice(run: WorkflowRun, failure: ShardkitError | None) -> None:
    """Tell who is to be told that a run has ended; what cannot be sent is said, and fails nothing."""
    notify = run.workflow.notify
    if failure is None:
        status, targets = COMPLETED, notify.completed
    elif isinstance(failure, RunInterrupted):
        status, targets = STOPPED, notify.stopped
    else:
        status, targets = FAILED, notify.failed
    if not targets:
        return
    notice, sender = notice_of(run, status), Sender()
    for target in targets:
        if trouble := delivery_trouble(sender, target, notice):
            run.say(f"No notice could be sent: {trouble}")


def delivery_trouble(sender: Sender, target: str, notice: dict[str, Any]) -> str:
    """Send it to one target; why that failed, or nothing."""
    trouble = ""
    for wait_s in WAITS_S:
        time.sleep(wait_s)
        try:
            sender.send(target, notice)
        except Undelivered as error:
            trouble = str(error)
        else:
            return ""
    return trouble


def notice_of(run: WorkflowRun, status: str) -> dict[str, Any]:
    """The notice of a run's end, in the form that the queue's targets take."""
    states = run.states()
    failed = [state for state in states if state.state == FAILED_STEP]
    begun = run.files.about()["begun"]
    environment = f" in {run.workflow.environment}" if run.workflow.environment else ""
    tags = {"workflow": run.workflow.name, "environment": run.workflow.environment or ""}
    return {
        "about": "run",
        "job_id": failed[0].name if failed else states[-1].name,
        "run": f"{run.workflow.name} {run.files.run_id}{environment}",
        "kind": "workflow",
        "owner": "",
        "tags": tags,
        "status": status,
        "cause": "",
        "cause_in_words": "",
        "reason": f"{failed[0].name}: {reason_of(failed[0])}" if failed else "",
        "attempts": failed[0].attempts if failed else 1,
        "waited_s": None,
        "ran_s": None,
        "instance_type": "",
        "instances": 1,
        "submitted_at": begun,
        "ended_at": iso(time.time()),
        "log_group": "",
        "log_stream_prefix": "",
        "log_url": "",
        "again": "" if status == COMPLETED else run.command("resume"),
        "output": next((state.output for state in reversed(states) if state.output), ""),
        "run_jobs": {name: sum(state.state == name for state in states) for name in (DONE, FAILED_STEP, "not begun")},
        "run_failed": [{"job_id": state.name, "cause": "", "reason": reason_of(state)} for state in failed],
    }
