"""shardkit: a huge collection of files and one Python function become one clean dataset.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit._lazy import names_of
from shardkit._version import __version__

if TYPE_CHECKING:
    from shardkit import jobs
    from shardkit.cache import Cache
    from shardkit.dataset.query import read_sql
    from shardkit.engines.local_settings import Local
    from shardkit.engines.sagemaker import SageMaker
    from shardkit.engines.slurm_settings import Slurm
    from shardkit.errors import (
        BudgetExceeded,
        CatalogError,
        ChecksFailed,
        CombineError,
        CostExceeded,
        Damaged,
        InputError,
        LedgerError,
        LockLost,
        NothingMade,
        ObjectChanged,
        ObjectDamaged,
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
    from shardkit.record import Record
    from shardkit.runs.check import Checked, check
    from shardkit.runs.clean import Cleaned, clean
    from shardkit.runs.handle import Run
    from shardkit.runs.start import open_run, run
    from shardkit.runs.summary import Summary

_HOMES = {
    "BudgetExceeded": "errors",
    "Cache": "cache",
    "CatalogError": "errors",
    "ChecksFailed": "errors",
    "Checked": "runs.check",
    "Cleaned": "runs.clean",
    "CombineError": "errors",
    "CostExceeded": "errors",
    "Damaged": "errors",
    "InputError": "errors",
    "LedgerError": "errors",
    "Local": "engines.local_settings",
    "NothingMade": "errors",
    "ObjectChanged": "errors",
    "ObjectDamaged": "errors",
    "ObjectRefused": "errors",
    "Pipeline": "pipeline",
    "PipelineError": "errors",
    "PlanMismatch": "errors",
    "QueryError": "errors",
    "Record": "record",
    "Run": "runs.handle",
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
    "Slurm": "engines.slurm_settings",
    "Summary": "runs.summary",
    "WrittenByNewer": "errors",
    "check": "runs.check",
    "clean": "runs.clean",
    "jobs": "jobs",
    "open_run": "runs.start",
    "read_sql": "dataset.query",
    "run": "runs.start",
}

__all__ = [
    "BudgetExceeded",
    "Cache",
    "CatalogError",
    "Checked",
    "ChecksFailed",
    "Cleaned",
    "CombineError",
    "CostExceeded",
    "Damaged",
    "InputError",
    "LedgerError",
    "Local",
    "LockLost",
    "NothingMade",
    "ObjectChanged",
    "ObjectDamaged",
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
    "Slurm",
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
    __getattr__ = names_of(__name__, _HOMES)


def __dir__() -> list[str]:
    return list(__all__)
