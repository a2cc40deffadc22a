"""The share of a run that one instance of a job works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardkit.runfolder.ledger import Ledger

if TYPE_CHECKING:
    import numpy as np

    from shardkit.runfolder.folder import RunFolder


@dataclass(frozen=True)
class Share:
    """The work of one instance of a job.

    ``shards`` are all of the job's, ``shard`` is this instance's own. Where the service has dealt the objects out,
    ``here`` is a mask of the run's records that says which of them the instance has got, whichever shard they were
    planned for; their parts are written under its own shard all the same. ``may_be_claimed`` says whether other jobs do
    some of its chunks if this one is slow.
    """

    shards: list[int]
    shard: int
    here: np.ndarray | None = None
    may_be_claimed: bool = False

    def ledger(self, folder: RunFolder) -> Ledger:
        """The ledger of these records; another instance may have committed them, when objects were dealt out."""
        ledger = Ledger(folder, self.shards)
        ledger.keep(ledger.shard == self.shard if self.here is None else self.here)
        return ledger
