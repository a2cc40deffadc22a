"""The recipe of a dataset: all that decides how files are made from given rows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shardkit.dataset.checks import kept_days
from shardkit.dataset.kept_files import Keeper
from shardkit.runfolder.limits import check_made

if TYPE_CHECKING:
    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.document_types import MadeWith, Result
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart, Ledger


@dataclass(frozen=True)
class Recipe:
    """All that decides how files are made from given rows: in full, and in the form in which results note it."""

    merge: Merge
    made_with: MadeWith
    form: dict[str, Any]

    @classmethod
    def of(cls, folder: RunFolder, merge: Merge) -> Recipe:
        """The recipe of a run that merges by ``merge``."""
        plan = folder.plan()
        # A combine that was sent by value has no digest here, but the plan has one.
        sent = merge.combine is not None and not merge.combine.digest
        made_with: MadeWith = {"work": plan["work"], "merge": plan["merge_digest"] if sent else merge.digest()}
        return cls(merge, made_with, merge.layout.form(plan["form"]["days"]))

    def basis(self, day: str, parts: list[CommittedPart], current: Result | None) -> str:
        """A digest of what a day is made of if it is merged from these parts."""
        made = current["partitions"].get(day) if current is not None else None
        base = made["run"] if made is not None else None
        how = [self.made_with, self.form, asdict(self.merge.layout), self.merge.schema]
        rows = [[part.name, part.rows, part.bytes, part.spans] for part in parts]
        return hashlib.sha256(json.dumps([rows, how, base], sort_keys=True).encode()).hexdigest()

    def check_made(self, ledger: Ledger, current: Result | None, *, rows: int) -> None:
        """Check that a run's records have given ``rows``, unless there may be none.

        ``current`` is the result that describes the present dataset.

        Raises:
            NothingMade: they have given none.
        """
        nothing_to_lose = self.merge.failures_counted and not (current and current["rows"])
        may_be_empty = self._may_be_empty(ledger.folder, current)
        check_made(ledger, rows, allow_empty=may_be_empty, all_may_fail=nothing_to_lose)

    def check_combined(self, ledger: Ledger, current: Result | None, *, rows: int) -> None:
        """Check that the combine, if there is one, has left ``rows``, unless there may be none.

        Raises:
            NothingMade: it has left none.
        """
        if self.merge.combine is not None:
            may_be_empty = self._may_be_empty(ledger.folder, current)
            check_made(ledger, rows, allow_empty=may_be_empty, combine=self.merge.combine.name)

    def _may_be_empty(self, folder: RunFolder, current: Result | None) -> bool:
        """Whether days without rows may be right: the user says so, or other days that were made alike have rows."""
        if self.merge.allow_empty or current is None:
            return self.merge.allow_empty
        made = current["partitions"]
        alike = {day for day in kept_days(folder.plan(), current) if self.made_with.items() <= made[day].items()}
        return any(file["rows"] for file in current["files"] if file["partition"] in alike)

    def keeper(self, folder: RunFolder, current: Result | None) -> Keeper:
        """The keeper, which finds the files of the present dataset that are used again."""
        as_they_come = self.merge.combine is None and self.merge.shuffle is None
        by_rows = as_they_come and self.merge.layout.cuts_by_rows
        return Keeper(
            folder.output,
            current,
            run_id=folder.run_id,
            rows_per_file=self.merge.layout.rows_per_file if by_rows else None,
            made_with=self.made_with,
            form=self.form,
        )
