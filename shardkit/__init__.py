"""shardkit: a huge collection of files and one Python function become one clean dataset.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shardkit._version import __version__

if TYPE_CHECKING:
    from shardkit import jobs
    from shardkit.checking import Checked, check
    from shardkit.cleaning import Cleaned, clean
    from shardkit.engines.sagemaker import Local, SageMaker
    from shardkit.errors import (
        BudgetExceeded,
        CatalogError,
        CombineError,
        Damaged,
        InputError,
        LedgerError,
        LockLost,
        NothingMade,
        ObjectChanged,
        ObjectRefused,
        PipelineError,
        PlanMismatch,
        QueryError,
        RunBusy,
        RunFailed,
        RunInterrupted,
        RunNotFound,
        RunReplaced,
        SchemaConflict,
        ShardkitError,
        StorageError,
        WrittenByNewer,
    )
    from shardkit.pipeline import Pipeline
    from shardkit.query import read_sql
    from shardkit.record import Record
    from shardkit.runs import Run, open_run, run
    from shardkit.summary import Summary

_HOMES = {
    "BudgetExceeded": "errors",
    "CatalogError": "errors",
    "Checked": "checking",
    "Cleaned": "cleaning",
    "CombineError": "errors",
    "Damaged": "errors",
    "InputError": "errors",
    "LedgerError": "errors",
    "Local": "engines.sagemaker",
    "NothingMade": "errors",
    "ObjectChanged": "errors",
    "ObjectRefused": "errors",
    "Pipeline": "pipeline",
    "PipelineError": "errors",
    "PlanMismatch": "errors",
    "QueryError": "errors",
    "Record": "record",
    "Run": "runs",
    "LockLost": "errors",
    "RunBusy": "errors",
    "RunFailed": "errors",
    "RunInterrupted": "errors",
    "RunNotFound": "errors",
    "RunReplaced": "errors",
    "SchemaConflict": "errors",
    "ShardkitError": "errors",
    "StorageError": "errors",
    "SageMaker": "engines.sagemaker",
    "Summary": "summary",
    "WrittenByNewer": "errors",
    "check": "checking",
    "clean": "cleaning",
    "open_run": "runs",
    "read_sql": "query",
    "run": "runs",
}

__all__ = [
    "BudgetExceeded",
    "CatalogError",
    "Checked",
    "Cleaned",
    "CombineError",
    "Damaged",
    "InputError",
    "LedgerError",
    "Local",
    "LockLost",
    "NothingMade",
    "ObjectChanged",
    "ObjectRefused",
    "Pipeline",
    "PipelineError",
    "PlanMismatch",
    "QueryError",
    "Record",
    "Run",
    "RunBusy",
    "RunFailed",
    "RunInterrupted",
    "RunNotFound",
    "RunReplaced",
    "SageMaker",
    "SchemaConflict",
    "ShardkitError",
    "StorageError",
    "Summary",
    "WrittenByNewer",
    "__version__",
    "check",
    "clean",
    "jobs",
    "open_run",
    "read_sql",
    "run",
]


if not TYPE_CHECKING:  # type checkers would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name == "jobs":
            return importlib.import_module("shardkit.jobs")
        if name not in _HOMES:
            raise AttributeError(f"module 'shardkit' has no attribute {name!r}")
        return getattr(importlib.import_module(f"shardkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
