"""What shardkit raises.

    ShardkitError
    ├── PipelineError        the pipeline, a command's arguments or the function cannot be used as given
    │   ├── InputError       the input is empty, missing or cannot be read
    │   │   ├── ObjectChanged    an object of the input is not what it was when it was listed
    │   │   └── ObjectDamaged    an object of the input cannot be read as what it is said to be
    │   └── PlanMismatch     a run is to be resumed with another plan than its own
    ├── RunNotFound          no such run under that output
    │   └── RunReplaced      a later run has replaced the dataset that a run has made
    ├── RunBusy              another process works on the same run or dataset
    │   └── LockLost         this one did, but was paused for so long that another has taken over
    ├── RunFailed            the run stopped before its dataset was complete
    │   ├── BudgetExceeded   more records are quarantined than max_failures allows
    │   ├── CostExceeded     the run has cost, or would cost, more than max_cost allows
    │   ├── NothingMade      no record is done, or all together gave no row
    │   ├── StorageError     a file could not be written (disk full, no permission)
    │   │   ├── Damaged          a file of a run is not as it was written, or gone
    │   │   ├── WrittenByNewer   a file of a run is of a later format than this version of shardkit knows
    │   │   └── ObjectRefused    the store refuses this object, but not all
    │   ├── ChecksFailed     the pipeline's checks of the new files failed
    │   ├── LedgerError      records are missing from the ledger
    │   ├── CombineError     the user's combine function raised
    │   ├── SchemaConflict   two parts give one column types that cannot be unified
    │   └── CatalogError     the dataset is made, but the catalogue could not be brought up to date
    ├── QueryError           an SQL query cannot be answered
    └── RunInterrupted       Ctrl-C or SIGTERM; `resume` goes on from there

Every error is a sentence or two: what happened, to which run and file, and what to do next.
"""

from __future__ import annotations

from typing import Any

from shardkit import hints
from shardkit.masking import masked
from shardkit.printable import printable


class ShardkitError(Exception):
    """The base of all errors that shardkit raises on purpose.

    ``exit_code`` is what the command line exits with; ``hint`` is what to do next, in Python. ``run`` is the run
    in which it happened, or None if there was none yet. What looks like a secret is masked.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        message = printable(masked(message))
        hint = hints.Hint(masked(hint), masked(hint.command)) if isinstance(hint, hints.Hint) else masked(hint)
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.run: Any = None  # a `Run`, which is in a room far above

    def __str__(self) -> str:
        text = f"{self.message} {self.hint}".strip()
        if self.run is None or "sk.open_run(" in text:
            return text
        return f"{text}\nThe run: sk.open_run({self.run.output_uri!r}, {self.run.run_id!r})"

    @property
    def command_text(self) -> str:
        """The same as the command line prints it."""
        return f"{self.message} {hints.as_command(self.hint)}".strip()


class PipelineError(ShardkitError):
    """The pipeline, a command's arguments or the function cannot be used as given."""

    exit_code = 2


class InputError(PipelineError):
    """The input is empty, missing or cannot be read."""


class ObjectChanged(InputError):
    """An object of the input is not what it was when the run was planned."""


class ObjectDamaged(InputError):
    """An object of the input cannot be read as what it is said to be: it is damaged, cut short, or something else."""


class PlanMismatch(PipelineError):
    """A run is to be resumed with another plan than its own."""


class RunNotFound(PipelineError):
    """There is no such run under that output."""


class RunReplaced(RunNotFound):
    """A later run has replaced the dataset that a run has made."""


class RunBusy(ShardkitError):
    """Another process works on the same run or dataset."""


class LockLost(RunBusy):
    """The process was paused or cut off for so long that another one may have taken over, or has."""


class RunFailed(ShardkitError):
    """The run stopped before its dataset was complete; what was committed is kept."""


class BudgetExceeded(RunFailed):
    """More records are quarantined than ``max_failures`` allows."""


class CostExceeded(RunFailed):
    """The jobs of a run have cost, or would cost, more than ``max_cost`` allows; what is committed is kept."""


class NothingMade(RunFailed):
    """Nothing came of the records: none is done, or all together gave no row; the dataset stays as it was."""


class StorageError(RunFailed):
    """A file could not be written or read back: disk full, no permission, a lost mount."""


class ObjectRefused(StorageError):
    """A store refuses one object, but not all: it is archived, somebody else's, or its key is gone."""


class Damaged(StorageError):
    """A file of a run or a dataset is not as it was written: cut, changed or gone."""


class WrittenByNewer(StorageError):
    """A file of a run is of a later format than this version of shardkit knows."""


class LedgerError(RunFailed):
    """Records listed are not the sum of records done, quarantined and skipped."""


class ChecksFailed(RunFailed):
    """The pipeline's checks of the new files failed: these are kept aside, and the dataset stays as it was."""

    exit_code = 3


class CombineError(RunFailed):
    """The user's ``combine`` raised; the message holds its traceback."""


class SchemaConflict(RunFailed):
    """Two parts give one column types that cannot be unified."""


class CatalogError(RunFailed):
    """The dataset is made, but the catalogue could not be brought up to date with it."""


class QueryError(ShardkitError):
    """An SQL query cannot be answered: it is not SQL, or asks for what is not there."""


class RunInterrupted(ShardkitError, KeyboardInterrupt):
    """The run was interrupted by Ctrl-C or SIGTERM; it can be resumed."""

    exit_code = 130
