"""The CronWorkflow: when a run of the WorkflowTemplate begins by itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from shardkit.errors import PipelineError
from shardkit.times import interval
from shardkit.workflows.kubernetes.names import ARGO, Manifest, metadata

if TYPE_CHECKING:
    from shardkit.workflows.document import Workflow
    from shardkit.workflows.parts import Calendar

LATE_S = 3600  # a run that could not begin in time, because the controller was away, still begins so much later
_FIELD = re.compile(r"[0-9A-Za-z*/,-]+")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def cron_workflow(workflow: Workflow) -> Manifest:
    """The CronWorkflow of an environment whose mode is calendar.

    Raises:
        PipelineError: its times cannot be said to Argo.
    """
    calendar = workflow.calendar
    if calendar is None:  # which the checks of the file have seen to
        raise PipelineError(f"{workflow.file}: mode: calendar needs calendar:.")
    spec: Manifest = {
        "schedules": [_cron_line(workflow, calendar)],
        "timezone": calendar.zone or "UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": LATE_S,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 5,
        "workflowSpec": {"workflowTemplateRef": {"name": workflow.name}},
    }
    return {"apiVersion": ARGO, "kind": "CronWorkflow", "metadata": metadata(workflow), "spec": spec}


def _cron_line(workflow: Workflow, calendar: Calendar) -> str:
    if calendar.schedule is not None:
        return _of_schedule(workflow, calendar.schedule)
    return _of_interval(workflow, str(calendar.interval))


def _of_schedule(workflow: Workflow, line: str) -> str:
    """A cron line in what Argo's reader knows: five fields, Sunday as 0."""
    fields = line.split()
    if line.startswith("@") and len(fields) == 1:
        return line
    usable = len(fields) == 5 and all(_FIELD.fullmatch(field) for field in fields) and "L" not in fields[2].upper()
    days = fields[4] if usable else ""
    if not usable or re.search(r"(?:7-|-7|L)", days):
        raise PipelineError(
            f"{workflow.file}: calendar.schedule: Argo does not know {line!r}.",
            hint="It takes five fields of numbers, names, *, ranges, lists and steps; Sunday is 0 or SUN.",
        )
    fields[4] = ",".join("0" if day == "7" else day for day in days.split(","))
    return " ".join(fields)


def _of_interval(workflow: Workflow, text: str) -> str:
    """An interval as a cron line, if it always begins at the same minutes or hours."""
    length = interval(text)
    seconds = int(length.total_seconds()) if length else 0
    if seconds and seconds % _MINUTE == 0 and _HOUR % seconds == 0:
        minutes = seconds // _MINUTE
        return "0 * * * *" if minutes == 60 else f"*/{minutes} * * * *"
    if seconds and seconds % _HOUR == 0 and _DAY % seconds == 0:
        hours = seconds // _HOUR
        return "0 0 * * *" if hours == 24 else f"0 */{hours} * * *"
    raise PipelineError(
        f"{workflow.file}: calendar.interval: {text} is no cron line, and Argo knows only these.",
        hint="Choose one that divides an hour or a day, such as 30m or 6h; or write a schedule.",
    )
