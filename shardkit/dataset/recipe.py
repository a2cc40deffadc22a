"""What decides what is made of the same rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shardkit.dataset.day_notes import basis_of
from shardkit.dataset.kept_files import Keeper
from shardkit.dataset.switch import kept_days

if TYPE_CHECKING:
    from shardkit.dataset.merge import Merge
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import CommittedPart


@dataclass(frozen=True)
class Recipe:
    """What decides what is made of the same rows: in whole, and as the result of a run notes it."""

    merge: Merge
    made_with: dict[str, str]
    form: dict[str, Any]

    @classmethod
    def of(cls, folder: RunFolder, merge: Merge) -> Recipe:
        """How a run makes what ``merge`` asks for."""
        plan = folder.plan()
        # A combine that was sent by value has no digest here, but the plan has.
        sent = merge.combine is not None and not merge.combine.digest
        made_with = {"work": plan["work"], "merge": plan["merge_digest"] if sent else merge.digest()}
        return cls(merge, made_with, merge.layout.form(plan["form"]["days"]))

    def basis(self, day: str, parts: list[CommittedPart], current: dict[str, Any] | None) -> str:
        """What a day that is merged of these parts is made of, as a digest."""
        how = [self.made_with, self.form, asdict(self.merge.layout), self.merge.schema]
        return basis_of(parts, how=how, base=(current or {}).get("partitions", {}).get(day, {}).get("run"))

    def has_given_rows(self, folder: RunFolder, current: dict[str, Any] | None) -> bool:
        """Whether days that stay have rows that were made in the same way, so that a day without any may be right."""
        if current is None:
            return False
        made = current.get("partitions", {})
        same = {day for day in kept_days(folder.plan(), current) if self.made_with.items() <= made.get(day, {}).items()}
        return any(file["rows"] for file in current["files"] if file["partition"] in same)

    def keeper(self, folder: RunFolder, current: dict[str, Any] | None) -> Keeper:
        """What decides which files of the dataset as it is are used again."""
        by_rows = self.merge.combine is None and self.merge.layout.cuts_by_rows
        return Keeper(
            folder.output,
            current,
            run_id=folder.run_id,
            rows_per_file=self.merge.layout.rows_per_file if by_rows else None,
            made_with=self.made_with,
            form=self.form,
        )
