"""A dataset on its way: files are staged in the run folder, a result that describes it grows, and it is switched to."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from shardkit.clock import now
from shardkit.dataset.accounts import check_accounts, check_kept
from shardkit.dataset.switch import check_name, current_result, dataset_lock, switch
from shardkit.dataset.switch_steps import generation_of, staging
from shardkit.storage.side_by_side import together
from shardkit.tables.type_text import schema_to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from shardkit.dataset.accounts import Account
    from shardkit.dataset.kept_files import Contents
    from shardkit.dataset.writer import DataFile, Layout
    from shardkit.runfolder.attempt import Attempt
    from shardkit.runfolder.folder import RunFolder
    from shardkit.storage.base import Folder

SWITCH_PATIENCE_S = 600.0


class Build:
    """A dataset on its way to the switch; ``current`` is the result that describes it as it is before."""

    def __init__(
        self,
        folder: RunFolder,
        attempt: Attempt,
        name: str,
        *,
        current: dict[str, Any] | None,
        generation: int,
        of_jobs: Collection[str] = (),
    ) -> None:
        self.current = current
        self.generation = generation
        self.token = folder.run_id if generation == 1 else f"{folder.run_id}.{generation}"
        self.staging: Folder = staging(folder, generation)
        self._of_jobs = of_jobs
        self.schema = pa.schema([])
        self.by_day = False
        self.made_with: dict[str, str] = {}
        self.accounts: dict[str, Account] = {}
        self.contents: Contents | None = None
        self.form: dict[str, Any] = {}
        self.kept: list[str] = []
        self.quarantined: dict[str, int] = {}  # records, by partition
        self.columns: dict[str, str] | None = None  # as the pipeline gives them
        self.widen_ints = False
        self._files: list[tuple[str, DataFile]] = []
        self._partitions: dict[str, None] = {}
        self.result: dict[str, Any] = {}
        self._folder = folder
        self._attempt = attempt
        self._name = name

    def add(self, partition: str, files: list[DataFile], kept: list[DataFile], schema: pa.Schema) -> None:
        """Take in the files of a partition, new ones and those of before that are kept."""
        self._partitions[partition] = None
        self.kept += [file.path for file in kept]
        self._files += [(partition, file) for file in (*kept, *files)]
        known = {field.name for field in self.schema}
        self.schema = pa.schema([*self.schema, *(field for field in schema if field.name not in known)])

    def home_of(self, path: str) -> Folder:
        """Where a file of it is staged."""
        return staging(self._folder) if path in self._of_jobs else self.staging

    def tell(self, text: str) -> None:
        """Say what the user may wonder about."""
        self._attempt.progress.note(text)

    def describe(self, layout: Layout, *, records: dict[str, int], bytes_in: int) -> None:
        """Make the result out of what was built."""
        day = [pa.field(layout.day_column, pa.string())] if layout.day_column else []
        schema = pa.schema([*self.schema, *day]).remove_metadata()
        self.result = {
            "run_id": self._folder.run_id,
            "name": self._name,
            "status": "done",
            "records": records,
            "rows": sum(file.rows for _, file in self._files),
            "files": [
                {"path": file.path, "rows": file.rows, "bytes": file.bytes, "partition": partition}
                for partition, file in self._files
            ],
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
            "generation": self.generation,
        }

    def _note_of(self, partition: str) -> dict[str, Any]:
        """What is to be known of a partition when later runs have made others."""
        account = self.accounts.get(partition)
        rows = {"rows": account.rows} if account is not None else {}
        return {"run": self._folder.run_id, "quarantined": self.quarantined.get(partition, 0)} | rows | self.made_with

    def check(self) -> None:
        """See that the files hold what the ledger accounts for.

        Raises:
            LedgerError: they do not.
        """
        files: dict[str, list[DataFile]] = {}
        for partition, file in self._files:
            files.setdefault(partition, []).append(file)
        check_accounts(self._folder.run_id, files, self.accounts, self.contents)
        kept = set(self.kept)
        check_kept(self._folder.output, [f for _, f in self._files if f.path in kept], self.result["format"])


@contextlib.contextmanager
def switching(
    folder: RunFolder, attempt: Attempt, *, name: str, fresh: bool = False, staged: Collection[str] = ()
) -> Iterator[Build]:
    """Hold the dataset while the block builds its next state, then switch to that; ``staged`` are files of it already.

    Runs of different days build side by side, and wait for each other only to switch.
    """
    if folder.plan().get("by_day"):
        from shardkit.dataset.uniform import make_uniform

        build = _begin(folder, attempt, name, current=current_result(folder.output), fresh=fresh, staged=staged)
        yield build
        build.check()
        with dataset_lock(folder.output, patience_s=SWITCH_PATIENCE_S) as dataset:
            check_name(folder.output, dataset.result, name)
            attempt.check()
            anew = make_uniform(folder, build, dataset.result)
            switch(folder, build.result, dataset, build.kept, anew, of_jobs=staged)
        return
    with dataset_lock(folder.output) as dataset:
        check_name(folder.output, dataset.result, name)  # again: another pipeline's run may have ended there meanwhile
        build = _begin(folder, attempt, name, current=dataset.result, fresh=fresh)
        yield build
        attempt.check()
        switch(folder, build.result, dataset, build.kept)


def _begin(
    folder: RunFolder,
    attempt: Attempt,
    name: str,
    *,
    current: dict[str, Any] | None,
    fresh: bool,
    staged: Collection[str] = (),
) -> Build:
    """A build in a staging folder that holds nothing yet; of the jobs' files, those that are ``staged`` stay."""
    before = None
    if not fresh:
        before, _ = together([folder.result, lambda: _clear_staging(folder, attempt, staged)])
    # The number of no other attempt: names of files are never used twice, whoever else is at the same run.
    generation = max((before["generation"] if before else 0) + 1, attempt.number)
    return Build(folder, attempt, name, current=current, generation=generation, of_jobs=staged)


def _clear_staging(folder: RunFolder, attempt: Attempt, staged: Collection[str]) -> None:
    """Remove what earlier attempts have staged and not placed."""
    attempt.check()
    files = staging(folder)
    left = [entry.key for entry in files.entries() if entry.key not in staged]
    earlier = {key.partition("/")[0] for key in left if 0 < generation_of(key) < attempt.number}
    of_jobs = [key for key in left if not generation_of(key)]
    together([*(partial(files.remove_all, home) for home in earlier), *(partial(files.remove, key) for key in of_jobs)])
