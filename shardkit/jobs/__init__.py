"""The queue that every Processing job goes through, one or ten thousand.

    from shardkit.jobs import SQLiteStore, launch, monitor

    store = SQLiteStore("jobs.sqlite")
    store.submit("talent-0001", request)          # CreateProcessingJob's arguments, without ProcessingJobName
    engine = boto3.client("sagemaker")            # or any object with the same four methods
    while True:
        monitor(store, engine)
        report = launch(store, engine)
        if report.ended:
            break
        time.sleep(report.next_in_s)

``launch()`` and ``monitor()`` keep nothing between two calls: everything is in the store. Any number of them may run at
the same time, and die at any moment. The queue needs only the standard library and botocore.
"""

from __future__ import annotations

from shardkit.jobs.calls import Engine
from shardkit.jobs.causes import classify
from shardkit.jobs.clock import Clock, RealClock, SimulatedClock
from shardkit.jobs.control import again, stop
from shardkit.jobs.drive import drive
from shardkit.jobs.errors import EngineRefused, JobConflict, JobError, JobNotFound, StoreError
from shardkit.jobs.job import Job
from shardkit.jobs.launching import launch
from shardkit.jobs.monitoring import monitor, observe
from shardkit.jobs.notices import send_notices
from shardkit.jobs.open import create_table, open_store
from shardkit.jobs.policy import Policy
from shardkit.jobs.recovery import adopt, export_jobs, import_jobs
from shardkit.jobs.rounds import Change, Report
from shardkit.jobs.service import policy_of, serve, set_policy
from shardkit.jobs.sqlite import SQLiteStore
from shardkit.jobs.store import Store, Submission
from shardkit.jobs.submitting import submit

__all__ = [
    "Change",
    "Clock",
    "Engine",
    "EngineRefused",
    "Job",
    "JobConflict",
    "JobError",
    "JobNotFound",
    "Policy",
    "RealClock",
    "Report",
    "SQLiteStore",
    "SimulatedClock",
    "Store",
    "StoreError",
    "Submission",
    "adopt",
    "again",
    "classify",
    "create_table",
    "drive",
    "export_jobs",
    "import_jobs",
    "launch",
    "monitor",
    "observe",
    "open_store",
    "policy_of",
    "send_notices",
    "serve",
    "set_policy",
    "stop",
    "submit",
]
