"""The steps of a switch, of which none relies on the dataset's lock alone.

One process at a time holds that lock, but one that was paused may believe so for too long. So ``commit.json`` is only
created, never replaced, and it counts only if ``current.json`` is still what it was when the lock was taken; that and
the run's result are replaced only if they are still what they were; names of files are never used twice; and a staged
file is gone once another process has put it in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from shardkit.errors import Damaged, LockLost, StorageError
from shardkit.runfolder import documents
from shardkit.runfolder.folder import RunFolder
from shardkit.runfolder.names import CURRENT
from shardkit.storage.base import STATE_DIR, File
from shardkit.storage.locks import LOST_HINT
from shardkit.storage.side_by_side import together

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shardkit.runfolder.document_types import Commit, Result
    from shardkit.storage.base import Folder, State
    from shardkit.storage.locks import Held

STAGING = "dataset"
GENERATION = "generation-"
COMMIT = f"{STATE_DIR}/commit.json"


def staging(folder: RunFolder, generation: int | None = None) -> Folder:
    """Where a run's dataset files are written before the switch: each generation's apart, and those of jobs."""
    return folder.files.child(STAGING if generation is None else f"{STAGING}/{GENERATION}{generation}")


def generation_of(key: str) -> int:
    """The generation that staged the file ``key`` in the run's staging folder; 0 if a job did."""
    number = key.partition("/")[0].removeprefix(GENERATION)
    return int(number) if key.startswith(GENERATION) and number.isdigit() else 0  # no partition is named so


def name_of(key: str) -> str:
    """The name that a staged file is to have in the dataset."""
    return key.partition("/")[2] if generation_of(key) else key


@dataclass
class Dataset:
    """A dataset as the holder of its ``lock`` sees it: the ``result`` that describes it, and the state of that."""

    output: Folder
    lock: Held
    result: Result | None = None
    state: State = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        return [file["path"] for file in self.result["files"]] if self.result else []


class Switch:
    """A switch of a dataset to what ``commit`` says; ``made`` is the state of that file.

    ``of_jobs`` are the names of the files that jobs have staged, whether they are taken or not.
    """

    def __init__(self, dataset: Dataset, commit: Commit, made: State, *, of_jobs: Collection[str] = ()) -> None:
        self._dataset, self._output, self._made, self._of_jobs = dataset, dataset.output, made, of_jobs
        self._result, self._gone = commit["result"], commit["gone"]
        self._folder = RunFolder(dataset.output, self._result["run_id"])
        self._generation = self._result["generation"]

    def confirm(self) -> None:
        """See that the dataset is still the one that the switch was made for; from here on it cannot change.

        Raises:
            LockLost: it is another.
        """
        if self._is_overtaken():
            self.forget()
            raise self._overtaken()

    def staged(self) -> dict[str, tuple[File, int]]:
        """The staged files that may be still to be placed, by their names in the dataset, with their sizes in bytes."""
        files = staging(self._folder)
        mine = {0, self._generation}
        entries = [entry for entry in files.entries() if generation_of(entry.key) in mine]
        return {name_of(entry.key): (File(files, entry.key), entry.bytes) for entry in entries}

    def finish(self, sources: Mapping[str, File], earlier: State) -> None:
        """Carry it out.

        ``sources`` are the staged files that nobody has placed yet, by their names in the dataset; ``earlier`` is the
        state of the run's result, if it has one.

        Raises:
            LockLost: another process has carried it out, while this one was paused.
        """
        try:
            together([partial(self._place, source, path) for path, source in sources.items()])
        except StorageError as error:
            if self._is_overtaken():
                raise self._overtaken() from error
            raise
        self._check()
        self._write_result(earlier)
        self._check()
        state = note(self._output, CURRENT, self._result, self._dataset.state)
        if state is None:
            raise self._overtaken()
        self._dataset.result, self._dataset.state = self._result, state
        self.clear_up(sources)

    def clear_up(self, sources: Collection[str] = ()) -> None:
        """Remove what nobody counts on any more, now that the dataset is another one."""
        self._check()
        together([*(partial(self._remove, path) for path in self._gone), partial(self.tidy, sources)])
        self._check()
        self.forget()
        self._check()

    def tidy(self, sources: Collection[str] = ()) -> None:
        """Remove what was staged; nobody counts on it any more."""
        self._check()
        _tidy(self._folder, self._generation, {*sources, *self._of_jobs})

    def forget(self) -> None:
        """Remove ``commit.json``, if it is still this one."""
        if self._output.state(COMMIT) == self._made:
            self._output.remove(COMMIT)

    def _write_result(self, earlier: State) -> None:
        data = documents.dump(self._result, readable=True)
        if self._folder.files.write_if("result.json", data, earlier) is None:
            raise self._overtaken()

    def _place(self, source: File, path: str) -> None:
        self._check()
        _place(source, File(self._output, path))

    def _remove(self, path: str) -> None:
        self._check()
        remove(self._output, path)

    def _check(self) -> None:
        self._dataset.lock.check()

    def _is_overtaken(self) -> bool:
        return self._output.state(CURRENT) != self._dataset.state

    def _overtaken(self) -> LockLost:
        try:
            self._check()
        except LockLost as lost:
            return lost
        told = f"Run {self._folder.run_id} was paused or cut off while it switched the dataset in {self._output.uri}"
        return LockLost(f"{told}, and another run has switched it since.", hint=LOST_HINT)


def note(output: Folder, name: str, content: Mapping[str, Any], state: State | None = None) -> State | None:
    """Write one of the dataset's own files, if it is in that state, or else if it is not there; its new state."""
    return output.write_if(name, documents.dump(content), state or {})


def _place(source: File, target: File) -> None:
    """Make a staged file appear in the dataset."""
    try:
        source.folder.place(source.key, target)
    except FileNotFoundError:
        raise Damaged(f"{source}, which is to go to {target}, is gone.", hint="") from None


def remove(output: Folder, name: str) -> None:
    """Remove a file, and the partition folders that it leaves empty."""
    output.remove(name)
    output.remove_empty_parents(name)


def _tidy(folder: RunFolder, generation: int, of_jobs: Collection[str]) -> None:
    """Remove what a generation has staged, and files of jobs."""
    staging(folder, generation).remove_all("")
    files = staging(folder)
    together([partial(files.remove, path) for path in of_jobs])
