"""The steps of a switch. None of them relies on the dataset's lock alone.

One process at a time holds that lock, but a process that was paused may go on believing that it does. So
``commit.json`` is only created, never replaced, and it counts only if ``current.json`` is still what it was when the
lock was taken; ``current.json`` and the run's result are replaced only if they are still what they were; names of files
are never used twice; and a staged file is gone once another process has published it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.dataset.index_file import without_versioned, write_index
from shardkit.errors import Damaged, LockLost, StorageError
from shardkit.runfolder import documents
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import CURRENT, ICEBERG
from shardkit.storage.base import STATE_DIR, File
from shardkit.storage.locks import LOST_HINT
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shardkit.runfolder.document_types import Commit, Result
    from shardkit.storage.base import Folder, State
    from shardkit.storage.locks import Held

STAGING = "dataset"
BUILD = "generation-"  # and the number of the build: as folders of earlier versions are named
COMMIT = f"{STATE_DIR}/commit.json"


def staging(folder: RunFolder, build: int | None = None) -> Folder:
    """Where a run's dataset files are written before the switch: in a folder per ``build``, or in that of all jobs."""
    return folder.files.child(STAGING if build is None else f"{STAGING}/{BUILD}{build}")


def build_of(key: str) -> int:
    """The number of the build that staged the file ``key`` in the run's staging folder; 0 if a job did."""
    number = key.partition("/")[0].removeprefix(BUILD)
    return int(number) if key.startswith(BUILD) and number.isdigit() else 0  # no partition is named so


def name_of(key: str) -> str:
    """The name that a staged file is to have in the dataset."""
    return key.partition("/")[2] if build_of(key) else key


@dataclass
class LockedDataset:
    """A dataset as the holder of its ``lock`` sees it: the ``result`` that describes it, and the state of that file."""

    output: Folder
    lock: Held
    result: Result | None = None
    state: State = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        return [file["path"] for file in self.result["files"]] if self.result else []

    def is_present(self) -> bool:
        """Whether nobody has switched it since."""
        return self.output.state(CURRENT) == self.state


class Switch:
    """A switch of a dataset to what ``commit`` says; ``commit_state`` is the state of that file.

    ``of_jobs`` are the names of the files that jobs have staged, whether they are used or not.
    """

    def __init__(
        self, dataset: LockedDataset, commit: Commit, commit_state: State, *, of_jobs: Collection[str] = ()
    ) -> None:
        self._dataset, self._output, self._of_jobs = dataset, dataset.output, of_jobs
        self._commit_state = commit_state
        self._result, self._gone, self._index = commit["result"], commit["gone"], commit["index"]
        self._folder = RunFolder(dataset.output, self._result["run_id"])
        self._build = self._result["generation"]

    def confirm(self) -> None:
        """Check that the dataset is still the one that the switch was made for; from here on it cannot change.

        Raises:
            LockLost: another run has switched it.
        """
        if not self._dataset.is_present():
            self.forget()
            raise self._overtaken()

    def staged(self) -> dict[str, tuple[File, int]]:
        """The staged files that may not be published yet, by their names in the dataset, with their sizes in bytes."""
        files = staging(self._folder)
        mine = {0, self._build}
        entries = [entry for entry in files.entries() if build_of(entry.key) in mine]
        return {name_of(entry.key): (File(files, entry.key), entry.bytes) for entry in entries}

    def finish(self, sources: Mapping[str, File], result_state: State) -> None:
        """Carry out the switch.

        ``sources`` are the staged files that are not published yet, by their names in the dataset; ``result_state`` is
        the state of the run's result, if it has one.

        Raises:
            LockLost: another process has carried it out while this one was paused.
        """
        try:
            together([partial(self._publish, source, path) for path, source in sources.items()])
        except StorageError as error:
            if not self._dataset.is_present():
                raise self._overtaken() from error
            raise
        self._check()
        self._write_result(result_state)
        self._check()
        state = note(self._output, CURRENT, self._result, self._dataset.state)
        if state is None:
            raise self._overtaken()
        self._dataset.result, self._dataset.state = self._result, state
        self.clear_up(sources)

    def clear_up(self, sources: Collection[str] = ()) -> None:
        """Bring the index up to date, and remove files that are no longer the dataset's, staged ones, and the commit.

        Raises:
            LockLost: another process has done so while this one was paused.
        """
        self._check()
        if self._index and not write_index(self._output, self._result, self._dataset.is_present):
            raise self._overtaken()
        gone = [] if keeps_old_files(self._output) else without_versioned(self._gone, self._result)
        together([*(partial(self._remove, path) for path in gone), partial(self.tidy, sources)])
        self._check()
        self.forget()
        self._check()

    def tidy(self, sources: Collection[str] = ()) -> None:
        """Remove what was staged: it is published, or no longer needed."""
        self._check()
        _tidy(self._folder, self._build, {*sources, *self._of_jobs})

    def forget(self) -> None:
        """Remove ``commit.json``, if it is still that of this switch."""
        if self._output.state(COMMIT) == self._commit_state:
            self._output.remove(COMMIT)

    def _write_result(self, result_state: State) -> None:
        data = documents.dump(self._result, readable=True)
        if self._folder.files.write_if("result.json", data, result_state) is None:
            raise self._overtaken()

    def _publish(self, source: File, path: str) -> None:
        self._check()
        _publish(source, File(self._output, path))

    def _remove(self, path: str) -> None:
        self._check()
        remove(self._output, path)

    def _check(self) -> None:
        self._dataset.lock.check()

    def _overtaken(self) -> LockLost:
        try:
            self._check()
        except LockLost as lost:
            return lost
        paused = f"Run {self._folder.run_id} was paused or cut off while it switched the dataset in {self._output.uri}"
        return LockLost(f"{paused}, and another run has switched it since.", hint=LOST_HINT)


def note(output: Folder, name: str, content: Mapping[str, Any], state: State | None = None) -> State | None:
    """Write one of the dataset's own files if it is in that state, by default if it does not exist; its new state.

    Returns None if it is not in that state.
    """
    return output.write_if(name, documents.dump(content), state or {})


def _publish(source: File, target: File) -> None:
    """Make a staged file appear in the dataset."""
    try:
        source.folder.copy_to(source.key, target)
    except FileNotFoundError:
        raise Damaged(f"{source}, which is to go to {target}, is gone.", hint="") from None


def keeps_old_files(output: Folder) -> bool:
    """Whether files stay that the dataset no longer has: snapshots of an Iceberg table need them until they expire."""
    return output.exists(ICEBERG)


def remove(output: Folder, name: str) -> None:
    """Remove a file, and the partition folders that it leaves empty."""
    output.remove(name)
    output.remove_empty_parents(name)


def _tidy(folder: RunFolder, build: int, of_jobs: Collection[str]) -> None:
    """Remove what a build has staged, and files of jobs."""
    staging(folder, build).remove_all("")
    files = staging(folder)
    together([partial(files.remove, path) for path in of_jobs])
