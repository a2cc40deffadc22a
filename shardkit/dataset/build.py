"""A dataset that is being built: its files are staged in the run folder, and a result describes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.dataset.accounts import check_accounts, check_kept
from shardkit.dataset.merge import Merge
from shardkit.dataset.switch_steps import staging
from shardkit.dataset.writer import Layout
from shardkit.tables.type_text import schema_to_text
from shardkit.times import now

if TYPE_CHECKING:
    from collections.abc import Collection

    from shardkit.dataset.accounts import Account
    from shardkit.dataset.kept_files import Contents
    from shardkit.dataset.recipe import Recipe
    from shardkit.dataset.writer import DataFile
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.check_types import HeldBuild
    from shardkit.runfolder.document_types import LedgerCounts, MadePartition, MadeWith, Result, ResultFile
    from shardkit.runfolder.folder import RunFolder
    from shardkit.runfolder.ledger import Ledger
    from shardkit.storage.base import Folder


AS_THEY_ARE = Merge(Layout("parquet", 1, None, ()))  # how parts become files if nothing is made of them


class Build:
    """The next state of a dataset; ``current`` is the result that describes the present one.

    ``number`` counts the builds of the run. ``of_jobs`` are the staged files that jobs have written.
    """

    def __init__(
        self,
        folder: RunFolder,
        attempt: Attempt,
        name: str,
        *,
        current: Result | None,
        number: int,
        of_jobs: Collection[str] = (),
    ) -> None:
        self.current = current
        self.number = number
        self.token = folder.run_id if number == 1 else f"{folder.run_id}.{number}"
        self.staging: Folder = staging(folder, number)
        self._of_jobs = of_jobs
        self.schema = pa.schema([])
        self.by_day = False
        self.made_with: MadeWith = {"work": "", "merge": ""}
        self.accounts: dict[str, Account] = {}
        self.contents: Contents | None = None
        self.form: dict[str, Any] = {}
        self.kept: list[str] = []
        self.quarantined: dict[str, int] = {}  # records, by partition
        self.merge = AS_THEY_ARE
        self._files: list[tuple[str, DataFile]] = []
        self._partitions: dict[str, None] = {}
        self._result: Result | None = None
        self._folder = folder
        self._attempt = attempt
        self._name = name

    @classmethod
    def restored(cls, folder: RunFolder, attempt: Attempt, held: HeldBuild, merge: Merge) -> Build:
        """A build that was kept aside, as far as the switch needs it."""
        result = held["result"]
        number, of_jobs = result["generation"], held["of_jobs"]
        build = cls(folder, attempt, result["name"], current=None, number=number, of_jobs=of_jobs)
        build.merge = replace(merge, schema=held["columns"], widen_ints=held["widen_ints"])
        build.kept, build.by_day, build._result = held["kept"], result["by_day"], result
        return build

    def note_recipe(self, recipe: Recipe, ledger: Ledger) -> None:
        """Note how the files are made; later runs compare it with how they would make them."""
        self.merge = recipe.merge
        self.made_with, self.form = recipe.made_with, recipe.form
        self.by_day, self.quarantined = ledger.folder.plan()["by_day"], ledger.quarantined_by_partition()

    def add(self, partition: str, files: list[DataFile], kept: list[DataFile], schema: pa.Schema) -> None:
        """Add the files of a partition, new ones and old ones that are kept."""
        self._partitions[partition] = None
        self.kept += [file.path for file in kept]
        self._files += [(partition, file) for file in (*kept, *files)]
        names = {field.name for field in self.schema}
        self.schema = pa.schema([*self.schema, *(field for field in schema if field.name not in names)])

    def home_of(self, path: str) -> Folder:
        """The folder in which one of its files is staged."""
        return staging(self._folder) if path in self._of_jobs else self.staging

    def say(self, text: str) -> None:
        """Tell the user about something unexpected."""
        self._attempt.progress.note(text)

    def describe(self, layout: Layout, *, records: LedgerCounts, bytes_in: int) -> None:
        """Make the result that describes what was built."""
        day = [pa.field(layout.day_column, pa.string())] if layout.day_column else []
        schema = pa.schema([*self.schema, *day]).remove_metadata()
        self._result = {
            "run_id": self._folder.run_id,
            "name": self._name,
            "status": "done",
            "records": records,
            "rows": sum(file.rows for _, file in self._files),
            "files": [_described(file, partition) for partition, file in self._files],
            "partitions": {partition: self._note_of(partition) for partition in self._partitions},
            "by_day": self.by_day,
            "form": self.form,
            "bytes_in": bytes_in,
            "bytes_out": sum(file.bytes for _, file in self._files),
            "format": layout.format,
            "partition_by": [*([layout.day_column] if layout.day_column else []), *layout.partition_by],
            "columns": {field.name: str(field.type) for field in schema},
            "schema": schema_to_text(schema),
            "started": self._attempt.started,
            "finished": now(),
            "seconds": round(self._attempt.seconds, 3),
            "attempt": self._attempt.number,
            "generation": self.number,
            "switched": 0,  # which the switch sets
        }

    @property
    def result(self) -> Result:
        """The result that describes the dataset, once it is built."""
        if self._result is None:
            raise RuntimeError("The dataset has not been described.")
        return self._result

    def _note_of(self, partition: str) -> MadePartition:
        """What the result says of a partition, for later runs that make others."""
        account = self.accounts.get(partition)
        made: MadePartition = {
            "run": self._folder.run_id,
            "quarantined": self.quarantined.get(partition, 0),
            "work": self.made_with["work"],
            "merge": self.made_with["merge"],
        }
        if account is not None:
            made["rows"] = account.rows
        return made

    def check(self) -> None:
        """Check that the files hold what the ledger accounts for.

        Raises:
            LedgerError: they do not.
        """
        files: dict[str, list[DataFile]] = {}
        for partition, file in self._files:
            files.setdefault(partition, []).append(file)
        check_accounts(self._folder.run_id, files, self.accounts, self.contents)
        kept = set(self.kept)
        check_kept(self._folder.output, [f for _, f in self._files if f.path in kept], self.result["format"])


def _described(file: DataFile, partition: str) -> ResultFile:
    described: ResultFile = {"path": file.path, "rows": file.rows, "bytes": file.bytes, "partition": partition}
    if file.nulls is not None:
        described["nulls"] = file.nulls
    return described
