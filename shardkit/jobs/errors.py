"""What the job queue raises.

    JobError
    ├── JobNotFound       the store has no job of that id
    ├── JobConflict       the id is taken by another request, or the job is not in a state that allows it
    ├── StoreError        the store's file or table cannot be used
    │   └── StoreDamaged  the file is no store any more
    └── EngineRefused     the service takes no calls from us: credentials, region, network settings

Every error is a sentence or two: what happened, to which job, and what to do next.
"""

from __future__ import annotations

from shardkit.masking import masked
from shardkit.printable import printable


class JobError(Exception):
    """The base of all errors that the queue raises on purpose; ``hint`` is what to do next. Secrets are masked."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        message, hint = printable(masked(message)), masked(hint)
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class JobNotFound(JobError):
    """The store has no job of that id."""


class JobConflict(JobError):
    """The id is taken by another request, or the job is not in a state that allows what was asked for."""


class StoreError(JobError):
    """The store's file or table cannot be used."""


class StoreDamaged(StoreError):
    """The store's file is no store any more, or not as it was written."""


class EngineRefused(JobError):
    """The service takes no calls from this client: credentials, region or network settings."""
